"""Exports a Keras network to ONNX with tf2onnx, and works around its limits."""

import contextlib
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray[Any, Any]

_LARGE_KERNEL = 2**16  # values


def export_keras(network: Any, example: Array) -> onnx.ModelProto:
    """The network as ONNX, with a free batch dimension. `example` is a batch of valid input.

    tf2onnx copies a constant some twenty times. To save memory, large kernels are inputs of the graph meanwhile.
    """
    import keras  # noqa: PLC0415
    from keras import layers  # noqa: PLC0415

    network(example, training=False)  # a subclassed model knows its shapes only after a call
    for layer in network.layers:
        if isinstance(layer, layers.Normalization):  # its tensors are not variables, and would become inputs
            layer.mean, layer.variance = np.asarray(layer.mean), np.asarray(layer.variance)
    kernels = [
        layer.kernel
        for layer in network.layers
        if isinstance(layer, layers.Conv2D | layers.Dense)
        and getattr(layer, "groups", 1) == 1
        and math.prod(layer.kernel.shape) >= _LARGE_KERNEL
    ]

    class WithoutKernels(keras.Model):  # type: ignore[misc]
        def call(self, inputs: Sequence[Any]) -> Any:
            batch, *values = inputs
            with keras.StatelessScope(state_mapping=list(zip(kernels, values, strict=True))):
                return network(batch, training=False)

    shapes = [(None, *example.shape[1:]), *(kernel.shape for kernel in kernels)]
    types = [str(example.dtype), *("float32" for _ in kernels)]
    signature = [
        keras.InputSpec(dtype, shape, name=f"input_{index}")
        for index, (dtype, shape) in enumerate(zip(types, shapes, strict=True))
    ]
    without = WithoutKernels()
    without([example, *kernels])
    with tempfile.TemporaryDirectory() as directory, _without_xla():
        path = Path(directory) / "network.onnx"
        without.export(path, format="onnx", verbose=False, input_signature=[signature])
        model = onnx.load(path)
    _spell_out_erfc(model.graph)
    _make_constant(model.graph, {f"input_{index}": np.asarray(kernel) for index, kernel in enumerate(kernels, 1)})
    return model


def _make_constant(graph: onnx.GraphProto, values: dict[str, Array]) -> None:
    """Turns inputs of the graph into constants. One that the graph only transposes is transposed here instead."""
    inputs = [each for each in graph.input if each.name not in values]
    readers = Counter(name for node in graph.node for name in node.input)
    transposes = [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in values]
    for node in transposes:
        if readers[node.input[0]] == 1:
            (order,) = (list(attribute.ints) for attribute in node.attribute if attribute.name == "perm")
            values[node.output[0]] = values.pop(node.input[0]).transpose(order)
            graph.node.remove(node)
    del graph.input[:]
    graph.input.extend(inputs)
    while values:
        name, value = values.popitem()
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))


def _spell_out_erfc(graph: onnx.GraphProto) -> None:
    """Replaces Erfc(x), which TensorFlow's GELU uses and ONNX lacks, by 1 - Erf(x)."""
    nodes = []
    for node in graph.node:
        if node.op_type == "Erfc":
            nodes.append(helper.make_node("Erf", node.input, [f"{node.output[0]}/erf"]))
            nodes.append(helper.make_node("Sub", ["erfc/one", f"{node.output[0]}/erf"], node.output))
        else:
            nodes.append(node)
    if len(nodes) > len(graph.node):
        graph.initializer.append(numpy_helper.from_array(np.ones((), np.float32), "erfc/one"))
        del graph.node[:]
        graph.node.extend(nodes)


@contextlib.contextmanager
def _without_xla() -> Iterator[None]:
    """Keeps TensorFlow from compiling parts of a network with XLA, as Keras asks for grouped convolutions on a CPU.

    tf2onnx cannot convert a compiled part.
    """
    import tensorflow as tf  # noqa: PLC0415

    function = tf.function

    def plain(*arguments: Any, **options: Any) -> Any:
        return function(*arguments, **{**options, "jit_compile": None})

    tf.function = plain
    try:
        yield
    finally:
        tf.function = function
