"""The pool of threads: what it takes, refuses, drops and survives."""

import asyncio
import threading
from collections.abc import Awaitable
from queue import SimpleQueue

import numpy as np
import pytest

from models.inputs import ImageInput
from service import decode_pool
from service.decode_pool import DecodePool, Job
from service.errors import ImageTooLarge, QueueFull, ServiceError, ShuttingDown, UndecodableImage
from service.preprocess import decode
from tests import images

MAX_PIXELS = 40_000_000
SAMPLE = images.jpeg(images.gradient())
WHOLE = ImageInput(height=64, width=96, resize="stretch")


class GatedDecode:
    """Stands for `decode`: says when it begins, and ends when the test says so."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)
        self.bodies: list[bytes] = []

    def __call__(self, data: bytes, spec: ImageInput, **_options: object) -> np.ndarray:
        self.bodies.append(data)
        self.begun.release()
        assert self.gate.wait(10)
        return np.zeros(spec.shape, np.uint8)

    async def wait_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=10)


@pytest.fixture
def gated(monkeypatch):
    fake = GatedDecode()
    monkeypatch.setattr(decode_pool, "decode", fake)
    yield fake
    fake.gate.set()


def in_pool(scenario, **options: int) -> None:
    """Runs `scenario(pool)` with a started pool, and closes it."""

    async def run() -> None:
        pool = DecodePool(**{"threads": 1, "max_images": 2, "max_pixels": MAX_PIXELS} | options)
        pool.start()
        try:
            await scenario(pool)
        finally:
            pool.close()

    asyncio.run(run())


async def decoded_in(pool: DecodePool, body: bytes, spec: ImageInput) -> np.ndarray:
    """What the pool makes of a body; dropped when the caller is cancelled."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[np.ndarray | ServiceError | None] = loop.create_future()

    def settle(found: np.ndarray | ServiceError | None) -> None:
        if not outcome.done():
            outcome.set_result(found)

    job = Job(body, spec, lambda found: loop.call_soon_threadsafe(settle, found))
    pool.put([job])
    try:
        found = await outcome
    except asyncio.CancelledError:
        pool.drop(job)
        raise
    if isinstance(found, ServiceError):
        raise found
    assert found is not None
    return found


def started(awaitable: Awaitable[np.ndarray]) -> asyncio.Task[np.ndarray]:
    return asyncio.ensure_future(awaitable)


def test_a_pool_decodes_as_decode_does():
    body, spec = images.photograph("rocket.jpg").read_bytes(), ImageInput(height=64, width=64)

    async def scenario(pool: DecodePool) -> None:
        results = await asyncio.gather(*(decoded_in(pool, body, spec) for _ in range(8)))
        assert all(np.array_equal(result, decode(body, spec, max_pixels=MAX_PIXELS)) for result in results)

    in_pool(scenario, threads=2, max_images=8)


def test_a_pool_raises_what_decode_raises_and_goes_on():
    async def scenario(pool: DecodePool) -> None:
        for _ in range(5):
            with pytest.raises(UndecodableImage):
                await decoded_in(pool, SAMPLE[:100], WHOLE)
            with pytest.raises(ImageTooLarge):
                await decoded_in(pool, images.jpeg(images.gradient(200, 100)), WHOLE)
        assert (await decoded_in(pool, SAMPLE, WHOLE)).shape == WHOLE.shape

    in_pool(scenario, max_pixels=10_000)


def test_a_full_pool_refuses_at_once_and_then_takes_again(gated):
    async def scenario(pool: DecodePool) -> None:
        running, waiting = started(decoded_in(pool, b"1", WHOLE)), started(decoded_in(pool, b"2", WHOLE))
        await gated.wait_begun()
        with pytest.raises(QueueFull, match="2 images"):
            await decoded_in(pool, b"3", WHOLE)
        gated.gate.set()
        await asyncio.gather(running, waiting)
        assert (await decoded_in(pool, b"4", WHOLE)).shape == WHOLE.shape
        assert gated.bodies == [b"1", b"2", b"4"]

    in_pool(scenario)


def test_a_cancelled_callers_image_is_skipped_and_makes_room(gated):
    async def scenario(pool: DecodePool) -> None:
        running, waiting = started(decoded_in(pool, b"1", WHOLE)), started(decoded_in(pool, b"2", WHOLE))
        await gated.wait_begun()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        other = started(decoded_in(pool, b"3", WHOLE))
        await asyncio.sleep(0)
        gated.gate.set()
        await asyncio.gather(running, other)
        assert gated.bodies == [b"1", b"3"]

    in_pool(scenario)


def test_a_dropped_image_is_not_kept(gated):
    async def scenario(pool: DecodePool) -> None:
        running = started(decoded_in(pool, b"1", WHOLE))
        await gated.wait_begun()
        outcomes: list[object] = []
        job = Job(b"2", WHOLE, outcomes.append)
        pool.put([job])
        pool.drop(job)
        assert (outcomes, job.data) == ([None], b"")
        gated.gate.set()
        await running

    in_pool(scenario)


def test_an_image_in_a_thread_takes_room_even_when_its_caller_has_gone(gated):
    async def scenario(pool: DecodePool) -> None:
        running = started(decoded_in(pool, b"1", WHOLE))
        await gated.wait_begun()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        with pytest.raises(QueueFull):
            await decoded_in(pool, b"2", WHOLE)
        gated.gate.set()

    in_pool(scenario, max_images=1)


def test_several_images_are_taken_all_or_none(gated):
    async def scenario(pool: DecodePool) -> None:
        outcomes: SimpleQueue[object] = SimpleQueue()
        with pytest.raises(QueueFull):
            pool.put([Job(bytes([number]), WHOLE, outcomes.put) for number in range(3)])
        pool.put([Job(bytes([number]), WHOLE, outcomes.put) for number in range(2)])
        gated.gate.set()
        for _ in range(2):
            await asyncio.to_thread(outcomes.get, timeout=10)
        assert gated.bodies == [b"\0", b"\1"]

    in_pool(scenario)


@pytest.mark.parametrize("kind", [ValueError, BaseException])
def test_a_mistake_of_ours_costs_one_image_and_the_thread_goes_on(monkeypatch, kind):
    def mistaken(data: bytes, *_: object, **_options: object) -> np.ndarray:
        raise kind(data)

    async def scenario(pool: DecodePool) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(decode_pool, "decode", mistaken)
            with pytest.raises(ServiceError, match="mistake"):
                await decoded_in(pool, SAMPLE, WHOLE)
        assert (await decoded_in(pool, SAMPLE, WHOLE)).shape == WHOLE.shape

    in_pool(scenario)


def test_the_loop_turns_while_a_thread_decodes(gated):
    async def scenario(pool: DecodePool) -> None:
        running = started(decoded_in(pool, b"1", WHOLE))
        await gated.wait_begun()
        assert not running.done()
        gated.gate.set()
        await running

    in_pool(scenario)


def test_a_closed_pool_has_answered_everybody(gated):
    async def scenario(pool: DecodePool) -> None:
        tasks = [started(decoded_in(pool, b"1", WHOLE)), started(decoded_in(pool, b"2", WHOLE))]
        await gated.wait_begun()
        gated.gate.set()
        pool.close()
        assert [result.shape for result in await asyncio.gather(*tasks)] == [WHOLE.shape] * 2
        with pytest.raises(ShuttingDown):
            await decoded_in(pool, b"3", WHOLE)

    in_pool(scenario)


def test_a_pool_takes_nothing_before_it_is_started():
    async def scenario() -> None:
        with pytest.raises(ShuttingDown):
            await decoded_in(DecodePool(1, 1, MAX_PIXELS), b"1", WHOLE)

    asyncio.run(scenario())
    DecodePool(1, 1, MAX_PIXELS).close()
