"""One version from disk to a warm servable: resolve, convert, open."""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import structlog

from models.artifact import Artifact
from models.manifest import ONNX_FILE
from service import metrics
from service.batcher import Batcher
from service.conversion import Converter
from service.decode_pool import DecodePool
from service.engine import CPU, CUDA, TENSORRT, Engine, plan
from service.errors import ConversionError, DeviceLost, NotEnoughMemory
from service.lifecycle import Lifecycle
from service.machine import available_memory_bytes, free_gpu_bytes, gpu_names, resident_bytes, usable_cores
from service.memory import MIB
from service.repository import Version, read_published
from service.servable import Servable
from service.settings import Settings
from service.tuning import tuned
from service.turns import Turns

log = structlog.get_logger()

_PROVIDERS = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}

# Opening takes the file's bytes, ONNX Runtime's copy of them and, for a while, what its optimizer makes of them.
_MEMORY_PER_BYTE = 3.0
_MEMORY_AT_LEAST = 32 * MIB

Tell = Callable[[str], None]
"""Hears what is being done, in words for people."""

_Result = TypeVar("_Result")


class Loader:
    """Loads versions of one repository. Nothing here knows what is live."""

    def __init__(self, settings: Settings, decoders: DecodePool, lifecycle: Lifecycle) -> None:
        self._settings = settings
        self._decoders = decoders
        self._lifecycle = lifecycle
        self._converter = Converter.of(settings)
        # One at a time of each: what is converted does not hold up what only has to be opened. Opening is mostly the
        # warm-up, which keeps every core busy: 24 EfficientNets, two at a time on two cores, were ready a tenth sooner,
        # and it could no longer be told how much memory each takes.
        self._converting = asyncio.Lock()
        self._opening = asyncio.Lock()
        self._turns = Turns(max(2, usable_cores()))

    async def load(self, version: Version, tell: Tell, beside: Servable | None = None) -> Servable:
        """A servable that is warm and started; the caller closes it. Raises ServiceError.

        What `beside` took, the live version of the same model, this one is expected to take too.
        """
        directory = await self._published(version, tell)
        async with self._opening:
            tell("opening and warming")
            started = time.monotonic()
            servable = await self._open(version, directory, tell, beside.memory_bytes if beside else 0)
        servable.start()
        metrics.LOAD_SECONDS.labels(version.model).observe(time.monotonic() - started)
        return servable

    async def _published(self, version: Version, tell: Tell) -> Path:
        """The directory of the version's ONNX file, converted now if need be. Raises ConversionError."""
        if not isinstance(version.source, Artifact):
            return version.source
        if found := self._converter.published(version.source):
            return found
        if not self._settings.convert:
            raise ConversionError(
                "it has not been converted, and this server does not convert",
                cure="convert it where PyTorch or Keras is installed (menagerie convert), and serve the result",
            )
        async with self._converting:
            return await self._convert(version, version.source, tell)

    async def _convert(self, version: Version, artifact: Artifact, tell: Tell) -> Path:
        started, outcome = time.monotonic(), "failed"

        def on_step(step: str) -> None:
            seconds = round(time.monotonic() - started, 1)
            tell(f"converting: {step} after {seconds} s")
            log.info("converting", model=f"{version.model} version {version.number}", step=step, seconds=seconds)

        try:
            directory = await self._converter.convert(artifact, on_step)
            outcome = "ok"
        finally:
            metrics.CONVERSIONS.labels(version.model, outcome).inc()
            metrics.CONVERSION_SECONDS.labels(version.model).observe(time.monotonic() - started)
        return directory

    async def _open(self, version: Version, directory: Path, tell: Tell, expected_bytes: int) -> Servable:
        """A servable that is warm, and not yet started. Raises RepositoryError, EngineError, NotEnoughMemory."""
        with suppress(OSError):  # where there is no file, reading it says so
            _check_memory("memory", (directory / ONNX_FILE).stat().st_size, expected_bytes, available_memory_bytes())
        before = resident_bytes(os.getpid())
        manifest, content = await asyncio.to_thread(read_published, directory)
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
            _check_memory("GPU memory", len(content), 0, await asyncio.to_thread(free_gpu_bytes, settings.device_id))
        tuning = None
        if version.config.tune:
            tell("measuring the best engine settings")
            kept = settings.cache / "tuning"
            classes = manifest.spec.num_classes
            tuning = await _to_its_end(asyncio.to_thread(tuned, content, planned, classes, usable_cores(), kept))
            planned = tuning.applied(planned)
        engine = Engine(content, planned)
        await self._warm(engine, manifest.spec.num_classes)
        wanted = _PROVIDERS.get(settings.provider, planned.provider)
        if engine.provider != wanted:
            cure = "MENAGERIE_REQUIRE_GPU=true refuses to serve so"
            log.warning("fell back", model=version.model, wanted=wanted, provider=engine.provider, cure=cure)
        delay = version.config.batching.max_queue_delay_seconds
        batcher = Batcher(
            engine.run,
            name=version.model,
            max_batch_size=planned.buckets[-1],
            max_queue_images=min(settings.max_queue_images, settings.max_queue_bytes // engine.example(1).nbytes),
            max_queue_delay_seconds=settings.max_queue_delay_seconds if delay is None else delay,
            instances=planned.instances,
            turns=self._turns,
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
            memory_bytes=max(0, resident_bytes(os.getpid()) - before),
        )

    async def _warm(self, engine: Engine, classes: int) -> None:
        try:
            await _to_its_end(asyncio.to_thread(engine.open, classes))
        except asyncio.CancelledError:
            engine.close()
            raise
        except DeviceLost:
            self._lifecycle.lose_device()
            raise


async def _to_its_end(work: Coroutine[Any, Any, _Result]) -> _Result:
    """What work on a thread gives. A thread cannot be stopped: a cancellation is raised once it has ended."""
    running, cancelled = asyncio.ensure_future(work), None
    while not running.done():
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from running.exception()
    return running.result()


def _check_memory(kind: str, onnx_bytes: int, expected_bytes: int, free_bytes: int | None) -> None:
    """Raises NotEnoughMemory where a model of that size would not fit beside what is loaded, as far as is known."""
    needed = max(int(onnx_bytes * _MEMORY_PER_BYTE) + _MEMORY_AT_LEAST, expected_bytes)
    if free_bytes is not None and needed > free_bytes:
        raise NotEnoughMemory(f"it needs about {needed // MIB} MiB of {kind}, and {free_bytes // MIB} MiB are free")
