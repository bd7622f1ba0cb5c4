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
from service.repository import Repository, Version
from service.servable import Servable
from service.settings import Settings

log = structlog.get_logger()


class Registry:
    """The table of models. Every method is called on the event loop; loading happens on threads and in children."""

    def __init__(self, settings: Settings, decoders: DecodePool, lifecycle: Lifecycle) -> None:
        self._settings = settings
        self._repository = Repository(settings.repository)
        self._loader = Loader(settings, decoders, lifecycle)
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
            self._remove(model)
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
        if version is None:
            if model.live is None:
                raise ModelNotReady(f"{name} is not ready: {model.why_unready}")
            return model.live
        record = model.records.get(version)
        if record is None:
            loaded = ", ".join(str(number) for number in sorted(model.records)) or "none"
            raise ModelNotFound(f"{name} has no version {version} loaded", cure=f"loaded versions: {loaded}")
        if record.servable is None:
            raise ModelNotReady(f"{name} version {version} is {record.state}: {record.reason}")
        return record.servable

    @contextmanager
    def lease(self, name: str, version: int | None = None) -> Iterator[Servable]:
        """One caller's hold on a servable. Raises ModelNotFound, ModelNotReady."""
        with self.servable(name, version).lease() as servable:
            yield servable

    def unready(self) -> dict[str, str]:
        """Why the server is not ready, by model (or `repository`); empty when it is."""
        if not self._models:
            return {"repository": self._problem}
        waited_for = (model for model in self._models.values() if model.is_required and not model.is_ready)
        return {model.name: model.why_unready for model in waited_for}

    def stuck_seconds(self) -> float:
        """How long the longest of the present engine calls has been running."""
        records = [record for model in self._models.values() for record in model.records.values()]
        return max((each.servable.batcher.stuck_seconds() for each in records if each.servable), default=0.0)

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
                log.error("repository unreadable", reason=error.message, cure=error.cure, detail=error.detail)
                return
            for name in set(self._models) - set(names):
                self._remove(self._models.pop(name))
            is_first = not self._models
            for name in names:
                self._models.setdefault(name, Model(name, is_required=is_first))
            self._problem = "the model repository holds no model"
            pending = [record for name in names for record in await self._pending(self._models[name], settled_seconds)]
            # What only has to be opened answers before what has to be converted.
            resolved = [(record, await self._resolve(record)) for record in pending]
            resolved.sort(key=lambda each: each[1] is not None and self._loader.needs_conversion(each[1]))
            for position, (record, version) in enumerate(resolved, 1):
                turn = f"{position} of {len(pending)}"
                with structlog.contextvars.bound_contextvars(turn=turn):  # every line of the log that comes of it
                    if version is not None:
                        await self._load(record, version, turn)

    def _names(self) -> list[str]:
        for name in self._repository.ignored() if not self._models else ():  # told once
            log.warning("ignored", directory=name, reason="it is no name for a model", cure="menagerie check")
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
            log.error("model unusable", model=model.name, reason=error.message, cure=error.cure, detail=error.detail)
            return []
        model.problem, model.wanted = "", signatures.keys()
        pending = []
        for number, signature in signatures.items():
            record = model.records.get(number)
            if record is not None and record.state is State.UNLOADING:
                record = None  # it came back: as a version of its own
            if (record and record.signature == signature) or not signature.is_settled(settled_seconds):
                continue
            if record is None:
                record = model.records[number] = Record(model.name, number, signature)
            record.signature = signature
            record.become(State.LOADING if record.servable is None else State.READY, "waiting for its turn")
            pending.append(record)
        for record in list(model.records.values()):
            if record.version not in signatures and record.state is State.UNAVAILABLE:
                self._forget(model, record)
        self._retire_unwanted(model)
        return pending

    async def _resolve(self, record: Record) -> Version | None:
        """What the version is made of; None where it cannot be used, which its record then says."""
        try:
            return await asyncio.to_thread(self._repository.resolve, record.name, record.version)
        except Exception as error:  # noqa: BLE001 - whatever befalls a load costs that load alone
            self._refuse(record, error)
            return None

    async def _load(self, record: Record, version: Version, turn: str) -> None:
        """Takes one version from disk to READY, or to UNAVAILABLE with the reason; what served goes on serving."""
        model, started = self._models[record.name], time.monotonic()
        is_swap = model.is_ready

        def tell(words: str) -> None:
            record.become(State.LOADING if record.servable is None else State.READY, f"{words}, {turn}")

        try:
            servable = await self._loader.load(version, tell)
        except Exception as error:  # noqa: BLE001 - whatever befalls a load costs that load alone
            self._refuse(record, error)
            return
        stale = record.go_live(servable)
        if stale is not None:
            self._drain(stale)
        self._retire_unwanted(model)
        seconds = time.monotonic() - started
        metrics.LOADS.labels(record.name, "ok").inc()
        if is_swap:
            metrics.SWAPS.labels(record.name, "ok").inc()
            metrics.SWAP_SECONDS.labels(record.name).observe(seconds)
        log.info(
            "loaded",
            model=f"{record.name} version {record.version}",
            seconds=round(seconds, 2),
            provider=servable.provider,
            parity=servable.manifest.parity.relative_error,
        )

    def _refuse(self, record: Record, error: Exception) -> None:
        """Says why a version could not be loaded; what was loaded of it before its files changed goes on."""
        metrics.LOADS.labels(record.name, "failed").inc()
        if self._models[record.name].is_ready:
            metrics.SWAPS.labels(record.name, "failed").inc()
        if isinstance(error, ServiceError):
            reason, cause, detail = f"{error.message}; {error.cure}", error.__cause__, error.detail
        else:
            reason, cause, detail = "an error of the server's own: its log has it", error, ""
        record.become(State.UNAVAILABLE if record.servable is None else State.READY, reason)
        log.error(
            "not loaded",
            model=f"{record.name} version {record.version}",
            reason=reason,
            detail=detail,
            exc_info=cause,
        )

    # Unloading.

    def _remove(self, model: Model) -> None:
        """Lets go of every version of a model that has left the table, or is about to."""
        for record in list(model.records.values()):
            if record.servable is not None:
                self._retire(model, record)
            elif record.state is not State.UNLOADING:
                self._forget(model, record)

    def _retire_unwanted(self, model: Model) -> None:
        for record in model.unwanted():
            self._retire(model, record)

    def _retire(self, model: Model, record: Record) -> None:
        """Takes a version out of service at once; it is gone when its last caller is."""
        servable, record.servable = record.servable, None
        record.become(State.UNLOADING, "waiting for its last requests")
        assert servable is not None
        self._drain(servable).add_done_callback(lambda _: self._forget(model, record))

    def _forget(self, model: Model, record: Record) -> None:
        if model.records.get(record.version) is record:
            del model.records[record.version]
        current = self._models.get(record.name)
        if current is None or record.version not in current.records:  # else its successor's metrics would go
            record.forget()

    def _drain(self, servable: Servable) -> asyncio.Task[None]:
        """Lets a servable answer its last callers and close, in a task of its own."""

        async def drain() -> None:
            await servable.close()
            log.info("unloaded", model=f"{servable.name} version {servable.version}")

        task = asyncio.create_task(drain())
        self._retirements.add(task)
        task.add_done_callback(self._retirements.discard)
        return task
