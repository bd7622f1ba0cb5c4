"""A real server process and real clients: load, slow and vanishing callers, signals."""

import asyncio
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from service.server import uvicorn_options
from service.settings import Settings
from tests.client import JPEG, error_of, picture, total
from tests.servers import until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

FRAMEWORKS = {"torch", "torchvision", "tensorflow", "keras", "tf2onnx", "onnx"}


def test_the_service_imports_no_framework():
    code = "import sys, service.__main__; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "onnxruntime" in loaded
    assert not FRAMEWORKS & set(loaded)


def test_the_catalog_imports_no_framework():
    imports = "sys, models.catalog, models.artifact.manifest, models.artifact.resolution"
    code = f"import {imports}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not (FRAMEWORKS | {"onnxruntime", "service"}) & set(loaded)


def test_a_serving_process_has_mapped_no_framework(serve, repository):
    server = serve(repository=repository).wait_ready()
    assert server.post("/predict/colour", content=picture(), headers=JPEG).status_code == 200
    libraries = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "onnxruntime" in libraries
    assert not [line for line in libraries.splitlines() if "libtorch" in line or "tensorflow" in line]


async def test_64_clients_are_answered_without_error_in_batches(serve, repository):
    server = serve(repository=repository).wait_ready()
    photo = picture(size=(500, 375), kind="JPEG")
    before = total(server, "serving_batch_size_sum", model="colour", version="1")  # the golden inputs
    async with httpx2.AsyncClient(base_url=server.url, timeout=60, limits=httpx2.Limits(max_connections=64)) as client:
        answers = await asyncio.gather(
            *(client.post("/predict/colour", content=photo, headers=JPEG) for _ in range(640))
        )
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["predictions"][0]["label"] for answer in answers} == {"green"}
    assert len({answer.headers["X-Request-ID"] for answer in answers}) == 640
    assert total(server, "serving_batch_size_sum", model="colour", version="1") == before + 640


async def test_more_than_the_queue_holds_is_refused_with_a_time_to_come_back(serve, repository):
    server = serve(
        repository=repository, max_decode_images=2, max_queue_images=2, max_images_per_request=2, decoders=1
    ).wait_ready()
    photo = picture(size=(3000, 2000), kind="JPEG")
    async with httpx2.AsyncClient(base_url=server.url, timeout=60) as client:
        answers = await asyncio.gather(
            *(client.post("/predict/colour", content=photo, headers=JPEG) for _ in range(40))
        )
        codes = [answer.status_code for answer in answers]
        assert set(codes) == {200, 429}
        for answer in answers:
            if answer.status_code == 429:
                assert error_of(answer) == (429, "queue_full")
                assert int(answer.headers["Retry-After"]) >= 1
        assert (await client.post("/predict/colour", content=photo, headers=JPEG)).status_code == 200


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


HEAD = b"POST /predict/colour HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 1000\r\n\r\n"


def test_a_body_that_comes_too_slowly_is_told_and_others_go_on(serve, repository):
    server = serve(repository=repository, body_timeout_seconds=3).wait_ready()  # the quick one is not late
    with connect(server) as slow:
        slow.sendall(HEAD + b"a few bytes")
        assert server.post("/predict/colour", content=picture(), headers=JPEG).status_code == 200
        answer = slow.makefile("rb").read()  # to its end: the head and the body may come one after the other
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"body_timeout" in answer


def test_a_caller_that_goes_harms_nobody(serve, repository):
    server = serve(repository=repository).wait_ready()
    for _ in range(20):
        with connect(server) as going:
            going.sendall(HEAD + b"half a body")
    until(lambda: total(server, "serving_requests_total", model="colour", outcome="client_gone", version="1") == 20)
    answer = server.post("/predict/colour", content=picture(), headers=JPEG)
    assert answer.status_code == 200
    assert total(server, "serving_inflight_images", model="colour", version="1") == 0


@pytest.mark.parametrize(
    "noise", [b"\0" * 100, b"GET / HTTP/9.9\r\n\r\n", b"POST /predict/colour HTTP/1.1\r\nContent-Length: -1\r\n\r\n"]
)
def test_what_is_no_http_is_turned_away_and_others_go_on(serve, repository, noise):
    server = serve(repository=repository).wait_ready()
    with connect(server) as client:
        client.sendall(noise)
        answer = client.recv(4096)
        assert not answer or answer.startswith(b"HTTP/1.1 4")
    assert server.post("/predict/colour", content=picture(), headers=JPEG).status_code == 200


async def test_sigterm_is_unready_at_once_answers_what_it_took_and_ends_with_0(serve, repository):
    server = serve(repository=repository, drain_delay_seconds=10).wait_ready()
    photo = picture(size=(3000, 2000), kind="JPEG")
    async with httpx2.AsyncClient(base_url=server.url, timeout=60) as client:
        asked = [asyncio.ensure_future(client.post("/predict/colour", content=photo, headers=JPEG)) for _ in range(20)]
        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(until, lambda: server.get("/health/ready").status_code == 503)
        assert server.get("/health/ready").json()["reasons"] == {"server": "it is stopping"}
        assert server.get("/health/live").status_code == 200
        assert (await client.post("/predict/colour", content=photo, headers=JPEG)).status_code == 200
        answers = await asyncio.gather(*asked)
    assert {answer.status_code for answer in answers} == {200}
    assert await asyncio.to_thread(server.process.wait, 60) == 0
    assert done


PATIENT = """
import service.server
from service.__main__ import main

service.server.IMPATIENT_SECONDS = 20.0  # a busy machine may take longer than 2 s to end what is to end with 0
main()
"""


@pytest.mark.parametrize("begun", [False, True])
def test_an_impatient_signal_ends_at_once_with_0(serve, repository, begun):
    """Ctrl-C, and a second SIGTERM, do not wait for the drain delay."""
    settings = {"drain_delay_seconds": 100, "grace_seconds": 200}
    server = serve(repository=repository, command=("-c", PATIENT, "serve"), **settings).wait_ready()
    if begun:
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.get("/health/ready").status_code == 503)
    server.process.send_signal(signal.SIGTERM if begun else signal.SIGINT)
    assert server.process.wait(20) == 0


ENGINE = """
import sys
import threading
import service.versions.golden
from service.__main__ import main
from service.inference.engine import Engine
from service.errors import DeviceLost
from service.server import Server

def lost(engine, batch):
    raise DeviceLost("the GPU failed")

def stuck(engine, batch):
    print("the engine has the image", file=sys.stderr, flush=True)
    threading.Event().wait()

async def nothing(servable, inputs):
    return {{}}

ended = Server._end_within
Server._end_within = lambda server, seconds: ended(server, seconds + 5)  # time to be told before, on a busy machine
service.versions.golden.ask = nothing
Engine._warm = lambda engine, classes: None
Engine.run = {run}
main()
"""


@pytest.mark.parametrize("photos", [1, 3])
def test_a_lost_device_is_told_and_ends_the_process_for_a_supervisor_to_start_again(serve, repository, photos):
    server = serve(repository=repository, command=("-c", ENGINE.format(run="lost"), "serve")).wait_ready()
    answer = server.post("/predict/colour", files=[("file", picture())] * photos)
    assert error_of(answer) == (503, "device_lost")
    assert answer.headers["Retry-After"]
    assert server.process.wait(30) == 70


@asynccontextmanager
async def told_to_stop_while_its_engine_never_returns(serve, repository, grace_seconds):
    """The server, once it has had a SIGTERM, and what will be the answer to the request in its engine."""
    command = ("-c", ENGINE.format(run="stuck"), "serve")
    server = serve(repository=repository, command=command, drain_delay_seconds=0, grace_seconds=grace_seconds)
    async with httpx2.AsyncClient(base_url=server.wait_ready().url, timeout=60) as client:
        asked = asyncio.ensure_future(client.post("/predict/colour", content=picture(), headers=JPEG))
        await asyncio.to_thread(until, lambda: "the engine has the image" in server.log())
        server.process.send_signal(signal.SIGTERM)
        yield server, asked


async def test_an_engine_that_never_returns_does_not_keep_the_process(serve, repository):
    async with told_to_stop_while_its_engine_never_returns(serve, repository, grace_seconds=4) as (server, asked):
        assert error_of(await asked) == (503, "shutting_down")
    assert await asyncio.to_thread(server.process.wait, 60) == 1


async def test_a_second_signal_ends_even_a_process_whose_engine_never_returns(serve, repository):
    async with told_to_stop_while_its_engine_never_returns(serve, repository, grace_seconds=500) as (server, asked):
        await asyncio.to_thread(until, lambda: "draining" in server.log())
        server.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.process.wait, 60) == 1
        await asyncio.gather(asked, return_exceptions=True)


def test_what_still_waits_is_told_a_second_before_the_process_ends():
    options = uvicorn_options(Settings(grace_seconds=10, drain_delay_seconds=4))
    assert options["timeout_graceful_shutdown"] == 5


def test_a_port_that_is_taken_is_told_with_a_cure(serve, repository):
    first = serve(repository=repository).wait_ready()
    second = serve(repository=repository, port=first.port)
    assert second.process.wait(60) == 3
    told = [event for event in second.events() if event["event"] == "cannot listen"]
    assert [event["reason"] for event in told] == [f"{first.url}: Address already in use"]
    assert "MENAGERIE_PORT" in told[0]["cure"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_it_says_on_which_port_it_listens_where_any_would_do(serve, repository, host):
    server = serve(repository=repository, host=host, port=0)
    until(lambda: "listening" in server.log())
    (server.url,) = [event["url"] for event in server.events() if event["event"] == "listening"]
    assert server.get("/health/live").status_code == 200


def test_the_log_is_json_with_the_id_of_each_request(serve, repository):
    server = serve(repository=repository).wait_ready()
    server.post("/predict/colour", content=b"text", headers=JPEG | {"X-Request-ID": "mine"})
    server.stop(signal.SIGINT)
    events = server.events()
    (request,) = [event for event in events if event.get("request_id") == "mine"]
    assert (request["event"], request["status"], request["outcome"]) == ("request", 415, "unsupported_image")
    assert (request["model"], request["version"], request["method"]) == ("colour", "1", "POST")
    assert {"listening", "loaded", "draining", "unloaded"} <= {event["event"] for event in events}
