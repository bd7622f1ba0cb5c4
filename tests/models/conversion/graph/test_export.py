"""State that a framework keeps outside of the weights is kept in the graph."""

import pytest

from tests.models.scripts import START, child

# Keras' Normalization, with what it learned from data, grouped convolutions, which Keras compiles on a CPU, and
# GELU, which has an operator that ONNX lacks.
NETWORKS = f"""{START}
from models.conversion.graph import export
from models.artifact.artifact import Spec
from models.inputs import ImageInput

layers = keras.layers
normalization = layers.Normalization()
normalization.adapt(np.random.default_rng(0).normal(size=(4, 8, 8, 3)))
convolutions = [layers.Conv2D(6, 3, groups=3, activation="gelu"), layers.Conv2D(3, 3, groups=3)]
for inside in ([normalization], convolutions):
    network = keras.Sequential([layers.Input((8, 8, 3)), *inside, layers.GlobalAveragePooling2D()])
    spec = Spec(architecture="any", framework="keras", num_classes=3, input=ImageInput(height=8, width=8),
                output="logits", labels=tuple("abc"))
    graph = export.export(network, spec).graph
    kinds = [node.op_type for node in graph.node]
    print(json.dumps([len(graph.input), len(graph.output), kinds.count("Conv"), kinds.count("Erfc")]))
"""


@pytest.mark.slow
def test_keras_layers_that_need_help_become_onnx():
    assert child(NETWORKS) == [[1, 1, 0, 0], [1, 1, 2, 0]]
