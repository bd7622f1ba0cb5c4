"""Images that end decoders, among good ones: every good request gets its own answer, and nothing is left behind."""

import asyncio
import random
from collections import Counter
from pathlib import Path

import httpx2
import pytest

from tests import images
from tests.client import JPEG, error_of, picture, total
from tests.decoders import marked
from tests.models.published import publish_softmax
from tests.servers import ServerProcess, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

COLOURS = ("red", "lime", "blue")
LABELS = {"red": "red", "lime": "green", "blue": "blue"}
MARKS = (
    "signal SIGSEGV",
    "signal SIGABRT",
    "signal SIGBUS",
    "signal SIGKILL",
    "scribble",
    "babble",
    "boast",
    "pretend",
    "broken",
)
COSTLY = ("loop", "hog")


@pytest.fixture
def server(tmp_path):
    publish_softmax(tmp_path / "repository" / "colour")
    server = misbehaving_server(tmp_path)
    yield server
    server.kill()


def misbehaving_server(directory):
    return ServerProcess(
        directory / "server.log",
        command=("-m", "tests.misbehaving_server", "serve"),
        repository=directory / "repository",
        cache=directory / "cache",
        decode_timeout_seconds=5,  # a sound image takes milliseconds, on a busy machine too
        decoder_memory_bytes=2**28,
        log_requests="none",
    ).wait_ready()


def held(server):
    """The server's descriptors, and how many processes it consists of."""
    processes = [server.process.pid, *server.children()]
    return len(list(Path(f"/proc/{processes[0]}/fd").iterdir())), len(processes)


async def storm(server, seconds, clients=32):
    """Every second image is marked. Returns counts of what became of both kinds."""
    good, bad = Counter(), Counter()
    until_ = asyncio.get_running_loop().time() + seconds

    async def client(number):
        rng = random.Random(number)
        while asyncio.get_running_loop().time() < until_:
            colour = rng.choice(COLOURS)
            photo = picture(colour, size=(rng.randrange(40, 400), rng.randrange(40, 400)), kind="JPEG")
            answer = await http.post("/predict/colour", content=photo, headers=JPEG)
            found = answer.json()["predictions"][0]["label"] if answer.status_code == 200 else error_of(answer)
            good["right" if found == LABELS[colour] else found] += 1
            mark = rng.choice(MARKS) if rng.random() < 0.98 else rng.choice(COSTLY)
            answer = await http.post("/predict/colour", content=marked(photo, f"{mark}|{rng.random()}"), headers=JPEG)
            bad[answer.status_code] += 1

    async with httpx2.AsyncClient(base_url=server.url, timeout=60, limits=httpx2.Limits(max_connections=64)) as http:
        await asyncio.gather(*(client(number) for number in range(clients)))
    return good, bad


async def test_a_storm_of_killers_costs_nobody_else_an_answer(server):
    server.post("/predict/colour", content=picture(), headers=JPEG)
    before = held(server)
    good, bad = await storm(server, seconds=8)
    assert good.keys() == {"right"}, good
    assert good["right"] > 32
    assert bad.keys() <= {200, 422}, bad  # 200: what scribbles may still be decoded
    assert total(server, "serving_decoder_deaths_total", cause="SIGSEGV") > 0
    until(lambda: held(server)[1] == before[1])
    until(lambda: held(server)[0] <= before[0])
    assert server.stop() == 0


async def test_lossless_jpegs_among_good_requests_end_nothing(serve, repository):
    server = serve(repository=repository).wait_ready()
    lossless = images.lossless_jpeg(512)

    async def client(http):
        found = Counter()
        for _ in range(8):
            answer = await http.post("/predict/colour", content=lossless, headers=JPEG)
            found["lossless", answer.status_code] += 1
            answer = await http.post("/predict/colour", content=picture("lime", kind="JPEG"), headers=JPEG)
            found["good", answer.json()["predictions"][0]["label"]] += 1
        return found

    async with httpx2.AsyncClient(base_url=server.url, timeout=60) as http:
        found = sum(await asyncio.gather(*(client(http) for _ in range(16))), Counter())
    assert found == {("lossless", 200): 128, ("good", "green"): 128}
    assert server.process.poll() is None
    assert "serving_decoder_deaths_total{" not in server.get("/metrics").text


def test_a_server_that_is_killed_leaves_no_decoder(serve, repository):
    server = serve(repository=repository).wait_ready()
    processes = server.children()
    assert len(processes) >= 3  # the fork server and two decoders
    server.kill()
    until(lambda: not any(Path(f"/proc/{process}").exists() for process in processes))
