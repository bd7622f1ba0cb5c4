"""Keeps the decoders running: each has one image at a time, and whichever ends is replaced at once.

A decoder that has met a broken image is replaced as well, because nobody knows what the image has left behind in it:
ten times a second at most, so that broken images do not cost much more than sound ones.
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
from service.images.decoding import NOT_STARTED, Reply, Task, Verdict
from service.images.fork_server import Decoder, Forks, NoRoom

log = structlog.get_logger()

_RETRY_SECONDS = 0.1, 5.0  # at first and at most, where decoders end before they are ready

_START_SECONDS = 30.0  # a decoder that is not ready by then is replaced
_REPLACED_A_SECOND = 10.0

# Why a decoder ended, beside the names of signals.
TIMEOUT, MEMORY, GARBLED, EXIT, FORK_SERVER = "timeout", "memory", "garbled", "exit", "fork_server"
# Of these, where the machine may be at fault, being slow or full: the kernel kills where memory runs out.
MACHINE = {TIMEOUT, MEMORY, "SIGKILL"}


class Lost(NamedTuple):
    """What became of an image whose decoder ended."""

    cause: str
    is_doubtful: bool
    """Another image may be to blame: a decoder that has met none is to have the last word."""


Result = np.ndarray | Reply | Lost
"""The pixels, what the decoder said in their place, or that it ended."""


@dataclass(slots=True, eq=False)
class Work:
    """An image in a decoder's hands."""

    task: Task
    then: Callable[[Result], None]
    timer: asyncio.TimerHandle


@dataclass(slots=True, eq=False)
class Seat:
    """A decoder, and what it is at."""

    decoder: Decoder
    is_ready: bool = False
    images: int = 0
    """How many it has met."""
    has_met_broken: bool = False
    """One of them was broken, and the decoder was not replaced."""
    work: Work | None = None
    cause: str = ""
    """Why we ended it."""


class Decoders:
    """Every method is called on one event loop."""

    def __init__(self, forks: Forks, count: int, timeout_seconds: float, on_idle: Callable[[], None]) -> None:
        self.count = count
        self._forks = forks
        self._timeout_seconds = timeout_seconds
        self._on_idle = on_idle
        self._seats: dict[int, Seat] = {}
        """By the decoder's number."""
        self._idle: list[Seat] = []
        self._number = 0
        self._failures = 0
        """Decoders in a row that ended before they were ready."""
        self._replaced_until = 0.0
        """When what was replaced would have been, at the rate allowed."""
        self._is_running = False
        """Whether the fork server takes orders."""
        self._is_closing = False
        self._is_warned = False

    def start(self) -> None:
        """Starts them. `on_idle` is called whenever one can take an image."""
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()  # of no request: others are started in the midst of one
        self._start()

    async def close(self) -> None:
        """Ends them, whatever they are at."""
        self._is_closing = True
        for seat in list(self._seats.values()):
            self._remove(seat)
        await self._forks.close()

    def has_idle(self) -> bool:
        """Whether one can take an image now."""
        return bool(self._idle)

    def has_fresh(self) -> bool:
        """Whether one can take an image now that has met none before."""
        return any(seat.images == 0 for seat in self._idle)

    def begin(
        self, data: bytes | memoryview, task: Task, then: Callable[[Result], None], *, fresh: bool = False
    ) -> None:
        """Hands an image to an idle decoder; `then` is called once, not before this returns.

        `fresh`: to one that has met no image, of which there must be one (`has_fresh`).

        Raises OSError where the decoder has ended meanwhile: another can take the image; NoRoom where none can.
        """
        # The one that was last at work, whose memory is warm.
        index = next(index for index in reversed(range(len(self._idle))) if self._idle[index].images == 0 or not fresh)
        seat = self._idle.pop(index)
        try:
            seat.decoder.begin(data, task)
        except NoRoom:
            seat.decoder.forget()
            self._idle.append(seat)
            raise
        except OSError:
            self._end(seat, EXIT)
            raise
        timer = self._loop.call_later(self._timeout_seconds, self._end, seat, TIMEOUT)
        seat.work = Work(task, then, timer)
        seat.images += 1

    # Their lives.

    def _start(self) -> None:
        if self._is_closing:
            return
        try:
            self._forks.start(self._on_ended, self._on_lost)
        except OSError:
            log.exception("the decoders' fork server could not be started")
            self._retry(self._start)
            return
        self._is_running = True
        for _ in range(self.count):
            self._add()

    def _add(self) -> None:
        if self._is_closing or not self._is_running or len(self._seats) >= self.count:
            return
        self._number += 1
        try:
            seat = self._seats[self._number] = Seat(Decoder(self._number))
        except OSError as error:
            log.warning("a decoder could not be started", reason=error.strerror, cure="raise `ulimit -n`")
            self._retry(self._add)
            return
        self._context.copy().run(self._loop.add_reader, seat.decoder.connection, self._hear, seat)
        self._loop.call_later(_START_SECONDS, self._check_started, seat)
        self._forks.fork(seat.decoder)

    def _check_started(self, seat: Seat) -> None:
        if not seat.is_ready and self._seats.get(seat.decoder.number) is seat:
            self._end(seat, TIMEOUT)

    def _remove(self, seat: Seat) -> Work | None:
        """Takes a decoder off the table. Returns what it was at."""
        del self._seats[seat.decoder.number]
        if seat in self._idle:
            self._idle.remove(seat)
        self._loop.remove_reader(seat.decoder.connection)
        seat.decoder.close()
        return _taken(seat)

    def _may_replace(self) -> bool:
        now = self._loop.time()
        if self._replaced_until > now:
            return False
        self._replaced_until = max(self._replaced_until, now - 1.0) + 1 / _REPLACED_A_SECOND
        return True

    def _end(self, seat: Seat, cause: str) -> None:
        """Has a decoder killed. What it was at is lost."""
        self._forks.kill(seat.decoder)
        self._lose(seat, cause, self._add)

    def _lose(self, seat: Seat, cause: str, go_on: Callable[[], None]) -> None:
        """A decoder is no more: another is started, and whoever waits for its image is told."""
        work = self._remove(seat)
        metrics.DECODER_DEATHS.labels(cause).inc()
        go_on()
        if work is None:
            log.warning("a decoder ended", cause=cause)
        else:
            work.then(Lost(cause, _is_doubtful(seat, cause)))

    def _on_ended(self, number: int, status: int) -> None:
        seat = self._seats.get(number)
        if seat is None:  # it was let go or killed, and has been replaced
            return
        self._hear(seat)  # what it said before
        if number not in self._seats:
            return
        self._lose(seat, _cause(status), self._add if seat.is_ready else lambda: self._retry(self._add))

    def _on_lost(self) -> None:
        """The fork server ended, and every decoder with it."""
        log.error("the decoders' fork server ended", cure="if memory ran out, give the server more")
        self._is_running = False
        for seat in list(self._seats.values()):
            self._lose(seat, FORK_SERVER, self._add)
        self._retry(self._start)

    def _retry(self, start: Callable[[], None]) -> None:
        first, most = _RETRY_SECONDS
        self._loop.call_later(min(most, first * 2**self._failures), start)
        self._failures = min(self._failures + 1, 16)

    # What they say.

    def _hear(self, seat: Seat) -> None:
        try:
            reply = seat.decoder.reply()
            if reply is not None:
                self._take(seat, reply)
        except ValueError:
            self._end(seat, GARBLED)
        except OSError:  # it has ended, which the fork server tells
            self._loop.remove_reader(seat.decoder.connection)

    def _take(self, seat: Seat, reply: Reply) -> None:
        """Raises ValueError where the reply answers nothing that was asked, and OSError."""
        if seat.work is None or not _is_plausible(reply, seat.work.task):
            if seat.is_ready or reply.verdict is not Verdict.READY:
                raise ValueError(reply)
            seat.is_ready, self._failures = True, 0
            self._warn(reply.text)
            self._sit(seat)
            return
        if reply.verdict is Verdict.OUT_OF_MEMORY:
            self._end(seat, MEMORY)
            return
        task = seat.work.task
        result = seat.decoder.pixels(task.spec) if reply.verdict is Verdict.PIXELS else reply
        seat.decoder.forget()
        work = _taken(seat)
        assert work is not None
        work.then(result)  # before the decoder takes another: what is counted of this one is over
        is_broken = reply.verdict in (Verdict.BROKEN, Verdict.MISTAKE)
        if is_broken and self._may_replace():
            self._remove(seat)
            self._forks.kill(seat.decoder)  # it need not be what it says
            self._add()
        else:
            seat.has_met_broken |= is_broken
            self._sit(seat)

    def _sit(self, seat: Seat) -> None:
        self._idle.append(seat)
        self._on_idle()

    def _warn(self, unconfined: str) -> None:
        if unconfined and not self._is_warned:
            self._is_warned = True
            log.warning("decoders are not fully confined", missing=unconfined)


def _is_plausible(reply: Reply, task: Task) -> bool:
    if reply.key != task.key:
        return False
    if reply.verdict is Verdict.LARGE:
        return task.pixels_now < reply.pixels <= task.max_pixels
    return reply.verdict is not Verdict.READY


def _is_doubtful(seat: Seat, cause: str) -> bool:
    if cause == FORK_SERVER:  # all ended together
        return True
    return seat.images > 1 and (seat.has_met_broken or cause not in MACHINE)


def _taken(seat: Seat) -> Work | None:
    """What the decoder was at: no longer."""
    work, seat.work = seat.work, None
    if work is not None:
        work.timer.cancel()
    return work


def _cause(status: int) -> str:
    """Why a process ended, from its wait status."""
    if status == NOT_STARTED or not os.WIFSIGNALED(status):
        return EXIT
    number = os.WTERMSIG(status)
    return next((each.name for each in signal.Signals if each == number), f"SIG{number}")
