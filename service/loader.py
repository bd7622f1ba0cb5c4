"""One version from disk to a warm servable: resolve, convert, open."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from models.artifact import Artifact
from service import metrics
from service.batcher import Batcher
from service.conversion import Converter
from service.engine import CPU, CUDA, TENSORRT, Engine, plan
from service.errors import ConversionError, DeviceLost
from service.lifecycle import Lifecycle
from service.machine import gpu_names, usable_cores
from service.preprocess import DecodePool
from service.repository import Version, read_published
from service.servable import Servable
from service.settings import Settings

log = structlog.get_logger()

_PROVIDERS = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}

Tell = Callable[[str], None]
"""Hears what is being done, in words for people."""


class Loader:
    """Loads versions of one repository. Nothing here knows what is live."""

    def __init__(self, settings: Settings, decoders: DecodePool, lifecycle: Lifecycle) -> None:
        self._settings = settings
        self._decoders = decoders
        self._lifecycle = lifecycle
        self._converter = Converter(settings.cache, settings.conversion_timeout_seconds)

    def needs_conversion(self, version: Version) -> bool:
        """Whether loading it takes a conversion first."""
        return isinstance(version.source, Artifact) and self._converter.published(version.source) is None

    async def load(self, version: Version, tell: Tell) -> Servable:
        """A servable that is warm and started; the caller closes it. Raises ServiceError."""
        directory = await self._published(version, tell)
        tell("opening and warming")
        started = time.monotonic()
        servable = await self._open(version, directory)
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
        started, outcome = time.monotonic(), "failed"

        def on_step(step: str) -> None:
            seconds = round(time.monotonic() - started, 1)
            tell(f"converting: {step} after {seconds} s")
            log.info("converting", model=f"{version.model} version {version.number}", step=step, seconds=seconds)

        try:
            directory = await self._converter.convert(version.source, on_step)
            outcome = "ok"
        finally:
            metrics.CONVERSIONS.labels(version.model, outcome).inc()
            metrics.CONVERSION_SECONDS.labels(version.model).observe(time.monotonic() - started)
        return directory

    async def _open(self, version: Version, directory: Path) -> Servable:
        """A servable that is warm, and not yet started. Raises RepositoryError, EngineError."""
        manifest, content = await asyncio.to_thread(read_published, directory)
        settings, observed = self._settings, metrics.ServableMetrics(version.model, version.number)
        planned = plan(
            settings,
            gpus=await asyncio.to_thread(gpu_names),
            cores=usable_cores(),
            max_batch_size=version.batching.max_batch_size,
            precision=manifest.precision,
            fingerprint=manifest.fingerprint,
            item_shape=manifest.spec.input.shape,
        )
        engine = Engine(content, planned)
        try:
            await asyncio.to_thread(engine.open, manifest.spec.num_classes)
        except DeviceLost:
            self._lifecycle.lose_device()
            raise
        wanted = _PROVIDERS.get(settings.provider, planned.provider)
        if engine.provider != wanted:
            cure = "MENAGERIE_REQUIRE_GPU=true refuses to serve so"
            log.warning("fell back", model=version.model, wanted=wanted, provider=engine.provider, cure=cure)
        delay = version.batching.max_queue_delay_seconds
        batcher = Batcher(
            engine.run,
            name=version.model,
            max_batch_size=engine.max_batch_size,
            max_queue_images=settings.max_queue_images,
            max_queue_bytes=settings.max_queue_bytes,
            max_queue_delay_seconds=settings.max_queue_delay_seconds if delay is None else delay,
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
        )
