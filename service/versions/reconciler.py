"""Keeps the table of models in line with the repository: what should be loaded, and what should not."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import structlog

from models.artifact.artifact import MODEL_NAME
from service.errors import ModelNotFound, RepositoryError
from service.repository.repository import Inventory, Repository
from service.settings import Settings
from service.versions.loader import Loader
from service.versions.model import Model, Record, VersionState
from service.versions.registry import Registry
from service.versions.transition import Transitions

log = structlog.get_logger()


class Reconciler:
    """Scans the repository, and begins the transitions that it asks for. Every method is called on the event loop."""

    def __init__(self, settings: Settings, registry: Registry, loader: Loader) -> None:
        self._settings = settings
        self._repository = Repository(settings.repository)
        self._registry = registry
        self._transitions = Transitions(registry, self._repository, loader)
        self._scanning = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts to load the repository and then to poll it. Returns at once."""
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stops loading, answers the requests that are waiting, and closes every servable."""
        for task in filter(None, (self._watching, self._starting)):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self._transitions.close()

    async def _watch(self) -> None:
        settled_seconds = 0.0  # the first scan takes every version, however new its files are
        while True:
            try:
                await self.scan(settled_seconds)
            except Exception:
                log.exception("the repository could not be scanned")
            settled_seconds = self._settings.poll_seconds
            if settled_seconds == 0:
                return
            await asyncio.sleep(settled_seconds)

    async def refresh(self) -> None:
        """Scans the repository, and waits until the loads have ended."""
        await self.scan()
        for record in self._registry.records():
            await record.loaded()

    async def scan(self, settled_seconds: float = 0.0) -> None:
        """Begins to load the versions that are new or changed, and retires those that are no longer wanted.

        A version whose files changed in the last `settled_seconds` may still be being copied: a later scan takes it.
        """
        async with self._scanning:
            try:
                names = await asyncio.to_thread(self._names)
            except RepositoryError as error:
                self._registry.problem = f"{error.message}; {error.cure}"
                log.error("repository unreadable", reason=error.message, cure=error.cure, detail=error.detail)
                return
            for name in set(self._registry.table) - set(names):
                self._transitions.remove(self._registry.table.pop(name))
            is_first = not self._registry.table
            for name in names:
                self._registry.table.setdefault(name, self._model(name, is_awaited=is_first))
            self._registry.problem = "the model repository holds no model"
            for name in names:
                await self._reconcile(self._registry.table[name], settled_seconds)
            if is_first:
                self._starting = asyncio.create_task(self._await_start([*self._registry.table.values()]))

    async def scan_model(self, name: str, complete: int | None = None, *, unload_first: bool = False) -> None:
        """Scans one model at once. Raises ModelNotFound if the repository does not have it.

        The files of version `complete` are known to be complete: they need not settle. If that version is wanted, and
        neither answers nor is being loaded, it is loaded again, with `unload_first`.
        """
        async with self._scanning:
            if not MODEL_NAME.fullmatch(name) or name not in await asyncio.to_thread(self._names):
                raise ModelNotFound(f"the repository has no model {name!r}", cure="GET /models lists all")
            model = self._registry.table.setdefault(name, self._model(name, is_awaited=False))
            settled_seconds = self._settings.poll_seconds if self._watching is not None else 0.0
            await self._reconcile(model, settled_seconds, complete, unload_first=unload_first)

    def _model(self, name: str, *, is_awaited: bool) -> Model:
        return Model(name, is_required=name in self._settings.models, is_awaited=is_awaited)

    async def _await_start(self, models: Sequence[Model]) -> None:
        """Waits for the loads that the first scan began; after that, readiness no longer waits for these models."""
        for record in [record for model in models for record in model.records.values()]:
            await record.loaded()
        for model in models:
            model.is_awaited = False

    def _names(self) -> list[str]:
        """The models to serve: those that the settings name, or all of the repository. Raises RepositoryError."""
        for name in self._repository.ignored() if not self._registry.table else ():  # logged once
            log.warning("ignored", directory=name, reason="it is not a valid model name", cure="menagerie check")
        present = self._repository.names()
        if absent := sorted(set(self._settings.models) - set(present)):
            raise RepositoryError(
                f"MENAGERIE_MODELS names the model {absent[0]}, which the repository does not have",
                cure=f"correct MENAGERIE_MODELS; the repository has {', '.join(present) or 'none'}",
            )
        return [name for name in present if not self._settings.models or name in self._settings.models]

    async def _reconcile(
        self, model: Model, settled_seconds: float, complete: int | None = None, *, unload_first: bool = False
    ) -> None:
        """Brings the versions of a model in line with the repository."""
        inventory = await self._inventory(model)
        if inventory is None:
            return
        model.problem, model.wanted, model.routing = "", inventory.wanted.keys(), inventory.routing
        model.stored = inventory.present
        model.min_agreement, model.unload_first = inventory.config.min_agreement, inventory.config.unload_first
        for number, signature in inventory.wanted.items():
            record = model.records.get(number)
            if record is not None and record.state is VersionState.UNLOADING:
                record = None  # it is wanted again while it drains: it gets a new record
            if number != complete and not signature.is_settled(settled_seconds):
                continue
            if record is not None and record.signature == signature and not (number == complete and record.is_idle):
                continue
            if record is None:
                record = model.records[number] = Record(model.name, number, signature)
            record.signature = signature
            self._transitions.begin(model, record, unload_first=unload_first and number == complete)
        for record in list(model.records.values()):
            if record.version not in inventory.wanted:
                self._transitions.release(model, record)
        self._transitions.retire_unwanted(model)

    async def _inventory(self, model: Model) -> Inventory | None:
        """Reads the wanted versions of a model. If that fails, shows the problem and returns None."""
        try:
            return await asyncio.to_thread(self._repository.inventory, model.name)
        except RepositoryError as error:
            model.problem = f"{error.message}; {error.cure}"
            log.error("model unusable", model=model.name, reason=error.message, cure=error.cure, detail=error.detail)
        except Exception:  # it affects this model alone
            model.problem = "internal error; the server's log has the details"
            log.exception("model unusable", model=model.name)
        return None
