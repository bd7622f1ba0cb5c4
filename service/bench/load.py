"""Load on a server: a number of clients, each with one request in flight, for a number of seconds. wrk sends it."""

import json
import resource
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.bench.server import BenchError
from service.host.machine import usable_cores

WRK_SCRIPT = Path(__file__).with_name("wrk.lua")


@dataclass(frozen=True)
class Request:
    """The request that every client posts."""

    url: str
    body: Path
    content_type: str


@dataclass(frozen=True, kw_only=True)
class Load:
    """The figures of all clients together."""

    clients: int
    requests: int
    seconds: float
    refused: int
    """Answers that were errors."""
    broken: int
    """Connections that failed."""
    p50: float
    p95: float
    p99: float
    """Seconds from a request's first byte to its answer's last."""
    client_cpu_seconds: float

    @property
    def rate(self) -> float:
        """Answers per second, errors not counted."""
        return (self.requests - self.refused) / self.seconds


def find_wrk() -> str:
    """The path of wrk. Raises BenchError if it is not installed."""
    if path := shutil.which("wrk"):
        return path
    raise BenchError(
        "the benchmark sends its requests with wrk, which is not installed",
        cure="install it: apt-get install wrk, or brew install wrk",
    )


def apply(request: Request, clients: int, seconds: float) -> Load:
    """Blocks until the time is over. Raises BenchError if no answer came."""
    before = _children_cpu_seconds()
    figures = _run_wrk(request, clients, seconds)
    load = Load(clients=clients, client_cpu_seconds=_children_cpu_seconds() - before, **figures)
    if not load.requests:
        raise BenchError(f"{request.url} gave no answer within {seconds:g} s", cure="see whether the server is up")
    return load


def _children_cpu_seconds() -> float:
    """CPU time of the children that have ended. The server, which still runs, is not among them."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _run_wrk(request: Request, clients: int, seconds: float) -> dict[str, Any]:
    options = [f"-t{min(clients, max(1, usable_cores() // 4))}", f"-c{clients}", f"-d{max(1, round(seconds))}s"]
    options += ["--timeout", "60s", "-s", str(WRK_SCRIPT), request.url, "--", str(request.body), request.content_type]
    done = subprocess.run([find_wrk(), *options], capture_output=True, text=True, check=False)  # noqa: S603 - no shell
    try:
        figures: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    except ValueError as error:
        detail = (done.stderr or done.stdout).strip()
        raise BenchError("wrk ended without figures", cure="its own message is below", detail=detail) from error
    return figures
