"""Reads an ONNX file as data: one file, standard operators, no reference to other files."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.artifact.bounds import MAX_VALUES
from models.artifact.formats import BROKEN_FILE
from models.errors import ArtifactError

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
LEAST_OPSET = 7  # from here on arithmetic broadcasts as in NumPy
LEAST_IR = 4  # from here on a constant need not be an input too
MAX_BYTES = 2**31 - 1  # the limit of protocol buffers

_STANDARD = "export the model again with standard operators (ai.onnx, ai.onnx.ml, com.microsoft)"
_ONE_FILE = "save it as one file: onnx.save(onnx.load('model.onnx'), 'weights.onnx')"


def read(path: Path) -> onnx.ModelProto:
    """The checked model. Half precision becomes float32. Raises ArtifactError."""
    if path.stat().st_size > MAX_BYTES:
        raise ArtifactError(f"{path.name} has more than 2 GiB", "serve a smaller network, or one of lower precision")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # an error of protocol buffers
        raise ArtifactError(f"{path.name} cannot be read as an ONNX model", BROKEN_FILE) from error
    check(model, path.name)
    for part in (model.graph, *model.functions):
        _widen(part)
    _make_modern(model.graph)
    model.ir_version = max(model.ir_version, LEAST_IR)
    try:
        onnx.checker.check_model(model)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"{path.name} is not a valid ONNX model: {reason}", "export the model again") from error
    for value in inferred.graph.value_info:
        sizes = [size.dim_value for size in value.type.tensor_type.shape.dim if size.HasField("dim_value")]
        if math.prod(sizes) > MAX_VALUES:
            raise ArtifactError(
                f"{path.name} would compute a tensor of {' x '.join(map(str, sizes))} numbers",
                "serve a smaller network",
            )
    return model


def check(model: onnx.ModelProto, name: str) -> None:
    """Raises ArtifactError if the model refers to another file, or to an operator that is not standard."""
    own = {(function.domain, function.name) for function in model.functions}
    for domain in (each.domain for each in model.opset_import):
        if domain not in DOMAINS | {domain for domain, _ in own}:
            raise ArtifactError(f"{name} needs operators of {domain!r}, which would be code", _STANDARD)
    if model.training_info:
        raise ArtifactError(f"{name} contains a training graph", "export the model for inference")
    for part in (model.graph, *model.functions):
        for message in _messages(part):
            if isinstance(message, TensorProto):
                if message.data_location == TensorProto.EXTERNAL or message.external_data:
                    raise ArtifactError(f"{name} keeps {message.name or 'a tensor'} in another file", _ONE_FILE)
            elif message.domain not in DOMAINS and (message.domain, message.op_type) not in own:
                raise ArtifactError(f"{name} needs {message.domain}.{message.op_type}, which would be code", _STANDARD)
    opset = max((each.version for each in model.opset_import if each.domain in {"", "ai.onnx"}), default=0)
    if opset < LEAST_OPSET:
        raise ArtifactError(
            f"{name} has opset {opset}, and the minimum is {LEAST_OPSET}", "export it again, with a newer opset"
        )


def _messages(part: Any) -> Iterator[Any]:
    """Every node and every tensor of a graph or a function, including branches and loops."""
    for scope in _scopes(part):
        if isinstance(scope, onnx.GraphProto):
            yield from scope.initializer
            for sparse in scope.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in scope.node:
            yield node
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    yield from (sparse.values, sparse.indices)
        for attribute in getattr(scope, "attribute_proto", ()):  # a function's defaults
            yield from (attribute.t, *attribute.tensors)


def _scopes(part: Any) -> Iterator[Any]:
    """A graph or a function, and every graph inside it."""
    pending = [part]
    while pending:
        scope = pending.pop()
        yield scope
        for attribute in (attribute for node in scope.node for attribute in node.attribute):
            pending += [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs


def _widen(part: Any) -> None:
    """Turns half precision into float32: processors compute in it, and results can be compared."""
    half = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
    for message in _messages(part):
        if isinstance(message, TensorProto):
            if message.data_type in half:
                wide = numpy_helper.to_array(message).astype(np.float32)
                message.CopyFrom(numpy_helper.from_array(wide, message.name))
        else:
            for attribute in message.attribute:
                if attribute.name in {"to", "dtype"} and attribute.i in half:
                    attribute.i = TensorProto.FLOAT
    for scope in _scopes(part):
        values = (
            (*scope.input, *scope.output, *scope.value_info) if isinstance(scope, onnx.GraphProto) else scope.value_info
        )
        for value in values:
            if value.type.tensor_type.elem_type in half:
                value.type.tensor_type.elem_type = TensorProto.FLOAT


def _make_modern(graph: onnx.GraphProto) -> None:
    """Removes the constants from the inputs, where old files list them too."""
    constants = {each.name for each in graph.initializer}
    inputs = [each for each in graph.input if each.name not in constants]
    del graph.input[:]
    graph.input.extend(inputs)


def shape_of(value: onnx.ValueInfoProto) -> tuple[int | None, ...] | None:
    """The sizes of an input or output, None for each that is free; None if the shape is not given."""
    if not value.type.tensor_type.HasField("shape"):
        return None
    return tuple(
        size.dim_value if size.HasField("dim_value") and size.dim_value > 0 else None
        for size in value.type.tensor_type.shape.dim
    )


def last_operator(graph: onnx.GraphProto) -> str:
    """The operator that computes the output. Operators that only rearrange its numbers are skipped."""
    makers = {name: node for node in graph.node for name in node.output}
    node = makers.get(graph.output[0].name)
    while node is not None and node.op_type in {"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}:
        node = makers.get(node.input[0])
    return "" if node is None else str(node.op_type)


def with_free_batch(model: onnx.ModelProto, *, flat: bool) -> onnx.ModelProto:
    """The model with a free batch dimension. With `flat`, the output for each item becomes a row of numbers."""
    free = onnx.ModelProto()
    free.CopyFrom(model)
    graph = free.graph
    (source,), (result,) = graph.input, graph.output
    source.type.tensor_type.shape.dim[0].dim_param = "batch"
    del graph.value_info[:]
    if flat:
        graph.node.append(helper.make_node("Flatten", [result.name], [f"{result.name}/flat"], axis=1))
        result.name = f"{result.name}/flat"
    result.type.tensor_type.ClearField("shape")
    return free
