"""Load, and the server that it is applied to."""

import stat
import sys

import pytest

from service.bench import load
from service.bench.server import BenchError, Served, running, started
from tests.servers import until


@pytest.fixture
def request_body(tmp_path):
    (tmp_path / "body").write_bytes(b"x" * 1000)
    return tmp_path / "body"


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


def test_a_server_that_does_not_start_is_told_with_its_last_words():
    with (
        pytest.raises(BenchError, match="ended with code 1 before it listened") as caught,
        started({}, "service.bench.nothing"),
    ):
        pass
    assert "No module named service.bench.nothing" in caught.value.detail


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
def test_wrk_against_a_server_of_ours(request_body):
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
