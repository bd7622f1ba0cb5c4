"""Threads that decode images, and a bound on what waits for them."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np
import structlog

from models.inputs import ImageInput
from service.errors import QueueFull, ServiceError, ShuttingDown
from service.preprocess import EXACT, Shortcuts, decode

log = structlog.get_logger()

Decoded = Callable[[np.ndarray | ServiceError | None], None]
"""Takes the pixels, or why there are none; None where nobody wants them any more. Called once."""


@dataclass(slots=True, eq=False)
class Job:
    """One image on its way through the pool."""

    data: bytes | memoryview
    spec: ImageInput
    then: Decoded
    """Called on the thread that decoded the image."""
    claim: threading.Lock = field(default_factory=threading.Lock)
    """Taken once: by the thread that decodes the image, or by whoever drops it before that."""


class DecodePool:
    """Every method is called on one event loop, but for what the threads do themselves."""

    def __init__(self, threads: int, max_images: int, max_pixels: int, shortcuts: Shortcuts = EXACT) -> None:
        self.threads = threads
        self.max_images = max_images
        self.max_pixels = max_pixels
        self.shortcuts = shortcuts
        self._held = 0
        self._counting = threading.Lock()  # guards it
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Starts to take images."""
        self._threads = [
            threading.Thread(target=self._serve, name=f"decode-{number}", daemon=True) for number in range(self.threads)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Takes no more images, and waits for those taken."""
        threads, self._threads = self._threads, []
        for _ in threads:
            self._jobs.put(None)
        for thread in threads:
            thread.join()

    def put(self, jobs: Sequence[Job]) -> None:
        """Has the images decoded, all or none, in their order.

        Raises QueueFull where more than `max_images` would be waiting or running, or ShuttingDown.
        """
        if not self._threads:
            raise ShuttingDown("images are no longer decoded")
        with self._counting:
            if self._held + len(jobs) > self.max_images:
                raise QueueFull(f"{self._held} images are waiting to be decoded")
            self._held += len(jobs)
        for job in jobs:
            self._jobs.put(job)

    def drop(self, job: Job) -> None:
        """Nobody wants the image any more: it is not decoded, unless a thread is at it."""
        if job.claim.acquire(blocking=False):
            job.data = b""  # the job stays in the queue until a thread skips it
            self._end(job, None)

    def _end(self, job: Job, outcome: np.ndarray | ServiceError | None) -> None:
        with self._counting:
            self._held -= 1
        job.then(outcome)

    # From here on: the threads.

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            if job.claim.acquire(blocking=False):
                self._end(job, self._outcome(job))

    def _outcome(self, job: Job) -> np.ndarray | ServiceError:
        try:
            return decode(job.data, job.spec, max_pixels=self.max_pixels, shortcuts=self.shortcuts)
        except ServiceError as error:
            return error
        except BaseException:  # a mistake of ours, or a library's panic: it costs this image, and the thread goes on
            log.exception("decoding failed")
            return ServiceError("the server made a mistake")
