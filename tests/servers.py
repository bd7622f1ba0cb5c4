"""A server in a process of its own, and how to wait for what it does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import httpx2
import psutil

from service.bench.server import Served


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Asks again and again; a condition that never holds fails the test."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


class ServerProcess:
    """`menagerie serve` in a process of its own, with its log in a file."""

    def __init__(self, log: Path, command: tuple[str, ...] = ("-m", "service", "serve"), **settings: object) -> None:
        # Held for as long as the server is: until it listens, nobody else is given its port.
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("127.0.0.1", 0))
        self.port = self._held.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        settings = {"port": self.port, "log_format": "json", "provider": "cpu", **settings}
        environment = {f"MENAGERIE_{name.upper()}": str(value) for name, value in settings.items()}
        with log.open("ab") as file:
            self.process = subprocess.Popen([sys.executable, *command], env=os.environ | environment, stderr=file)

    def log(self) -> str:
        return self._log.read_text()

    def events(self) -> list[dict[str, Any]]:
        """What its log holds, a line each."""
        return [json.loads(line) for line in self.log().splitlines()]

    def get(self, path: str, /) -> httpx2.Response:
        return httpx2.get(self.url + path, timeout=30)

    def post(self, path: str, /, **request: Any) -> httpx2.Response:
        return httpx2.post(self.url + path, timeout=60, **request)

    def cpu_seconds(self) -> float:
        """What it and its children have used of all cores until now, however long they had to wait for one."""
        used = Served(self.url, self.process.pid).cpu_seconds()
        assert used is not None
        return used

    def children(self) -> list[int]:
        """The numbers of the processes that it started and that run: the fork server, decoders, converters."""
        return [each.pid for each in psutil.Process(self.process.pid).children(recursive=True)]

    def converters(self) -> list[int]:
        """Those that read weights."""
        sandbox = b"models.conversion.sandbox"
        return [each for each in self.children() if sandbox in Path(f"/proc/{each}/cmdline").read_bytes()]

    def descriptors(self) -> int:
        """How many it has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log()
        try:
            return self.get("/health/ready").status_code == 200
        except httpx2.TransportError:
            return False

    def wait_ready(self, seconds: float = 300) -> Self:
        until(self.is_ready, seconds)
        return self

    def stop(self, sig: signal.Signals = signal.SIGTERM, seconds: float = 60) -> int:
        self.process.send_signal(sig)
        code = self.process.wait(seconds)
        self._held.close()
        return code

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._held.close()
