"""State that all connections of a server share, and the clock that ends those whose deadline has passed."""

import asyncio
from typing import Any, Protocol

from service.lifecycle import Lifecycle
from service.settings import Settings

SWEEP_SECONDS = 0.25

# Connections beyond max_connections, only for health checks. The oldest is closed for a new one.
RESERVED_CONNECTIONS = 32


class Reservable(Protocol):
    """A connection, as the reserve sees it."""

    is_answering: bool

    def make_room(self) -> None:
        """Leaves the reserve, for a newer connection."""


class Connections:
    """The settings, the lifecycle and the bounds that all connections share."""

    def __init__(self, settings: Settings, lifecycle: Lifecycle) -> None:
        self.settings = settings
        self.lifecycle = lifecycle
        self.reserved: dict[Reservable, None] = {}  # the oldest first
        self.waiting_bytes = 0
        self._clock: asyncio.TimerHandle | None = None

    def reserve(self, connection: Reservable) -> None:
        """Adds a connection to the reserve. If it is full, the oldest one without a request in progress leaves it."""
        self.reserved[connection] = None
        if len(self.reserved) > RESERVED_CONNECTIONS:
            next((each for each in self.reserved if not each.is_answering), connection).make_room()

    def watch(self, open_connections: set[Any], loop: asyncio.AbstractEventLoop) -> None:
        """Checks the deadlines of the connections from now on, until none is open."""
        if self._clock is None:
            self._clock = loop.call_later(SWEEP_SECONDS, self._sweep, open_connections, loop)

    def _sweep(self, open_connections: set[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._clock = None
        if open_connections:
            self.watch(open_connections, loop)
        now = loop.time()
        for connection in tuple(open_connections):
            if connection.deadline < now or connection.write_deadline < now:
                connection.expire()
