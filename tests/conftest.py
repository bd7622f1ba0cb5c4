"""What every test gets: tiny real models, and applications and servers around them."""

from contextlib import contextmanager

import pytest
import structlog
from fastapi.testclient import TestClient

from service.app import create_app
from service.images import decode_pool
from service.images.preprocess import decode
from service.settings import Settings
from tests.decoders import ThreadForks
from tests.models.published import publish_numbers, publish_softmax
from tests.servers import ServerProcess, until


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(autouse=True)
def _log_as_before():
    """A test that runs a command in this process has its log written to a stream that ends with it."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def repository(tmp_path):
    """Two published models: `colour` takes images, `largest` takes three numbers."""
    publish_softmax(tmp_path / "repository" / "colour")
    publish_numbers(tmp_path / "repository" / "largest")
    return tmp_path / "repository"


@pytest.fixture(scope="session")
def checks(tmp_path_factory):
    """What was found of published versions by the tests before: the same content is checked once."""
    return tmp_path_factory.mktemp("checked")


@pytest.fixture
def cache(tmp_path, checks):
    """An empty cache, but for those checks."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "checked").symlink_to(checks)
    return tmp_path / "cache"


@pytest.fixture
def _decoders_are_threads(monkeypatch):
    """They start at once. Servers in a process of their own (`serve`) have processes, as always."""
    monkeypatch.setattr(decode_pool, "ForkServer", lambda _: ThreadForks(decode))


@pytest.fixture
def application(repository, cache, _decoders_are_threads):
    """Makes clients of applications with other settings; each is ready, unless told not to wait."""

    @contextmanager
    def make(*, wait=True, **settings):
        settings = {"repository": repository, "cache": cache, "provider": "cpu", **settings}
        app = create_app(Settings(**settings))
        with TestClient(app) as client:
            if wait:
                until(lambda: client.get("/health/ready").status_code == 200)
            yield client

    return make


@pytest.fixture
def client(application):
    with application() as client:
        yield client


def pytest_terminal_summary(terminalreporter):
    """What tests recorded of each row of the zoo, a line a row."""
    properties = [pair for report in terminalreporter.getreports("passed") for pair in report.user_properties]
    rows = [value for name, value in properties if name == "row"]
    if rows:
        terminalreporter.section("zoo")
        for row in rows:
            terminalreporter.write_line(row)


@pytest.fixture
def serve(tmp_path, cache):
    """Starts servers, and sees that none outlives the test."""
    started = []

    def start(**settings):
        server = ServerProcess(tmp_path / "server.log", cache=settings.pop("cache", cache), **settings)
        started.append(server)
        return server

    yield start
    for server in started:
        server.kill()
