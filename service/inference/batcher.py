"""Groups concurrent items into one engine call.

Callers run on the event loop: they reserve slots in the queue, and wait for the answers. The thread that prepares an
item, whichever it is, submits it into its slot. Runner threads, one for each engine instance, take batches from the
queue and call the engine; the answers of a batch go back to the event loop in one call.

An idle engine starts as soon as one item is waiting; while it runs, the queue fills. An engine that has just finished a
call waits a moment for items that are being prepared, and for clients that send again as soon as they are answered: a
larger batch is worth a small part of a call.
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
from service.inference.fair_semaphore import FairSemaphore
from service.logs import REQUEST_ID

Array = np.ndarray[Any, Any]
Run = Callable[[Array], Array]

log = structlog.get_logger()

# How long an engine that has just finished a call waits for a larger batch: a share of that call, and at most so many
# seconds. The first is for clients that send again once they are answered, the second for items that hold a slot.
_WAIT_FOR_CLIENTS = 0.05, 0.002
_WAIT_FOR_RESERVED = 0.2, 0.05
_SHORT_CALL_SECONDS = 0.002  # after a shorter call there is no wait: to sleep and wake up would take longer


class Answer(NamedTuple):
    """The engine's result for one item, with the times that it took."""

    row: Array
    queue_seconds: float
    inference_seconds: float


class Observer(Protocol):
    """Is called after every engine call, on the runner thread."""

    def executed(self, images: int, queue_seconds: Sequence[float], inference_seconds: float) -> None:
        """Gets the number of items, how long each had waited in the queue, and how long the call took."""


@dataclass(slots=True, eq=False)
class Slot:
    """One item's slot in the queue. Its future is settled once, on the event loop."""

    deadline: float
    request_id: str
    result: asyncio.Future[Answer | ServiceError]
    value: Array | None = None
    """The prepared item; None until it is submitted."""
    submitted: float = 0.0
    """When the item, or the reason why there is none, was submitted."""

    def settle(self, outcome: Answer | ServiceError) -> None:
        """Answers the caller, unless the caller no longer waits."""
        if not self.result.done():
            self.result.set_result(outcome)


class Batcher:
    """A bounded queue for one engine.

    Any thread may call `submit`. The other public methods are called on the event loop.
    """

    def __init__(
        self,
        run: Run,
        *,
        name: str,
        max_batch_size: int,
        max_queue_images: int,
        max_queue_delay_seconds: float = 0.0,
        instances: int = 1,
        semaphore: FairSemaphore | None = None,
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
        self._queue: deque[Slot] = deque()
        self._changed = threading.Condition()  # guards the queue and the next three
        self._reserved = 0  # slots whose items have not been submitted
        self._closing = False
        self._last_call = 0.0, 0.0  # when it ended, and how long it took
        self._semaphore = semaphore or FairSemaphore(instances)
        self._running_since: list[float | None] = [None] * instances
        self._runners = [
            threading.Thread(target=self._serve, args=(number,), name=f"runner-{name}-{number}", daemon=True)
            for number in range(instances)
        ]

    def start(self) -> None:
        """Starts the runner threads. They send the answers to the event loop that calls this."""
        self._loop = asyncio.get_running_loop()
        for runner in self._runners:
            runner.start()

    async def close(self) -> None:
        """Refuses new reservations, answers those that were made before, then ends the runners."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for runner in self._runners:
            if runner.ident is not None:
                await asyncio.to_thread(runner.join)

    def depth(self) -> int:
        """The number of items that wait for the engine."""
        return len(self._queue)

    def stuck_seconds(self) -> float:
        """For how long the oldest running engine call has been running; 0 between calls."""
        now = time.monotonic()
        return max(0.0 if since is None else now - since for since in self._running_since)

    def reserve(self, count: int, deadline: float) -> list[Slot]:
        """Reserves slots for that many items, all or none. The caller must `submit` each slot exactly once.

        `deadline` is a time of time.monotonic. Raises QueueFull, ModelNotReady.
        """
        request_id = REQUEST_ID.get()
        slots = [Slot(deadline, request_id, self._loop.create_future()) for _ in range(count)]
        with self._changed:
            if self._closing:
                raise ModelNotReady(f"{self._name} is being unloaded")
            if not self._has_room(count):
                self._queue = deque(slot for slot in self._queue if not slot.result.done())  # drop those given up
                if not self._has_room(count):
                    raise QueueFull(f"{len(self._queue) + self._reserved} images are waiting for {self._name} already")
            self._reserved += count
        return slots

    def _has_room(self, count: int) -> bool:
        return len(self._queue) + self._reserved + count <= self._max_queue_images

    def submit(self, *prepared: tuple[Slot, Array | ServiceError | None]) -> None:
        """Puts prepared items into the queue, all in one step. Any thread may call this.

        Instead of an item there may be the error with which the caller is answered, or None if nobody waits any more.
        """
        now = time.monotonic()
        with self._changed:
            self._reserved -= len(prepared)
            for slot, value in prepared:
                slot.submitted = now
                if isinstance(value, np.ndarray):
                    slot.value = value
                    self._queue.append(slot)
            self._changed.notify()
        for slot, value in prepared:
            if isinstance(value, ServiceError):
                self._to_loop(slot.settle, value)

    async def wait(self, slots: Sequence[Slot]) -> list[Answer | ServiceError]:
        """Waits for the outcomes of the slots, and returns them in order.

        Raises DeadlinePassed. After that, or when the caller is cancelled, items that still wait are never run.
        """
        if not slots:
            return []
        try:
            async with asyncio.timeout(slots[0].deadline - time.monotonic()):
                return [await slot.result for slot in slots]
        except TimeoutError:
            raise DeadlinePassed("the answer was not ready before the deadline") from None
        finally:
            for slot in slots:
                slot.result.cancel()

    # The following methods run on the runner threads.

    def _serve(self, runner: int) -> None:
        while self._wait_until_due():
            with self._semaphore:  # the batch is taken after the wait for other models: meanwhile the queue fills
                with self._changed:
                    batch = self._pop_batch()
                    if self._queue:  # the rest is for another runner, which may be asleep
                        self._changed.notify()
                if batch:
                    self._run_batch(runner, batch)

    def _run_batch(self, runner: int, batch: list[Slot]) -> None:
        self._running_since[runner] = started = time.monotonic()
        try:
            outcomes = self._execute(batch, started)
        except Exception:  # a bug of the server fails this batch; the runner goes on
            log.exception("a batch failed", model=self._name)
            outcomes = [InferenceFailed("the server made a mistake")] * len(batch)
        ended = time.monotonic()
        self._running_since[runner], self._last_call = None, (ended, ended - started)
        self._to_loop(_settle, batch, outcomes)

    def _to_loop(self, call: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # the loop is closed: no caller waits any more
            log.debug("the event loop ended before an answer", model=self._name)

    def _wait_until_due(self) -> bool:
        """Blocks until a batch should run. Returns False once the batcher is closed and every item is answered."""
        with self._changed:
            while not self._is_due():
                if self._closing and not self._queue and not self._reserved:
                    self._changed.notify_all()  # wakes the other runners, so that they end too
                    return False
                self._changed.wait(self._seconds_until_due())
            return True

    def _is_due(self) -> bool:
        """Whether items wait, and there is no reason to wait for more."""
        full = len(self._queue) >= self._max_batch_size
        return bool(self._queue) and (full or self._closing or self._seconds_until_due() == 0.0)

    def _seconds_until_due(self) -> float | None:
        """For how long the waiting items should wait for more; None if no item waits."""
        if not self._queue:
            return None
        until = self._queue[0].submitted + self._max_queue_delay_seconds
        ended, seconds = self._last_call
        is_only_runner = len(self._runners) == 1  # several runners share the items: each takes what is there
        if is_only_runner and seconds >= _SHORT_CALL_SECONDS:
            share, most = _WAIT_FOR_RESERVED if self._reserved else _WAIT_FOR_CLIENTS
            until = max(until, ended + min(share * seconds, most))
        return max(0.0, until - time.monotonic())

    def _pop_batch(self) -> list[Slot]:
        """Takes up to max_batch_size items whose callers still wait.

        With several runners, another one may have taken the batch: then nothing is taken. A single runner has waited
        already, so that it takes what there is, even if more items are reserved by now.
        """
        now = time.monotonic()
        batch: list[Slot] = []
        if len(self._runners) > 1 and not self._is_due():
            return batch
        while self._queue and len(batch) < self._max_batch_size:
            slot = self._queue.popleft()
            if not slot.result.done() and slot.deadline > now:
                batch.append(slot)
        return batch

    def _execute(self, batch: Sequence[Slot], started: float) -> Sequence[Answer | ServiceError]:
        """Runs a batch. Returns an answer or an error for each item."""
        rows = self._attempt(batch)
        seconds = time.monotonic() - started
        waits = [started - slot.submitted for slot in batch]
        if self._observer is not None:
            self._observer.executed(len(batch), waits, seconds)
        return [
            row if isinstance(row, ServiceError) else Answer(row, wait, seconds)
            for row, wait in zip(rows, waits, strict=True)
        ]

    def _attempt(self, batch: Sequence[Slot]) -> Sequence[Array | ServiceError]:
        """Calls the engine. Returns a row or an error for each item.

        A batch that fails is run again in halves, until only the items that cause the error fail. Halving also helps
        if the GPU's memory is too small for the whole batch.
        """
        try:
            # A single item needs no copy. Copying several takes a hundredth of the time that decoding them took.
            values = [slot.value for slot in batch if slot.value is not None]
            rows = self._run(np.stack(values) if len(values) > 1 else values[0][np.newaxis])
            if len(rows) != len(batch):
                raise ValueError(f"{len(rows)} rows for {len(batch)} items")  # noqa: TRY301 - handled like an engine's error
            finite = np.asarray(np.isfinite(rows))
            valid: Array = np.asarray(finite.reshape(len(rows), -1).all(axis=1))
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
            row if ok else InferenceFailed("the model's result is not a finite number")
            for row, ok in zip(rows, valid, strict=True)
        ]


def _settle(batch: Sequence[Slot], outcomes: Sequence[Answer | ServiceError]) -> None:
    for slot, outcome in zip(batch, outcomes, strict=True):
        slot.settle(outcome)
