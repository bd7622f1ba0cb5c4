"""A fair semaphore for threads: it limits how many engine calls run at once, over all models."""

import threading
from collections import deque


class FairSemaphore:
    """A semaphore that threads acquire in the order in which they asked; `with` acquires and releases it.

    A busy model cannot starve another one, as it could with threading.Semaphore: there, a thread that releases the
    semaphore and asks again at once may get ahead of those that wait.
    """

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()  # guards the next two
        self._free = limit
        self._waiting: deque[threading.Event] = deque()

    def acquire(self) -> None:
        """Blocks until the threads that asked before have had the semaphore, and it is free."""
        with self._lock:
            if self._free:
                self._free -= 1
                return
            handed_over = threading.Event()
            self._waiting.append(handed_over)
        handed_over.wait()

    def release(self) -> None:
        """Hands the semaphore over to the thread that has waited longest, if there is one."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()  # it is never free in between, so that no other thread can take it
            else:
                self._free += 1

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()
