"""ONNX models as other exporters write them."""

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper


def model(
    nodes: list[onnx.NodeProto] | None = None,
    constants: list[onnx.TensorProto] | None = None,
    shape: tuple[str | int, ...] = ("batch", 3, 8, 8),
    kind: int = TensorProto.FLOAT,
    width: int = 3,
    *,
    opset: int = 17,
    domains: Sequence[str] = (),
    **more: Any,
) -> onnx.ModelProto:
    """The mean of each channel, unless other nodes are given."""
    nodes = nodes or [helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0], width])],
        constants or [],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, **more)
