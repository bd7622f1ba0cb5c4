"""Turns on a device: the engine calls of many models run in the order in which they asked, a few at a time."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """A semaphore that is fair: however busy one model is, another waits for the calls before its own and no longer."""

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()  # guards both
        self._free = limit
        self._waiting: deque[threading.Event] = deque()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Waits for a turn, and has it until the context ends."""
        with self._lock:
            turn = None if self._free else threading.Event()
            if turn is None:
                self._free -= 1
            else:
                self._waiting.append(turn)
        if turn is not None:
            turn.wait()
        try:
            yield
        finally:
            with self._lock:
                if self._waiting:
                    self._waiting.popleft().set()  # handed over, so that nobody gets in between
                else:
                    self._free += 1
