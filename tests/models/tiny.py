"""The repository of `menagerie bench --tiny`, made anew: python -m tests.models.tiny DIRECTORY."""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.artifact.artifact import Spec
from models.inputs import ImageInput
from tests.models.published import publish

STRIDE = 16  # of the pixels, one in 256 is looked at: the model shall cost nothing


def mean_colour_onnx(spec):
    """The mean of each channel over every 16th pixel of every 16th row -> softmax."""
    constants = {
        "starts": np.array([0, 0], np.int64),
        "ends": np.array([spec.input.height, spec.input.width], np.int64),
        "axes": np.array([1, 2], np.int64),
        "steps": np.array([STRIDE, STRIDE], np.int64),
        "scale": np.float32(1 / 64),
    }
    nodes = [
        helper.make_node("Slice", ["pixels", "starts", "ends", "axes", "steps"], ["few"]),
        helper.make_node("Cast", ["few"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled", "axes"], ["logits"], keepdims=0),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", *spec.input.shape])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", spec.num_classes])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def make_tiny(repository):
    spec = Spec(
        architecture="tiny",
        framework="torch",
        num_classes=3,
        input=ImageInput(height=224, width=224),
        output="logits",
        labels=("red", "green", "blue"),
    )
    return publish(repository / "tiny", spec, mean_colour_onnx(spec))


if __name__ == "__main__":
    make_tiny(Path(sys.argv[1]))
