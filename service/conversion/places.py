"""How many children work at once: as many as memory holds, one for each model."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from weakref import WeakValueDictionary

from service.host.machine import available_memory_bytes, usable_cores

_LOOK_SECONDS = 1.0  # memory may become free without anybody here knowing


class Places:
    """One child always has a place. Another has one beside it where what is free would hold `memory_bytes` for each.

    No more than `most` have one, nor two for the same model: its versions wait for each other, and behind the other
    models that came before. A child that never ends so holds up its own model alone, until there are `most` of them.
    """

    def __init__(
        self,
        memory_bytes: int,
        most: int | None = None,
        free_bytes: Callable[[], int | None] | None = None,
    ) -> None:
        self._memory_bytes = memory_bytes
        self._most = max(2, usable_cores()) if most is None else most
        self._free_bytes = free_bytes or available_memory_bytes
        self._models: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._first = asyncio.Lock()  # who holds it has the next place
        self._left = asyncio.Event()
        self._taken = 0

    @asynccontextmanager
    async def place(self, model: str) -> AsyncIterator[None]:
        """A place for one child of that model; who waits is served in order."""
        async with self._models.setdefault(model, asyncio.Lock()):
            async with self._first:
                while not self._has_room():
                    self._left.clear()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._left.wait(), _LOOK_SECONDS)
                self._taken += 1
            try:
                yield
            finally:
                self._taken -= 1
                self._left.set()

    def _has_room(self) -> bool:
        if self._taken == 0:
            return True
        free = self._free_bytes()
        return self._taken < self._most and (free is None or free >= self._memory_bytes * (self._taken + 1))
