"""Groups concurrent items into one engine call.

Callers live on the event loop. Items are prepared on any threads and join the queue from there; runner threads, one an
instance, take what waits and call the engine; for each batch, one call goes back to the loop.

An idle engine with a waiting item starts at once; while it runs, the queue fills. An engine that has just been busy
waits a moment for those whom it has answered, and for items that are being prepared: a larger batch repays a small part
of a call.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import structlog

from service.errors import DeadlinePassed, DeviceLost, InferenceFailed, ModelNotReady, QueueFull, ServiceError
from service.inference.turns import Turns
from service.logs import REQUEST_ID

Array = np.ndarray[Any, Any]
Run = Callable[[Array], Array]

log = structlog.get_logger()

# How long an engine that was busy waits for company, as a share of its last call and in seconds at most: for callers
# who may come again as soon as they are answered, and for items that are known to be on their way.
_RETURNING = 0.05, 0.002
_COMING = 0.2, 0.05
_LONG_SECONDS = 0.002  # after a shorter call, to sleep and be woken takes longer than there is to gain


class Answer(NamedTuple):
    """What the engine said of one item, and how long it took."""

    row: Array
    queue_seconds: float
    inference_seconds: float


class Observer(Protocol):
    """Is told of every engine call, on the runner thread."""

    def executed(self, images: int, queue_seconds: Sequence[float], inference_seconds: float) -> None:
        """One call of the engine: how many items, how long each had waited, how long the call took."""


@dataclass(slots=True, eq=False)
class Place:
    """One item's way through the engine; its future is settled once, on the event loop."""

    deadline: float
    request_id: str
    result: asyncio.Future[Answer | ServiceError]
    value: Array | None = None
    """None until it is prepared."""
    entered: float = 0.0
    """When it was prepared, or could not be."""

    def settle(self, outcome: Answer | ServiceError) -> None:
        """Answers the caller, unless the caller has gone."""
        if not self.result.done():
            self.result.set_result(outcome)


class Batcher:
    """A bounded queue before one engine. Every method but `enter` and the runner's own is called on the event loop."""

    def __init__(
        self,
        run: Run,
        *,
        name: str,
        max_batch_size: int,
        max_queue_images: int,
        max_queue_delay_seconds: float = 0.0,
        instances: int = 1,
        turns: Turns | None = None,
        observer: Observer | None = None,
        on_device_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._run = run
        self._name = name
        self._max_batch_size = max_batch_size
        self._max_queue_images = max_queue_images
        self._max_queue_delay_seconds = max_queue_delay_seconds
        self._observer = observer
        self._on_device_lost = on_device_lost
        self._queue: deque[Place] = deque()
        self._changed = threading.Condition()  # guards the queue, and what follows
        self._coming = 0  # items that are expected and have not entered
        self._closing = False
        self._last_call = 0.0, 0.0  # when it ended, and how long it took
        self._turns = turns or Turns(instances)
        self._running_since: list[float | None] = [None] * instances
        self._runners = [
            threading.Thread(target=self._serve, args=(number,), name=f"runner-{name}-{number}", daemon=True)
            for number in range(instances)
        ]

    def start(self) -> None:
        """Starts the runner threads, which answer to the event loop that calls this."""
        self._loop = asyncio.get_running_loop()
        for runner in self._runners:
            runner.start()

    async def close(self) -> None:
        """Refuses new items, answers those that wait or are expected, then ends the runners."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for runner in self._runners:
            if runner.ident is not None:
                await asyncio.to_thread(runner.join)

    def depth(self) -> int:
        """Items waiting, not yet in the engine."""
        return len(self._queue)

    def stuck_seconds(self) -> float:
        """How long the present engine call has been running; 0 between calls."""
        now = time.monotonic()
        return max(0.0 if since is None else now - since for since in self._running_since)

    def expect(self, count: int, deadline: float) -> list[Place]:
        """Places for so many items, all or none. Each is to `enter` once, from whichever thread prepares its item.

        `deadline` is on the clock of time.monotonic. Raises QueueFull, ModelNotReady.
        """
        request_id = REQUEST_ID.get()
        places = [Place(deadline, request_id, self._loop.create_future()) for _ in range(count)]
        with self._changed:
            if self._closing:
                raise ModelNotReady(f"{self._name} is being unloaded")
            if not self._has_room(count):
                self._queue = deque(place for place in self._queue if not place.result.done())  # callers have gone
                if not self._has_room(count):
                    raise QueueFull(f"{len(self._queue) + self._coming} images wait for {self._name} already")
            self._coming += count
        return places

    def _has_room(self, count: int) -> bool:
        return len(self._queue) + self._coming + count <= self._max_queue_images

    def enter(self, *prepared: tuple[Place, Array | ServiceError | None]) -> None:
        """Expected items join the queue together, or their callers are told why not; None where a caller has gone.

        Any thread may call this.
        """
        now = time.monotonic()
        with self._changed:
            self._coming -= len(prepared)
            for place, value in prepared:
                place.entered = now
                if isinstance(value, np.ndarray):
                    place.value = value
                    self._queue.append(place)
            self._changed.notify()
        for place, value in prepared:
            if isinstance(value, ServiceError):
                self._to_loop(place.settle, value)

    async def answers(self, places: Sequence[Place]) -> list[Answer | ServiceError]:
        """An outcome for each of the expected items, in order.

        Raises DeadlinePassed. When the caller is cancelled, what still waits is never run.
        """
        if not places:
            return []
        try:
            async with asyncio.timeout(places[0].deadline - time.monotonic()):
                return [await place.result for place in places]
        except TimeoutError:
            raise DeadlinePassed("the answer was not ready before the deadline") from None
        finally:
            for place in places:
                place.result.cancel()

    # From here on: the runner threads.

    def _serve(self, runner: int) -> None:
        while self._wait():
            with self._turns.taken():  # while other models have theirs, the queue fills
                with self._changed:
                    batch = self._pop_batch()
                    if self._queue:  # for a runner that sleeps
                        self._changed.notify()
                if batch:
                    self._run_batch(runner, batch)

    def _run_batch(self, runner: int, batch: list[Place]) -> None:
        self._running_since[runner] = started = time.monotonic()
        try:
            outcomes = self._execute(batch, started)
        except Exception:  # a mistake of ours: it costs this batch, and the runner goes on
            log.exception("a batch failed", model=self._name)
            outcomes = [InferenceFailed("the server made a mistake")] * len(batch)
        ended = time.monotonic()
        self._running_since[runner], self._last_call = None, (ended, ended - started)
        self._to_loop(_settle, batch, outcomes)

    def _to_loop(self, call: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # the loop is closed: nobody waits any more
            log.debug("the event loop ended before an answer", model=self._name)

    def _wait(self) -> bool:
        """Blocks until something is to be run; false when the batcher is closed and its queue answered."""
        with self._changed:
            while not self._is_due():
                if self._closing and not self._queue and not self._coming:
                    self._changed.notify_all()  # the other runners, which sleep
                    return False
                self._changed.wait(self._patience())
            return True

    def _is_due(self) -> bool:
        """Whether somebody waits who need not wait for company any longer."""
        full = len(self._queue) >= self._max_batch_size
        return bool(self._queue) and (full or self._closing or self._patience() == 0.0)

    def _patience(self) -> float | None:
        """Seconds until there is no more reason to wait for company; None where nothing waits."""
        if not self._queue:
            return None
        until = self._queue[0].entered + self._max_queue_delay_seconds
        ended, seconds = self._last_call
        is_lone = len(self._runners) == 1  # of several, each takes what the others leave
        if is_lone and seconds >= _LONG_SECONDS:
            share, most = _COMING if self._coming else _RETURNING
            until = max(until, ended + min(share * seconds, most))
        return max(0.0, until - time.monotonic())

    def _pop_batch(self) -> list[Place]:
        """Up to max_batch_size items whose callers still wait.

        None where another runner was faster. A lone one has waited, and then got its turn: now it runs.
        """
        now = time.monotonic()
        batch: list[Place] = []
        if len(self._runners) > 1 and not self._is_due():
            return batch
        while self._queue and len(batch) < self._max_batch_size:
            place = self._queue.popleft()
            if not place.result.done() and place.deadline > now:
                batch.append(place)
        return batch

    def _execute(self, batch: Sequence[Place], started: float) -> Sequence[Answer | ServiceError]:
        """An outcome for each item."""
        rows = self._attempt(batch)
        seconds = time.monotonic() - started
        waits = [started - place.entered for place in batch]
        if self._observer is not None:
            self._observer.executed(len(batch), waits, seconds)
        return [
            row if isinstance(row, ServiceError) else Answer(row, wait, seconds)
            for row, wait in zip(rows, waits, strict=True)
        ]

    def _attempt(self, batch: Sequence[Place]) -> Sequence[Array | ServiceError]:
        """A row or an error for each item. A failing batch is halved until what fails stands alone.

        Halving also makes room where a GPU's memory was too small for the whole batch.
        """
        try:
            # One item is a batch as it is; of several, the copy is a hundredth of what decoding them took.
            values = [place.value for place in batch if place.value is not None]
            rows = self._run(np.stack(values) if len(values) > 1 else values[0][np.newaxis])
            if len(rows) != len(batch):
                raise ValueError(f"{len(rows)} rows for {len(batch)} items")  # noqa: TRY301 - handled like the engine's
            finite = np.asarray(np.isfinite(rows))
            sound: Array = np.asarray(finite.reshape(len(rows), -1).all(axis=1))
        except DeviceLost as error:
            log.exception("the device is lost", model=self._name)
            self._on_device_lost()
            return [error] * len(batch)
        except Exception:
            if len(batch) == 1:
                log.exception("inference failed", model=self._name, request_id=batch[0].request_id)
                return [InferenceFailed("the model could not run on this input")]
            middle = len(batch) // 2
            return [*self._attempt(batch[:middle]), *self._attempt(batch[middle:])]
        return [
            row if ok else InferenceFailed("the model gave a result that is not a number")
            for row, ok in zip(rows, sound, strict=True)
        ]


def _settle(batch: Sequence[Place], outcomes: Sequence[Answer | ServiceError]) -> None:
    for place, outcome in zip(batch, outcomes, strict=True):
        place.settle(outcome)
