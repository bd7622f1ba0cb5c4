"""Decoder processes: their confinement, and that an image that ends one costs no other request its answer."""

import asyncio
import errno
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from structlog.testing import capture_logs

from models.inputs import ImageInput
from service.errors import DecoderDied, DecodingTooCostly, QueueFull, ServiceError, UndecodableImage
from service.images.decode_pool import DecodeJob, DecodePool
from service.images.fork_server import ForkServer
from service.images.preprocess import decode
from service.images.shortcuts import EXACT, Shortcuts
from service.metrics import DECODER_DEATHS
from tests import images
from tests.decoders import ATTEMPTS, marked
from tests.servers import until

pytestmark = pytest.mark.slow  # each starts processes

MAX_PIXELS = 50_000_000
MEMORY_BYTES = 512 * 2**20
SPEC = ImageInput(height=64, width=96, resize="stretch")
SAMPLE = images.jpeg(images.gradient())
EXPECTED = decode(SAMPLE, SPEC, max_pixels=MAX_PIXELS)


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """A fork server does not search the working directory for its module."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))


def pool_of(module="tests.decoders", decoders=2, timeout_seconds=60.0, shortcuts=EXACT):
    return DecodePool(
        ForkServer(MEMORY_BYTES, module),
        decoders=decoders,
        max_images=512,
        max_pixels=MAX_PIXELS,
        max_large_pixels=MAX_PIXELS * 4,
        timeout_seconds=timeout_seconds,
        shortcuts=shortcuts,
    )


def with_pool(scenario, **options):
    """Runs `scenario(pool, decoded)`, and checks that it leaves no process and no descriptor behind."""

    async def run():
        pool = pool_of(**options)

        def decoded(body, spec=SPEC):
            future = asyncio.get_running_loop().create_future()
            pool.put([DecodeJob(body, spec, future.set_result)])
            return future

        pool.start()
        try:
            return await scenario(pool, decoded)
        finally:
            await pool.close()

    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    before = child_processes(os.getpid())
    result = asyncio.run(run())
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors
    assert child_processes(os.getpid()) <= before
    return result


def child_processes(process):
    try:
        return {each.pid for each in psutil.Process(process).children()}
    except psutil.NoSuchProcess:  # it has ended meanwhile
        return set()


def fork_servers():
    return [each for each in child_processes(os.getpid()) if b"tests.decoders" in command(each)]


def decoders_of(pool):
    """The processes of the pool's decoders."""
    (fork_server,) = fork_servers()
    return child_processes(fork_server)


async def all_decoders_of(pool):
    """The same, once both have been forked."""
    await asyncio.to_thread(until, lambda: len(decoders_of(pool)) == 2)
    return decoders_of(pool)


def command(process):
    return Path(f"/proc/{process}/cmdline").read_bytes()


def deaths(cause):
    return DECODER_DEATHS.labels(cause)._value.get()


def test_decoders_decode_as_decode_does():
    """Every kind of file and error, with each of the shortcuts."""
    bodies = [
        SAMPLE,
        images.jpeg(images.gradient().convert("CMYK")),
        images.jpeg(images.gradient().convert("L"), progressive=True),
        images.png(images.gradient().convert("RGBA")),
        images.png(images.gradient().quantize()),
        images.webp(images.gradient()),
        images.gif(images.gradient()),
        images.bmp(images.gradient()),
        images.photograph("rocket.jpg").read_bytes(),
        images.photograph("camera.png").read_bytes(),
        images.jpeg(images.noise(3000, 1500)),  # large: it is decoded at the second attempt
        b"",
        b"text",
        SAMPLE[:300],
        images.png(images.gradient(1000, 2)),
        images.lying_jpeg(),
        images.lying_png(),
    ]
    specs = [SPEC, ImageInput(height=32, width=32, channels=1, interpolation="bicubic")]

    def here(body, spec, shortcuts):
        try:
            return decode(body, spec, max_pixels=MAX_PIXELS, shortcuts=shortcuts)
        except ServiceError as error:
            return error

    for shortcuts in (EXACT, Shortcuts(margin=2)):

        async def scenario(_, decoded, shortcuts=shortcuts):
            for spec in specs:
                results = await asyncio.gather(*(decoded(body, spec) for body in bodies))
                for body, found in zip(bodies, results, strict=True):
                    wanted = here(body, spec, shortcuts)
                    if isinstance(wanted, ServiceError):
                        assert (type(found), found.message, found.cure) == (type(wanted), wanted.message, wanted.cure)
                    else:
                        assert np.array_equal(found, wanted)

        with_pool(scenario, module="service.images.decoder", shortcuts=shortcuts)


def test_a_decoder_may_do_nothing_but_decode():
    async def scenario(_, decoded):
        for name in ATTEMPTS:
            found = await decoded(marked(SAMPLE, f"try {name}"))
            if name == "large file":  # whoever tries is ended
                assert isinstance(found, DecoderDied)
                assert "SIGXFSZ" in found.message
            else:
                assert not found.any(), name
        assert not (await decoded(marked(SAMPLE, "environment"))).any()

    os.environ["MENAGERIE_ADMIN_TOKEN"] = "a secret of sixteen"
    try:
        with_pool(scenario)
    finally:
        del os.environ["MENAGERIE_ADMIN_TOKEN"]
    assert not Path("/tmp/made-by-a-decoder").exists()


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGKILL"])
def test_an_image_that_ends_its_decoder_is_refused_alone_and_once(name):
    bad = marked(SAMPLE, f"signal {name}")

    async def scenario(_, decoded):
        with capture_logs() as logs:
            results = await asyncio.gather(*(decoded(bad if number == 5 else SAMPLE) for number in range(20)))
        error = results.pop(5)
        assert (type(error), error.code, error.status) == (DecoderDied, "decoder_died", 422)
        assert name in error.message
        assert all(np.array_equal(each, EXPECTED) for each in results)
        (line,) = (each for each in logs if each["event"] == "an image ended its decoder")
        assert (line["cause"], line["format"], line["bytes"]) == (name, "JPEG", len(bad))
        assert len(line["sha256"]) == 64
        died = deaths(name)
        again = await decoded(bad)
        assert isinstance(again, DecoderDied)
        assert "sent before" in again.message
        assert deaths(name) == died

    before = deaths(name)
    with_pool(scenario)
    # A fresh decoder gets a second try, because the first may have died of an earlier image; but not after SIGKILL.
    assert deaths(name) - before in ({1} if name == "SIGKILL" else {1, 2})


def test_an_image_is_not_to_blame_for_what_one_before_left_behind():
    """A decoder dies of an earlier image: the images that are lost with it are decoded, and not refused later."""

    async def scenario(_, decoded):
        for number in range(10):
            later = marked(SAMPLE, f"later|{number}")
            for found in await asyncio.gather(*(decoded(body) for body in [later] + [SAMPLE] * 8)):
                assert np.array_equal(found, EXPECTED)

    before = deaths("SIGABRT")
    with_pool(scenario)
    assert deaths("SIGABRT") > before


def test_an_image_is_not_to_blame_for_a_decoder_that_only_pretended_to_be_done():
    """There are more than are replaced in a second: the next image times out, and is given to another decoder."""

    async def scenario(_, decoded):
        for number in range(15):
            pretends = [marked(SAMPLE, f"pretend|{number} {decoder}") for decoder in range(2)]
            *_, last = await asyncio.gather(*(decoded(body) for body in [*pretends, SAMPLE]))
            assert np.array_equal(last, EXPECTED)

    with_pool(scenario, timeout_seconds=1.0)


def test_a_crash_in_native_code_is_one():
    async def scenario(_, decoded):
        for what, name in (("null", "SIGSEGV"), ("abort", "SIGABRT")):
            assert name in (await decoded(marked(SAMPLE, what))).message
        assert np.array_equal(await decoded(SAMPLE), EXPECTED)

    with_pool(scenario)


@pytest.mark.parametrize(("what", "cause"), [("loop", "timeout"), ("hog", "memory")])
def test_an_image_that_costs_too_much_is_stopped(what, cause):
    bad = marked(SAMPLE, what)

    async def scenario(_, decoded):
        first, *others = await asyncio.gather(*(decoded(body) for body in (bad, *[SAMPLE] * 5)))
        assert (type(first), first.code, first.status) == (DecodingTooCostly, "decoding_too_costly", 422)
        assert all(np.array_equal(each, EXPECTED) for each in others)
        assert isinstance(await decoded(bad), DecodingTooCostly)

    before = deaths(cause)
    with_pool(scenario, timeout_seconds=2.0)
    assert deaths(cause) == before + 1


@pytest.mark.parametrize("what", ["scribble", "babble", "boast", "exit"])
def test_a_decoder_that_lies_harms_nobody_else(what):
    async def scenario(_, decoded):
        for number in range(10):
            bodies = [SAMPLE, marked(SAMPLE, f"{what}|{number}"), SAMPLE, SAMPLE]
            first, _, *others = await asyncio.gather(*(decoded(body) for body in bodies))
            assert all(np.array_equal(each, EXPECTED) for each in (first, *others))

    with_pool(scenario)


def test_decoders_that_all_lie_harm_nobody_else():
    """An image may be given to two lying decoders in a row, and is not to blame."""

    async def scenario(_, decoded):
        for number in range(20):
            bodies = [marked(SAMPLE, f"boast|{number} {decoder}") for decoder in range(2)] + [SAMPLE] * 4
            _, _, *others = await asyncio.gather(*(decoded(body) for body in bodies))
            assert all(np.array_equal(each, EXPECTED) for each in others)

    with_pool(scenario)


def test_a_broken_image_has_a_decoder_of_its_own():
    """It may have corrupted the decoder's memory, so no other image is decoded there."""

    async def scenario(pool, decoded):
        await asyncio.gather(*(decoded(SAMPLE) for _ in range(8)))
        before = await all_decoders_of(pool)
        assert len(before) == 2
        assert isinstance(await decoded(marked(SAMPLE, "broken")), UndecodableImage)
        until(lambda: len(decoders_of(pool) - before) == 1 and len(decoders_of(pool)) == 2)
        assert np.array_equal(await decoded(SAMPLE), EXPECTED)

    before = deaths("exit")
    with_pool(scenario)
    assert deaths("exit") == before


def test_a_decoder_that_pretends_is_ended_and_leaves_nothing():
    async def scenario(pool, decoded):
        for number in range(5):
            await decoded(marked(SAMPLE, f"pretend|{number}"))
        assert np.array_equal(await decoded(SAMPLE), EXPECTED)
        await asyncio.to_thread(until, lambda: len(decoders_of(pool)) == 2)

    with_pool(scenario)


def test_many_broken_images_do_not_cost_a_decoder_each():
    """A new process costs fifteen times as much as a sound image: a few clients could use up all decoders."""

    async def scenario(pool, decoded):
        numbers = set()
        for number in range(100):
            assert isinstance(await decoded(marked(SAMPLE, f"broken|{number}")), UndecodableImage)
            numbers |= set(pool._decoders._workers)
        assert 2 < len(numbers) < 60  # ten at once, and ten a second

    with_pool(scenario)


def test_what_a_decoder_writes_goes_with_its_image():
    async def scenario(pool, decoded):
        await decoded(marked(SAMPLE, "scribble"))
        await decoded(SAMPLE)
        sizes = [os.fstat(worker.decoder.memory).st_size for worker in pool._decoders._workers.values()]
        assert max(sizes) <= 2**20

    with_pool(scenario)


def test_an_image_that_memory_has_no_room_for_is_told_to_come_back(monkeypatch):
    async def scenario(pool, decoded):
        await decoded(SAMPLE)
        before = await all_decoders_of(pool)
        with monkeypatch.context() as patched:
            patched.setattr("service.images.fork_server.os.pwrite", lambda *_: 0)
            assert isinstance(await decoded(SAMPLE), QueueFull)
        assert np.array_equal(await decoded(SAMPLE), EXPECTED)
        assert decoders_of(pool) == before

    with_pool(scenario)


def test_what_no_codec_has_met_costs_no_decoder():
    """Otherwise an attacker could cost the server a process with each file that its structure gives away."""

    async def scenario(pool, decoded):
        await asyncio.gather(*(decoded(SAMPLE) for _ in range(8)))
        before = await all_decoders_of(pool)
        for body in (
            b"",
            b"text",
            SAMPLE[:20],
            images.bomb_png(),
            images.jpeg(images.gradient(1000, 2)),
        ):
            assert isinstance(await decoded(body), ServiceError)
        assert np.array_equal(await decoded(SAMPLE), EXPECTED)
        assert decoders_of(pool) == before

    with_pool(scenario)


def test_decoders_that_are_killed_from_outside_are_replaced():
    async def scenario(pool, decoded):
        await decoded(SAMPLE)
        for number in range(1, 6):
            for process in decoders_of(pool):
                os.kill(process, signal.SIGKILL)
            await decoded(SAMPLE + bytes(number))  # it may be lost with its decoder
        assert np.array_equal(await decoded(SAMPLE), EXPECTED)

    with_pool(scenario)


def test_a_fork_server_that_is_killed_is_replaced_and_waiting_images_are_decoded():
    async def scenario(pool, decoded):
        await decoded(SAMPLE)
        for _ in range(4):
            await asyncio.to_thread(until, fork_servers)  # a decoder may still answer after its fork server has ended
            (fork_server,) = fork_servers()
            os.kill(fork_server, signal.SIGKILL)
            results = await asyncio.wait_for(asyncio.gather(*(decoded(SAMPLE) for _ in range(20))), 60)
            assert all(np.array_equal(each, EXPECTED) for each in results)

    with_pool(scenario)


def test_decoders_come_back_once_there_are_descriptors_again(monkeypatch):
    async def scenario(pool, decoded):
        await decoded(SAMPLE)
        with monkeypatch.context() as patched, capture_logs() as logs:
            patched.setattr("service.images.decoders.Decoder", no_descriptor)
            for process in decoders_of(pool):
                os.kill(process, signal.SIGKILL)
            await asyncio.to_thread(until, lambda: any("could not be started" in each["event"] for each in logs))
        assert np.array_equal(await asyncio.wait_for(decoded(SAMPLE), 60), EXPECTED)

    def no_descriptor(_number):
        raise OSError(errno.EMFILE, "Too many open files")

    with_pool(scenario)


def test_a_fork_server_that_cannot_be_started_is_tried_again(monkeypatch):
    async def scenario(pool, decoded):
        assert np.array_equal(await asyncio.wait_for(decoded(SAMPLE), 60), EXPECTED)

    popen, tries = subprocess.Popen, []

    def fail_once(*arguments, **options):
        tries.append(arguments)
        if len(tries) == 1:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return popen(*arguments, **options)

    monkeypatch.setattr("service.images.fork_server.subprocess.Popen", fail_once)
    with_pool(scenario)
    assert len(tries) == 2


def test_signals_of_the_group_do_not_end_decoders():
    """A service manager may send SIGTERM to all processes while the server's last images are not decoded yet."""

    async def scenario(pool, decoded):
        await asyncio.gather(*(decoded(SAMPLE) for _ in range(4)))
        before = await all_decoders_of(pool)
        for process in before:
            os.kill(process, signal.SIGTERM)
            os.kill(process, signal.SIGINT)
        assert np.array_equal(await decoded(SAMPLE), EXPECTED)
        assert decoders_of(pool) == before

    with_pool(scenario)


def test_memory_that_a_large_image_took_comes_back():
    large = images.png(Image.new("RGB", (6000, 4000)))

    def resident(process):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS", "RssShmem")))

    async def scenario(pool, decoded):
        await asyncio.gather(*(decoded(SAMPLE) for _ in range(8)))
        before = max(map(resident, decoders_of(pool)))
        for _ in range(4):
            assert isinstance(await decoded(large), np.ndarray)
        assert max(map(resident, decoders_of(pool))) < before + 2**25

    with_pool(scenario)
