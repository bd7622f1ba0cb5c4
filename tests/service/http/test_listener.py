"""The listener and what stands behind it, without a server: sockets, descriptors, and the gate."""

import asyncio
import errno
import resource
import socket

import pytest
from structlog.testing import capture_logs

from service.http import descriptors, gate, listener
from service.http.gate import Gate
from service.http.listener import Listener, ListenError

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio", {"use_uvloop": True}


class Recorder(asyncio.Protocol):
    """Notes what each connection received, and closes it."""

    def __init__(self, received):
        self._received = received

    def connection_made(self, transport):
        self._transport = transport

    def data_received(self, data):
        self._received.append(data)
        self._transport.close()


def port_of(listening):
    return int(listening.urls[0].rpartition(":")[2])


async def received_by(listening, count, *, patient):
    """What so many clients sent before the listener was closed, in the first turn in which it could accept."""
    received = []
    clients = [socket.create_connection(("127.0.0.1", port_of(listening))) for _ in range(count)]
    for each in clients:
        each.sendall(b"sent")
    listening.start(lambda: Recorder(received))
    await listening.close(patient=patient)
    for each in clients:
        each.settimeout(60)
        assert await asyncio.to_thread(each.recv, 1) == b""  # closed by the recorder, not reset
        each.close()
    return received


@pytest.mark.parametrize("patient", [True, False])
async def test_what_is_in_the_backlog_is_accepted_before_the_socket_closes(patient):
    assert await received_by(Listener.on("127.0.0.1", 0), 300, patient=patient) == [b"sent"] * 300


async def test_where_the_kernel_takes_no_filter_the_backlog_is_accepted_too(monkeypatch):
    monkeypatch.setattr(listener, "_SO_ATTACH_FILTER", 9999)
    assert await received_by(Listener.on("127.0.0.1", 0), 20, patient=True) == [b"sent"] * 20


async def test_while_it_closes_nobody_new_is_connected_and_then_all_are_refused():
    listening = Listener.on("127.0.0.1", 0)
    address = ("127.0.0.1", port_of(listening))
    listening.start(lambda: Recorder([]))
    closing = asyncio.ensure_future(listening.close(patient=True))
    await asyncio.sleep(0)  # it has told the kernel
    with socket.socket() as late:
        late.settimeout(0)
        late.connect_ex(address)
        with pytest.raises(OSError, match="not connected"):
            late.getpeername()
    await closing
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=60)


class FullSocket(socket.socket):
    """Listens for a process that has no descriptor left."""

    asked: asyncio.Event

    def accept(self):
        self.asked.set()
        raise OSError(errno.EMFILE, "Too many open files")


async def test_without_a_descriptor_it_says_so_once_and_still_closes():
    sockets = [FullSocket() for _ in range(2)]
    for each in sockets:
        each.asked = asyncio.Event()
        each.settimeout(0)
        each.bind(("127.0.0.1", 0))
        each.listen()
    listening = Listener(sockets)
    with capture_logs() as told, socket.create_connection(sockets[0].getsockname()):
        listening.start(lambda: Recorder([]))
        await sockets[0].asked.wait()
        await listening.close(patient=False)
    assert [event["reason"] for event in told] == ["Too many open files"]
    assert [each.fileno() for each in sockets] == [-1, -1]


async def test_every_address_of_a_host_has_the_same_port(monkeypatch):
    both = [(socket.AF_INET, 0, 0, "", ("127.0.0.1", 0)), (socket.AF_INET6, 0, 0, "", ("::1", 0, 0, 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: both)
    listening = Listener.on("localhost", 0)
    port = port_of(listening)
    assert listening.urls == [f"http://127.0.0.1:{port}", f"http://[::1]:{port}"]
    listening.start(lambda: Recorder([]))
    await listening.close(patient=False)


@pytest.mark.parametrize(
    ("host", "reason", "cure"),
    [
        ("192.0.2.1", "http://192.0.2.1:0: Cannot assign requested address", "MENAGERIE_HOST"),
        ("2001:db8::1", "http://[2001:db8::1]:0: Cannot assign requested address", "MENAGERIE_HOST"),
        ("no.such.host.invalid", "http://no.such.host.invalid:0: ", "MENAGERIE_HOST"),
    ],
)
def test_an_address_that_is_not_here_is_refused_with_a_cure(host, reason, cure):
    with pytest.raises(ListenError) as refused:
        Listener.on(host, 0)
    assert refused.value.message.startswith(reason)
    assert cure in refused.value.cure


@pytest.mark.parametrize(
    ("soft", "limit"), [(100_000, 10_000), (1024, 824), (256, 128), (1, 1), (resource.RLIM_INFINITY, 10_000)]
)
def test_there_are_no_more_connections_than_the_descriptors_hold(monkeypatch, soft, limit):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    assert descriptors.connection_limit(10_000) == limit


def test_a_limit_of_descriptors_that_cannot_be_raised_is_told(monkeypatch):
    def refuse(*_):
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    with capture_logs() as told:
        descriptors.raise_limit()
    assert [(each["limit"], each["wanted"]) for each in told] == [(1024, 4096)]


class Crowd:
    """Requests that are sent at once, and the turn of the loop in which each reaches the application."""

    def __init__(self):
        self.turn = 0
        self.entered = []
        self._gate = Gate(self._app)

    async def _app(self, scope, _receive, _send):
        self.entered.append((scope["path"], self.turn))
        await asyncio.sleep(0)

    def send(self, *paths):
        return [asyncio.ensure_future(self._gate({"type": "http", "path": path}, None, None)) for path in paths]

    async def count_turns(self, last):
        while self.turn < last:
            self.turn += 1
            await asyncio.sleep(0)


async def test_requests_enter_a_few_a_turn_in_their_order_and_health_checks_at_once(monkeypatch):
    monkeypatch.setattr(gate, "REQUESTS_PER_ITERATION", 4)
    crowd = Crowd()
    counting = asyncio.ensure_future(crowd.count_turns(20))
    paths = [f"/predict/{number}" for number in range(20)]
    await asyncio.gather(*crowd.send(*paths, "/health/live"))
    await counting
    assert [path for path, _ in crowd.entered if path != "/health/live"] == paths
    turns = dict(crowd.entered)
    first = turns["/predict/0"]
    assert turns["/health/live"] == turns["/predict/3"] == first
    for number, path in enumerate(paths):
        assert turns[path] - first <= 2 * (number // 4)  # the one that frees a place, and the one that takes it
    assert turns["/predict/4"] > first
    assert turns["/predict/19"] > turns["/predict/12"] > turns["/predict/4"]


async def test_whoever_is_cancelled_before_the_gate_is_so_within_the_application(monkeypatch):
    monkeypatch.setattr(gate, "REQUESTS_PER_ITERATION", 1)
    crowd = Crowd()
    *others, last = crowd.send("/predict/1", "/predict/2", "/predict/3")
    await asyncio.sleep(0)
    assert len(crowd.entered) == 1
    last.cancel()
    with pytest.raises(asyncio.CancelledError):
        await last
    assert "/predict/3" in dict(crowd.entered)
    await asyncio.gather(*others)
    assert len(crowd.entered) == 3
