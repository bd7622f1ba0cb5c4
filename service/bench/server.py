"""The server under test: a process of its own, or one that runs already; its CPU, memory and metrics."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from urllib.parse import urlsplit

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from service.errors import ServiceError

STOP_SECONDS = 30.0
HTTP_TIMEOUT_SECONDS = 30.0
MIB = 2**20
LISTENING = "0A"  # of /proc/net/tcp


class BenchError(ServiceError):
    """The benchmark could not be run."""

    code = "bench_failed"
    cure = "menagerie bench --help"


class Served:
    """A server that answers at `url`; `pid` is None where its process is not of this machine."""

    def __init__(self, url: str, pid: int | None) -> None:
        self.url = url
        self.pid = pid

    def get(self, path: str) -> httpx2.Response:
        """Raises BenchError where nobody answers."""
        try:
            return httpx2.get(self.url + path, timeout=HTTP_TIMEOUT_SECONDS)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise BenchError(f"no Menagerie answers at {self.url}: {error}", cure="menagerie serve") from error

    def model(self, name: str) -> dict[str, Any]:
        """What the server says of a model. Raises BenchError, with the server's own words."""
        answer = self.get(f"/models/{name}")
        body = answer.json()
        if answer.is_error:
            raise BenchError(body["error"]["message"], cure=body["error"]["cure"])
        found: dict[str, Any] = body
        return found

    def cpu_seconds(self) -> float | None:
        """What the server and its children, decoders among them, have used of all cores until now."""
        if self.pid is None:
            return None
        fields = [stat.rpartition(")")[2].split() for stat in self._processes("stat")]
        # In user and system mode; its own, and that of children which have ended.
        return sum(int(each[at]) for each in fields for at in (11, 12, 13, 14)) / os.sysconf("SC_CLK_TCK")

    def memory_mib(self) -> float | None:
        """What they hold of memory now; what several share counts once."""
        if self.pid is None:
            return None
        lines = [line for file in self._processes("smaps_rollup") for line in file.splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / MIB

    def _processes(self, file: str) -> list[str]:
        """What /proc says of the server and of its children. Raises BenchError where the server is no more."""
        assert self.pid is not None
        found = []
        for process in descendants(self.pid):
            try:
                found.append(Path(f"/proc/{process}/{file}").read_text(encoding="ascii", errors="replace"))
            except OSError as error:
                if process == self.pid:
                    raise BenchError("the server ended while it was measured", cure="its log says why") from error
        return found

    def metrics(self, model: str) -> Mapping[str, float]:
        """The sums and counts of the model's histograms, over its versions."""
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(self.get("/metrics").text):
            for sample in family.samples:
                if sample.labels.get("model") == model and sample.name.endswith(("_sum", "_count")):
                    found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return found


def children(process: int) -> Iterator[int]:
    """The processes that its threads have started."""
    with suppress(OSError):  # it has ended meanwhile
        for task in Path(f"/proc/{process}/task").iterdir():
            with suppress(OSError):  # this thread has
                yield from map(int, (task / "children").read_text(encoding="ascii").split())


def descendants(process: int) -> Iterator[int]:
    """The process, its children, and theirs."""
    yield process
    for child in children(process):
        yield from descendants(child)


@contextmanager
def started(environment: Mapping[str, str], *command: str) -> Iterator[Served]:
    """A process of `python -m ...` that serves on the free port of its MENAGERIE_PORT; ended with the context.

    Raises BenchError, with the end of its log, where it ends by itself before it listens.
    """
    port = _free_port()
    settings = {"MENAGERIE_HOST": "127.0.0.1", "MENAGERIE_PORT": str(port), "MENAGERIE_DRAIN_DELAY_SECONDS": "0"}
    with TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: S603 - our own modules
            [sys.executable, "-P", "-m", *command],
            env={**os.environ, **settings, **environment},
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the benchmark, which then ends the server
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
    """A server that somebody else started."""
    parts = urlsplit(url)
    is_local = parts.hostname in {"127.0.0.1", "localhost"}
    return Served(url.rstrip("/"), _listener(parts.port or 80) if is_local else None)


def wait_until_ready(served: Served, model: str, seconds: float) -> None:
    """Until the model answers. Raises BenchError where it is refused, or is not ready in time."""
    deadline = time.monotonic() + seconds
    while True:
        answer = served.get(f"/models/{model}/ready")
        if answer.is_success:
            return
        reasons = answer.json().get("reasons") or served.get("/health/ready").json()["reasons"]
        reason = reasons.get(model) or reasons.get("repository", "")  # which has yet to be looked through
        if "UNAVAILABLE" in reason or time.monotonic() > deadline:
            raise BenchError(f"{model} is not ready: {reason}", cure="menagerie check names what is wrong")
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
    """The process of this machine that listens on the port, where /proc shows it to this user."""
    with suppress(OSError):
        rows = [line.split() for table in ("tcp", "tcp6") for line in _lines(f"/proc/net/{table}")[1:]]
        inodes = {row[9] for row in rows if row[3] == LISTENING and int(row[1].rpartition(":")[2], 16) == port}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # another's, or one that has ended
                if any(name.strip("socket:[]") in inodes for name in _descriptors(process)):
                    return int(process.name)
    return None


def _descriptors(process: Path) -> Iterator[str]:
    """What each open file of the process is called."""
    for descriptor in (process / "fd").iterdir():
        with suppress(OSError):  # it may be closed meanwhile
            yield descriptor.readlink().name


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="ascii").splitlines()
