"""Tiny models of real ONNX, published as a conversion would publish them: no framework is needed to serve them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.artifact.artifact import Spec
from models.artifact.manifest import MANIFEST_FILE, ONNX_FILE, Manifest, Parity
from models.inputs import ImageInput, NumbersInput
from models.outputs import Output, outputs_of


def softmax_onnx(spec: Spec) -> bytes:
    """Mean of each channel (or each number itself) -> softmax."""
    if isinstance(spec.input, ImageInput):
        source = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", *spec.input.shape])
        axes = numpy_helper.from_array(np.array([1, 2], np.int64), "axes")
        scale = numpy_helper.from_array(np.float32(1 / 64), "scale")
        nodes = [
            helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
            helper.make_node("ReduceMean", ["scaled", "axes"], ["logits"], keepdims=0),
        ]
        constants = [axes, scale]
    else:
        source = helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["batch", *spec.input.shape])
        nodes, constants = [helper.make_node("Identity", ["numbers"], ["logits"])], []
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1))
    result = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", spec.num_classes])
    graph = helper.make_graph(nodes, "softmax", [source], [result], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def publish(model: Path, spec: Spec, content: bytes, version: int = 1) -> Path:
    """Writes `<model>/model.toml` and `<model>/<version>/` as `menagerie convert --output` does."""
    directory = model / str(version)
    directory.mkdir(parents=True)
    (model / "model.toml").write_text(f'architecture = "{spec.architecture}"\n')
    manifest = Manifest(
        fingerprint=hashlib.sha256(content).hexdigest(),
        spec=spec,
        parity=Parity(relative_error=0, probability_error=0, top1_agreement=1, batches=(1, 3), items=6),
        onnx_sha256=hashlib.sha256(content).hexdigest(),
        onnx_bytes=len(content),
        opset=20,
        producers={},
        seconds={},
    )
    (directory / ONNX_FILE).write_bytes(content)
    (directory / MANIFEST_FILE).write_text(manifest.model_dump_json())
    return directory


def publish_softmax(
    model: Path, version: int = 1, size: int = 8, labels: tuple[str, ...] = ("red", "green", "blue")
) -> Path:
    """A model that says which colour an image has most of."""
    spec = Spec(
        architecture="lenet5",
        framework="torch",
        num_classes=3,
        input=ImageInput(height=size, width=size, resize="stretch"),
        output="logits",
        labels=labels,
    )
    return publish(model, spec, softmax_onnx(spec), version)


def publish_ballast(model: Path, size: int, version: int = 1) -> Path:
    """The same with that many bytes of weights, which the answer passes through unchanged."""
    spec = Spec(
        architecture="lenet5",
        framework="torch",
        num_classes=3,
        input=ImageInput(height=8, width=8, resize="stretch"),
        output="logits",
        labels=("red", "green", "blue"),
    )
    graph = onnx.load_from_string(softmax_onnx(spec)).graph
    width = size // 4 // 6
    rng = np.random.default_rng(version)
    into = rng.normal(size=(3, width)).astype(np.float32)
    back = np.linalg.pinv(into.astype(np.float64)).astype(np.float32)
    softmax = graph.node.pop()
    graph.initializer.extend([numpy_helper.from_array(into, "into"), numpy_helper.from_array(back, "back")])
    graph.node.append(helper.make_node("MatMul", ["logits", "into"], ["wide"]))
    graph.node.append(helper.make_node("MatMul", ["wide", "back"], ["narrow"]))
    graph.node.append(helper.make_node("Softmax", ["narrow"], softmax.output, axis=-1))
    model_proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return publish(model, spec, model_proto.SerializeToString(), version)


def publish_numbers(model: Path, version: int = 1) -> Path:
    """A model that says which of three numbers is the largest."""
    spec = Spec(
        architecture="mlp_iris",
        framework="keras",
        num_classes=3,
        input=NumbersInput(shape=(3,)),
        output="logits",
        labels=("first", "second", "third"),
    )
    return publish(model, spec, softmax_onnx(spec), version)


SPEC = Spec(
    architecture="mlp_iris",
    framework="torch",
    num_classes=3,
    input=NumbersInput(shape=(3,)),
    output="logits",
    labels=("first", "second", "third"),
)
"""Of a model that takes three numbers."""


def graph(
    nodes: list[onnx.NodeProto],
    constants: Mapping[str, Any] | None = None,
    source: tuple[str, int, list[str | int]] = ("numbers", TensorProto.FLOAT, ["batch", 3]),
    result: str = "probabilities",
) -> bytes:
    """A graph of these nodes, from `numbers` to `probabilities`."""
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*source)],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    return bytes(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    )


def edited(directory: Path, **changes: object) -> Path:
    """With other claims in its manifest; the spec's by their own names."""
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    for name, value in changes.items():
        (manifest if name in manifest else manifest["spec"])[name] = value
    path.write_text(json.dumps(manifest))
    return directory


def endless() -> bytes:
    """A loop that adds 1 as often as 64 bits count."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["still"]), helper.make_node("Add", ["old", "one"], ["new"])],
        "body",
        [
            helper.make_tensor_value_info("count", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("old", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("new", TensorProto.FLOAT, None),
        ],
    )
    nodes = [helper.make_node("Loop", ["times", "", "numbers"], ["probabilities"], body=body)]
    return graph(nodes, {"times": np.int64(2**62), "one": np.float32(1)})


def spec_of(output: Output, num_classes: int = 2) -> Spec:
    """Of a network of two numbers that gives such an output."""
    return Spec(
        architecture="mlp_binary",
        framework="torch",
        num_classes=num_classes,
        input=NumbersInput(shape=(outputs_of(output, num_classes),)),
        output=output,
        labels=tuple(map(str, range(num_classes))),
    )
