"""Keeps a number of decoder processes running. Each decodes one image at a time, and is replaced when it ends.

A decoder that has read a broken image is replaced too, because the image may have corrupted its memory. At most ten
decoders a second are replaced for that reason, so that broken images do not cost much more than sound ones.
"""

import asyncio
import contextvars
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import structlog

from service import metrics
from service.images.decoding import NOT_STARTED, Reply, Status, Task
from service.images.fork_server import Decoder, Forks, NoRoom

log = structlog.get_logger()

_RETRY_SECONDS = 0.1, 5.0  # first and longest pause between starts, if decoders end before they are ready

_START_SECONDS = 30.0  # a decoder that is not ready after this time is replaced
_REPLACED_A_SECOND = 10.0

# Why a decoder ended, besides the names of signals.
TIMEOUT, MEMORY, GARBLED, EXIT, FORK_SERVER = "timeout", "memory", "garbled", "exit", "fork_server"
# Causes that may be the machine's fault, if it is slow or full: the kernel sends SIGKILL when memory runs out.
MACHINE_CAUSES = {TIMEOUT, MEMORY, "SIGKILL"}


class Lost(NamedTuple):
    """The result of an image whose decoder ended."""

    cause: str
    is_retryable: bool
    """An earlier image may be to blame, so the image deserves a second try, in a decoder that has had no other."""


Result = np.ndarray | Reply | Lost
"""The pixels, a reply without pixels, or the loss of the decoder."""


@dataclass(slots=True, eq=False)
class Assignment:
    """An image that a decoder is working on."""

    task: Task
    on_result: Callable[[Result], None]
    timer: asyncio.TimerHandle


@dataclass(slots=True, eq=False)
class Worker:
    """A decoder and its state."""

    decoder: Decoder
    is_ready: bool = False
    images: int = 0
    """How many it has been given."""
    had_broken_image: bool = False
    """It has read a broken image, and was not replaced."""
    assignment: Assignment | None = None


class Decoders:
    """Every method is called on one event loop."""

    def __init__(self, forks: Forks, count: int, timeout_seconds: float, on_idle: Callable[[], None]) -> None:
        self.count = count
        self._forks = forks
        self._timeout_seconds = timeout_seconds
        self._on_idle = on_idle
        self._workers: dict[int, Worker] = {}
        """By the decoder's number."""
        self._idle: list[Worker] = []
        self._number = 0
        self._failures = 0
        """Decoders in a row that ended before they were ready."""
        self._replaced_until = 0.0
        """Replacements so far use up the allowed rate until this time."""
        self._is_running = False
        """Whether the fork server takes commands."""
        self._is_closing = False
        self._is_warned = False

    def start(self) -> None:
        """Starts the decoders. `on_idle` is called whenever one can take an image."""
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()  # without a request: later decoders are started during requests
        self._start()

    async def close(self) -> None:
        """Ends the decoders, even those that are decoding."""
        self._is_closing = True
        for worker in list(self._workers.values()):
            self._remove(worker)
        await self._forks.close()

    def has_idle(self) -> bool:
        """Whether a decoder can take an image now."""
        return bool(self._idle)

    def has_fresh(self) -> bool:
        """Whether a decoder that has had no image can take one now."""
        return any(worker.images == 0 for worker in self._idle)

    def begin(
        self, data: bytes | memoryview, task: Task, on_result: Callable[[Result], None], *, fresh: bool = False
    ) -> None:
        """Gives an image to an idle decoder. `on_result` is called once, and not before this returns.

        `fresh`: the decoder must have had no image. There must be such a decoder (`has_fresh`).

        Raises OSError if the decoder has just ended, when another can take the image; NoRoom if none can.
        """
        # The most recently used one: its memory is warm.
        worker = next(each for each in reversed(self._idle) if each.images == 0 or not fresh)
        self._idle.remove(worker)
        try:
            worker.decoder.begin(data, task)
        except NoRoom:
            worker.decoder.release_memory()
            self._idle.append(worker)
            raise
        except OSError:
            self._kill(worker, EXIT)
            raise
        timer = self._loop.call_later(self._timeout_seconds, self._kill, worker, TIMEOUT)
        worker.assignment = Assignment(task, on_result, timer)
        worker.images += 1

    # Start, end and replacement.

    def _start(self) -> None:
        if self._is_closing:
            return
        try:
            self._forks.start(self._on_ended, self._on_lost)
        except OSError:
            log.exception("the fork server of the decoders could not be started")
            self._retry(self._start)
            return
        self._is_running = True
        for _ in range(self.count):
            self._add()

    def _add(self) -> None:
        if self._is_closing or not self._is_running or len(self._workers) >= self.count:
            return
        self._number += 1
        try:
            worker = self._workers[self._number] = Worker(Decoder(self._number))
        except OSError as error:
            log.warning("a decoder could not be started", reason=error.strerror, cure="raise `ulimit -n`")
            self._retry(self._add)
            return
        self._context.copy().run(self._loop.add_reader, worker.decoder.connection, self._on_readable, worker)
        self._loop.call_later(_START_SECONDS, self._check_started, worker)
        self._forks.fork(worker.decoder)

    def _check_started(self, worker: Worker) -> None:
        if not worker.is_ready and self._workers.get(worker.decoder.number) is worker:
            self._kill(worker, TIMEOUT)

    def _remove(self, worker: Worker) -> Assignment | None:
        """Forgets a decoder and closes its descriptors. Returns its assignment."""
        del self._workers[worker.decoder.number]
        if worker in self._idle:
            self._idle.remove(worker)
        self._loop.remove_reader(worker.decoder.connection)
        worker.decoder.close()
        return _take_assignment(worker)

    def _may_replace(self) -> bool:
        now = self._loop.time()
        if self._replaced_until > now:
            return False
        self._replaced_until = max(self._replaced_until, now - 1.0) + 1 / _REPLACED_A_SECOND
        return True

    def _kill(self, worker: Worker, cause: str) -> None:
        """Kills a decoder and reports its image as lost."""
        self._forks.kill(worker.decoder)
        self._lose(worker, cause, self._add)

    def _lose(self, worker: Worker, cause: str, replace: Callable[[], None]) -> None:
        """Replaces a decoder that has ended, and reports its image as lost."""
        assignment = self._remove(worker)
        metrics.DECODER_DEATHS.labels(cause).inc()
        replace()
        if assignment is None:
            log.warning("a decoder ended", cause=cause)
        else:
            assignment.on_result(Lost(cause, _is_retryable(worker, cause)))

    def _on_ended(self, number: int, status: int) -> None:
        worker = self._workers.get(number)
        if worker is None:  # it was removed or killed, and has been replaced
            return
        self._on_readable(worker)  # it may have sent a reply before it ended
        if number not in self._workers:
            return
        self._lose(worker, _cause(status), self._add if worker.is_ready else lambda: self._retry(self._add))

    def _on_lost(self) -> None:
        """The fork server ended, and every decoder with it."""
        log.error("the fork server of the decoders ended", cure="if memory ran out, give the server more")
        self._is_running = False
        for worker in list(self._workers.values()):
            self._lose(worker, FORK_SERVER, self._add)
        self._retry(self._start)

    def _retry(self, start: Callable[[], None]) -> None:
        first, longest = _RETRY_SECONDS
        self._loop.call_later(min(longest, first * 2**self._failures), start)
        self._failures = min(self._failures + 1, 16)

    # Replies.

    def _on_readable(self, worker: Worker) -> None:
        try:
            reply = worker.decoder.reply()
            if reply is not None:
                self._handle(worker, reply)
        except ValueError:
            self._kill(worker, GARBLED)
        except OSError:  # it has ended; the fork server will report it
            self._loop.remove_reader(worker.decoder.connection)

    def _handle(self, worker: Worker, reply: Reply) -> None:
        """Raises ValueError if the reply does not belong to the decoder's task, and OSError."""
        if worker.assignment is None or not _is_plausible(reply, worker.assignment.task):
            if worker.is_ready or reply.status is not Status.READY:
                raise ValueError(reply)
            worker.is_ready, self._failures = True, 0
            self._warn(reply.text)
            self._add_idle(worker)
            return
        if reply.status is Status.OUT_OF_MEMORY:
            self._kill(worker, MEMORY)
            return
        task = worker.assignment.task
        result = worker.decoder.pixels(task.spec) if reply.status is Status.PIXELS else reply
        worker.decoder.release_memory()
        assignment = _take_assignment(worker)
        assert assignment is not None
        assignment.on_result(result)  # before the decoder is idle, so that this image is no longer counted
        is_broken = reply.status in (Status.BROKEN, Status.MISTAKE)
        if is_broken and self._may_replace():
            self._remove(worker)
            self._forks.kill(worker.decoder)  # a corrupted decoder may not end by itself
            self._add()
        else:
            worker.had_broken_image |= is_broken
            self._add_idle(worker)

    def _add_idle(self, worker: Worker) -> None:
        self._idle.append(worker)
        self._on_idle()

    def _warn(self, unconfined: str) -> None:
        if unconfined and not self._is_warned:
            self._is_warned = True
            log.warning("decoders are not fully confined", missing=unconfined)


def _is_plausible(reply: Reply, task: Task) -> bool:
    if reply.key != task.key:
        return False
    if reply.status is Status.LARGE:
        return task.pixels_now < reply.pixels <= task.max_pixels
    return reply.status is not Status.READY


def _is_retryable(worker: Worker, cause: str) -> bool:
    if cause == FORK_SERVER:  # all decoders ended together
        return True
    return worker.images > 1 and (worker.had_broken_image or cause not in MACHINE_CAUSES)


def _take_assignment(worker: Worker) -> Assignment | None:
    """Removes and returns the assignment, and stops its timer."""
    assignment, worker.assignment = worker.assignment, None
    if assignment is not None:
        assignment.timer.cancel()
    return assignment


def _cause(status: int) -> str:
    """Why a process ended, from its wait status."""
    if status == NOT_STARTED or not os.WIFSIGNALED(status):
        return EXIT
    number = os.WTERMSIG(status)
    return next((each.name for each in signal.Signals if each == number), f"SIG{number}")
