"""The operations of the admin API. Each changes the repository, and lets the reconciler scan the model."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog
from pydantic import ValidationError

from models.artifact import toml_file
from models.artifact.artifact import CONFIG_FILE, MODEL_NAME, ModelConfig
from models.errors import ArtifactError
from service.errors import Conflict, InvalidInput, LoadFailed, ModelNotFound, RepositoryError
from service.repository.publisher import Publisher
from service.repository.repository import Repository, first_problem
from service.repository.routing import Routing
from service.versions import golden
from service.versions.model import Record
from service.versions.reconciler import Reconciler
from service.versions.registry import Registry

log = structlog.get_logger()

T = TypeVar("T")


class Operations:
    """Called on the event loop. Every decision is stored in the repository, and so survives a restart."""

    def __init__(
        self, registry: Registry, reconciler: Reconciler, repository: Repository, publisher: Publisher
    ) -> None:
        self._registry = registry
        self._reconciler = reconciler
        self._repository = repository
        self.publisher = publisher
        self._changing = asyncio.Lock()  # one decision at a time; it is not held during a load

    async def define(self, name: str, content: bytes) -> None:
        """Writes the model.toml of a new or an existing model. Raises InvalidInput."""
        if not MODEL_NAME.fullmatch(name):
            raise InvalidInput(
                f"{name[:64]!r} is not a valid model name",
                cure="use at most 64 lower-case letters, digits, '.', '_' and '-'",
            )
        await asyncio.to_thread(_check_config, content)
        await asyncio.to_thread(self.publisher.write_config, name, content)
        await self._reconciler.scan_model(name)

    async def publish(self, staged: Path, name: str, number: int | None) -> int:
        """Moves an uploaded version into the repository and starts to load it if it is wanted. Raises Conflict."""
        number = await asyncio.to_thread(self.publisher.publish, staged, name, number)
        log.info("received", model=f"{name} version {number}")
        await self._reconciler.scan_model(name, number)
        return number

    async def pin(self, name: str) -> None:
        """Keeps the live version live until another one is activated, or `unpin` is called."""
        async with self._changing:
            await self._pin(name)

    async def unpin(self, name: str) -> None:
        """Makes the highest version live, now and whenever a higher one is ready."""
        self._registry.model(name)
        async with self._changing:
            await self._edit(name, lambda routing: routing.with_live(None, None))
            await self._reconciler.scan_model(name)

    async def load(self, name: str, number: int, *, unload_first: bool = False) -> Record:
        """Loads a version beside the live one, and waits for it. Concurrent calls for one version share the load.

        With `unload_first`, the live version may be unloaded first if memory does not hold both. Raises LoadFailed.
        """
        async with self._changing:
            await self._check_present(name, number)
            if number not in await self._read(self._repository.wanted, name):
                await self._edit(name, lambda routing: routing.with_part(number, load=True))
            await self._reconciler.scan_model(name, number, unload_first=unload_first)
            record = self._registry.record(name, number)
        await record.loaded()  # without the lock: a load may take minutes
        _check_loaded(record)
        return record

    async def cancel(self, name: str, number: int) -> None:
        """Cancels the running load of a version. Raises Conflict if there is none."""
        record = self._registry.record(name, number)
        if record.loading is None:
            raise Conflict(f"{name} version {number} is not being loaded")
        record.cancel()
        await record.loaded()

    async def unload(self, name: str, number: int) -> None:
        """Unloads a version that is not live, after its last requests. Raises Conflict."""
        async with self._changing:
            await self._check_present(name, number)
            self._check_unused(name, number)
            await self._edit(name, lambda routing: routing.with_part(number, load=False, canary=0.0, shadow=0.0))
            await self._reconciler.scan_model(name)

    async def activate(self, name: str, number: int, *, unload_first: bool = False, is_checked: bool = True) -> Record:
        """Makes a version live, after loading it if necessary.

        Raises LoadFailed or GoldenDisagreement; then the live version does not change.
        """
        live = self._registry.model(name).live
        before = None if live is None else live.version  # read now: without a pin, the load may change it
        record = await self.load(name, number, unload_first=unload_first)
        async with self._changing:
            _check_loaded(record)
            model = self._registry.model(name)
            if before in model.records and before != number:
                record.report = golden.compare(record.answers, before, model.records[before].answers)
                if is_checked:
                    golden.check_agreement(number, record.report, model.min_agreement)
            await self._edit(name, lambda routing: routing.with_live(number, before))
            await self._reconciler.scan_model(name)
        log.info("activated", model=f"{name} version {number}", before=before)
        return record

    async def roll_back(self, name: str) -> Record:
        """Makes the previously live version live again, whatever its golden answers. Raises Conflict, LoadFailed."""
        live = self._registry.model(name).live
        routing = await self._read(self._repository.routing, name)
        present = await self._read(self._repository.present, name)
        lower = [number for number in present if live is None or number < live.version]
        previous = routing.previous if routing.previous in present else max(lower, default=None)
        if previous is None:
            raise Conflict(f"{name} has no version to roll back to")
        return await self.activate(name, previous, is_checked=False)

    async def delete(self, name: str, number: int) -> None:
        """Deletes a version from the repository. Raises Conflict if it is live or has a label."""
        async with self._changing:
            await self._check_present(name, number)
            self._check_unused(name, number)
            await self._edit(name, lambda routing: routing.without(number))
            await asyncio.to_thread(self.publisher.delete, name, number)
            await self._reconciler.scan_model(name)

    async def label(self, name: str, label: str, number: int | None) -> None:
        """Moves a label to a version, after loading it; with None, removes the label. Raises LoadFailed."""
        before = None if number is None else self._registry.model(name).routing.part(number).load
        record = None if number is None else await self.load(name, number)

        def change(routing: Routing) -> Routing:
            labelled = routing.with_label(label, number)
            # From now on the label keeps the version loaded, so that `load` gets its former value back.
            return labelled if number is None else labelled.with_part(number, load=before or None)

        async with self._changing:
            self._registry.model(name)
            if record is not None:
                _check_loaded(record)
            await self._edit(name, change)
            await self._reconciler.scan_model(name)

    async def set_shares(self, name: str, number: int, *, canary: float, shadow: float | bool) -> None:
        """Makes a version a canary, a shadow or both, by its shares of the requests in per cent.

        A version with neither share is unloaded, unless it is wanted for another reason. Raises Conflict, LoadFailed.
        """
        async with self._changing:
            await self._check_present(name, number)
            self._check_not_live(name, number)
            await self._pin(name)  # else the version would go live by itself when its shares end
            await self._edit(name, lambda routing: routing.with_part(number, load=None, canary=canary, shadow=shadow))
            await self._reconciler.scan_model(name)
        if canary or shadow:
            await self.load(name, number)

    @staticmethod
    async def _read(read: Callable[[str], T], name: str) -> T:
        """Reads from the repository. Raises Conflict if its files have to be corrected first."""
        try:
            return await asyncio.to_thread(read, name)
        except RepositoryError as error:
            raise Conflict(error.message, cure=error.cure) from error

    # The following methods are called with the lock held.

    async def _pin(self, name: str) -> None:
        live = self._registry.model(name).live
        if live is not None:
            await self._edit(name, lambda routing: routing if routing.live else routing.with_live(live.version, None))

    async def _edit(self, name: str, change: Callable[[Routing], Routing]) -> None:
        routing = await self._read(self._repository.routing, name)
        try:
            changed = change(routing)
        except ValidationError as error:
            raise Conflict(first_problem(error), cure="reduce the share of another version first") from error
        if changed != routing:
            await asyncio.to_thread(self.publisher.write_routing, name, changed)

    async def _check_present(self, name: str, number: int) -> None:
        self._registry.model(name)
        present = await self._read(self._repository.present, name)
        if number not in present:
            known = ", ".join(map(str, present)) or "none"
            raise ModelNotFound(f"{name} has no version {number}", cure=f"the repository has {known}")

    def _check_not_live(self, name: str, number: int) -> None:
        live = self._registry.model(name).live
        if live is not None and live.version == number:
            raise Conflict(f"{name} version {number} is live", cure="activate another version first")

    def _check_unused(self, name: str, number: int) -> None:
        self._check_not_live(name, number)
        labels = self._registry.model(name).routing.labels
        if label := next((label for label, labelled in labels.items() if labelled == number), None):
            raise Conflict(f"{name} version {number} has the label {label!r}", cure="move the label first")


def _check_config(content: bytes) -> None:
    """Raises InvalidInput if the bytes are not a valid model.toml."""
    try:
        ModelConfig.model_validate(toml_file.parse(content, CONFIG_FILE))
    except ValidationError as error:
        raise InvalidInput(
            f"{CONFIG_FILE}: {first_problem(error)}", cure="docs/reference/model-toml.md lists its keys"
        ) from error
    except ArtifactError as error:
        raise InvalidInput(str(error), cure=error.cure) from error


def _check_loaded(record: Record) -> None:
    """Raises LoadFailed if the version does not answer: its load failed, or it has been unloaded since."""
    if record.servable is None:
        raise LoadFailed(f"{record.name} version {record.version}: {record.reason}")
