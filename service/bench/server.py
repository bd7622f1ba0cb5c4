"""The server under test, started here or already running: its CPU time, memory and metrics."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from tempfile import TemporaryFile
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psutil
from prometheus_client.parser import text_string_to_metric_families

from service.errors import ServiceError

STOP_SECONDS = 30.0
HTTP_TIMEOUT_SECONDS = 30.0
MIB = 2**20


class BenchError(ServiceError):
    """The benchmark could not be run."""

    code = "bench_failed"
    cure = "menagerie bench --help"


class Served:
    """A server that answers at `url`; `pid` is None if its process runs on another machine."""

    def __init__(self, url: str, pid: int | None) -> None:
        self.url = url
        self.pid = pid

    def get(self, path: str) -> httpx2.Response:
        """Raises BenchError if no server answers."""
        try:
            return httpx2.get(self.url + path, timeout=HTTP_TIMEOUT_SECONDS)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise BenchError(f"no Menagerie answers at {self.url}: {error}", cure="menagerie serve") from error

    def model(self, name: str) -> dict[str, Any]:
        """The server's description of a model. Raises BenchError with the server's own message."""
        answer = self.get(f"/models/{name}")
        body = answer.json()
        if answer.is_error:
            raise BenchError(body["error"]["message"], cure=body["error"]["cure"])
        found: dict[str, Any] = body
        return found

    def cpu_seconds(self) -> float | None:
        """CPU time that the server and its children, such as decoders, have used so far, on all cores together."""
        if self.pid is None:
            return None
        # User and system time of each process, and of its children that have ended.
        total: float = sum(sum(each[:4]) for each in self._measured(psutil.Process.cpu_times))
        return total

    def memory_mib(self) -> float | None:
        """Memory of the server and its children; what several processes share counts once."""
        if self.pid is None:
            return None
        total: int = sum(each.pss for each in self._measured(psutil.Process.memory_full_info))
        return total / MIB

    def _measured(self, measure: Callable[[psutil.Process], Any]) -> list[Any]:
        """A figure of the server and of each of its children. Raises BenchError if the server has ended."""
        try:
            server = psutil.Process(self.pid)
            found = [measure(server)]
            children = server.children(recursive=True)
        except psutil.Error as error:
            raise BenchError("the server ended while it was measured", cure="read the server's log") from error
        for child in children:
            with suppress(psutil.Error):  # it has ended meanwhile
                found.append(measure(child))
        return found

    def metrics(self, model: str) -> Mapping[str, float]:
        """The sums and counts of the model's histograms, over its versions."""
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(self.get("/metrics").text):
            for sample in family.samples:
                if sample.labels.get("model") == model and sample.name.endswith(("_sum", "_count")):
                    found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return found


@contextmanager
def started(environment: Mapping[str, str], *command: str) -> Iterator[Served]:
    """A server process, `python -m ...`, on a free port in MENAGERIE_PORT; it is stopped when the context ends.

    Raises BenchError, with the end of the log, if the process ends before it listens.
    """
    port = _free_port()
    settings = {"MENAGERIE_HOST": "127.0.0.1", "MENAGERIE_PORT": str(port), "MENAGERIE_DRAIN_DELAY_SECONDS": "0"}
    with TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: S603 - our own modules
            [sys.executable, "-P", "-m", *command],
            env={**os.environ, **settings, **environment},
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C interrupts the benchmark, which then stops the server
        )
        try:
            _wait_until_it_listens(process, port, log)
            yield Served(f"http://127.0.0.1:{port}", process.pid)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            process.kill()
            process.wait()


def running(url: str) -> Served:
    """A server that runs already."""
    parts = urlsplit(url)
    is_local = parts.hostname in {"127.0.0.1", "localhost"}
    return Served(url.rstrip("/"), _listener(parts.port or 80) if is_local else None)


def wait_until_ready(served: Served, model: str, seconds: float) -> None:
    """Blocks until the model is ready. Raises BenchError if it could not be loaded, or is not ready in time."""
    deadline = time.monotonic() + seconds
    while True:
        answer = served.get(f"/models/{model}/ready")
        if answer.is_success:
            return
        reasons = answer.json().get("reasons") or served.get("/health/ready").json()["reasons"]
        reason = reasons.get(model) or reasons.get("repository", "")  # it has not been scanned yet
        if "UNAVAILABLE" in reason or time.monotonic() > deadline:
            raise BenchError(f"{model} is not ready: {reason}", cure="menagerie check names the problem")
        time.sleep(0.2)


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: Any) -> None:
    while process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    log.seek(0)
    detail = log.read()[-2000:].decode(errors="replace").strip()
    raise BenchError(f"the server ended with code {process.returncode} before it listened", detail=detail)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listener(port: int) -> int | None:
    """The process of this machine that listens on the port; None where this user may not see it."""
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return int(connection.pid)
    return None
