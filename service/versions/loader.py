"""Turns a version on disk into a warm servable: convert or check it, then open it."""

import asyncio
import time
from contextlib import suppress
from pathlib import Path

import structlog

from models.artifact.artifact import Artifact
from models.artifact.manifest import ONNX_FILE
from models.process import resident_bytes
from service import metrics
from service.conversion.checker import Checker, Passed
from service.conversion.conversion import Converter
from service.conversion.slots import Slots
from service.errors import ConversionError, DeviceLost, NotEnoughMemory, RepositoryError
from service.host.child import OnStep
from service.host.machine import available_memory_bytes, free_gpu_bytes, gpu_names, usable_cores
from service.host.memory import MIB
from service.host.threads import to_its_end
from service.images.decode_pool import DecodePool
from service.inference.batcher import Batcher
from service.inference.engine import CPU, CUDA, TENSORRT, Engine, plan
from service.inference.fair_semaphore import FairSemaphore
from service.inference.servable import Servable
from service.inference.tuning import tuned
from service.lifecycle import Lifecycle
from service.repository.repository import Version, read_converted
from service.settings import Settings

log = structlog.get_logger()

_PROVIDERS = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}

# Opening needs memory for the file, for ONNX Runtime's copy of it and, for a while, for its optimizer.
_MEMORY_PER_BYTE = 3.0
_MEMORY_AT_LEAST = 32 * MIB

CHECKED_BATCHES = (1, 3)  # and the largest: a graph may have been exported for a batch of 1 only


class Loader:
    """Loads versions of one repository. It does not know which version is live."""

    def __init__(self, settings: Settings, decoders: DecodePool, lifecycle: Lifecycle) -> None:
        self._settings = settings
        self._decoders = decoders
        self._lifecycle = lifecycle
        self._converter = Converter.of(settings)
        self._checker = Checker(settings)
        # Conversions do not delay versions that only have to be opened. One version is opened at a time, because the
        # warm-up keeps every core busy: opening 24 EfficientNets two at a time on two cores saved only a tenth of the
        # time, and the memory of each could no longer be measured.
        self._conversions = Slots(settings.conversion_memory_bytes)
        self._opening = asyncio.Lock()
        self._semaphore = FairSemaphore(max(2, usable_cores()))

    async def load(self, version: Version, show_step: OnStep, beside: Servable | None = None) -> Servable:
        """Returns a servable that is warm and started; the caller closes it. Raises ServiceError.

        `beside` is the live version of the same model: the new one is expected to need as much memory.
        """
        passed = None
        if isinstance(version.source, Artifact):
            directory = await self._converted(version, version.source, show_step)
        else:
            directory = version.source
            passed = await self._check(version, directory, show_step)
        async with self._opening:
            show_step("opening and warming")
            started = time.monotonic()
            servable = await self._open(version, directory, show_step, passed, beside.memory_bytes if beside else 0)
        servable.start()
        metrics.LOAD_SECONDS.labels(version.model).observe(time.monotonic() - started)
        return servable

    async def _check(self, version: Version, directory: Path, show_step: OnStep) -> Passed:
        """Runs a published version in a child process before it is opened in this one. Raises RepositoryError."""
        planned = plan(
            self._settings,
            gpus=await asyncio.to_thread(gpu_names),
            cores=usable_cores(),
            max_batch_size=version.config.batching.max_batch_size,
        )

        def on_step(step: str) -> None:
            show_step(f"checking: {step}")
            log.info("checking", model=f"{version.model} version {version.number}", step=step)

        # The child has only the CPU, and does not run a GPU's largest batch.
        largest = {planned.buckets[-1]} if planned.provider == CPU else set()
        batches = sorted({*CHECKED_BATCHES, *largest})
        return await self._checker.check(version.model, directory, batches, on_step)

    async def _converted(self, version: Version, artifact: Artifact, show_step: OnStep) -> Path:
        """The directory of the version's ONNX file, which is converted now if necessary. Raises ConversionError."""
        if found := await asyncio.to_thread(self._converter.converted, artifact):
            return found
        if not self._settings.convert:
            raise ConversionError(
                "the version has not been converted, and conversion is disabled on this server",
                cure="run menagerie convert on a machine with PyTorch or Keras, and serve its result",
            )
        async with self._conversions.slot(version.model):
            return await self._convert(version, artifact, show_step)

    async def _convert(self, version: Version, artifact: Artifact, show_step: OnStep) -> Path:
        started, outcome = time.monotonic(), "failed"

        def on_step(step: str) -> None:
            seconds = round(time.monotonic() - started, 1)
            show_step(f"converting: {step} after {seconds} s")
            log.info("converting", model=f"{version.model} version {version.number}", step=step, seconds=seconds)

        try:
            directory = await self._converter.convert(artifact, on_step)
            outcome = "ok"
        finally:
            metrics.CONVERSIONS.labels(version.model, outcome).inc()
            metrics.CONVERSION_SECONDS.labels(version.model).observe(time.monotonic() - started)
        return directory

    async def _open(
        self, version: Version, directory: Path, show_step: OnStep, passed: Passed | None, expected_bytes: int
    ) -> Servable:
        """Returns a servable that is warm and not started. Raises RepositoryError, EngineError, NotEnoughMemory."""
        with suppress(OSError):  # if the file is missing, reading it raises the error
            needed = _opening_bytes((directory / ONNX_FILE).stat().st_size) if passed is None else passed.opened_bytes
            _check_memory("memory", max(needed, expected_bytes), available_memory_bytes())
        before = resident_bytes()
        manifest, content = await asyncio.to_thread(read_converted, directory)
        if passed is not None and manifest != passed.manifest:  # the manifest has the graph's SHA-256
            raise RepositoryError("the version's files changed while it was loaded", cure="load the version again")
        settings, observed = self._settings, metrics.ServableMetrics(version.model, version.number)
        planned = plan(
            settings,
            gpus=await asyncio.to_thread(gpu_names),
            cores=usable_cores(),
            max_batch_size=version.config.batching.max_batch_size,
            precision=manifest.precision,
            fingerprint=manifest.fingerprint,
            item_shape=manifest.spec.input.shape,
        )
        if planned.provider != CPU:
            free = await asyncio.to_thread(free_gpu_bytes, settings.device_id)
            _check_memory("GPU memory", _opening_bytes(len(content)), free)
        tuning = None
        if version.config.tune:
            show_step("measuring the best engine settings")
            kept = settings.cache / "tuning"
            classes = manifest.spec.num_classes
            tuning = await to_its_end(asyncio.to_thread(tuned, content, planned, classes, usable_cores(), kept))
            planned = tuning.applied(planned)
        engine = Engine(content, planned)
        await self._warm(engine, manifest.spec.num_classes)
        wanted = _PROVIDERS.get(settings.provider, planned.provider)
        if engine.provider != wanted:
            cure = "set MENAGERIE_REQUIRE_GPU=true to refuse this"
            log.warning("fell back", model=version.model, wanted=wanted, provider=engine.provider, cure=cure)
        delay = version.config.batching.max_queue_delay_seconds
        batcher = Batcher(
            engine.run,
            name=version.model,
            max_batch_size=planned.buckets[-1],
            max_queue_images=min(settings.max_queue_images, settings.max_queue_bytes // engine.example(1).nbytes),
            max_queue_delay_seconds=settings.max_queue_delay_seconds if delay is None else delay,
            instances=planned.instances,
            semaphore=self._semaphore,
            observer=observed,
            on_device_lost=self._lifecycle.lose_device,
        )
        return Servable(
            version.model,
            version.number,
            manifest=manifest,
            engine=engine,
            batcher=batcher,
            decoders=self._decoders,
            metrics=observed,
            tuning=tuning,
            memory_bytes=max(0, resident_bytes() - before),
        )

    async def _warm(self, engine: Engine, classes: int) -> None:
        try:
            await to_its_end(asyncio.to_thread(engine.open, classes))
        except asyncio.CancelledError:
            engine.close()
            raise
        except DeviceLost:
            self._lifecycle.lose_device()
            raise


def _opening_bytes(onnx_bytes: int) -> int:
    """An estimate of the memory for opening a model that has not been measured."""
    return int(onnx_bytes * _MEMORY_PER_BYTE) + _MEMORY_AT_LEAST


def _check_memory(kind: str, needed: int, free_bytes: int | None) -> None:
    """Raises NotEnoughMemory if a model does not fit into the free memory. Unknown free memory is enough."""
    if free_bytes is not None and needed > free_bytes:
        raise NotEnoughMemory(
            f"the version needs about {needed // MIB} MiB of {kind}, and {free_bytes // MIB} MiB are free"
        )
