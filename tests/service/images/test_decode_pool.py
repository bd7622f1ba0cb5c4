"""The queue in front of the decoders: admission, refusal, cancellation and order. Decoders here are threads."""

import asyncio
import threading
from collections.abc import Awaitable

import numpy as np
import pytest

from models.inputs import ImageInput
from service.errors import ImageTooLarge, QueueFull, ServiceError, ShuttingDown, UndecodableImage
from service.images.decode_pool import DecodeJob, DecodePool
from service.images.preprocess import decode
from tests import images
from tests.decoders import ThreadForks

MAX_PIXELS = 40_000_000
SAMPLE = images.jpeg(images.gradient())
WHOLE = ImageInput(height=64, width=96, resize="stretch")


class GatedDecode:
    """A stand-in for `decode` that reports when it begins, and ends when the test opens its gate."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)
        self.bodies: list[bytes] = []

    def __call__(self, data: bytes, spec: ImageInput, *, max_pixels: int, **_options: object) -> np.ndarray:
        """A body that begins with a number claims that many megapixels."""
        if data[:1].isdigit() and int(data.split()[0]) * 10**6 > max_pixels:
            if data.endswith(b"slow"):
                self.begun.release()
                assert self.gate.wait(10)
            raise ImageTooLarge("it is large", pixels=int(data.split()[0]) * 10**6)
        self.bodies.append(data)
        self.begun.release()
        assert self.gate.wait(10)
        return np.zeros(spec.shape, np.uint8)

    async def wait_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=10)


@pytest.fixture
def gated():
    fake = GatedDecode()
    yield fake
    fake.gate.set()


def in_pool(scenario, decode=decode, **options: int) -> None:
    """Runs `scenario(pool)` with a started pool, and closes it."""

    async def run() -> None:
        defaults = {"decoders": 1, "max_images": 2, "max_pixels": MAX_PIXELS, "max_large_pixels": 100_000_000}
        pool = DecodePool(ThreadForks(decode), timeout_seconds=60, **(defaults | options))
        pool.start()
        try:
            await scenario(pool)
        finally:
            await pool.close()

    asyncio.run(run())


async def decoded_in(pool: DecodePool, body: bytes, spec: ImageInput) -> np.ndarray:
    """The pixels that the pool returns for a body. The job is dropped if the caller is cancelled."""
    outcome: asyncio.Future[np.ndarray | ServiceError | None] = asyncio.get_running_loop().create_future()

    def settle(found: np.ndarray | ServiceError | None) -> None:
        if not outcome.done():
            outcome.set_result(found)

    job = DecodeJob(body, spec, settle)
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

    in_pool(scenario, decoders=2, max_images=8)


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
        running, waiting = started(decoded_in(pool, b"a", WHOLE)), started(decoded_in(pool, b"b", WHOLE))
        await gated.wait_begun()
        with pytest.raises(QueueFull, match="2 images"):
            await decoded_in(pool, b"c", WHOLE)
        gated.gate.set()
        await asyncio.gather(running, waiting)
        assert (await decoded_in(pool, b"d", WHOLE)).shape == WHOLE.shape
        assert gated.bodies == [b"a", b"b", b"d"]

    in_pool(scenario, gated)


def test_a_cancelled_callers_image_is_skipped_and_makes_room(gated):
    async def scenario(pool: DecodePool) -> None:
        running, waiting = started(decoded_in(pool, b"a", WHOLE)), started(decoded_in(pool, b"b", WHOLE))
        await gated.wait_begun()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        other = started(decoded_in(pool, b"c", WHOLE))
        await asyncio.sleep(0)
        gated.gate.set()
        await asyncio.gather(running, other)
        assert gated.bodies == [b"a", b"c"]

    in_pool(scenario, gated)


def test_a_dropped_image_is_not_kept(gated):
    async def scenario(pool: DecodePool) -> None:
        running = started(decoded_in(pool, b"a", WHOLE))
        await gated.wait_begun()
        outcomes: list[object] = []
        job = DecodeJob(b"b", WHOLE, outcomes.append)
        pool.put([job])
        pool.drop(job)
        assert (outcomes, job.data) == ([None], b"")
        gated.gate.set()
        await running

    in_pool(scenario, gated)


def test_an_image_in_a_decoder_takes_room_even_when_its_caller_has_gone(gated):
    async def scenario(pool: DecodePool) -> None:
        running = started(decoded_in(pool, b"a", WHOLE))
        await gated.wait_begun()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        with pytest.raises(QueueFull):
            await decoded_in(pool, b"b", WHOLE)
        gated.gate.set()

    in_pool(scenario, gated, max_images=1)


def test_several_images_are_taken_all_or_none(gated):
    async def scenario(pool: DecodePool) -> None:
        outcomes: asyncio.Queue[object] = asyncio.Queue()
        with pytest.raises(QueueFull):
            pool.put([DecodeJob(bytes([number]), WHOLE, outcomes.put_nowait) for number in range(3)])
        pool.put([DecodeJob(bytes([number]), WHOLE, outcomes.put_nowait) for number in range(2)])
        gated.gate.set()
        for _ in range(2):
            await asyncio.wait_for(outcomes.get(), 10)
        assert gated.bodies == [b"\0", b"\1"]

    in_pool(scenario, gated)


@pytest.mark.parametrize("kind", [ValueError, BaseException])
def test_a_mistake_of_ours_costs_one_image_and_others_are_decoded(kind):
    def mistaken(data: bytes, spec: ImageInput, **options: object) -> np.ndarray:
        if data == b"a":
            raise kind(data)
        return decode(data, spec, **options)

    async def scenario(pool: DecodePool) -> None:
        with pytest.raises(ServiceError, match="mistake"):
            await decoded_in(pool, b"a", WHOLE)
        assert (await decoded_in(pool, SAMPLE, WHOLE)).shape == WHOLE.shape

    in_pool(scenario, mistaken)


def test_the_loop_turns_while_an_image_is_decoded(gated):
    async def scenario(pool: DecodePool) -> None:
        running = started(decoded_in(pool, b"a", WHOLE))
        await gated.wait_begun()
        assert not running.done()
        gated.gate.set()
        await running

    in_pool(scenario, gated)


def test_a_closed_pool_has_answered_everybody(gated):
    async def scenario(pool: DecodePool) -> None:
        tasks = [started(decoded_in(pool, b"a", WHOLE)), started(decoded_in(pool, b"b", WHOLE))]
        await gated.wait_begun()
        gated.gate.set()
        await pool.close()
        assert [result.shape for result in await asyncio.gather(*tasks)] == [WHOLE.shape] * 2
        with pytest.raises(ShuttingDown):
            await decoded_in(pool, b"c", WHOLE)

    in_pool(scenario, gated)


def test_a_pool_closes_after_a_request_without_an_image():
    async def scenario(pool: DecodePool) -> None:
        pool.put([])
        await asyncio.wait_for(pool.close(), 10)

    in_pool(scenario)


def test_a_pool_takes_nothing_before_it_is_started():
    async def scenario() -> None:
        pool = DecodePool(
            ThreadForks(decode), decoders=1, max_images=1, max_pixels=1, max_large_pixels=1, timeout_seconds=1
        )
        with pytest.raises(ShuttingDown):
            await decoded_in(pool, b"a", WHOLE)
        await pool.close()

    asyncio.run(scenario())


def test_large_pictures_leave_a_decoder_to_small_ones(gated):
    """Two of three decoders have large pictures, and a third one waits; a small one that came later is decoded."""

    async def scenario(pool: DecodePool) -> None:
        large = [started(decoded_in(pool, b"20 %d" % number, WHOLE)) for number in range(3)]
        await gated.wait_begun()
        await gated.wait_begun()
        small = started(decoded_in(pool, b"small", WHOLE))
        await gated.wait_begun()
        assert [body.split()[0] for body in gated.bodies] == [b"20", b"20", b"small"]
        gated.gate.set()
        await asyncio.gather(*large, small)
        assert sorted(gated.bodies) == [b"20 0", b"20 1", b"20 2", b"small"]

    in_pool(scenario, gated, decoders=3, max_images=8)


def test_large_pictures_wait_up_to_what_they_claim_together(gated):
    async def scenario(pool: DecodePool) -> None:
        first = started(decoded_in(pool, b"30 first", WHOLE))
        await gated.wait_begun()
        second = started(decoded_in(pool, b"30 second", WHOLE))
        await asyncio.sleep(0)  # it comes before the third
        with pytest.raises(QueueFull, match="60 megapixels"):
            await decoded_in(pool, b"5 third", WHOLE)
        gated.gate.set()
        await asyncio.gather(first, second)
        await decoded_in(pool, b"30 again", WHOLE)

    in_pool(scenario, gated, decoders=2, max_images=8, max_large_pixels=60_000_000)


def test_a_large_picture_is_decoded_whatever_the_budget(gated):
    async def scenario(pool: DecodePool) -> None:
        gated.gate.set()
        assert (await decoded_in(pool, b"30 alone", WHOLE)).shape == WHOLE.shape

    in_pool(scenario, gated, max_large_pixels=1)


def test_a_large_picture_that_nobody_wants_any_more_is_not_decoded(gated):
    async def scenario(pool: DecodePool) -> None:
        outcomes: list[object] = []
        large = DecodeJob(b"30 slow", WHOLE, outcomes.append)
        pool.put([large])
        await gated.wait_begun()
        pool.drop(large)  # while a decoder reads its header
        gated.gate.set()
        await decoded_in(pool, b"b", WHOLE)
        assert outcomes == [None]
        assert gated.bodies == [b"b"]

    in_pool(scenario, gated)


def test_images_are_decoded_in_the_order_in_which_they_came(gated):
    async def scenario(pool: DecodePool) -> None:
        names = [b"a", b"30 b", b"c", b"30 d", b"e"]
        gated.gate.set()
        await asyncio.gather(*(decoded_in(pool, name, WHOLE) for name in names))
        assert [name for name in gated.bodies if name.startswith(b"30")] == [b"30 b", b"30 d"]
        assert [name for name in gated.bodies if not name.startswith(b"30")] == [b"a", b"c", b"e"]

    in_pool(scenario, gated, max_images=8)
