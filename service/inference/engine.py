"""Runs one ONNX model in ONNX Runtime: providers, batch sizes, warm-up, calls."""

import gc
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read at import: since 1.29 the Linux wheels send telemetry by default
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
"""A batch of 32 is hardly faster: per image it takes 0.95 (AlexNet) or 1.00 (ResNet-50, EfficientNet-Lite0) times as
long as a batch of 16. It would need more memory for as long as the model is loaded."""

# After these errors the process has no working CUDA context: illegal or misaligned address, launch failure, ECC, ...
_FATAL = re.compile(
    r"CUDA failure (46|214|700|702|709|71[0-9]|999)\b|CU(DNN|BLAS)_STATUS_(INTERNAL_ERROR|EXECUTION_FAILED)"
)


@dataclass(frozen=True, kw_only=True)
class EnginePlan:
    """The settings of a session on a given host."""

    providers: tuple[tuple[str, Mapping[str, str]], ...]
    """In order of preference, each with its options."""
    intra_op_threads: int
    buckets: tuple[int, ...]
    """The batch sizes to warm, ascending; the last is the largest batch."""
    pads: bool
    """Whether a batch is filled up to the next bucket. On a GPU, every new batch size costs a search or a build."""
    require_gpu: bool
    optimization: Level = "all"
    """ONNX Runtime's level. `all` changes the layout of convolutions, which makes some networks slower."""
    instances: int = 1
    """Threads that call the engine at once; they share the session and its weights."""

    @property
    def provider(self) -> str:
        """The preferred provider."""
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
) -> EnginePlan:
    """Chooses the providers and their options for a host with these GPUs and cores.

    `item_shape` is the shape of one item, without the batch. `available` are the providers of this build of ONNX
    Runtime. Raises EngineError if the settings require a GPU and there is none.
    """
    available = onnxruntime.get_available_providers() if available is None else available
    wanted = settings.provider if settings.provider != "auto" else ("cuda" if gpus else "cpu")
    missing = [name for name in _WANTED[wanted] if name not in available]
    on_gpu = wanted != "cpu" and not missing and settings.device_id < len(gpus)
    if settings.require_gpu and not on_gpu:
        reason = f"ONNX Runtime lacks {', '.join(missing)}" if missing else f"the driver reports {len(gpus)} GPUs"
        raise EngineError(
            f"require_gpu is set, but the model would run on the CPU: provider is {wanted}, {reason}",
            cure="start the container with --gpus all, install the driver, or unset MENAGERIE_REQUIRE_GPU",
        )
    names = _WANTED[wanted] if on_gpu else [CPU]
    default = LARGEST_BATCH_ON_GPU if on_gpu else LARGEST_BATCH_ON_CPU
    buckets = _buckets(max_batch_size or settings.max_batch_size or default)
    options: dict[str, Mapping[str, str]] = {CPU: {}}
    if on_gpu:
        options[CUDA] = _cuda_options(settings, precision)
        options[TENSORRT] = _tensorrt_options(settings, fingerprint, gpus[settings.device_id], item_shape, buckets)
    return EnginePlan(
        providers=tuple((name, options[name]) for name in names),
        intra_op_threads=1 if on_gpu else settings.intra_op_threads or cores,
        buckets=buckets,
        pads=on_gpu,
        require_gpu=settings.require_gpu,
    )


def _buckets(largest: int) -> tuple[int, ...]:
    """The powers of two below the largest batch, and the largest batch."""
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
    """Options of TensorRT, with a cache directory for each model, GPU and release of ONNX Runtime and TensorRT."""
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
    """Runs batches of one ONNX model. Any thread may call `run`; every call must have ended before `close`."""

    def __init__(self, content: bytes, plan: EnginePlan) -> None:
        self.plan = plan
        self._content: bytes | None = content
        self._session: onnxruntime.InferenceSession | None = None
        self._input = ""

    @property
    def provider(self) -> str:
        """The provider that runs the model."""
        return str(self._opened().get_providers()[0])

    def open(self, classes: int) -> None:
        """Creates the session and warms it up: a model is ready only after a real inference.

        Raises EngineError if ONNX Runtime cannot open or run the model, if the model does not give `classes`
        probabilities, or if it fell back to the CPU and require_gpu is set. Raises DeviceLost if the GPU has failed.
        """
        try:
            self._session = self._create()
            self._input = self._session.get_inputs()[0].name
            if self.plan.require_gpu and self.provider == CPU:
                raise EngineError(  # noqa: TRY301 - the session is closed for this error too
                    f"{self.plan.provider} did not start: the model fell back to the CPU, and require_gpu is set",
                    cure="see ONNX Runtime's reason in the log; most often CUDA 13 or cuDNN 9 is not installed",
                )
            self._warm(classes)
            trim_malloc()  # the optimizer's memory is no longer needed
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
                onnxruntime.preload_dlls()  # CUDA and cuDNN from site-packages, if the system has none
            session = onnxruntime.InferenceSession(
                self._content,
                sess_options=options,
                providers=list(self.plan.providers),
                enable_fallback=0,  # else a run that fails would be repeated on the CPU without an error
            )
        except Exception as error:  # ONNX Runtime's errors have no other common base class
            raise EngineError("ONNX Runtime cannot open the model") from error
        self._content = session._model_bytes = None  # noqa: SLF001 - it has been parsed
        return session

    def example(self, size: int) -> Array:
        """A batch of zeros with that many items."""
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
                raise EngineError(f"for {size} items of {classes} classes the model's output has the shape {found}")

    def run(self, batch: Array) -> Array:
        """Returns the probabilities [N, classes] of a batch [N, ...]. Raises DeviceLost.

        N is at most the largest bucket.
        """
        count = len(batch)
        if self.plan.pads:
            bucket = next(size for size in self.plan.buckets if size >= count)
            batch = np.concatenate([batch, np.repeat(batch[-1:], bucket - count, axis=0)]) if bucket > count else batch
        session = self._opened()
        try:
            rows: Array = session.run(["probabilities"], {self._input: batch})[0]
        except Exception as error:
            if _FATAL.search(str(error)):
                raise DeviceLost("the GPU has failed, and only a new process can use it again") from error
            raise
        return rows[:count]

    def close(self) -> None:
        """Frees the session's memory."""
        self._session = None
        gc.collect()
        trim_malloc()

    def _opened(self) -> onnxruntime.InferenceSession:
        if self._session is None:
            raise EngineError("the engine is not open")
        return self._session
