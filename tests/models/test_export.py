"""What a framework keeps outside of its weights stays inside of the graph."""

import pytest

from tests.models.test_keras_applications import START
from tests.models.test_torchvision_models import child

# Keras' Normalization, with what it learned from data.
NORMALIZED = f"""{START}
from models import export
from models.artifact import Spec
from models.inputs import NumbersInput

normalization = keras.layers.Normalization()
normalization.adapt(np.array([[1.0, 2.0], [3.0, 8.0]]))
network = keras.Sequential([keras.layers.Input((2,)), normalization, keras.layers.Dense(3)])
spec = Spec(architecture="mlp_iris", framework="keras", num_classes=3, input=NumbersInput(shape=(2,)), output="logits",
            labels=tuple("abc"))
graph = export.export(network, spec).graph
print(json.dumps([len(graph.input), len(graph.output)]))
"""


@pytest.mark.slow
def test_a_keras_normalization_becomes_no_input_of_the_graph():
    assert child(NORMALIZED) == [[1, 1]]
