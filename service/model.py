"""One model as it stands: its versions with their states, and who answers.

LOADING -> READY -> UNLOADING -> gone; any state -> UNAVAILABLE with a reason.
"""

import time
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import StrEnum

from models.artifact import Manifest
from service import metrics
from service.repository import Signature
from service.servable import Servable


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

    def become(self, state: State, reason: str = "") -> None:
        """Changes the state, here and in the metrics."""
        self.state, self.reason, self.changed = state, reason, time.time()
        for each in State:
            metrics.MODEL_STATE.labels(self.name, str(self.version), each).set(each is state)

    def go_live(self, servable: Servable) -> Servable | None:
        """Takes a new servable, and returns the one that answered until now."""
        stale, self.servable = self.servable, servable
        self.manifest, self.provider = servable.manifest, servable.provider
        self.become(State.READY)
        return stale

    def forget(self) -> None:
        """The version is gone: no state of it is shown any more, and nothing of it waits or runs."""
        metrics.forget(self.name, self.version)


@dataclass(eq=False)
class Model:
    """One model of the repository. Its table changes on the event loop alone."""

    name: str
    is_required: bool
    """Whether the server is ready only with it: so for the models of the first look, not for those added later."""
    records: dict[int, Record] = field(default_factory=dict)
    wanted: AbstractSet[int] = frozenset()
    """The versions that the repository asks for."""
    problem: str = "not looked at yet"
    """Why its versions cannot be listed; empty when they can."""

    @property
    def live(self) -> Servable | None:
        """Who answers where a request names no version: the highest that is ready."""
        ready = [number for number, record in self.records.items() if record.servable is not None]
        return self.records[max(ready)].servable if ready else None

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
        """Versions that answer though the repository asks for them no more, once one that it asks for answers."""
        answering = {number for number, record in self.records.items() if record.servable is not None}
        return [self.records[number] for number in answering - self.wanted] if answering & self.wanted else []
