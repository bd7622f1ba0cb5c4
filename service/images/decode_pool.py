"""A queue of images in front of the decoders, bounded in images and in the pixels of large pictures.

All state is here, in the server: if a decoder dies, takes too long or needs too much memory, only the image that it was
decoding is refused.
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
from service.images.decoders import MACHINE_CAUSES, MEMORY, TIMEOUT, Decoders, Lost, Result
from service.images.decoding import LARGE_PIXELS, Status, Task
from service.images.fork_server import Forks, ForkServer, NoRoom
from service.images.quarantine import Quarantine
from service.images.shortcuts import EXACT, Shortcuts
from service.logs import REQUEST_ID
from service.settings import MAX_DECODERS, Settings

log = structlog.get_logger()

# For how long the same bytes are refused. It is shorter if the machine, slow or full, may have been at fault.
_QUARANTINE_SECONDS = 600.0
_SHORT_QUARANTINE_SECONDS = 60.0

Decoded = Callable[[np.ndarray | ServiceError | None], None]
"""Called once, on the event loop, with the pixels, an error, or None if the image is no longer wanted."""


@dataclass(slots=True, eq=False)
class DecodeJob:
    """One image on its way through the pool."""

    data: bytes | memoryview
    spec: ImageInput
    on_done: Decoded
    request_id: str = field(default_factory=REQUEST_ID.get)
    arrival: int = 0
    pixels: int = 0
    """The number that its header claims, if the picture is known to be large; else 0."""
    began: float = 0.0
    """When a decoder was given it; 0 while it waits."""
    is_retry: bool = False
    """Its decoder ended, perhaps because of another image: it needs a decoder that has had none."""
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
        """Pixels that the large ones among them claim."""
        self._large_running = 0
        self._waiting: deque[DecodeJob] = deque()
        self._waiting_large: deque[DecodeJob] = deque()
        self._waiting_retries: deque[DecodeJob] = deque()
        """Each has lost its decoder, and waits for the one that is started in its place."""
        self._nothing_held = asyncio.Event()
        self._nothing_held.set()

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """A pool with the number of processes and the limits of the settings."""
        return cls(
            ForkServer(settings.decoder_memory_bytes),
            # One more than there are cores, because large pictures must leave one to the others.
            decoders=settings.decoders or min(usable_cores() + 1, MAX_DECODERS),
            max_images=settings.max_decode_images,
            max_pixels=settings.max_image_pixels,
            max_large_pixels=settings.max_decode_pixels,
            timeout_seconds=settings.decode_timeout_seconds,
            shortcuts=Shortcuts.of(settings),
        )

    def start(self) -> None:
        """Starts the decoders. Images are taken at once, and wait for the first decoder."""
        self._loop = asyncio.get_running_loop()
        self._is_open = True
        self._decoders.start()

    async def close(self) -> None:
        """Takes no more images, waits for those that were taken, and ends the decoders."""
        if self._is_open:
            self._is_open = False
            await self._nothing_held.wait()
            await self._decoders.close()

    def put(self, jobs: Sequence[DecodeJob]) -> None:
        """Queues the images, all or none. They are decoded in the order of their arrival.

        Raises QueueFull if more than `max_images` would be waiting or running, and ShuttingDown.
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

    def drop(self, job: DecodeJob) -> None:
        """Cancels an image that is no longer wanted. If a decoder has it already, it is decoded all the same."""
        job.is_wanted = False
        if not job.is_over and not job.began:
            self._settle(job, None)  # it stays in its queue, and is skipped

    def _dispatch(self) -> None:
        while self._decoders.has_idle() and (job := self._next()) is not None:
            if cause := self._quarantine.cause(job.data):
                self._settle(job, self._refusal(cause, "; it was sent before, and will be refused for some minutes"))
            else:
                self._begin(job)

    def _next(self) -> DecodeJob | None:
        """The image that has waited longest among those that may be decoded now."""
        for queue in (self._waiting, self._waiting_large, self._waiting_retries):
            while queue and queue[0].is_over:
                queue.popleft()
        if self._waiting_retries and self._decoders.has_fresh():
            return self._waiting_retries.popleft()
        queues = [self._waiting]
        if self._large_running < max(1, self._decoders.count - 1):
            queues.append(self._waiting_large)
        oldest = min((queue for queue in queues if queue), key=lambda queue: queue[0].arrival, default=None)
        return None if oldest is None else oldest.popleft()

    def _begin(self, job: DecodeJob) -> None:
        pixels_now = self._max_pixels if job.pixels else LARGE_PIXELS
        key = random.getrandbits(64)
        task = Task(key, len(job.data), self._max_pixels, pixels_now, job.spec, self._shortcuts)
        try:
            self._decoders.begin(job.data, task, partial(self._finish, job), fresh=job.is_retry)
        except NoRoom:
            self._settle(job, QueueFull("there is not enough memory for the image"))
            return
        except OSError:  # the decoder has just ended
            self._requeue(job)
            return
        job.began = time.monotonic()
        self._large_running += job.pixels > 0

    def _finish(self, job: DecodeJob, result: Result) -> None:
        """Handles what a decoder made of an image."""
        seconds, job.began = time.monotonic() - job.began, 0.0
        self._large_running -= job.pixels > 0
        if isinstance(result, np.ndarray):
            self._settle(job, result)
        elif isinstance(result, Lost):
            if result.is_retryable:
                log.warning("a decoder ended; another will decode its image", cause=result.cause)
                job.is_retry = True
                self._requeue(job)
            else:
                self._settle(job, self._put_in_quarantine(job, result.cause, seconds))
        elif result.status is Status.LARGE:
            self._admit_large(job, result.pixels)
        elif result.error is not None:
            self._settle(job, result.error)
        else:
            log.error("decoding failed", request_id=job.request_id, detail=ascii(result.text))
            self._settle(job, ServiceError("the server made a mistake"))

    def _requeue(self, job: DecodeJob) -> None:
        """Queues an image again, ahead of those that came later; one that is no longer wanted is dropped."""
        if not job.is_wanted:
            self._settle(job, None)
            return
        if job.is_retry:
            self._waiting_retries.append(job)
        else:
            (self._waiting_large if job.pixels else self._waiting).appendleft(job)
        self._loop.call_soon(self._dispatch)

    def _admit_large(self, job: DecodeJob, pixels: int) -> None:
        """Queues a large picture, unless all large ones together would claim too many pixels."""
        if not job.is_wanted:
            self._settle(job, None)
        elif self._large_pixels and self._large_pixels + pixels > self._max_large_pixels:
            megapixels = self._large_pixels // 10**6
            self._settle(job, QueueFull(f"large pictures of {megapixels} megapixels are waiting to be decoded"))
        else:
            job.pixels, job.is_retry = pixels, False
            self._large_pixels += pixels
            self._waiting_large.append(job)
            self._dispatch()

    def _put_in_quarantine(self, job: DecodeJob, cause: str, seconds: float) -> ServiceError:
        """Remembers an image that has most likely ended its decoder. Returns the error for its caller."""
        quarantine_seconds = _SHORT_QUARANTINE_SECONDS if cause in MACHINE_CAUSES else _QUARANTINE_SECONDS
        digest = self._quarantine.add(job.data, cause, quarantine_seconds)
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

    def _refusal(self, cause: str, note: str = "") -> ServiceError:
        if cause == TIMEOUT:
            return DecodingTooCostly(f"decoding the image took more than {self._timeout_seconds:g} s{note}")
        if cause == MEMORY:
            return DecodingTooCostly(f"decoding the image needed more memory than is allowed{note}")
        return DecoderDied(f"the image ended the process that decoded it ({cause}){note}")

    def _settle(self, job: DecodeJob, outcome: np.ndarray | ServiceError | None) -> None:
        job.is_over, job.data = True, b""
        self._held -= 1
        self._large_pixels -= job.pixels
        if self._held == 0:
            self._nothing_held.set()
        job.on_done(outcome)
