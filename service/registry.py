"""Names -> live servables: load, swap, lease, drain."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path

import structlog

from models.artifact import Artifact
from service import metrics
from service.batcher import Batcher
from service.conversion import Converter
from service.engine import Engine, plan
from service.errors import ConversionError, ModelNotFound, ModelNotReady, RepositoryError, ServiceError
from service.lifecycle import Lifecycle
from service.machine import gpu_names, usable_cores
from service.model import Model, Record, State
from service.preprocess import DecodePool
from service.repository import Repository, Version, read_published
from service.servable import Servable
from service.settings import Settings

log = structlog.get_logger()


class Registry:
    """The table of models. Every method is called on the event loop; loading happens on threads and in children."""

    def __init__(self, settings: Settings, decoders: DecodePool, lifecycle: Lifecycle) -> None:
        self._settings = settings
        self._decoders = decoders
        self._lifecycle = lifecycle
        self._repository = Repository(settings.repository)
        self._converter = Converter(settings.cache, settings.conversion_timeout_seconds)
        self._models: dict[str, Model] = {}
        self._refreshing = asyncio.Lock()
        self._retirements: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self.problem = "the model repository has not been read yet"

    def start(self) -> None:
        """Begins to load, and then to watch, the repository; the caller need not wait."""
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stops loading, then answers what waits and closes every servable."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for model in self._models.values():
            for servable in model.servables.values():
                self._retire(model, servable)
        await asyncio.gather(*self._retirements)

    # What requests ask.

    def models(self) -> Sequence[Model]:
        """Every model, in alphabetical order."""
        return [self._models[name] for name in sorted(self._models)]

    def model(self, name: str) -> Model:
        """One model. Raises ModelNotFound, naming the nearest."""
        if name in self._models:
            return self._models[name]
        near = get_close_matches(name[:64], self._models, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ModelNotFound(f"there is no model {name[:64]!r}", cure=f"{hint}GET /models lists all")

    def servable(self, name: str, version: int | None = None) -> Servable:
        """Who answers for a model. Raises ModelNotFound, ModelNotReady."""
        model = self.model(name)
        found = model.live if version is None else model.servables.get(version)
        if found is not None:
            return found
        if version is not None and version not in model.records:
            loaded = ", ".join(map(str, sorted(model.servables))) or "none"
            raise ModelNotFound(f"{name} has no version {version} loaded", cure=f"loaded versions: {loaded}")
        record = model.records.get(version or max(model.records, default=0))
        state = f"{record.state}: {record.reason}" if record else model.problem
        raise ModelNotReady(f"{name} is not ready ({state})")

    @contextmanager
    def lease(self, name: str, version: int | None = None) -> Iterator[Servable]:
        """One caller's hold on a servable. Raises ModelNotFound, ModelNotReady."""
        with self.servable(name, version).lease() as servable:
            yield servable

    def unready(self) -> dict[str, str]:
        """Why the server is not ready, by model (or `repository`); empty when it is."""
        if self.problem:
            return {"repository": self.problem}
        return {model.name: model.why_unready for model in self._models.values() if not model.is_ready}

    def stuck_seconds(self) -> float:
        """How long the longest of the present engine calls has been running."""
        servables = (servable for model in self._models.values() for servable in model.servables.values())
        return max((servable.batcher.stuck_seconds() for servable in servables), default=0.0)

    # Loading.

    async def _watch(self) -> None:
        await self.refresh(settled_seconds=0.0)
        while self._settings.poll_seconds > 0:
            await asyncio.sleep(self._settings.poll_seconds)
            await self.refresh(settled_seconds=self._settings.poll_seconds)

    async def refresh(self, settled_seconds: float = 0.0) -> None:
        """Makes the table what the repository asks for: loads what is new or changed, retires what is gone.

        A version whose files changed in the last `settled_seconds` is left for the next time.
        """
        async with self._refreshing:
            try:
                names = await asyncio.to_thread(self._names)
            except RepositoryError as error:
                self.problem = f"{error.message}; {error.cure}"
                log.error("repository unreadable", reason=error.message, cure=error.cure)
                return
            for name in set(self._models) - set(names):
                self._swap(self._models.pop(name), {})
            for name in names:
                self._models.setdefault(name, Model(name))
            pending = [record for name in names for record in await self._pending(self._models[name], settled_seconds)]
            self.problem = "" if self._models else f"{self._settings.repository} holds no model"
            for position, record in enumerate(pending, 1):
                await self._load(record, f"{position} of {len(pending)}")

    def _names(self) -> list[str]:
        present = self._repository.names()
        if absent := sorted(set(self._settings.models) - set(present)):
            raise RepositoryError(
                f"the settings ask for a model {absent[0]}, which the repository lacks",
                cure=f"correct MENAGERIE_MODELS; the repository has {', '.join(present) or 'none'}",
            )
        return [name for name in present if not self._settings.models or name in self._settings.models]

    async def _pending(self, model: Model, settled_seconds: float) -> list[Record]:
        """Brings a model's records in line with the repository; returns those that are to be loaded."""
        try:
            wanted = await asyncio.to_thread(self._repository.wanted, model.name)
            signatures = {number: self._repository.signature(model.name, number) for number in wanted}
        except (RepositoryError, OSError) as error:
            cure = error.cure if isinstance(error, RepositoryError) else "look again"
            model.problem = f"{error}; {cure}"
            log.error("model unusable", model=model.name, reason=str(error), cure=cure)
            return []
        model.problem = ""
        fresh = []
        for number in wanted:
            known = model.records.get(number)
            if known is not None and known.signature == signatures[number]:
                continue
            if settled_seconds and not self._repository.is_settled(model.name, number, settled_seconds):
                continue
            fresh.append(Record(model.name, number, signatures[number]))
        for record in fresh:
            model.records[record.version] = record
            record.become(State.LOADING, record.reason)
        return fresh

    async def _load(self, record: Record, turn: str) -> None:
        """Takes one version from disk to READY, or to UNAVAILABLE with the reason; what served goes on serving."""
        model, label = self._models[record.name], f"{record.name} version {record.version}"
        started = time.monotonic()
        try:
            version = await asyncio.to_thread(self._repository.resolve, record.name, record.version)
            directory = await self._published(version, record, turn)
            record.become(State.LOADING, f"opening and warming, {turn}")
            opening = time.monotonic()
            servable = await self._open(version, directory)
            metrics.LOAD_SECONDS.labels(record.name).observe(time.monotonic() - opening)
            wanted = await asyncio.to_thread(self._repository.wanted, record.name)
        except Exception as error:
            metrics.LOADS.labels(record.name, "failed").inc()
            expected = isinstance(error, ServiceError)
            reason = (
                f"{error}; {error.cure}"
                if isinstance(error, ServiceError)
                else "an error of the server's own: see its log"
            )
            still_answers = record.version in model.servables  # its files changed; what was loaded of them before stays
            record.become(State.READY if still_answers else State.UNAVAILABLE, reason)
            log.error("not loaded", model=label, turn=turn, reason=reason, exc_info=None if expected else error)
            return
        metrics.LOADS.labels(record.name, "ok").inc()
        servable.start()
        record.manifest, record.provider = servable.manifest, servable.provider
        record.become(State.READY)
        self._swap(
            model,
            {number: old for number, old in model.servables.items() if number in wanted} | {record.version: servable},
        )
        log.info(
            "ready",
            model=label,
            turn=turn,
            seconds=round(time.monotonic() - started, 2),
            provider=servable.provider,
            parity=servable.manifest.parity.relative_error,
        )

    async def _published(self, version: Version, record: Record, turn: str) -> Path:
        """The directory of the version's ONNX file, converted now if need be."""
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
            record.become(State.LOADING, f"converting: {step} after {seconds} s, {turn}")
            log.info(
                "converting", model=f"{record.name} version {record.version}", step=step, turn=turn, seconds=seconds
            )

        try:
            directory = await self._converter.convert(version.source, on_step)
            outcome = "ok"
        finally:
            metrics.CONVERSIONS.labels(record.name, outcome).inc()
            metrics.CONVERSION_SECONDS.labels(record.name).observe(time.monotonic() - started)
        return directory

    async def _open(self, version: Version, directory: Path) -> Servable:
        """A servable that is warm, and not yet started."""
        manifest, content = await asyncio.to_thread(read_published, directory)
        settings, observed = self._settings, metrics.ServableMetrics(version.model, version.number)
        planned = plan(
            settings,
            gpus=gpu_names(),
            cores=usable_cores(),
            max_batch_size=version.batching.max_batch_size,
            fingerprint=manifest.fingerprint,
            item_shape=manifest.spec.input.shape,
        )
        engine = Engine(content, planned)
        await asyncio.to_thread(engine.open)
        if engine.provider != planned.provider or (settings.provider not in ("auto", "cpu") and not planned.pads):
            log.warning(
                "fell back", model=version.model, provider=engine.provider, cure="set MENAGERIE_REQUIRE_GPU=true"
            )
        delay = version.batching.max_queue_delay_seconds
        batcher = Batcher(
            engine.run,
            name=version.model,
            max_batch_size=planned.buckets[-1],
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

    def _swap(self, model: Model, servables: dict[int, Servable]) -> None:
        """Replaces who answers for a model, in one assignment; who answered until now drains beside."""
        stale = [old for number, old in model.servables.items() if servables.get(number) is not old]
        model.servables = servables
        for old in stale:
            metrics.SWAPS.labels(model.name).inc()
            if old.version not in servables:
                model.records[old.version].become(State.UNLOADING, "waiting for its last requests")
            self._retire(model, old)

    def _retire(self, model: Model, servable: Servable) -> None:
        """Lets a servable drain and close, in a task of its own."""

        async def drain() -> None:
            started = time.monotonic()
            await servable.close()
            metrics.SWAP_SECONDS.labels(model.name).observe(time.monotonic() - started)
            if model.servables.get(servable.version) in (None, servable):
                servable.metrics.forget()
                model.records.pop(servable.version).forget()
            log.info("unloaded", model=f"{model.name} version {servable.version}")

        task = asyncio.create_task(drain())
        self._retirements.add(task)
        task.add_done_callback(self._retirements.discard)
