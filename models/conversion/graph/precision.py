"""fp16 and int8 graphs, made from the fp32 graph, and the gates that they must pass before they are served."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers import float16

from models import hardware
from models.artifact.artifact import Precision, Spec
from models.artifact.manifest import Choice, Parity, Trial
from models.conversion.graph import calibration
from models.conversion.graph.parity import measure
from models.errors import ArtifactError

Array = NDArray[Any]

AGREEMENT: Mapping[Precision, float] = {"fp16": 0.99, "int8": 0.98}  # share of items with the same best label as fp32
SPEED = 1.15  # a smaller speed-up over fp32 is not worth the loss of accuracy
LEAST = 20  # outputs, below which agreement means nothing; and images, below which `auto` does not choose int8

BATCH = 8
_SECONDS, _ROUNDS = 0.3, 3

_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
# Operators that int8 suits, or that pass numbers on. Softmax and Sigmoid stay in float: their small values matter.
_QUANTIZED = [
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "Relu", "Clip", "LeakyRelu", "MaxPool", "AveragePool"),
    *("GlobalAveragePool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Pad", "Slice", "Split"),
]


@dataclass(frozen=True)
class Chosen:
    """A graph to publish, and why it was chosen."""

    content: bytes
    opset: int
    parity: Parity
    precision: Precision = "fp32"
    choice: Choice | None = None


def choose(fp32: Chosen, spec: Spec, paths: Sequence[Path]) -> Chosen:
    """The graph in the requested precision; with `auto`, the fastest one that passes its gates.

    Raises ArtifactError if a precision requested by name cannot be made, or fails its gate of agreement.
    """
    if spec.precision != "auto":
        assert spec.precision != "fp32"
        low, trial = attempt(fp32, spec, spec.precision, paths)
        if not trial.chosen:
            cure = f'put more images, some of every class, into {_FOLDER}, or set precision = "fp32"'
            raise ArtifactError(trial.reason, f"{cure}; precision_agreement would let it pass")
        return replace(low, choice=Choice(trials=(trial,), fp32=fp32.parity))
    on_gpu = hardware.has_gpu()
    fp16 = Trial(precision="fp16", chosen=False, reason=_NOT_MEASURED if on_gpu else _FOR_GPUS)
    low, trial = fp32, Trial(precision="int8", chosen=False, reason=_FOR_PROCESSORS)
    if not on_gpu:
        try:
            low, trial = attempt(fp32, spec, "int8", paths)
        except ArtifactError as error:
            trial = trial.model_copy(update={"reason": f"{error}; {error.cure}"})
    if trial.chosen and trial.speed is not None and trial.speed < SPEED:
        reason = f"it is {trial.speed:.2f} times as fast as fp32 here, and {SPEED} is the minimum"
        trial = trial.model_copy(update={"chosen": False, "reason": reason})
    return replace(low if trial.chosen else fp32, choice=Choice(trials=(trial, fp16), fp32=fp32.parity))


_FP32 = 'set precision = "fp32"'
_FOLDER = "calibration/ beside model.toml"
_FOR_GPUS = "it is for GPUs: processors compute it in fp32"
_FOR_PROCESSORS = "it is for processors, and this machine has a GPU"
_NOT_MEASURED = 'conversion uses no GPU, so its speed cannot be measured: to use it, set precision = "fp16"'


def attempt(
    fp32: Chosen, spec: Spec, precision: Literal["fp16", "int8"], paths: Sequence[Path]
) -> tuple[Chosen, Trial]:
    """The graph in that precision, and its measurements. It is chosen if it agrees with fp32. Raises ArtifactError."""
    items = calibration.read(paths, spec.input)
    least = spec.precision_agreement or AGREEMENT[precision]
    cure = f'put {3 * LEAST} images or more, of several classes, into {_FOLDER}, or set precision = "fp32"'
    if (items.images if spec.precision == "auto" else len(items.judged)) < LEAST:
        raise ArtifactError(f"there are {items.images} held-out items to judge by, which is too few", cure)
    expected = _answers(fp32.content, spec, items.judged)
    if len(set(expected["probabilities"].argmax(1))) == 1:
        raise ArtifactError(
            f"fp32 gives all {items.images} held-out items the same label, so agreement means nothing", cure
        )
    try:
        content, opset = _lowered(fp32.content, precision, items.calibration)
        found = _answers(content, spec, items.judged)
    except ArtifactError:
        raise
    except Exception as error:  # ONNX Runtime's tools fail on some kinds of networks
        what = " ".join(str(error).split())[:200]
        raise ArtifactError(f"ONNX Runtime cannot convert the network to {precision}: {what}", _FP32) from error
    if not all(np.isfinite(each).all() for each in found.values()):
        raise ArtifactError(f"some outputs in {precision} are not finite: its range is too small", _FP32)
    parity = measure(expected, found, spec.output, (BATCH,))
    agrees = parity.top1_agreement >= least
    views = "" if len(items.judged) == items.images else f" in {len(items.judged)} views"
    trial = Trial(
        precision=precision,
        chosen=agrees,
        reason=f"{precision} gives fp32's best label for {parity.top1_agreement:.1%} of {items.images} held-out items"
        f"{views}; {least:.1%} is the minimum",
        calibrated_on=len(items.calibration),
        judged_on=items.images,
        parity=parity,
        speed=round(_speed(fp32.content, content, items.judged), 2),
    )
    return Chosen(content, opset, parity, precision), trial


# The graphs.


def _lowered(content: bytes, precision: Literal["fp16", "int8"], items: Array) -> tuple[bytes, int]:
    """The graph in that precision, and its opset."""
    graph = prepared(content)
    graph = quantized(graph, items) if precision == "int8" else halved(graph)
    opset = next(opset.version for opset in graph.opset_import if opset.domain in {"", "ai.onnx"})
    return graph.SerializeToString(), opset


def prepared(content: bytes) -> onnx.ModelProto:
    """The graph with batch normalisation folded and every node named, as quantization requires."""
    with tempfile.TemporaryDirectory() as directory:
        source, target = (Path(directory) / name for name in ("fp32.onnx", "prepared.onnx"))
        source.write_bytes(content)
        quant_pre_process(str(source), str(target), skip_symbolic_shape=True)
        graph = onnx.load(target)
    for index, node in enumerate(graph.graph.node):
        node.name = node.name or f"{node.op_type}/{index}"
    return graph


def in_float(graph: onnx.ModelProto) -> list[str]:
    """The nodes that stay in float: preprocessing, and everything from the last layer with weights to the outputs."""
    constants = {constant.name for constant in graph.graph.initializer}
    given = {source.name for source in graph.graph.input}
    kept = []
    for node in graph.graph.node:
        sources = {name for name in node.input if name} - constants
        if sources and sources <= given and node.op_type not in _WEIGHTED:
            kept.append(node.name)
            given |= set(node.output)
    wanted = {result.name for result in graph.graph.output}
    for node in reversed(graph.graph.node):
        if wanted & set(node.output):
            kept.append(node.name)
            wanted |= set() if node.op_type in _WEIGHTED else set(node.input)
    return kept


def halved(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in fp16. Its inputs and outputs keep their types."""
    half: onnx.ModelProto = float16.convert_float_to_float16(graph, keep_io_types=True, node_block_list=in_float(graph))
    return half


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Gives the calibration items to ONNX Runtime, one by one."""

    def __init__(self, name: str, items: Array) -> None:
        self._feeds = ({name: item[None]} for item in items)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)


def quantized(graph: onnx.ModelProto, items: Array) -> onnx.ModelProto:
    """The graph in int8: static, in QDQ format, with weights quantized by channel. Raises ArtifactError."""
    with tempfile.TemporaryDirectory() as directory:
        source, target = (Path(directory) / name for name in ("prepared.onnx", "int8.onnx"))
        onnx.save(graph, source)
        quantize_static(
            str(source),
            str(target),
            _Reader(graph.graph.input[0].name, items),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=hardware.int8_saturates(),
            # What ONNX Runtime recommends on x86. On efficientnet_lite0 calibration by entropy or percentile and signed
            # activations agreed no better with fp32, unsigned weights and a range by tensor much worse.
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=_QUANTIZED,
            nodes_to_exclude=in_float(graph),
        )
        result = onnx.load(target)
    if all(node.op_type != "QuantizeLinear" for node in result.graph.node):
        raise ArtifactError("the network has no layer that int8 would speed up", _FP32)
    return result


# The measurements.


def _session(content: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _answers(content: bytes, spec: Spec, items: Array) -> dict[str, Array]:
    """The outputs of the network, and the probabilities."""
    session, names = _session(content, 0), (spec.output, "probabilities")
    source = session.get_inputs()[0].name
    batches = [items[start : start + BATCH] for start in range(0, len(items), BATCH)]
    found = [session.run(names, {source: batch}) for batch in batches]
    return {name: np.concatenate([each[index] for each in found]) for index, name in enumerate(names)}


def _speed(fp32: bytes, other: bytes, items: Array) -> float:
    """The speed-up of `other` over fp32 on one thread: the ratio of their best rounds, which alternate.

    CPU time is counted, because other work on the machine could slow down one of the two.
    """
    batch = np.resize(items, (BATCH, *items.shape[1:]))
    sessions, best = [_session(content, 1) for content in (fp32, other)], [0.0, 0.0]
    for _ in range(_ROUNDS):
        for index, session in enumerate(sessions):
            feed, count, started = {session.get_inputs()[0].name: batch}, 0, time.thread_time()
            while count == 0 or time.thread_time() - started < _SECONDS:
                session.run(["probabilities"], feed)
                count += 1
            best[index] = max(best[index], count / (time.thread_time() - started))
    return best[1] / best[0]
