"""Brings the table of models in line with the repository: loads what is new, swaps it in, retires what is gone."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

import structlog

from models.artifact.artifact import MODEL_NAME
from service import metrics
from service.errors import GoldenDisagreement, ModelNotFound, NotEnoughMemory, RepositoryError, ServiceError
from service.inference.servable import Servable
from service.repository.repository import Repository, Version
from service.settings import Settings
from service.versions import golden
from service.versions.loader import Loader
from service.versions.model import Model, Record, State
from service.versions.registry import Registry

log = structlog.get_logger()


class Reconciler:
    """Alone changes the table. Every method is called on the event loop; loading happens on threads and in children."""

    def __init__(self, settings: Settings, registry: Registry, loader: Loader) -> None:
        self._settings = settings
        self._repository = Repository(settings.repository)
        self._registry = registry
        self._loader = loader
        self._looking = asyncio.Lock()
        self._retirements: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[None] | None = None
        self._closing = False

    def start(self) -> None:
        """Begins to load, and then to watch, the repository; the caller need not wait."""
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stops loading, then answers what waits and closes every servable."""
        self._closing = True
        for task in filter(None, (self._task, self._starting)):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        for record in self._registry.records():
            self.cancel(record)
        for record in self._registry.records():
            await record.loaded()
        for model in self._registry.table.values():
            self._remove(model)
        await asyncio.gather(*self._retirements)

    # Loading.

    async def _watch(self) -> None:
        settled_seconds = 0.0  # at the start, everything is taken as it lies
        while True:
            try:
                await self.look(settled_seconds)
            except Exception:
                log.exception("the repository could not be looked through")
            settled_seconds = self._settings.poll_seconds
            if settled_seconds == 0:
                return
            await asyncio.sleep(settled_seconds)

    async def refresh(self) -> None:
        """Looks through the repository, and waits for what is to be loaded."""
        await self.look()
        for record in self._registry.records():
            await record.loaded()

    async def look(self, settled_seconds: float = 0.0) -> None:
        """Makes the table what the repository asks for: begins to load what is new or changed, retires what is gone.

        A version whose files changed in the last `settled_seconds` is left for the next time.
        """
        async with self._looking:
            try:
                names = await asyncio.to_thread(self._names)
            except RepositoryError as error:
                self._registry.problem = f"{error.message}; {error.cure}"
                log.error("repository unreadable", reason=error.message, cure=error.cure, detail=error.detail)
                return
            for name in set(self._registry.table) - set(names):
                self._remove(self._registry.table.pop(name))
            is_first = not self._registry.table
            for name in names:
                self._registry.table.setdefault(name, self._model(name, is_awaited=is_first))
            self._registry.problem = "the model repository holds no model"
            for name in names:
                await self._look_at(self._registry.table[name], settled_seconds)
            if is_first:
                self._starting = asyncio.create_task(self._await_start([*self._registry.table.values()]))

    async def look_at(self, name: str, whole: int | None = None, *, unload_first: bool = False) -> None:
        """The same for one model, at once. Raises ModelNotFound where the repository lacks it.

        The version `whole` is known to be written to its end; if it is wanted and neither answers nor is being loaded,
        it is tried again. `unload_first` is for it.
        """
        async with self._looking:
            if not MODEL_NAME.fullmatch(name) or name not in await asyncio.to_thread(self._names):
                raise ModelNotFound(f"the repository has no model {name!r}", cure="GET /models lists all")
            model = self._registry.table.setdefault(name, self._model(name, is_awaited=False))
            settled_seconds = self._settings.poll_seconds if self._task is not None else 0.0
            await self._look_at(model, settled_seconds, whole, unload_first=unload_first)

    def _model(self, name: str, *, is_awaited: bool) -> Model:
        return Model(name, is_required=name in self._settings.models, is_awaited=is_awaited)

    async def _await_start(self, models: Sequence[Model]) -> None:
        """Ends with the last load of what lay there at the start: from then on none of these is awaited."""
        for record in [record for model in models for record in model.records.values()]:
            await record.loaded()
        for model in models:
            model.is_awaited = False

    def _names(self) -> list[str]:
        for name in self._repository.ignored() if not self._registry.table else ():  # told once
            log.warning("ignored", directory=name, reason="it is no name for a model", cure="menagerie check")
        present = self._repository.names()
        if absent := sorted(set(self._settings.models) - set(present)):
            raise RepositoryError(
                f"the settings ask for a model {absent[0]}, which the repository lacks",
                cure=f"correct MENAGERIE_MODELS; the repository has {', '.join(present) or 'none'}",
            )
        return [name for name in present if not self._settings.models or name in self._settings.models]

    async def _look_at(
        self, model: Model, settled_seconds: float, whole: int | None = None, *, unload_first: bool = False
    ) -> None:
        """Brings a model's records in line with the repository, and begins to load what is new or changed."""
        try:
            inventory = await asyncio.to_thread(self._repository.inventory, model.name)
        except RepositoryError as error:
            model.problem = f"{error.message}; {error.cure}"
            log.error("model unusable", model=model.name, reason=error.message, cure=error.cure, detail=error.detail)
            return
        except Exception:
            model.problem = "an error of the server's own: its log has it"  # which costs this model alone
            log.exception("model unusable", model=model.name)
            return
        model.problem, model.wanted, model.routing = "", inventory.wanted.keys(), inventory.routing
        model.stored = inventory.present
        model.min_agreement, model.unload_first = inventory.config.min_agreement, inventory.config.unload_first
        for number, signature in inventory.wanted.items():
            record = model.records.get(number)
            if record is not None and record.state is State.UNLOADING:
                record = None  # it came back: as a version of its own
            if number != whole and not signature.is_settled(settled_seconds):
                continue
            if record is not None and record.signature == signature and not (number == whole and record.is_idle):
                continue
            if record is None:
                record = model.records[number] = Record(model.name, number, signature)
            record.signature = signature
            self._begin(model, record, unload_first=unload_first and number == whole)
        for record in list(model.records.values()):
            if record.version not in inventory.wanted:
                self._let_go(model, record)
        self._retire_unwanted(model)

    def _begin(self, model: Model, record: Record, *, unload_first: bool = False) -> None:
        """Starts a load, in the place of the one under way, if any."""
        if self._closing:
            return
        before = record.loading
        self.cancel(record)
        record.tell("waiting for its turn")
        record.begin(self._load(model, record, before, unload_first=unload_first))

    def cancel(self, record: Record) -> None:
        """Ends the load under way, if any; what answered goes on answering."""
        if record.loading is not None:
            record.loading.cancel()

    async def _load(
        self, model: Model, record: Record, before: asyncio.Task[None] | None, *, unload_first: bool
    ) -> None:
        """Takes one version from disk to READY, or to UNAVAILABLE with the reason; what served goes on serving."""
        started, is_swap = time.monotonic(), model.is_ready
        try:
            if before is not None:
                await asyncio.wait({before})
            version = await asyncio.to_thread(self._repository.resolve, record.name, record.version)
            try:
                servable = await self._warm(model, record, version)
            except NotEnoughMemory:
                if model.live is None or not (unload_first or model.unload_first):
                    raise
                servable = await self._warm_instead(model, record, version, model.records[model.live.version])
        except asyncio.CancelledError:
            self._give_up(model, record)
            raise
        except Exception as error:  # noqa: BLE001 - whatever befalls a load costs that load alone
            self._refuse(record, error, is_swap=is_swap)
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
            **({"agreement": record.report.agreement} if record.report else {}),
        )

    def _give_up(self, model: Model, record: Record) -> None:
        """A load was cancelled: what answered answers on, and a version that nobody wants is forgotten."""
        if record.loading is not asyncio.current_task() or record.state is State.UNLOADING:
            return  # another load has taken its place, or its last callers are being answered
        is_wanted = record.version in model.wanted and model.records.get(record.version) is record
        if is_wanted or record.servable is not None:
            record.fail("its load was cancelled")
        else:
            self._forget(model, record)

    async def _warm(self, model: Model, record: Record, version: Version) -> Servable:
        """A servable that has answered the golden inputs. Raises ServiceError, and leaves nothing open."""
        servable = await self._loader.load(version, record.tell, beside=model.live)
        try:
            record.tell("answering the golden inputs")
            directory = self._settings.repository / model.name
            inputs = await asyncio.to_thread(golden.read, directory, servable.manifest.spec.input)
            answers = await golden.ask(servable, inputs)
            report = self._report(model, answers)
            if model.would_be_live(record.version):
                check_agreement(model, record.version, report)
        except BaseException:
            await servable.close()
            raise
        record.answers, record.report = answers, report
        if report is not None:
            metrics.GOLDEN_AGREEMENT.labels(record.name, str(record.version)).set(report.agreement)
        return servable

    async def _warm_instead(self, model: Model, record: Record, version: Version, live: Record) -> Servable:
        """The same where memory holds one version: the live one goes first, and comes back if this one fails."""
        record.tell("unloading the live version first")
        if live is record:  # whose files have changed: there is nothing to come back to
            assert record.servable is not None
            stale, record.servable = record.servable, None
            await self._drain(stale)
            return await self._warm(model, record, version)
        await self._retire(model, live)
        try:
            return await self._warm(model, record, version)
        except BaseException:
            if live.version not in model.records:
                again = model.records[live.version] = Record(model.name, live.version, live.signature)
                self._begin(model, again)
            raise

    def _report(self, model: Model, answers: golden.Answers) -> golden.Report | None:
        live = model.live
        return None if live is None else golden.compare(answers, live.version, model.records[live.version].answers)

    def _refuse(self, record: Record, error: Exception, *, is_swap: bool) -> None:
        """Says why a version could not be loaded; what was loaded of it before its files changed goes on."""
        metrics.LOADS.labels(record.name, "failed").inc()
        if is_swap:
            metrics.SWAPS.labels(record.name, "failed").inc()
        if isinstance(error, ServiceError):
            reason, cause, detail = f"{error.message}; {error.cure}", error.__cause__, error.detail
        else:
            reason, cause, detail = "an error of the server's own: its log has it", error, ""
        record.fail(reason)
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
            self.cancel(record)
            if record.servable is not None:
                self._retire(model, record)
            elif record.state is not State.UNLOADING:
                self._forget(model, record)

    def _let_go(self, model: Model, record: Record) -> None:
        """A version is wanted no more: where others answer, it need not be loaded; what was refused is forgotten."""
        if model.is_ready:
            self.cancel(record)
        if record.servable is None and record.loading is None and record.state is not State.UNLOADING:
            self._forget(model, record)

    def _retire_unwanted(self, model: Model) -> None:
        for record in model.unwanted():
            self._retire(model, record)

    def _retire(self, model: Model, record: Record) -> asyncio.Task[None]:
        """Takes a version out of service at once; it is gone when its last caller is, which the task waits for."""
        servable, record.servable = record.servable, None
        record.become(State.UNLOADING, "waiting for its last requests")
        assert servable is not None
        draining = self._drain(servable)
        draining.add_done_callback(lambda _: self._forget(model, record))
        return draining

    def _forget(self, model: Model, record: Record) -> None:
        if model.records.get(record.version) is record:
            del model.records[record.version]
        current = self._registry.table.get(record.name)
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


def check_agreement(model: Model, version: int, report: golden.Report | None) -> None:
    """Raises GoldenDisagreement where a version differs more from the live one than model.toml allows."""
    if report is None or report.agreement >= model.min_agreement:
        return
    first = report.differences[0]
    raise GoldenDisagreement(
        f"version {version} gives {report.agreement:.1%} of the {report.inputs} golden inputs the label of version "
        f"{report.live}, and min_agreement is {model.min_agreement:.1%}: {first.input} is {first.label!r}, "
        f"and was {first.live_label!r}",
    )
