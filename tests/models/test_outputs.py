"""Outputs become one probability for each class, in NumPy and in the served graph alike."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from pydantic import ValidationError

from models.conversion.graph.export import join
from models.outputs import probabilities_of
from tests.models.published import spec_of

GIVEN = {
    "logits": ([[0.0, np.log(3)], [200.0, 0.0]], [[0.25, 0.75], [1.0, 0.0]]),
    "probabilities": ([[0.25, 0.75]], [[0.25, 0.75]]),
    "logit": ([[np.log(3)], [-200.0], [0.0]], [[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]]),
    "probability": ([[0.75], [0.0]], [[0.25, 0.75], [1.0, 0.0]]),
}


@pytest.mark.parametrize("output", GIVEN)
def test_every_class_has_a_probability(output):
    given, expected = map(np.array, GIVEN[output])
    np.testing.assert_allclose(probabilities_of(given, output), expected, atol=1e-12)


@pytest.mark.parametrize("output", GIVEN)
def test_the_served_graph_gives_the_same(output):
    given, expected = (np.array(values, np.float32) for values in GIVEN[output])
    width = given.shape[1]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "same", ends[:1], ends[1:])
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    served = join(network, spec_of(output))
    onnx.checker.check_model(served, full_check=True)
    session = onnxruntime.InferenceSession(served.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(["probabilities"], {"numbers": given})[0], expected, atol=1e-6)
    np.testing.assert_array_equal(session.run([output], {"numbers": given})[0], given)


@pytest.mark.parametrize("output", ["logit", "probability"])
def test_one_number_tells_two_classes_apart(output):
    with pytest.raises(ValidationError, match="distinguishes two classes, and there are 3"):
        spec_of(output, num_classes=3)
