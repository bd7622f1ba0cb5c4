"""The batcher, with small engines: one adds, one waits for the test, one fails on a poisoned item."""

import asyncio
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from service.errors import DeadlinePassed, DeviceLost, InferenceFailed, InvalidInput, ModelNotReady, QueueFull
from service.inference.batcher import Answer, Batcher
from service.inference.fair_semaphore import FairSemaphore
from tests.servers import until

pytestmark = pytest.mark.anyio

POISON = -1.0


class SumEngine:
    """Adds up each item, and records the sizes of its batches."""

    def __init__(self):
        self.sizes = []
        self.seen = []

    def __call__(self, batch):
        self.sizes.append(len(batch))
        self.seen += batch[:, 0].tolist()
        return batch.sum(axis=1, keepdims=True)


class FailingEngine(SumEngine):
    """Fails on every batch with a poisoned item in it."""

    def __call__(self, batch):
        if POISON in batch:
            raise RuntimeError("poison")
        return super().__call__(batch)


class GatedEngine(SumEngine):
    """Stays in each call until the test opens the gate."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Event()

    def __call__(self, batch):
        self.entered.set()
        assert self.gate.wait(20)
        return super().__call__(batch)


def item(value, width=3):
    return np.full(width, value, np.float32)


def soon():
    return time.monotonic() + 20


class running:  # noqa: N801 - reads as a verb
    """A started batcher, closed at the end."""

    def __init__(self, engine, **options):
        limits = {"max_batch_size": 8, "max_queue_images": 64} | options
        self.engine = engine
        self.batcher = Batcher(engine, name="test", **limits)

    async def __aenter__(self):
        self.batcher.start()
        return self.batcher

    async def __aexit__(self, *_):
        if isinstance(self.engine, GatedEngine):
            self.engine.gate.set()
        await self.batcher.close()


async def ask(batcher, values, deadline):
    slots = batcher.reserve(len(values), deadline)
    batcher.submit(*zip(slots, values, strict=True))
    return await batcher.wait(slots)


async def entered(engine):
    assert await asyncio.to_thread(engine.entered.wait, 20)


async def queued(batcher, count):
    """Lets the event loop turn until that many items wait."""
    while batcher.depth() < count:  # noqa: ASYNC110 - each turn is one step of the tasks under test
        await asyncio.sleep(0)


async def test_one_item_is_answered_with_its_times():
    async with running(SumEngine()) as batcher:
        (answer,) = await ask(batcher, [item(2)], soon())
    assert answer.row == [6]
    assert answer.queue_seconds >= 0
    assert answer.inference_seconds > 0


async def test_an_idle_engine_starts_at_once_and_what_comes_meanwhile_becomes_the_next_batch():
    engine = GatedEngine()
    async with running(engine) as batcher:
        first = asyncio.ensure_future(ask(batcher, [item(1)], soon()))
        await entered(engine)
        rest = [asyncio.ensure_future(ask(batcher, [item(value)], soon())) for value in range(2, 7)]
        await queued(batcher, 5)
        engine.gate.set()
        answers = await asyncio.gather(first, *rest)
    assert engine.sizes == [1, 5]
    assert [answer.row[0] for (answer,) in answers] == [3, 6, 9, 12, 15, 18]


async def test_batches_hold_images_not_requests_and_never_too_many():
    engine = GatedEngine()
    async with running(engine, max_batch_size=4) as batcher:
        first = asyncio.ensure_future(ask(batcher, [item(0)], soon()))
        await entered(engine)
        many = asyncio.ensure_future(ask(batcher, [item(value) for value in range(9)], soon()))
        await queued(batcher, 9)
        engine.gate.set()
        await first
        answers = await many
    assert engine.sizes == [1, 4, 4, 1]
    assert [answer.row[0] for answer in answers] == [3 * value for value in range(9)]


async def test_a_full_queue_refuses_a_request_whole_and_goes_on():
    engine = GatedEngine()
    async with running(engine, max_queue_images=4) as batcher:
        first = asyncio.ensure_future(ask(batcher, [item(0)], soon()))
        await entered(engine)
        waiting = asyncio.ensure_future(ask(batcher, [item(1)] * 3, soon()))
        await queued(batcher, 3)
        with pytest.raises(QueueFull):
            await ask(batcher, [item(2)] * 2, soon())
        assert batcher.depth() == 3
        last = asyncio.ensure_future(ask(batcher, [item(3)], soon()))
        await queued(batcher, 4)
        engine.gate.set()
        await asyncio.gather(first, waiting, last)
    assert 2.0 not in engine.seen


async def test_a_reserved_slot_takes_room_until_it_is_given_up():
    async with running(SumEngine(), max_queue_images=2) as batcher:
        first, second = batcher.reserve(2, soon())
        with pytest.raises(QueueFull, match="2 images"):
            batcher.reserve(1, soon())
        batcher.submit((second, None))
        (third,) = batcher.reserve(1, soon())
        for slot in (first, third):
            batcher.submit((slot, item(1)))
        assert [answer.row[0] for answer in await batcher.wait([first, third])] == [3, 3]


async def test_an_item_that_cannot_be_prepared_gets_its_error_and_the_others_are_answered():
    async with running(SumEngine()) as batcher:
        slots = batcher.reserve(3, soon())
        broken = InvalidInput("broken")
        for slot, prepared in zip(slots, (item(1), broken, item(2)), strict=True):
            await asyncio.to_thread(batcher.submit, (slot, prepared))
        first, second, third = await batcher.wait(slots)
    assert (first.row[0], second, third.row[0]) == (3, broken, 6)


async def test_an_idle_engine_does_not_wait_for_reserved_slots(monkeypatch):
    monkeypatch.setattr("service.inference.batcher._WAIT_FOR_RESERVED", (1e9, 60.0))
    monkeypatch.setattr("service.inference.batcher._SHORT_CALL_SECONDS", 0.0)
    async with running(SumEngine()) as batcher:
        here, coming = batcher.reserve(2, soon())
        batcher.submit((here, item(1)))
        (answer,) = await batcher.wait([here])
        batcher.submit((coming, None))
    assert answer.queue_seconds < 20


async def test_an_engine_that_was_busy_waits_for_reserved_slots(monkeypatch):
    monkeypatch.setattr("service.inference.batcher._WAIT_FOR_RESERVED", (1e9, 20.0))
    monkeypatch.setattr("service.inference.batcher._SHORT_CALL_SECONDS", 0.0)
    engine = GatedEngine()
    async with running(engine) as batcher:
        first = asyncio.ensure_future(ask(batcher, [item(0)], soon()))
        await entered(engine)
        slots = batcher.reserve(3, soon())
        batcher.submit((slots[0], item(1)))
        engine.gate.set()
        await first
        batcher.submit((slots[1], item(2)))
        batcher.submit((slots[2], None))  # no other item comes: those that wait are run
        answers = await batcher.wait(slots[:2])
    assert engine.sizes == [1, 2]
    assert [answer.row[0] for answer in answers] == [3, 6]


async def beside_a_slot_that_stays_empty():
    """The seconds from an engine's call of microseconds to the next one, while another slot is reserved.

    They are counted from the end of the first call, so that a delay of this test itself does not count.
    """
    async with running(SumEngine()) as batcher:
        waits, never = batcher.reserve(2, soon())
        await ask(batcher, [item(0)], soon())
        ended, _ = batcher._last_call
        batcher.submit((waits, item(1)))
        (answer,) = await batcher.wait([waits])
        batcher.submit((never, None))
    return waits.submitted + answer.queue_seconds - ended


async def test_an_engine_that_was_busy_waits_a_limited_time_for_a_slot_that_stays_empty(monkeypatch):
    monkeypatch.setattr("service.inference.batcher._WAIT_FOR_RESERVED", (1e9, 0.3))
    monkeypatch.setattr("service.inference.batcher._SHORT_CALL_SECONDS", 0.0)
    assert 0.299 < await beside_a_slot_that_stays_empty() < 10


@pytest.mark.parametrize(("share", "long"), [(1.0, 0.0), (1e9, 10.0)])
async def test_after_a_short_call_the_wait_is_a_share_or_none(monkeypatch, share, long):
    monkeypatch.setattr("service.inference.batcher._WAIT_FOR_RESERVED", (share, 60.0))
    monkeypatch.setattr("service.inference.batcher._SHORT_CALL_SECONDS", long)
    assert await beside_a_slot_that_stays_empty() < 20


async def test_a_runner_that_has_the_semaphore_does_not_wait_again(monkeypatch):
    """A slot that is reserved while a runner waits for the semaphore does not make it wait a second time."""
    monkeypatch.setattr("service.inference.batcher._WAIT_FOR_CLIENTS", (0.0, 0.0))
    monkeypatch.setattr("service.inference.batcher._WAIT_FOR_RESERVED", (1e9, 60.0))
    monkeypatch.setattr("service.inference.batcher._SHORT_CALL_SECONDS", 0.0)
    semaphore, busy, engine = FairSemaphore(1), GatedEngine(), SumEngine()
    async with running(busy, semaphore=semaphore) as first, running(engine, semaphore=semaphore) as second:
        await ask(second, [item(0)], soon())  # has been busy just now
        holding = asyncio.ensure_future(ask(first, [item(1)], soon()))
        await entered(busy)
        waiting = asyncio.ensure_future(ask(second, [item(2)], soon()))
        while not semaphore._waiting:  # noqa: ASYNC110 - until its runner waits
            await asyncio.sleep(0.001)
        (never,) = second.reserve(1, soon())
        busy.gate.set()
        await holding
        try:
            (answer,) = await waiting
        finally:
            second.submit((never, None))
    assert answer.row == [6]
    assert answer.queue_seconds < 20


async def test_closing_answers_reserved_slots_and_ends_every_runner():
    batcher = Batcher(SumEngine(), name="test", max_batch_size=1, max_queue_images=8, instances=3)
    batcher.start()
    answered, gone = batcher.reserve(2, soon())
    closing = asyncio.ensure_future(batcher.close())
    await asyncio.sleep(0)
    batcher.submit((answered, item(1)))
    (answer,) = await batcher.wait([answered])
    assert answer.row == [3]
    batcher.submit((gone, None))
    await asyncio.wait_for(closing, 20)


async def test_a_caller_past_its_deadline_gets_an_error_at_once_and_is_never_run():
    engine = GatedEngine()
    async with running(engine) as batcher:
        first = asyncio.ensure_future(ask(batcher, [item(0)], soon()))
        await entered(engine)
        with pytest.raises(DeadlinePassed):
            await ask(batcher, [item(5)], time.monotonic() + 0.01)
        assert not first.done()
        engine.gate.set()
        await first
        await ask(batcher, [item(1)], soon())
    assert 5.0 not in engine.seen


async def test_a_deadline_in_the_past_is_an_error_not_a_run():
    engine = SumEngine()
    async with running(engine) as batcher:
        with pytest.raises(DeadlinePassed):
            await ask(batcher, [item(5)], time.monotonic() - 1)


async def test_a_cancelled_caller_is_never_run_and_keeps_no_slot():
    engine = GatedEngine()
    async with running(engine, max_queue_images=2) as batcher:
        first = asyncio.ensure_future(ask(batcher, [item(0)], soon()))
        await entered(engine)
        gone = asyncio.ensure_future(ask(batcher, [item(7)] * 2, soon()))
        await queued(batcher, 2)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        stays = asyncio.ensure_future(ask(batcher, [item(1)] * 2, soon()))
        await asyncio.sleep(0)
        assert batcher.depth() == 2
        engine.gate.set()
        await asyncio.gather(first, stays)
    assert 7.0 not in engine.seen


async def test_a_poisoned_item_fails_alone():
    engine = FailingEngine()
    async with running(engine, max_queue_delay_seconds=60) as batcher:  # a full batch does not wait
        answers = await ask(batcher, [item(POISON if value == 3 else value) for value in range(8)], soon())
    assert isinstance(answers[3], InferenceFailed)
    assert [answer.row[0] for answer in answers if isinstance(answer, Answer)] == [0, 3, 6, 12, 15, 18, 21]


async def test_an_item_of_another_shape_runs_alone():
    async with running(SumEngine(), max_batch_size=2, max_queue_delay_seconds=60) as batcher:
        strange, sound = await ask(batcher, [item(1, width=5), item(1)], soon())
    assert [strange.row, sound.row] == [5, 3]


async def test_a_row_that_is_not_finite_fails_alone():
    async with running(SumEngine(), max_batch_size=3, max_queue_delay_seconds=60) as batcher:
        sound, nan, infinite = await ask(batcher, [item(1), item(np.nan), item(np.inf)], soon())
    assert sound.row == [3]
    assert isinstance(nan, InferenceFailed)
    assert isinstance(infinite, InferenceFailed)


async def test_an_engine_that_loses_rows_answers_nobody_wrongly():
    async with running(lambda batch: batch[:0], max_batch_size=2) as batcher:
        answers = await ask(batcher, [item(1), item(2)], soon())
    assert [type(answer) for answer in answers] == [InferenceFailed, InferenceFailed]


async def test_a_lost_device_fails_the_batch_once_and_is_reported():
    calls, lost = [], []

    def engine(batch):
        calls.append(len(batch))
        raise DeviceLost("gone")

    async with running(engine, max_queue_delay_seconds=60, on_device_lost=lambda: lost.append(True)) as batcher:
        answers = await ask(batcher, [item(1)] * 8, soon())
    assert calls == [8]
    assert lost == [True]
    assert all(isinstance(answer, DeviceLost) for answer in answers)


async def test_a_delay_counts_from_the_oldest_item_and_ends_with_a_full_batch():
    engine = SumEngine()
    async with running(engine, max_batch_size=2, max_queue_delay_seconds=60) as batcher:
        await asyncio.gather(ask(batcher, [item(1)], soon()), ask(batcher, [item(2)], soon()))
    assert engine.sizes == [2]


async def test_a_lone_item_is_run_when_its_delay_is_over():
    async with running(SumEngine(), max_queue_delay_seconds=0.05) as batcher:
        (answer,) = await ask(batcher, [item(1)], soon())
    assert answer.queue_seconds >= 0.05


async def test_closing_answers_waiting_items_and_refuses_new_ones():
    engine = GatedEngine()
    batcher = Batcher(engine, name="test", max_batch_size=1, max_queue_images=8)
    batcher.start()
    waiting = [asyncio.ensure_future(ask(batcher, [item(value)], soon())) for value in range(3)]
    await entered(engine)
    await queued(batcher, 2)
    closing = asyncio.ensure_future(batcher.close())
    await asyncio.sleep(0)
    with pytest.raises(ModelNotReady):
        await ask(batcher, [item(9)], soon())
    engine.gate.set()
    await closing
    assert [answer.row[0] for (answer,) in await asyncio.gather(*waiting)] == [0, 3, 6]


async def test_a_running_call_shows_for_how_long():
    engine = GatedEngine()
    async with running(engine) as batcher:
        assert batcher.stuck_seconds() == 0
        first = asyncio.ensure_future(ask(batcher, [item(0)], soon()))
        await entered(engine)
        assert batcher.stuck_seconds() > 0
        engine.gate.set()
        await first


async def test_a_bug_costs_one_batch_and_the_runner_goes_on():
    class Observer:
        def executed(self, *_):
            raise ZeroDivisionError

    async with running(SumEngine(), observer=Observer()) as batcher:
        for _ in range(2):
            (answer,) = await ask(batcher, [item(1)], soon())
            assert isinstance(answer, InferenceFailed)


async def test_the_observer_is_called_after_every_call():
    calls = []

    class Observer:
        def executed(self, images, queue_seconds, inference_seconds):
            calls.append((images, len(queue_seconds), inference_seconds > 0))

    async with running(SumEngine(), max_batch_size=2, max_queue_delay_seconds=60, observer=Observer()) as batcher:
        await ask(batcher, [item(1)] * 4, soon())
    assert calls == [(2, 2, True), (2, 2, True)]


requests = st.lists(
    st.tuples(
        st.lists(st.one_of(st.integers(0, 99).map(float), st.just(POISON)), min_size=1, max_size=5),
        st.sampled_from(["stay", "cancel", "expire"]),
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=60, deadline=None)
@given(requests=requests, max_batch_size=st.integers(1, 8), capacity=st.integers(5, 40))
def test_every_caller_gets_exactly_its_own_answer(requests, max_batch_size, capacity):
    """A caller that waits gets its own answer, even if others are cancelled, late or poisoned. No item stays behind."""

    async def scenario():
        engine = FailingEngine()
        options = {"max_batch_size": max_batch_size, "max_queue_images": capacity}
        async with running(engine, **options) as batcher:
            tasks = []
            for values, fate in requests:
                deadline = time.monotonic() - 1 if fate == "expire" else soon()
                tasks.append(asyncio.ensure_future(ask(batcher, [item(value) for value in values], deadline)))
            await asyncio.sleep(0)
            for task, (_, fate) in zip(tasks, requests, strict=True):
                if fate == "cancel":
                    task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            depth = batcher.depth()
        assert max(engine.sizes, default=0) <= max_batch_size
        for (values, fate), outcome in zip(requests, outcomes, strict=True):
            if isinstance(outcome, QueueFull):
                continue
            if fate == "stay":
                assert [
                    POISON if isinstance(answer, InferenceFailed) else answer.row[0] / 3 for answer in outcome
                ] == pytest.approx(values)
            elif fate == "expire":
                assert isinstance(outcome, DeadlinePassed)
            else:  # cancelled, unless the answer was quicker
                assert isinstance(outcome, asyncio.CancelledError | list)
        assert depth <= sum(len(values) for values, fate in requests if fate != "stay")

    with capture_logs():  # formatting every traceback would take seconds
        asyncio.run(scenario())


# Several instances, several models.


class MeetingEngine(SumEngine):
    """Ends a call once that many calls run at the same time."""

    def __init__(self, calls):
        super().__init__()
        self.meeting = threading.Barrier(calls)

    def __call__(self, batch):
        self.meeting.wait(20)
        return super().__call__(batch)


async def test_instances_work_at_once_and_one_request_over_several_batches_is_answered_in_order():
    engine = MeetingEngine(calls=2)  # a batch alone would wait for ever
    async with running(engine, instances=2) as batcher:
        answers = await ask(batcher, [item(value) for value in range(64)], soon())
    assert [answer.row[0] for answer in answers] == [3 * value for value in range(64)]
    assert engine.sizes == [8] * 8


async def test_a_batch_that_waits_for_the_semaphore_still_grows():
    semaphore, busy, engine = FairSemaphore(1), GatedEngine(), SumEngine()
    async with running(busy, semaphore=semaphore) as first, running(engine, semaphore=semaphore) as second:
        holding = asyncio.ensure_future(ask(first, [item(1)], soon()))
        await entered(busy)
        waiting = [asyncio.ensure_future(ask(second, [item(value)], soon())) for value in range(5)]
        await queued(second, 5)
        busy.gate.set()
        await asyncio.gather(holding, *waiting)
    assert engine.sizes == [5]


async def test_a_busy_model_does_not_starve_another():
    """The next batch of one model runs after one batch of the other, however many of those are waiting."""
    semaphore, order = FairSemaphore(1), []

    class RecordingEngine(SumEngine):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def __call__(self, batch):
            order.append(self.name)
            if self.name == "busy" and order.count("other") < 20:
                until(lambda: semaphore._waiting, 20)  # for the other model: this model's runner is here
            return super().__call__(batch)

    async with (
        running(RecordingEngine("busy"), semaphore=semaphore, max_queue_images=1024) as busy,
        running(RecordingEngine("other"), semaphore=semaphore) as other,
    ):
        many = asyncio.ensure_future(ask(busy, [item(value) for value in range(800)], soon()))
        for _ in range(20):
            await ask(other, [item(1)], soon())
        await many
    positions = [position for position, name in enumerate(order) if name == "other"]
    assert len(positions) == 20
    assert positions[-1] < 40  # of 120 batches, a hundred being the busy one's


@pytest.mark.no_cover  # coverage makes it six times slower
async def test_ten_thousand_in_the_queue_are_bounded_and_answered_or_failed_in_time():
    """Admitted items are answered or fail by their deadline; items beyond the bound are refused at once."""
    engine = GatedEngine()
    async with running(engine, max_queue_images=9_000, max_batch_size=32) as batcher:
        blocked = asyncio.ensure_future(ask(batcher, [item(0)], soon()))
        await entered(engine)
        started = time.monotonic()
        deadline = started + 1.0
        tasks = [asyncio.ensure_future(ask(batcher, [item(1)], deadline)) for _ in range(10_000)]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        seconds = time.monotonic() - started
        kinds = {kind: sum(isinstance(outcome, kind) for outcome in outcomes) for kind in (QueueFull, DeadlinePassed)}
        assert kinds == {QueueFull: 1_000, DeadlinePassed: 9_000}
        assert seconds < 10  # the deadline was one second
        assert batcher.depth() <= 9_000
        engine.gate.set()
        await blocked
        (answer,) = await ask(batcher, [item(2)], soon())  # none of the expired was run
        assert answer.row == [6]
    assert engine.sizes == [1, 1]
