"""Applications and servers around tiny real models."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx2
import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.models.published import publish_numbers, publish_softmax


@pytest.fixture
def repository(tmp_path):
    """Two published models: `colour` takes images, `largest` takes three numbers."""
    publish_softmax(tmp_path / "repository" / "colour")
    publish_numbers(tmp_path / "repository" / "largest")
    return tmp_path / "repository"


@pytest.fixture
def application(repository, tmp_path):
    """Makes clients of applications with other settings; each is ready, unless told not to wait."""

    @contextmanager
    def make(*, wait=True, **settings):
        app = create_app(Settings(repository=repository, cache=tmp_path / "cache", provider="cpu", **settings))
        with TestClient(app) as client:
            if wait:
                until(lambda: client.get("/health/ready").status_code == 200)
            yield client

    return make


@pytest.fixture
def client(application):
    with application() as client:
        yield client


def until(condition, seconds=60):
    """Asks again and again; a condition that never holds fails the test."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


class ServerProcess:
    """`menagerie serve` in a process of its own, with its log in a file."""

    def __init__(self, log, command=("-m", "service", "serve"), **settings):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        settings = {"port": self.port, "log_format": "json", "provider": "cpu", **settings}
        environment = {f"MENAGERIE_{name.upper()}": str(value) for name, value in settings.items()}
        with log.open("ab") as file:
            self.process = subprocess.Popen([sys.executable, *command], env=os.environ | environment, stderr=file)

    def log(self):
        return self._log.read_text()

    def get(self, path):
        return httpx2.get(self.url + path, timeout=30)

    def is_ready(self):
        assert self.process.poll() is None, self.log()
        try:
            return self.get("/health/ready").status_code == 200
        except httpx2.TransportError:
            return False

    def wait_ready(self, seconds=300):
        until(self.is_ready, seconds)
        return self

    def stop(self, sig=signal.SIGTERM, seconds=60):
        self.process.send_signal(sig)
        return self.process.wait(seconds)


@pytest.fixture
def serve(tmp_path):
    """Starts servers, and sees that none outlives the test."""
    started = []

    def start(**settings):
        server = ServerProcess(tmp_path / "server.log", cache=settings.pop("cache", tmp_path / "cache"), **settings)
        started.append(server)
        return server

    yield start
    for server in started:
        server.process.kill()
        server.process.wait()
