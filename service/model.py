"""One model as it stands: its versions with their states, and who answers.

LOADING -> READY -> UNLOADING -> gone; any state -> UNAVAILABLE with a reason.
"""

import time
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


@dataclass
class Record:
    """What is shown of one version that the repository asks for."""

    name: str
    version: int
    signature: Signature
    state: State = State.LOADING
    reason: str = ""
    manifest: Manifest | None = None
    provider: str | None = None
    changed: float = field(default_factory=time.time)

    def describe(self, servable: Servable) -> None:
        """Shows what is known of a version once it is loaded."""
        self.manifest, self.provider = servable.manifest, servable.provider

    def forget(self) -> None:
        """The version is gone: no state of it is shown any more."""
        for each in State:
            metrics.MODEL_STATE.remove(self.name, str(self.version), each)

    def become(self, state: State, reason: str = "") -> None:
        """Changes the state, here and in the metrics."""
        self.state, self.reason, self.changed = state, reason, time.time()
        for each in State:
            metrics.MODEL_STATE.labels(self.name, str(self.version), each).set(each is state)


@dataclass
class Model:
    """One model of the repository: its versions as they stand, and those that answer."""

    name: str
    records: dict[int, Record] = field(default_factory=dict)
    servables: dict[int, Servable] = field(default_factory=dict)
    problem: str = ""
    """Why its versions cannot even be listed."""

    @property
    def live(self) -> Servable | None:
        """The version that answers where a request names none: the highest that is ready."""
        return self.servables[max(self.servables)] if self.servables else None

    @property
    def is_ready(self) -> bool:
        """Whether somebody answers."""
        return bool(self.servables)

    @property
    def why_unready(self) -> str:
        """What keeps each version from answering."""
        versions = [
            f"version {number} {self.records[number].state}: {self.records[number].reason}"
            for number in sorted(self.records)
        ]
        return self.problem or "; ".join(versions)
