"""A queue of images before the decoders, bounded in images and in what large pictures claim.

Everything that is worth keeping is here: if a decoder dies, takes too long or needs too much memory, the image in its
hands alone is refused.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Self

import numpy as np
import structlog

from models.inputs import ImageInput
from service.errors import DecoderDied, DecodingTooCostly, QueueFull, ServiceError, ShuttingDown
from service.host.machine import usable_cores
from service.images.containers import detect_format
from service.images.decoders import MACHINE, MEMORY, TIMEOUT, Decoders, Lost, Result
from service.images.decoding import LARGE_PIXELS, Task, Verdict
from service.images.fork_server import Forks, ForkServer, NoRoom
from service.images.quarantine import Quarantine
from service.images.shortcuts import EXACT, Shortcuts
from service.logs import REQUEST_ID
from service.settings import MAX_DECODERS, Settings

log = structlog.get_logger()

# For how long the same bytes are refused: a minute where the machine may have been at fault, being slow or full.
_REFUSED_SECONDS = 600.0
_MACHINE_SECONDS = 60.0

Decoded = Callable[[np.ndarray | ServiceError | None], None]
"""Takes the pixels, or why there are none; None where nobody wants them any more. Called once, on the event loop."""


@dataclass(slots=True, eq=False)
class Job:
    """One image on its way through the pool."""

    data: bytes | memoryview
    spec: ImageInput
    then: Decoded
    request_id: str = field(default_factory=REQUEST_ID.get)
    arrival: int = 0
    pixels: int = 0
    """How many it claims, once that is known to be many."""
    began: float = 0.0
    """When a decoder got it; 0 while it waits."""
    is_again: bool = False
    """A decoder was lost with it, for what may be another image's doing."""
    is_wanted: bool = True
    is_over: bool = False


class DecodePool:
    """Every method is called on one event loop."""

    def __init__(
        self,
        forks: Forks,
        *,
        decoders: int,
        max_images: int,
        max_pixels: int,
        max_large_pixels: int,
        timeout_seconds: float,
        shortcuts: Shortcuts = EXACT,
    ) -> None:
        self._decoders = Decoders(forks, decoders, timeout_seconds, self._dispatch)
        self._max_images = max_images
        self._max_pixels = max_pixels
        self._max_large_pixels = max_large_pixels
        self._timeout_seconds = timeout_seconds
        self._shortcuts = shortcuts
        self._quarantine = Quarantine()
        self._is_open = False
        self._arrivals = 0
        self._held = 0
        """Images that wait or are being decoded."""
        self._large_pixels = 0
        """What the large ones of them claim."""
        self._large_running = 0
        self._waiting: deque[Job] = deque()
        self._waiting_large: deque[Job] = deque()
        self._waiting_again: deque[Job] = deque()
        """They have lost a decoder. Each waits for a fresh one, of which one is started for each."""
        self._nothing_held = asyncio.Event()
        self._nothing_held.set()

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The pool of processes that the settings ask for."""
        return cls(
            ForkServer(settings.decoder_memory_bytes),
            # One more than cores, for what large pictures must leave to the others.
            decoders=settings.decoders or min(usable_cores() + 1, MAX_DECODERS),
            max_images=settings.max_decode_images,
            max_pixels=settings.max_image_pixels,
            max_large_pixels=settings.max_decode_pixels,
            timeout_seconds=settings.decode_timeout_seconds,
            shortcuts=Shortcuts.of(settings),
        )

    def start(self) -> None:
        """Starts to take images, which wait for the first decoder."""
        self._loop = asyncio.get_running_loop()
        self._is_open = True
        self._decoders.start()

    async def close(self) -> None:
        """Takes no more images, waits for those taken, and ends the decoders."""
        if self._is_open:
            self._is_open = False
            await self._nothing_held.wait()
            await self._decoders.close()

    def put(self, jobs: Sequence[Job]) -> None:
        """Has the images decoded, all or none, in the order in which they arrive.

        Raises QueueFull where more than `max_images` would be waiting or running, or ShuttingDown.
        """
        if not self._is_open:
            raise ShuttingDown("images are no longer decoded")
        if self._held + len(jobs) > self._max_images:
            raise QueueFull(f"{self._held} images are waiting to be decoded")
        for job in jobs:
            self._held += 1
            self._nothing_held.clear()
            job.arrival = self._arrivals = self._arrivals + 1
            self._waiting.append(job)
        self._dispatch()

    def drop(self, job: Job) -> None:
        """Nobody wants the image any more: it is not decoded, unless a decoder is at it."""
        job.is_wanted = False
        if not job.is_over and not job.began:
            self._settle(job, None)  # it stays in its queue until it is skipped

    def _dispatch(self) -> None:
        while self._decoders.has_idle() and (job := self._next()) is not None:
            if cause := self._quarantine.cause(job.data):
                self._settle(job, self._refusal(cause, "; it was sent before, and is refused for some minutes"))
            else:
                self._begin(job)

    def _next(self) -> Job | None:
        """The image that has waited longest, of those that may be decoded now."""
        for queue in (self._waiting, self._waiting_large, self._waiting_again):
            while queue and queue[0].is_over:
                queue.popleft()
        if self._waiting_again and self._decoders.has_fresh():
            return self._waiting_again.popleft()
        queues = [self._waiting]
        if self._large_running < max(1, self._decoders.count - 1):
            queues.append(self._waiting_large)
        oldest = min((queue for queue in queues if queue), key=lambda queue: queue[0].arrival, default=None)
        return None if oldest is None else oldest.popleft()

    def _begin(self, job: Job) -> None:
        pixels_now = self._max_pixels if job.pixels else LARGE_PIXELS
        key = random.getrandbits(64)
        task = Task(key, len(job.data), self._max_pixels, pixels_now, job.spec, self._shortcuts)
        try:
            self._decoders.begin(job.data, task, partial(self._end, job), fresh=job.is_again)
        except NoRoom:
            self._settle(job, QueueFull("memory has no room for the image"))
            return
        except OSError:  # it ended just before
            self._wait_again(job)
            return
        job.began = time.monotonic()
        self._large_running += job.pixels > 0

    def _end(self, job: Job, result: Result) -> None:
        """A decoder is done with an image, one way or the other."""
        seconds, job.began = time.monotonic() - job.began, 0.0
        self._large_running -= job.pixels > 0
        if isinstance(result, np.ndarray):
            self._settle(job, result)
        elif isinstance(result, Lost):
            if result.is_doubtful:
                log.warning("a decoder ended; its image is given to a fresh one", cause=result.cause)
                job.is_again = True
                self._wait_again(job)
            else:
                self._settle(job, self._blame(job, result.cause, seconds))
        elif result.verdict is Verdict.LARGE:
            self._admit_large(job, result.pixels)
        elif result.error is not None:
            self._settle(job, result.error)
        else:
            log.error("decoding failed", request_id=job.request_id, detail=ascii(result.text))
            self._settle(job, ServiceError("the server made a mistake"))

    def _wait_again(self, job: Job) -> None:
        """It is the next one, of its kind."""
        if not job.is_wanted:
            self._settle(job, None)
            return
        if job.is_again:
            self._waiting_again.append(job)
        else:
            (self._waiting_large if job.pixels else self._waiting).appendleft(job)
        self._loop.call_soon(self._dispatch)

    def _admit_large(self, job: Job, pixels: int) -> None:
        """Lets a picture wait with the other large ones, unless together they claim too much."""
        if not job.is_wanted:
            self._settle(job, None)
        elif self._large_pixels and self._large_pixels + pixels > self._max_large_pixels:
            megapixels = self._large_pixels // 10**6
            self._settle(job, QueueFull(f"large pictures of {megapixels} megapixels are waiting to be decoded"))
        else:
            job.pixels, job.is_again = pixels, False
            self._large_pixels += pixels
            self._waiting_large.append(job)
            self._dispatch()

    def _blame(self, job: Job, cause: str, seconds: float) -> ServiceError:
        """The image ended its decoder, as far as anybody can know."""
        refused_seconds = _MACHINE_SECONDS if cause in MACHINE else _REFUSED_SECONDS
        digest = self._quarantine.add(job.data, cause, refused_seconds)
        log.error(
            "an image ended its decoder",
            request_id=job.request_id,
            cause=cause,
            seconds=round(seconds, 3),
            format=detect_format(job.data),
            bytes=len(job.data),
            sha256=digest,
        )
        return self._refusal(cause)

    def _refusal(self, cause: str, again: str = "") -> ServiceError:
        if cause == TIMEOUT:
            return DecodingTooCostly(f"decoding the image took more than {self._timeout_seconds:g} s{again}")
        if cause == MEMORY:
            return DecodingTooCostly(f"decoding the image needed more memory than it may{again}")
        return DecoderDied(f"the image ended the process that decoded it ({cause}){again}")

    def _settle(self, job: Job, outcome: np.ndarray | ServiceError | None) -> None:
        job.is_over, job.data = True, b""
        self._held -= 1
        self._large_pixels -= job.pixels
        if self._held == 0:
            self._nothing_held.set()
        job.then(outcome)
