"""Load: so many clients, each with one request under way, for so many seconds. By wrk, else by processes of Python."""

import json
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from service.bench.server import BenchError
from service.host.machine import usable_cores

WRK_SCRIPT = Path(__file__).with_name("wrk.lua")
WRK = "wrk"
PYTHON = "python"


@dataclass(frozen=True)
class Request:
    """What every client posts."""

    url: str
    body: Path
    content_type: str


@dataclass(frozen=True, kw_only=True)
class Load:
    """What the clients saw, all together."""

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
        """Answers a second that were no errors."""
        return (self.requests - self.refused) / self.seconds


def generator() -> str:
    """Which load generator this machine has."""
    return WRK if shutil.which(WRK) else PYTHON


def apply(request: Request, clients: int, seconds: float) -> Load:
    """Blocks until the time is over. Raises BenchError where no answer came."""
    before = _children_cpu_seconds()
    found = _by_wrk(request, clients, seconds) if generator() == WRK else _by_python(request, clients, seconds)
    load = Load(clients=clients, client_cpu_seconds=_children_cpu_seconds() - before, **found)
    if not load.requests:
        raise BenchError(f"{request.url} gave no answer within {seconds:g} s", cure="see whether the server is up")
    return load


def _children_cpu_seconds() -> float:
    """Of the children that have ended: the server, which has not, is not among them."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _by_wrk(request: Request, clients: int, seconds: float) -> dict[str, Any]:
    options = [f"-t{min(clients, max(1, usable_cores() // 4))}", f"-c{clients}", f"-d{max(1, round(seconds))}s"]
    options += ["--timeout", "60s", "-s", str(WRK_SCRIPT), request.url, "--", str(request.body), request.content_type]
    told = subprocess.run([WRK, *options], capture_output=True, text=True, check=False)  # noqa: S603 - our own words
    try:
        figures: dict[str, Any] = json.loads(told.stdout.strip().rpartition("\n")[2])
    except ValueError as error:
        detail = (told.stderr or told.stdout).strip()
        raise BenchError("wrk ended without figures", cure="see its own words", detail=detail) from error
    return figures


def _by_python(request: Request, clients: int, seconds: float) -> dict[str, Any]:
    if not request.url.startswith("http://"):
        raise BenchError("clients in Python speak HTTP without TLS alone", cure="install wrk")
    processes = min(clients, max(1, usable_cores() // 2))
    shares = [clients // processes + (each < clients % processes) for each in range(processes)]
    command = [sys.executable, "-P", "-m", "service.bench.client", request.url, str(request.body), request.content_type]
    started = [
        subprocess.Popen([*command, str(share), str(seconds)], stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own
        for share in shares
    ]
    told = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise BenchError("a client process failed", cure="its traceback is above; wrk is faster, where it is installed")
    parts = [json.loads(text) for text in told]
    latencies = np.concatenate([np.array(part["latencies"]) for part in parts])
    p50, p95, p99 = np.percentile(latencies, (50, 95, 99)) if len(latencies) else (0.0, 0.0, 0.0)
    return {
        "requests": len(latencies),
        "seconds": max(part["seconds"] for part in parts),
        "refused": sum(part["refused"] for part in parts),
        "broken": sum(part["broken"] for part in parts),
        "p50": float(p50),
        "p95": float(p95),
        "p99": float(p99),
    }
