"""An ONNX Runtime session: providers, buckets, warm-up, run."""

import gc
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read at import: since 1.29 the Linux wheels report home by default
import onnxruntime

from models.artifact.artifact import Precision
from models.conversion.graph.runtime import Level, session_options
from service.errors import DeviceLost, EngineError
from service.host.memory import trim_malloc
from service.settings import Settings

Array = np.ndarray[Any, Any]

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_WANTED = {"cpu": [CPU], "cuda": [CUDA, CPU], "tensorrt": [TENSORRT, CUDA, CPU]}

LARGEST_BATCH_ON_GPU = 32
LARGEST_BATCH_ON_CPU = 16
"""Of 32, each image takes 0.95 (AlexNet) or 1.00 (ResNet-50, EfficientNet-Lite0) times as long there, and what a batch
needs is held for as long as the model is loaded."""

# After these the process has no working CUDA context any more: illegal or misaligned address, launch failure, ECC, ...
_FATAL = re.compile(
    r"CUDA failure (46|214|700|702|709|71[0-9]|999)\b|CU(DNN|BLAS)_STATUS_(INTERNAL_ERROR|EXECUTION_FAILED)"
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a session would be made on a given host: plain data, to be read back."""

    providers: tuple[tuple[str, Mapping[str, str]], ...]
    """In order of preference, each with its options."""
    intra_op_threads: int
    buckets: tuple[int, ...]
    """Batch sizes to warm, ascending; the last is the largest batch."""
    pads: bool
    """Whether a batch is filled up to a bucket: on a GPU every new size costs a search or a build."""
    require_gpu: bool
    optimization: Level = "all"
    """ONNX Runtime's level; `all` changes the layout of convolutions, which some networks are slower for."""
    instances: int = 1
    """Threads that call the engine at once; they share the session and its weights."""

    @property
    def provider(self) -> str:
        """The provider that is meant to run the model."""
        return self.providers[0][0]


def plan(
    settings: Settings,
    *,
    gpus: Sequence[str],
    cores: int,
    max_batch_size: int | None = None,
    precision: Precision = "fp32",
    fingerprint: str = "",
    item_shape: Sequence[int] = (),
    available: Sequence[str] | None = None,
) -> Plan:
    """Chooses providers and options for a host with these GPUs and cores.

    `item_shape` is one item's, without the batch; `available` are the providers that this ONNX Runtime was built with.
    Raises EngineError where the settings ask for a GPU and there is none.
    """
    available = onnxruntime.get_available_providers() if available is None else available
    wanted = settings.provider if settings.provider != "auto" else ("cuda" if gpus else "cpu")
    missing = [name for name in _WANTED[wanted] if name not in available]
    on_gpu = wanted != "cpu" and not missing and settings.device_id < len(gpus)
    if settings.require_gpu and not on_gpu:
        reason = f"ONNX Runtime lacks {', '.join(missing)}" if missing else f"the driver shows {len(gpus)} GPUs"
        raise EngineError(
            f"require_gpu is set, and a model would run on the CPU: provider is {wanted}, {reason}",
            cure="start the container with --gpus all, or install the driver; or unset MENAGERIE_REQUIRE_GPU",
        )
    names = _WANTED[wanted] if on_gpu else [CPU]
    default = LARGEST_BATCH_ON_GPU if on_gpu else LARGEST_BATCH_ON_CPU
    buckets = _buckets(max_batch_size or settings.max_batch_size or default)
    options: dict[str, Mapping[str, str]] = {CPU: {}}
    if on_gpu:
        options[CUDA] = _cuda_options(settings, precision)
        options[TENSORRT] = _tensorrt_options(settings, fingerprint, gpus[settings.device_id], item_shape, buckets)
    return Plan(
        providers=tuple((name, options[name]) for name in names),
        intra_op_threads=1 if on_gpu else settings.intra_op_threads or cores,
        buckets=buckets,
        pads=on_gpu,
        require_gpu=settings.require_gpu,
    )


def _buckets(largest: int) -> tuple[int, ...]:
    """Powers of two up to the largest batch, and that one itself."""
    powers = [1 << exponent for exponent in range(largest.bit_length())]
    return tuple(sorted({size for size in powers if size < largest} | {largest}))


def _cuda_options(settings: Settings, precision: str) -> dict[str, str]:
    return {
        "device_id": str(settings.device_id),
        "cudnn_conv_algo_search": "HEURISTIC",  # EXHAUSTIVE searches 0.3 to 1.3 s for every new batch size
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",  # parity was measured in fp32
        "prefer_nhwc": "1" if precision == "fp16" else "0",
    }


def _tensorrt_options(
    settings: Settings, fingerprint: str, gpu: str, item_shape: Sequence[int], buckets: tuple[int, ...]
) -> dict[str, str]:
    """An engine file fits one model, ONNX Runtime, TensorRT and GPU: each has its directory."""
    try:
        tensorrt = metadata.version("tensorrt-cu13")
    except metadata.PackageNotFoundError:
        tensorrt = "system"
    key = "-".join([fingerprint[:16], onnxruntime.__version__, tensorrt, re.sub(r"\W", "_", gpu)])
    cache = str(settings.cache / "tensorrt" / key)
    name = "pixels" if len(item_shape) == 3 else "numbers"  # noqa: PLR2004
    profile = {
        f"trt_profile_{which}_shapes": f"{name}:{'x'.join(map(str, (size, *item_shape)))}"
        for which, size in (("min", 1), ("opt", buckets[-1]), ("max", buckets[-1]))
    }
    return {
        "device_id": str(settings.device_id),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": cache,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": cache,
        **profile,
    }


class Engine:
    """Runs batches of one ONNX model. Any threads may call `run`; no call may outlive `close`."""

    def __init__(self, content: bytes, plan: Plan) -> None:
        self.plan = plan
        self._content: bytes | None = content
        self._session: onnxruntime.InferenceSession | None = None
        self._input = ""

    @property
    def provider(self) -> str:
        """The provider that really runs the model."""
        return str(self._opened().get_providers()[0])

    def open(self, classes: int) -> None:
        """Makes the session and runs every bucket once: only after a real inference is a model ready.

        Raises EngineError where ONNX Runtime refuses the model, where it gives other than `classes` probabilities, or
        where it fell to the CPU though require_gpu is set; DeviceLost where the GPU failed for good.
        """
        try:
            self._session = self._create()
            self._input = self._session.get_inputs()[0].name
            if self.plan.require_gpu and self.provider == CPU:
                raise EngineError(  # noqa: TRY301 - it too closes the session
                    f"{self.plan.provider} did not start and the model fell back to the CPU, though require_gpu is set",
                    cure="the log has ONNX Runtime's reason; most often CUDA 13 or cuDNN 9 is not installed",
                )
            self._warm(classes)
            trim_malloc()  # of what the optimizer made on its way, nothing is needed
        except BaseException:
            self.close()
            raise

    def _create(self) -> onnxruntime.InferenceSession:
        options = session_options(self.plan.intra_op_threads, self.plan.optimization)
        try:
            for name, settings in self.plan.providers:
                if name == TENSORRT:
                    Path(settings["trt_engine_cache_path"]).mkdir(parents=True, exist_ok=True)
            if self.plan.provider != CPU:
                onnxruntime.preload_dlls()  # CUDA and cuDNN from site-packages, where no system-wide ones are
            session = onnxruntime.InferenceSession(
                self._content,
                sess_options=options,
                providers=list(self.plan.providers),
                enable_fallback=0,  # else a failing run would quietly begin anew on the CPU
            )
        except Exception as error:  # ONNX Runtime's errors share no base class but Exception
            raise EngineError("ONNX Runtime cannot open the model") from error
        self._content = session._model_bytes = None  # noqa: SLF001 - the session has parsed it, and keeps a copy
        return session

    def example(self, size: int) -> Array:
        """A batch of that many items, all zeros."""
        source = self._opened().get_inputs()[0]
        return np.zeros((size, *source.shape[1:]), np.uint8 if source.type == "tensor(uint8)" else np.float32)

    def _warm(self, classes: int) -> None:
        sizes = self.plan.buckets if self.plan.pads else (1, self.plan.buckets[-1])
        for size in sizes:
            try:
                found = self.run(self.example(size)).shape
            except DeviceLost:
                raise
            except Exception as error:
                raise EngineError(f"the model does not run at batch {size}") from error
            if found != (size, classes):
                raise EngineError(f"the model gives {found} for {size} items of {classes} classes")

    def run(self, batch: Array) -> Array:
        """Probabilities [N, classes] of a batch [N, ...], N at most the largest bucket. Raises DeviceLost."""
        count = len(batch)
        if self.plan.pads:
            bucket = next(size for size in self.plan.buckets if size >= count)
            batch = np.concatenate([batch, np.repeat(batch[-1:], bucket - count, axis=0)]) if bucket > count else batch
        session = self._opened()
        try:
            rows: Array = session.run(["probabilities"], {self._input: batch})[0]
        except Exception as error:
            if _FATAL.search(str(error)):
                raise DeviceLost("the GPU failed in a way that only a new process repairs") from error
            raise
        return rows[:count]

    def close(self) -> None:
        """Gives the session's memory back to the system."""
        self._session = None
        gc.collect()
        trim_malloc()

    def _opened(self) -> onnxruntime.InferenceSession:
        if self._session is None:
            raise EngineError("the engine is not open")
        return self._session
