"""Names -> live servables: load, swap, lease, drain."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches

import structlog

from service import metrics
from service.errors import ModelNotFound, ModelNotReady, RepositoryError, ServiceError
from service.lifecycle import Lifecycle
from service.loader import Loader
from service.model import Model, Record, State
from service.preprocess import DecodePool
from service.repository import Repository
from service.servable import Servable
from service.settings import Settings

log = structlog.get_logger()


class Registry:
    """The table of models. Every method is called on the event loop; loading happens on threads and in children."""

    def __init__(self, settings: Settings, decoders: DecodePool, lifecycle: Lifecycle) -> None:
        self._settings = settings
        self._repository = Repository(settings.repository)
        self._loader = Loader(settings, self._repository, decoders, lifecycle)
        self._models: dict[str, Model] = {}
        self._refreshing = asyncio.Lock()
        self._retirements: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._problem = "the model repository has not been read yet"

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
        if not self._models:
            return {"repository": self._problem}
        return {model.name: model.why_unready for model in self._models.values() if not model.is_ready}

    def stuck_seconds(self) -> float:
        """How long the longest of the present engine calls has been running."""
        servables = (servable for model in self._models.values() for servable in model.servables.values())
        return max((servable.batcher.stuck_seconds() for servable in servables), default=0.0)

    # Loading.

    async def _watch(self) -> None:
        settled_seconds = 0.0  # at the start, everything is taken as it lies
        while True:
            try:
                await self.refresh(settled_seconds)
            except Exception:
                log.exception("the repository could not be looked through")
            settled_seconds = self._settings.poll_seconds
            if settled_seconds == 0:
                return
            await asyncio.sleep(settled_seconds)

    async def refresh(self, settled_seconds: float = 0.0) -> None:
        """Makes the table what the repository asks for: loads what is new or changed, retires what is gone.

        A version whose files changed in the last `settled_seconds` is left for the next time.
        """
        async with self._refreshing:
            try:
                names = await asyncio.to_thread(self._names)
            except RepositoryError as error:
                self._problem = f"{error.message}; {error.cure}"
                log.error("repository unreadable", reason=error.message, cure=error.cure)
                return
            for name in set(self._models) - set(names):
                self._swap(self._models.pop(name), {})
            for name in names:
                self._models.setdefault(name, Model(name))
            self._problem = f"{self._settings.repository} holds no model"
            pending = [record for name in names for record in await self._pending(self._models[name], settled_seconds)]
            for position, record in enumerate(pending, 1):
                turn = f"{position} of {len(pending)}"
                with structlog.contextvars.bound_contextvars(turn=turn):  # every line of the log that comes of it
                    await self._load(record, turn)

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
            signatures = await asyncio.to_thread(self._repository.signatures, model.name)
        except RepositoryError as error:
            model.problem = f"{error.message}; {error.cure}"
            log.error("model unusable", model=model.name, reason=error.message, cure=error.cure)
            return []
        model.problem = ""
        fresh = [
            Record(model.name, number, signature)
            for number, signature in signatures.items()
            if (number not in model.records or model.records[number].signature != signature)
            and signature.is_settled(settled_seconds)
        ]
        for record in fresh:
            model.records[record.version] = record
            record.become(State.LOADING, "waiting for its turn")
        for number in set(model.records) - set(signatures) - set(model.servables):
            model.records.pop(number).forget()
        if set(signatures) <= set(model.servables):  # else what is no longer wanted goes on until its successor is live
            self._swap(model, {number: model.servables[number] for number in signatures})
        return fresh

    async def _load(self, record: Record, turn: str) -> None:
        """Takes one version from disk to READY, or to UNAVAILABLE with the reason; what served goes on serving."""
        model, started = self._models[record.name], time.monotonic()
        swapping, outcome = model.is_ready, "failed"
        try:
            servable = await self._loader.load(
                record.name, record.version, lambda words: record.become(State.LOADING, f"{words}, {turn}")
            )
            wanted = await asyncio.to_thread(self._repository.wanted, record.name)
        except Exception as error:  # noqa: BLE001 - whatever befalls a load costs that load alone
            self._refuse(model, record, error)
        else:
            outcome = "ok"
            record.describe(servable)
            record.become(State.READY)
            others = {number: other for number, other in model.servables.items() if number in wanted}
            self._swap(model, others | {record.version: servable})
        seconds = time.monotonic() - started
        metrics.LOADS.labels(record.name, outcome).inc()
        if swapping:
            metrics.SWAPS.labels(record.name, outcome).inc()
            metrics.SWAP_SECONDS.labels(record.name).observe(seconds)
        log.info(
            "loaded" if outcome == "ok" else "not loaded",
            model=f"{record.name} version {record.version}",
            seconds=round(seconds, 2),
            state=str(record.state),
            **({"reason": record.reason} if record.reason else {"provider": record.provider}),
        )

    def _refuse(self, model: Model, record: Record, error: Exception) -> None:
        if isinstance(error, ServiceError):
            reason = f"{error.message}; {error.cure}"
        else:
            reason = "an error of the server's own: its log has it"
            log.error("a load failed", exc_info=error)
        before = model.servables.get(record.version)
        if before is None:
            record.become(State.UNAVAILABLE, reason)
        else:  # the version's files changed, and what was loaded of them before goes on
            record.describe(before)
            record.become(State.READY, reason)

    def _swap(self, model: Model, servables: dict[int, Servable]) -> None:
        """Replaces who answers for a model, in one assignment; who answered until now drains beside."""
        stale = [old for number, old in model.servables.items() if servables.get(number) is not old]
        model.servables = servables
        for old in stale:
            if old.version not in servables:
                model.records[old.version].become(State.UNLOADING, "waiting for its last requests")
            self._retire(model, old)

    def _retire(self, model: Model, servable: Servable) -> None:
        """Lets a servable drain and close, in a task of its own."""

        async def drain() -> None:
            await servable.close()
            if model.servables.get(servable.version) in (None, servable):
                servable.metrics.forget()
                model.records.pop(servable.version).forget()
            log.info("unloaded", model=f"{model.name} version {servable.version}")

        task = asyncio.create_task(drain())
        self._retirements.add(task)
        task.add_done_callback(self._retirements.discard)
