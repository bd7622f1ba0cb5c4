"""A version's transitions: load, check, swap, drain, unload."""

import asyncio
import time

import structlog

from service import metrics
from service.errors import NotEnoughMemory, ServiceError
from service.host.threads import to_its_end
from service.inference.servable import Servable
from service.repository.repository import Repository, Version
from service.versions import golden
from service.versions.loader import Loader
from service.versions.model import Model, Record, VersionState
from service.versions.registry import Registry

log = structlog.get_logger()


class Transitions:
    """Loads, swaps and unloads versions. Every method is called on the event loop; threads and children do the work."""

    def __init__(self, registry: Registry, repository: Repository, loader: Loader) -> None:
        self._registry = registry
        self._repository = repository
        self._loader = loader
        self._drains: set[asyncio.Task[None]] = set()
        self._closing = False

    async def close(self) -> None:
        """Cancels every load, answers the requests that are waiting, and closes every servable."""
        self._closing = True
        for record in self._registry.records():
            record.cancel()
        for record in self._registry.records():
            await record.loaded()
        for model in self._registry.table.values():
            self.remove(model)
        await asyncio.gather(*self._drains)

    # Loading.

    def begin(self, model: Model, record: Record, *, unload_first: bool = False) -> None:
        """Starts to load a version. A load of it that is already running is cancelled, and awaited first."""
        if self._closing:
            return
        previous = record.loading
        record.cancel()
        record.show_step("waiting for its turn")
        record.begin(self._load(model, record, previous, unload_first=unload_first))

    async def _load(
        self, model: Model, record: Record, previous: asyncio.Task[None] | None, *, unload_first: bool
    ) -> None:
        """Takes a version to READY, or to UNAVAILABLE with the reason."""
        started, is_swap = time.monotonic(), model.is_ready
        try:
            if previous is not None:
                await asyncio.wait({previous})
            version = await asyncio.to_thread(self._repository.resolve, record.name, record.version)
            try:
                servable = await self._swap(model, record, version)
            except NotEnoughMemory:
                if model.live is None or not (unload_first or model.unload_first):
                    raise
                servable = await self._swap_in_place(model, record, version, model.records[model.live.version])
        except asyncio.CancelledError:
            self._on_cancelled(model, record)
            raise
        except Exception as error:  # noqa: BLE001 - any error in a load fails that load alone
            self._on_failed(record, error, is_swap=is_swap)
        else:
            self._on_loaded(record, servable, time.monotonic() - started, is_swap=is_swap)

    async def _swap(self, model: Model, record: Record, version: Version) -> Servable:
        """Loads a version, checks its golden answers, puts it into service, and drains what it replaces.

        The live version answers until the new one does. Raises ServiceError, with nothing changed and nothing open.
        """
        servable = await self._loader.load(version, record.show_step, beside=model.live)
        try:
            await self._check_golden(model, record, servable)
        except BaseException:
            await servable.close()
            raise
        replaced = record.make_ready(servable)
        if replaced is not None:  # the same version, as its files were before they changed
            self._drain(replaced)
        self.retire_unwanted(model)  # other versions, which answered until now
        return servable

    async def _swap_in_place(self, model: Model, record: Record, version: Version, live: Record) -> Servable:
        """Unloads the live version before the swap, for lack of memory; if the swap fails, it is loaded again."""
        record.show_step("unloading the live version first")
        if live is record:  # its files have changed: what was loaded from the old ones cannot be loaded again
            assert record.servable is not None
            replaced, record.servable = record.servable, None
            await to_its_end(self._drain(replaced))
            return await self._swap(model, record, version)
        try:
            await to_its_end(self._retire(model, live))
            return await self._swap(model, record, version)
        except BaseException:
            if live.version not in model.records:
                again = model.records[live.version] = Record(model.name, live.version, live.signature)
                self.begin(model, again)
            raise

    async def _check_golden(self, model: Model, record: Record, servable: Servable) -> None:
        """Runs the golden inputs and compares the labels with the live version's. Raises ServiceError."""
        record.show_step("answering the golden inputs")
        directory = self._repository.root / model.name
        inputs = await asyncio.to_thread(golden.read, directory, servable.manifest.spec.input)
        answers = await golden.ask(servable, inputs)
        live = model.live
        report = None if live is None else golden.compare(answers, live.version, model.records[live.version].answers)
        if model.would_be_live(record.version):
            golden.check_agreement(record.version, report, model.min_agreement)
        record.answers, record.report = answers, report
        if report is not None:
            metrics.GOLDEN_AGREEMENT.labels(record.name, str(record.version)).set(report.agreement)

    # How a load ended.

    @staticmethod
    def _on_loaded(record: Record, servable: Servable, seconds: float, *, is_swap: bool) -> None:
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

    @staticmethod
    def _on_failed(record: Record, error: Exception, *, is_swap: bool) -> None:
        """Shows and logs the reason. A servable from before the version's files changed goes on answering."""
        metrics.LOADS.labels(record.name, "failed").inc()
        if is_swap:
            metrics.SWAPS.labels(record.name, "failed").inc()
        if isinstance(error, ServiceError):
            reason, cause, detail = f"{error.message}; {error.cure}", error.__cause__, error.detail
        else:
            reason, cause, detail = "internal error; the server's log has the details", error, ""
        record.fail(reason)
        log.error(
            "not loaded",
            model=f"{record.name} version {record.version}",
            reason=reason,
            detail=detail,
            exc_info=cause,
        )

    def _on_cancelled(self, model: Model, record: Record) -> None:
        """Shows that the load was cancelled, or forgets the version if it is no longer wanted."""
        if record.loading is not asyncio.current_task() or record.state is VersionState.UNLOADING:
            return  # another load has replaced this one, or the version is being drained
        is_wanted = record.version in model.wanted and model.records.get(record.version) is record
        if is_wanted or record.servable is not None:
            record.fail("its load was cancelled")
        else:
            self._forget(model, record)

    # Unloading.

    def remove(self, model: Model) -> None:
        """Unloads every version of a model that has left the table, or is about to."""
        for record in list(model.records.values()):
            record.cancel()
            if record.servable is not None:
                self._retire(model, record)
            elif record.state is not VersionState.UNLOADING:
                self._forget(model, record)

    def release(self, model: Model, record: Record) -> None:
        """Stops loading a version that is no longer wanted, and forgets it if it is idle.

        While no version of the model answers, the load goes on. A version that answers is left to `retire_unwanted`.
        """
        if model.is_ready:
            record.cancel()
        if record.is_idle and record.state is not VersionState.UNLOADING:
            self._forget(model, record)

    def retire_unwanted(self, model: Model) -> None:
        """Retires the versions that are no longer wanted, once a wanted one answers."""
        for record in model.unwanted():
            self._retire(model, record)

    def _retire(self, model: Model, record: Record) -> asyncio.Task[None]:
        """Takes a version out of service at once. The task ends when its last requests are answered."""
        servable, record.servable = record.servable, None
        record.set_state(VersionState.UNLOADING, "waiting for its last requests")
        assert servable is not None
        draining = self._drain(servable)
        draining.add_done_callback(lambda _: self._forget(model, record))
        return draining

    def _drain(self, servable: Servable) -> asyncio.Task[None]:
        """Closes a servable in a task, after its last requests have been answered."""

        async def drain() -> None:
            await servable.close()
            log.info("unloaded", model=f"{servable.name} version {servable.version}")

        task = asyncio.create_task(drain())
        self._drains.add(task)
        task.add_done_callback(self._drains.discard)
        return task

    def _forget(self, model: Model, record: Record) -> None:
        """Removes a version from its model, and its gauges unless another record of the same version uses them."""
        if model.records.get(record.version) is record:
            del model.records[record.version]
        current = self._registry.table.get(record.name)
        if current is None or record.version not in current.records:
            record.forget()
