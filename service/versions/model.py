"""One model as it stands: its versions with their states, and who answers.

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


class State(StrEnum):
    """Where a version stands."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(eq=False)
class Record:
    """One version: what is shown of it, and its servable while it answers."""

    name: str
    version: int
    signature: Signature
    """The files that were last tried, whether or not they could be loaded."""
    state: State = State.LOADING
    reason: str = "waiting for its turn"
    servable: Servable | None = None
    manifest: Manifest | None = None
    provider: str | None = None
    changed: float = field(default_factory=time.time)
    loading: asyncio.Task[None] | None = None
    """The load under way, if any; it never fails: what goes wrong becomes the state."""
    answers: golden.Answers = field(default_factory=dict)
    report: golden.Report | None = None
    _told: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_idle(self) -> bool:
        """Whether it neither answers nor is being loaded."""
        return self.servable is None and self.loading is None

    def become(self, state: State, reason: str = "") -> None:
        """Changes the state, here and in the metrics, and tells those who follow."""
        self.state, self.reason, self.changed = state, reason, time.time()
        for each in State:
            metrics.MODEL_STATE.labels(self.name, str(self.version), each).set(each is state)
        self._wake()

    def tell(self, reason: str) -> None:
        """Says how far a load has come. What answers goes on answering."""
        self.become(State.LOADING if self.servable is None else State.READY, reason)

    def fail(self, reason: str) -> None:
        """The load has come to nothing; what was loaded before goes on answering."""
        self.become(State.UNAVAILABLE if self.servable is None else State.READY, reason)

    def go_live(self, servable: Servable) -> Servable | None:
        """Takes a new servable, and returns the one that answered until now."""
        stale, self.servable = self.servable, servable
        self.manifest, self.provider = servable.manifest, servable.provider
        servable.announce()
        self.become(State.READY)
        return stale

    def begin(self, load: Coroutine[Any, Any, None]) -> None:
        """Starts a load."""
        self.loading = asyncio.create_task(load)
        self.loading.add_done_callback(self._end)

    def _end(self, load: asyncio.Task[None]) -> None:
        if self.loading is load:
            self.loading = None
        self._wake()

    def _wake(self) -> None:
        self._told.set()
        self._told = asyncio.Event()

    async def loaded(self) -> None:
        """Waits for the load under way, if any; who goes away meanwhile does not end it."""
        while (loading := self.loading) is not None:
            await asyncio.wait({loading})

    async def follow(self) -> AsyncIterator[None]:
        """Comes back at once, and then whenever something was told, until no load is under way."""
        while True:
            told = self._told
            yield
            if self.loading is None:
                return
            await told.wait()

    def forget(self) -> None:
        """The version is gone: no state of it is shown any more, and nothing of it waits or runs."""
        metrics.forget(self.name, self.version)


@dataclass(eq=False)
class Model:
    """One model of the repository. Its table changes on the event loop alone."""

    name: str
    is_required: bool
    """Whether MENAGERIE_MODELS names it: the server is ready only with it."""
    is_awaited: bool
    """Whether it was there at the start, and what was then to be loaded has not all been tried."""
    records: dict[int, Record] = field(default_factory=dict)
    wanted: Collection[int] = frozenset()
    """The versions that the repository asks for."""
    stored: Sequence[int] = ()
    """Every version that the repository has, ascending."""
    routing: Routing = field(default_factory=Routing)
    min_agreement: float = 0.0
    unload_first: bool = False
    problem: str = "not looked at yet"
    """Why its versions cannot be listed; empty when they can."""

    @property
    def ready(self) -> Mapping[int, Servable]:
        """Who could answer, by version."""
        return {number: record.servable for number, record in self.records.items() if record.servable is not None}

    @property
    def live(self) -> Servable | None:
        """Who answers where a request names no version, canaries apart."""
        ready = self.ready
        number = self._choose(ready)
        return None if number is None else ready[number]

    def would_be_live(self, version: int) -> bool:
        """Whether that version were live if it were ready."""
        return self._choose({*self.ready, version}) == version

    def _choose(self, ready: Collection[int]) -> int | None:
        """The version that routing.toml names, else the highest that is not on trial, else any.

        At the start none answers in the place of the named one until that has been tried: who was rolled back stays so.
        """
        if self.routing.live in ready:
            return self.routing.live
        named = self.records.get(self.routing.live or 0)
        if self.is_awaited and named is not None and named.loading is not None:
            return None
        settled = [number for number in ready if not self.routing.part(number).is_trial]
        return max(settled or ready, default=None)

    def draw(self, percent: float) -> Servable | None:
        """Who answers a request that names no version: a canary where `percent`, from 0 to 100, is in its share."""
        for number, part in self.routing.versions.items():
            if percent < part.canary and (servable := self._answering(number)) is not None:
                return servable
            percent -= part.canary
        return self.live

    def shadows(self, percent: float) -> list[Servable]:
        """Who is shown a request, `percent` being drawn from 0 to 100."""
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
        """Whether somebody answers."""
        return self.live is not None

    @property
    def why_unready(self) -> str:
        """What keeps each version from answering."""
        records = [self.records[number] for number in sorted(self.records)]
        versions = "; ".join(f"version {record.version} {record.state}: {record.reason}" for record in records)
        return self.problem or versions or "its files are still being written"

    def unwanted(self) -> list[Record]:
        """Versions that answer though the repository asks for them no more, once an heir answers."""
        pinned = self.routing.live
        settled = {number for number in self.wanted if not self.routing.part(number).is_trial}
        heirs = {pinned} if pinned in self.wanted else settled or set(self.wanted)
        answering = self.ready.keys()
        return [self.records[number] for number in answering - set(self.wanted)] if answering & heirs else []
