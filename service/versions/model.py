"""The state of one model: its versions, and which of them answers.

LOADING -> READY -> UNLOADING -> gone; any state -> UNAVAILABLE with a reason.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from models.artifact.manifest import Manifest
from service import metrics
from service.inference.servable import Servable
from service.repository.repository import Signature
from service.repository.routing import Routing
from service.versions import golden


class VersionState(StrEnum):
    """The state of a version."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(eq=False)
class Record:
    """One version: its state as it is shown, and its servable while it answers."""

    name: str
    version: int
    signature: Signature
    """The state of the files at the last attempt to load them, whether or not it succeeded."""
    state: VersionState = VersionState.LOADING
    reason: str = "waiting for its turn"
    servable: Servable | None = None
    manifest: Manifest | None = None
    provider: str | None = None
    changed: float = field(default_factory=time.time)
    loading: asyncio.Task[None] | None = None
    """The load that is running, if any. It raises no error but cancellation: errors become the state."""
    answers: golden.Answers = field(default_factory=dict)
    report: golden.Report | None = None
    _updated: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_idle(self) -> bool:
        """Whether it neither answers nor is being loaded."""
        return self.servable is None and self.loading is None

    def set_state(self, state: VersionState, reason: str = "") -> None:
        """Changes the state, here and in the metrics, and wakes the followers."""
        self.state, self.reason, self.changed = state, reason, time.time()
        for each in VersionState:
            metrics.MODEL_STATE.labels(self.name, str(self.version), each).set(each is state)
        self._wake()

    def show_step(self, step: str) -> None:
        """Shows the present step of a load. While the previous servable answers, the version stays READY."""
        self.set_state(VersionState.LOADING if self.servable is None else VersionState.READY, step)

    def fail(self, reason: str) -> None:
        """Shows why a load failed. If a previous servable answers, the version stays READY."""
        self.set_state(VersionState.UNAVAILABLE if self.servable is None else VersionState.READY, reason)

    def make_ready(self, servable: Servable) -> Servable | None:
        """Lets a new servable answer from now on. Returns the one that it replaces, if any."""
        replaced, self.servable = self.servable, servable
        self.manifest, self.provider = servable.manifest, servable.provider
        servable.show_metrics()
        self.set_state(VersionState.READY)
        return replaced

    def begin(self, load: Coroutine[Any, Any, None]) -> None:
        """Starts a load in a task."""
        self.loading = asyncio.create_task(load)
        self.loading.add_done_callback(self._end)

    def _end(self, load: asyncio.Task[None]) -> None:
        if self.loading is load:
            self.loading = None
        self._wake()

    def cancel(self) -> None:
        """Cancels the load that is running, if any. A servable that answers goes on answering."""
        if self.loading is not None:
            self.loading.cancel()

    def _wake(self) -> None:
        self._updated.set()
        self._updated = asyncio.Event()

    async def loaded(self) -> None:
        """Waits for the load that is running, if any. Cancelling the wait does not cancel the load."""
        while (loading := self.loading) is not None:
            await asyncio.wait({loading})

    async def follow(self) -> AsyncIterator[None]:
        """Yields at once, and after every change, until no load is running."""
        while True:
            updated = self._updated
            yield
            if self.loading is None:
                return
            await updated.wait()

    def forget(self) -> None:
        """Removes the gauges of a version that is gone."""
        metrics.forget(self.name, self.version)


@dataclass(eq=False)
class Model:
    """One model of the repository. It is changed on the event loop alone."""

    name: str
    is_required: bool
    """Whether MENAGERIE_MODELS names it: the server is ready only if this model is."""
    is_awaited: bool
    """Whether the model was there at the start, and the loads of the start have not all ended yet."""
    records: dict[int, Record] = field(default_factory=dict)
    wanted: Collection[int] = frozenset()
    """The versions that should be loaded."""
    stored: Sequence[int] = ()
    """The versions in the repository, ascending."""
    routing: Routing = field(default_factory=Routing)
    min_agreement: float = 0.0
    unload_first: bool = False
    problem: str = "it has not been scanned yet"
    """Why its versions cannot be listed; empty if they can."""

    @property
    def ready(self) -> Mapping[int, Servable]:
        """The servables that can answer, by version."""
        return {number: record.servable for number, record in self.records.items() if record.servable is not None}

    @property
    def live(self) -> Servable | None:
        """The servable that answers a request without a version, unless a canary answers it."""
        ready = self.ready
        number = self._live_among(ready)
        return None if number is None else ready[number]

    def would_be_live(self, version: int) -> bool:
        """Whether the version would be live if it were ready."""
        return self._live_among({*self.ready, version}) == version

    def _live_among(self, ready: Collection[int]) -> int | None:
        """The version that routing.toml names; else the highest that is no canary or shadow; else the highest.

        At the start, no other version answers before the named one has been tried. Else a server that restarts after
        a rollback would serve the version that was rolled back.
        """
        if self.routing.live in ready:
            return self.routing.live
        named = self.records.get(self.routing.live or 0)
        if self.is_awaited and named is not None and named.loading is not None:
            return None
        regular = [number for number in ready if not self.routing.part(number).has_share]
        return max(regular or ready, default=None)

    def draw(self, percent: float) -> Servable | None:
        """The servable that answers a request without a version: a canary if the drawn `percent` is in its share.

        `percent` is drawn from 0 to 100 for each request.
        """
        for number, part in self.routing.versions.items():
            if percent < part.canary and (servable := self._answering(number)) is not None:
                return servable
            percent -= part.canary
        return self.live

    def shadows(self, percent: float) -> list[Servable]:
        """The shadows that get a copy of a request: those whose share the drawn `percent`, from 0 to 100, is in."""
        return [
            servable
            for number, part in self.routing.versions.items()
            if percent < part.shadow and (servable := self._answering(number)) is not None
        ]

    def _answering(self, version: int) -> Servable | None:
        record = self.records.get(version)
        return None if record is None else record.servable

    @property
    def is_ready(self) -> bool:
        """Whether a version answers."""
        return self.live is not None

    @property
    def why_unready(self) -> str:
        """The reason why the model does not answer, or why each of its versions does not."""
        records = [self.records[number] for number in sorted(self.records)]
        versions = "; ".join(f"version {record.version} {record.state}: {record.reason}" for record in records)
        return self.problem or versions or "its files are still being written"

    def unwanted(self) -> list[Record]:
        """The versions that answer and are no longer wanted; none until a wanted one can take over.

        That is the pinned version if it is wanted, else any that is no canary or shadow, else any.
        """
        pinned = self.routing.live
        regular = {number for number in self.wanted if not self.routing.part(number).has_share}
        successors = {pinned} if pinned in self.wanted else regular or set(self.wanted)
        answering = self.ready.keys()
        return [self.records[number] for number in answering - set(self.wanted)] if answering & successors else []
