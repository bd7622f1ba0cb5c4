"""Load: what the clients count, whichever they are."""

import asyncio
import itertools
import stat
import sys
from types import SimpleNamespace

import pytest

from service.bench import client, load
from service.bench.server import BenchError, Served, running, started
from tests.servers import until


@pytest.fixture
def request_body(tmp_path):
    (tmp_path / "body").write_bytes(b"x" * 1000)
    return tmp_path / "body"


async def serving(answers, scenario):
    """Runs `scenario(url)` beside a server that gives each connection these answers in turn, and then hangs up."""
    received = []

    async def serve(reader, writer):
        try:
            for answer in answers:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                received.append((head.partition(b" HTTP")[0], await reader.readexactly(length), answer))
                writer.write(answer)
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        return await scenario(f"http://127.0.0.1:{port}/predict/tiny?top_k=1"), received


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 4\r\n\r\nbusy"


def test_a_client_counts_answers_and_errors_and_connects_anew(monkeypatch):
    ticks = itertools.count()  # a clock that does not go on while others have the processor
    monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 100))

    def scenario(url):
        return client.run(url, b"body", "image/jpeg", clients=2, seconds=0.3)

    found, received = asyncio.run(serving([OK, BUSY, OK], scenario))
    assert {(line, body) for line, body, _ in received} == {(b"POST /predict/tiny?top_k=1", b"body")}
    assert found["broken"] >= 2  # each connection is closed after its third answer
    assert len(found["latencies"]) == len(received)
    assert found["refused"] == sum(answer is BUSY for _, _, answer in received)
    assert all(0 < seconds < 0.3 for seconds in found["latencies"])
    assert 0.3 <= found["seconds"] < 2


def test_a_server_that_is_down_is_broken_connections_and_no_answer(request_body, monkeypatch):
    found = asyncio.run(client.run("http://127.0.0.1:9/predict/tiny", b"body", "image/jpeg", clients=2, seconds=0.3))
    assert found["latencies"] == []
    assert 2 <= found["broken"] <= 8  # not a million


WRK = """#!{python}
import json, sys
assert sys.argv[1:4] == ["-t1", "-c8", "-d2s"], sys.argv
assert sys.argv[-3:] == ["--", {body!r}, "image/jpeg"], sys.argv
print("Running 2s test\\n")
{then}
"""
FIGURES = {"requests": 500, "seconds": 2.0, "refused": 100, "broken": 1, "p50": 0.01, "p95": 0.02, "p99": 0.03}


@pytest.fixture
def wrk(tmp_path, request_body, monkeypatch):
    """Stands for wrk: checks its arguments, and tells what the test gives it."""

    def make(then):
        script = tmp_path / "wrk"
        script.write_text(WRK.format(python=sys.executable, body=str(request_body), then=then))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return load.Request("http://127.0.0.1:9/predict/tiny", request_body, "image/jpeg")

    return make


def test_wrks_figures_are_taken_from_its_last_line(wrk):
    request = wrk(f"print(json.dumps({FIGURES}))")
    assert load.generator() == "wrk"
    found = load.apply(request, clients=8, seconds=2)
    assert (found.clients, found.requests, found.refused, found.broken) == (8, 500, 100, 1)
    assert found.rate == 200  # errors are no answers
    assert 0 < found.client_cpu_seconds < 2


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("print('unable to connect')", "wrk ended without figures"),
        (f"print(json.dumps({FIGURES | {'requests': 0, 'refused': 0}}))", "gave no answer"),
    ],
)
def test_what_gives_no_figures_is_told(wrk, then, message):
    with pytest.raises(BenchError, match=message):
        load.apply(wrk(then), clients=8, seconds=2)


def test_clients_of_python_speak_no_tls(request_body, monkeypatch):
    monkeypatch.setattr(load.shutil, "which", lambda _: None)
    with pytest.raises(BenchError, match="without TLS"):
        load.apply(load.Request("https://127.0.0.1:9/predict/tiny", request_body, "image/jpeg"), clients=1, seconds=1)


def test_a_server_that_does_not_start_is_told_with_its_last_words():
    with (
        pytest.raises(BenchError, match="ended with code 1 before it listened") as caught,
        started({}, "service.bench.client"),
    ):
        pass
    assert "not enough values to unpack" in caught.value.detail


def test_a_server_that_nobody_started_is_told():
    served = running("http://127.0.0.1:9/")
    assert (served.url, served.pid, served.cpu_seconds(), served.memory_mib()) == (
        "http://127.0.0.1:9",
        None,
        None,
        None,
    )
    with pytest.raises(BenchError, match="no Menagerie answers"):
        served.model("tiny")
    assert running("http://192.0.2.1:80").pid is None


def test_a_server_that_has_ended_is_told():
    with pytest.raises(BenchError, match="the server ended"):
        Served("http://127.0.0.1:9", 2**22 + 1).cpu_seconds()
    with pytest.raises(BenchError, match="the server ended"):
        Served("http://127.0.0.1:9", 2**22 + 1).memory_mib()


@pytest.mark.slow
def test_clients_of_python_against_a_server_of_ours(request_body, monkeypatch):
    monkeypatch.setattr(load.shutil, "which", lambda _: None)
    assert load.generator() == "python"
    with started({}, "service.bench.echo") as served:
        assert running(served.url).pid == served.pid
        before = served.cpu_seconds()
        found = load.apply(load.Request(f"{served.url}/predict/x", request_body, "image/jpeg"), clients=3, seconds=3)
        until(lambda: served.cpu_seconds() > before)
        assert served.memory_mib() > 20
        assert found.requests > 20
        assert (found.refused, found.broken) == (0, 0)
        assert 0 < found.p50 < 1
        assert found.p50 <= found.p95 <= found.p99
