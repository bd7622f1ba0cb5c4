"""Exports a network to ONNX, and joins the artifact's preprocessing and softmax to it.

The served graph takes `pixels`, uint8 [N, height, width, channels] (or `numbers`, float32 [N, ...]), and returns
`probabilities`, float32 [N, classes]. The network's own output is returned too, for comparison.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.artifact.artifact import Runtime, Spec
from models.conversion.graph.keras_export import export_keras
from models.conversion.graph.programs import Program
from models.inputs import ImageInput, NumbersInput

Array = np.ndarray[Any, Any]

_PREFIX = "network/"


def network_input(spec: Spec, items: Array) -> Array:
    """The input of the network itself, computed with NumPy: the reference for the preprocessing in the joined graph."""
    if isinstance(spec.input, NumbersInput):
        return items.astype(spec.dtype)
    scaled = spec.input.normalized(items).astype(spec.dtype)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)) if spec.channels_first else scaled


def forward(network: Any, framework: Runtime, batch: Array) -> Array:
    """The framework's own output for a batch from `network_input`."""
    if isinstance(network, Program):
        return network.run(batch)
    if framework == "keras":
        return np.asarray(network(batch, training=False))
    import torch  # noqa: PLC0415

    with torch.inference_mode():
        answer: Array = network(torch.from_numpy(batch)).numpy()
    return answer


def export(network: Any, spec: Spec) -> onnx.ModelProto:
    """The network alone as ONNX, exported by its framework, with a free batch dimension."""
    shape = spec.input.shape
    example = network_input(spec, np.zeros((2, *shape), np.uint8 if isinstance(spec.input, ImageInput) else np.float32))
    if isinstance(network, Program):
        return network.to_onnx(example)
    return (_export_torch if spec.framework == "torch" else export_keras)(network, example)


def _export_torch(network: Any, example: Array) -> onnx.ModelProto:
    import torch  # noqa: PLC0415

    program = torch.onnx.export(
        network.eval(),
        (torch.from_numpy(example),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )
    model: onnx.ModelProto = program.model_proto
    return model


def join(network: onnx.ModelProto, spec: Spec) -> onnx.ModelProto:
    """The served graph: preprocessing, the network and softmax."""
    network = onnx.compose.add_prefix(network, _PREFIX)
    (source,), (result,) = network.graph.input, network.graph.output
    nodes, constants, pixels = _preprocessing(spec, source.name)
    tail, more = _probabilities(spec)
    widths = {"probabilities": spec.num_classes, spec.output: spec.outputs}
    graph = helper.make_graph(
        [*nodes, *network.graph.node, helper.make_node("Identity", [result.name], [spec.output]), *tail],
        "menagerie",
        [pixels],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name, width in widths.items()],
        [*constants, *more, *network.graph.initializer],
    )
    model = helper.make_model(
        graph, opset_imports=network.opset_import, functions=network.functions, ir_version=network.ir_version
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _probabilities(spec: Spec) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes and constants that turn the network's output, named `spec.output`, into one probability for each class."""
    if spec.output == "probabilities":
        return [], []
    if spec.output == "logits":
        return [helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1)], []
    nodes = [
        helper.make_node("Sub", ["one", "probability"], ["other"]),
        helper.make_node("Concat", ["other", "probability"], ["probabilities"], axis=1),
    ]
    if spec.output == "logit":
        nodes.insert(0, helper.make_node("Sigmoid", ["logit"], ["probability"]))
    return nodes, [numpy_helper.from_array(np.ones(1, np.float32), "one")]


def _preprocessing(spec: Spec, target: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], onnx.ValueInfoProto]:
    """Nodes and constants that turn the served input into the network's input, named `target`."""
    if isinstance(spec.input, NumbersInput):
        numbers = helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["batch", *spec.input.shape])
        return [helper.make_node("Identity", ["numbers"], [target])], [], numbers
    image = spec.input
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def then(operator: str, *others: str, **attributes: Any) -> None:
        last = nodes[-1].output[0] if nodes else "pixels"
        nodes.append(helper.make_node(operator, [last, *others], [f"pixels/{operator}"], **attributes))

    if image.order == "bgr":
        constants.append(numpy_helper.from_array(np.array([2, 1, 0], np.int64), "bgr"))
        then("Gather", "bgr", axis=3)
    if spec.dtype == "float32":
        mean, std = np.array(image.mean), np.array(image.std)
        constants += [
            numpy_helper.from_array((image.scale / std).astype(np.float32), "scale"),
            numpy_helper.from_array((-mean / std).astype(np.float32), "shift"),
        ]
        then("Cast", to=TensorProto.FLOAT)
        then("Mul", "scale")
        then("Add", "shift")
    if spec.channels_first:
        then("Transpose", perm=[0, 3, 1, 2])
    then("Identity")
    nodes[-1].output[0] = target
    return nodes, constants, helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", *image.shape])
