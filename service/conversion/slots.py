"""Limits how many child processes work at once: as many as memory allows, and one for each model."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from weakref import WeakValueDictionary

from service.host.machine import available_memory_bytes, usable_cores

_POLL_SECONDS = 1.0  # memory may become free without any notice


class Slots:
    """There is always a slot for one child. Another child gets one if the free memory holds `memory_bytes` for each.

    There are at most `max_slots`, and one for each model. Versions of the same model wait for each other, and behind
    other models that came first. So a child that never ends blocks its own model only, until all slots are taken.
    """

    def __init__(
        self,
        memory_bytes: int,
        max_slots: int | None = None,
        free_bytes: Callable[[], int] | None = None,
    ) -> None:
        self._memory_bytes = memory_bytes
        self._max_slots = max(2, usable_cores()) if max_slots is None else max_slots
        self._free_bytes = free_bytes or available_memory_bytes
        self._models: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._next = asyncio.Lock()  # its holder gets the next slot
        self._released = asyncio.Event()
        self._taken = 0

    @asynccontextmanager
    async def slot(self, model: str) -> AsyncIterator[None]:
        """Waits for a slot for a child of that model, first come, first served, and holds it."""
        async with self._models.setdefault(model, asyncio.Lock()):
            async with self._next:
                while not self._is_free():
                    self._released.clear()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._released.wait(), _POLL_SECONDS)
                self._taken += 1
            try:
                yield
            finally:
                self._taken -= 1
                self._released.set()

    def _is_free(self) -> bool:
        if self._taken == 0:
            return True
        return self._taken < self._max_slots and self._free_bytes() >= self._memory_bytes * (self._taken + 1)
