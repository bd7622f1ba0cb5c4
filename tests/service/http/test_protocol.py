"""Raw sockets against the connection class: what is bounded, refused and answered before the application is asked."""

import asyncio
import gc
import json
import select
import socket
import threading
from contextlib import contextmanager, suppress

import pytest
import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service import metrics
from service.http import connections, protocol
from service.lifecycle import Lifecycle
from service.server import uvicorn_options
from service.settings import Settings
from tests.servers import until

BIG = 8 * 1024 * 1024
STRICT = {"max_head_bytes": 4096, "max_url_bytes": 1000, "max_head_lines": 20}


class Application:
    """Tells of each request what it heard; some paths wait, fail or answer before the body is read."""

    def __init__(self):
        self.gate = threading.Event()
        self.begun = []
        self.gone = []

    async def __call__(self, scope, receive, send):
        path = scope["path"]
        self.begun.append(path)
        body, message = b"", {"more_body": path not in {"/early", "/die"}}
        while message.get("more_body"):
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone.append(path)
                return
            body += message["body"]
        if path == "/die":
            raise ValueError("secret")
        if path == "/gate" and not await self._opened(receive):
            self.gone.append(path)
            return
        heard = {"method": scope["method"], "path": path, "size": len(body), "names": names(scope)}
        answer = bytes(BIG) if path == "/big" else json.dumps(heard).encode()
        status = 404 if path == "/early" else 200
        length = (b"content-length", str(len(answer)).encode())
        await send({"type": "http.response.start", "status": status, "headers": [length]})
        await send({"type": "http.response.body", "body": answer})

    async def _opened(self, receive):
        """Whether the gate opens before the client goes."""
        gone = asyncio.ensure_future(receive())
        opened = asyncio.ensure_future(asyncio.to_thread(self.gate.wait))
        await asyncio.wait([gone, opened], return_when=asyncio.FIRST_COMPLETED)
        return gone.cancel()


def names(scope):
    return [name.decode() for name, _ in scope["headers"]]


class Served:
    """A server on a thread of this process."""

    def __init__(self, **settings):
        self.application = Application()
        self.lifecycle = Lifecycle()
        settings = Settings(port=0, **settings)
        options = uvicorn_options(settings, self.lifecycle)
        self.server = uvicorn.Server(uvicorn.Config(self.application, lifespan="off", **options))
        self._thread = threading.Thread(target=self.server.run)

    def start(self):
        self._thread.start()
        until(lambda: self.server.started)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def stop(self):
        self.application.gate.set()
        self.server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    @property
    def open(self):
        return len(self.server.server_state.connections)


@pytest.fixture
def served():
    started = []

    def start(**settings):
        made = Served(**settings)
        made.start()
        started.append(made)
        return made

    yield start
    for each in started:
        each.stop()


@pytest.fixture(scope="module")
def lasting():
    made = Served(**STRICT)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def strict(lasting):
    """A server with narrow bounds that its tests leave as they found it."""
    until(lambda: not (lasting.open or lasting.server.server_state.tasks))
    lasting.application.begun.clear()
    lasting.application.gone.clear()
    return lasting


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body
        self.says_close = headers.get("connection") == "close"

    @property
    def heard(self):
        return json.loads(self.body)

    @property
    def error(self):
        """Its status and code; it has the shape of every error."""
        assert self.headers["content-type"] == "application/json"
        assert self.headers["x-request-id"]
        assert self.says_close
        told = json.loads(self.body)["error"]
        assert set(told) == {"code", "message", "cure"}
        assert all(told.values())
        return self.status, told["code"]


class Client:
    """A socket, and the answers that come out of it."""

    def __init__(self, served):
        self.socket = socket.create_connection(("127.0.0.1", served.port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self.socket.makefile("rb")

    def send(self, data):
        self.socket.sendall(data)
        return self

    def flood(self, data, times):
        """Sends until the server wants no more."""
        try:
            for _ in range(times):
                self.socket.sendall(data)
        except OSError:
            return True
        return False

    def end(self):
        with suppress(OSError):  # the server has closed
            self.socket.shutdown(socket.SHUT_WR)
        return self

    def answer(self):
        line = self._file.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        headers = {}
        while (header := self._file.readline().strip()) != b"":
            name, _, value = header.decode().partition(": ")
            assert name.lower() not in headers
            headers[name.lower()] = value
        status = int(line.split()[1])
        return Answer(status, headers, self._file.read(int(headers.get("content-length", 0))))

    def is_closed(self):
        """Waits for the server's end; what comes before it fails the test."""
        try:
            return self._file.read() == b""
        except ConnectionResetError:
            return True

    def close(self):
        self._file.close()
        self.socket.close()


@pytest.fixture
def connect():
    made = []

    def open_one(served):
        made.append(Client(served))
        return made[-1]

    yield open_one
    for each in made:
        each.close()


@contextmanager
def refused(code, times=1):
    """The metric by code grows, and there is a line in the log."""
    counter = metrics.REFUSALS.labels(code)
    before = counter._value.get()
    with structlog.testing.capture_logs() as events:
        yield
        # The log line may come after the count.
        until(lambda: counter._value.get() == before + times and any(event["event"] == "refused" for event in events))
    told = [event for event in events if event["event"] == "refused"]
    assert {(event["outcome"], event["log_level"]) for event in told} == {(code, "info")}


GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def post(body, path=b"/a", more=b""):
    return b"POST %s HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n%s" % (path, more, len(body), body)


# Bounds of the head.


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"GET /" + b"a" * 2000 + b" HTTP/1.1\r\n\r\n", (414, "url_too_long")),
        (b"GET /" + b"a" * 100_000, (414, "url_too_long")),
        (b"GET /a HTTP/1.1\r\nA: " + b"b" * 5000 + b"\r\n\r\n", (431, "head_too_large")),
        (b"GET /a HTTP/1.1\r\nA: " + b"b" * 100_000, (431, "head_too_large")),
        (b"GET /a HTTP/1.1\r\n" + b"b" * 100_000, (431, "head_too_large")),
        (b"GET /a HTTP/1.1\r\n" + b"a:b\r\n" * 30 + b"\r\n", (431, "head_too_large")),
        (b"GET /a HTTP/1.1\r\n" + b"a:b\r\n" * 20_000, (431, "head_too_large")),
        (b"\r\n" * 50_000, (431, "head_too_large")),
        (b"A" * 100_000, (400, "bad_request")),
    ],
    ids=["url", "endless url", "header", "endless header", "endless name", "lines", "endless lines", "blank", "method"],
)
def test_a_head_that_is_too_long_is_refused(strict, connect, head, expected):
    with refused(expected[1]):
        client = connect(strict).send(head)
        assert client.answer().error == expected
        assert client.end().is_closed()
    assert strict.application.begun == []


def test_a_head_up_to_the_bounds_is_answered(strict, connect):
    client = connect(strict)
    head = b"GET /" + b"a" * 999 + b" HTTP/1.1\r\n" + b"a:b\r\n" * 19
    head += b"A: " + b"b" * (4096 - len(head) - 7) + b"\r\n\r\n"
    assert len(head) == 4096
    for byte in [head[i : i + 64] for i in range(0, len(head), 64)]:
        client.send(byte)
    assert len(client.answer().heard["path"]) == 1000
    assert client.send(head).answer().status == 200


@pytest.mark.parametrize("piece", [b"GET /" + bytes(100).replace(b"\0", b"a"), b"a" * 65536, b"A:" + b"b" * 1000])
def test_a_head_without_end_does_not_grow_the_server(served, connect, piece):
    client = connect(served(linger_seconds=0.5, max_linger_bytes=1024))
    client.send(b"GET /a HTTP/1.1\r\nA: ")
    assert client.flood(piece, times=1_000_000)


# Bounds of the body's framing.


@pytest.mark.parametrize("byte", [b"\n", b"\r", b"\0"])
def test_a_chunk_may_hold_any_bytes(served, connect, byte):
    server = served()
    body = byte * 300_000
    client = connect(server).send(CHUNKED + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n" + GET)
    assert client.answer().status == 200
    assert client.answer().status == 200


def test_a_trailer_that_asks_to_close_is_heeded(served, connect):
    client = connect(served()).send(CHUNKED + b"3\r\nabc\r\n0\r\nConnection: close\r\n\r\n")
    answer = client.answer()
    assert answer.status == 200
    assert client.is_closed()


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"0\r\n" + b"a:b\r\n" * 30 + b"\r\n", (431, "head_too_large")),
        (b"0\r\nA: " + b"b" * 5000 + b"\r\n\r\n", (431, "head_too_large")),
        (b"3\r\nabc\r\n0\r\nA: " + b"b" * 5000 + b"\r\n\r\n", (431, "head_too_large")),
        (b"0\r\nA: " + b"b" * 1_000_000, (431, "head_too_large")),
        (b"3;" + b"x" * 1_000_000, (431, "head_too_large")),
        (b"1\r\nx\r\n" * 100_000, (400, "bad_request")),
        (b"4\r\n\r\n\r\n\r\n" * 100_000, (400, "bad_request")),
    ],
    ids=["lines", "trailer", "trailer behind a body", "endless trailer", "extension", "small chunks", "blank lines"],
)
def test_what_a_chunked_body_brings_beside_its_bytes_is_bounded(strict, connect, sent, expected):
    client = connect(strict)
    client.send(CHUNKED)
    until(lambda: strict.application.begun)
    with refused(expected[1]):
        client.flood(sent, 1)
        assert client.answer().error == expected
    until(lambda: strict.application.gone == ["/a"])


def test_trailers_are_no_headers(strict, connect):
    client = connect(strict)
    client.send(CHUNKED + b"3\r\nabc\r\n0\r\nAuthorization: mine\r\nX-Request-ID: mine\r\n\r\n")
    heard = client.answer().heard
    assert heard["size"] == 3
    assert heard["names"] == ["host", "transfer-encoding"]
    assert client.send(GET).answer().heard["names"] == ["host"]


def test_chunks_of_a_sane_size_are_many(strict, connect):
    client = connect(strict)
    client.send(CHUNKED)
    for _ in range(100):
        client.send((b"100\r\n" + b"a" * 126 + b"\r\n\r\n" + b"a" * 126 + b"\r\n") * 100)
    assert client.send(b"0\r\n\r\n").answer().heard["size"] == 256 * 10_000


# Deadlines.


def drip(client, data):
    """A byte now and then until the server has had enough."""
    client.socket.settimeout(0)
    position = 0
    with suppress(OSError):  # the server has closed
        while not select.select([client.socket], [], [], 0.05)[0]:
            client.socket.send(data[position % len(data) :][:1])
            position += 1
    client.socket.settimeout(30)


def test_a_head_that_comes_byte_by_byte_is_told(served, connect):
    client = connect(served(head_timeout_seconds=0.5))
    with refused("head_timeout"):
        client.send(b"GET /a HTTP/1.1\r\nA: ")
        drip(client, b"a")
        assert client.answer().error == (408, "head_timeout")
        assert client.end().is_closed()


def test_a_second_head_that_does_not_end_is_told(served, connect):
    client = connect(served(head_timeout_seconds=0.5))
    assert client.send(GET + b"GET /a").answer().status == 200
    assert client.answer().error == (408, "head_timeout")


def test_blank_lines_hold_no_connection(served, connect):
    client = connect(served(head_timeout_seconds=0.5))
    drip(client, b"\r\n")
    assert client.answer().error == (408, "head_timeout")


def test_a_connection_that_says_nothing_is_closed(served, connect):
    server = served(head_timeout_seconds=0.5)
    clients = [connect(server) for _ in range(50)]
    assert all(client.is_closed() for client in clients)
    until(lambda: server.open == 0)


def test_an_idle_connection_is_closed_after_its_pause(served, connect):
    server = served(keep_alive_seconds=0.5, head_timeout_seconds=600)
    client = connect(server)
    assert client.send(GET).answer().status == 200
    assert client.is_closed()


def test_a_client_that_does_not_read_is_disconnected(served, connect):
    server = served(write_timeout_seconds=0.5)
    client = connect(server)
    with refused("client_gone"):
        client.send(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
        until(lambda: server.open == 0)


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_client_that_reads_slowly_gets_all_of_it(served, connect, version):
    server = served(write_timeout_seconds=60, linger_seconds=0.1)
    client = connect(server).send(b"GET /big HTTP/%s\r\nHost: x\r\nConnection: close\r\n\r\n" % version)
    threading.Event().wait(1)  # beyond every other deadline
    answer = client.answer()
    assert (answer.says_close, len(answer.body)) == (True, BIG)


# What follows an early answer.


def test_the_rest_of_a_small_body_is_read_behind_an_early_answer(strict, connect):
    client = connect(strict)
    request = post(bytes(1000), b"/early")
    answer = client.send(request[:-100]).answer()
    assert (answer.status, answer.says_close) == (404, False)
    assert client.send(request[-100:] + GET).answer().heard["path"] == "/a"


def test_the_rest_of_a_body_that_does_not_come_holds_no_connection(served, connect):
    server = served(linger_seconds=0.5)
    client = connect(server)
    request = post(bytes(1000), b"/early")
    with refused("body_timeout"):
        assert client.send(request[:-100]).answer().status == 404
        drip(client, b"a")
        assert client.is_closed()


@pytest.mark.parametrize("framing", [b"Content-Length: 100000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
def test_a_long_rest_is_told_to_close_and_dropped(served, connect, framing):
    server = served(max_linger_bytes=50_000, linger_seconds=60)
    client = connect(server).send(b"POST /early HTTP/1.1\r\nHost: x\r\n" + framing)
    answer = client.answer()
    assert (answer.status, answer.says_close) == (404, True)
    assert client.flood(bytes(10_000), times=100_000)
    until(lambda: server.open == 0)


def test_a_client_that_sends_all_before_it_reads_gets_its_early_answer(served, connect):
    client = connect(served(max_linger_bytes=32 * 1024 * 1024, linger_seconds=60))
    assert client.send(post(bytes(20 * 1024 * 1024), b"/early")).answer().status == 404
    assert client.send(GET).answer().status == 200


def test_a_body_that_waits_for_100_continue_ends_with_an_early_answer(strict, connect):
    client = connect(strict)
    client.send(b"POST /early HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n")
    answer = client.answer()
    assert (answer.status, answer.says_close) == (404, True)
    assert client.end().is_closed()


def test_100_continue_is_said_once_the_body_is_wanted(strict, connect):
    client = connect(strict)
    client.send(POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    assert client.answer().status == 100
    assert client.send(b"abc").answer().heard["size"] == 3


# Connections.


def test_beyond_the_limit_only_health_is_answered(served, connect):
    server = served(max_connections=2)
    for _ in range(2):
        assert connect(server).send(GET).answer().status == 200
    health = GET.replace(b"/a", b"/health/live")
    for _ in range(3):
        with refused("too_many_connections"):
            answer = connect(server).send(post(bytes(10))).answer()
            assert answer.error == (503, "too_many_connections")
            assert int(answer.headers["retry-after"]) >= 1
        answer = connect(server).send(health.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\nabcde")).answer()
        assert (answer.status, answer.says_close) == (200, True)
    assert server.application.begun == ["/a", "/a"] + ["/health/live"] * 3


def test_idle_connections_beyond_the_limit_make_room_for_health(served, connect):
    server = served(max_connections=2, head_timeout_seconds=600)
    for _ in range(2):
        assert connect(server).send(GET).answer().status == 200
    idle = [connect(server).send(b"G") for _ in range(3 * connections.RESERVED_CONNECTIONS)]
    assert idle[0].answer().error == (503, "too_many_connections")
    answer = connect(server).send(GET.replace(b"/a", b"/health/ready")).answer()
    assert answer.status == 200
    assert server.open <= 2 + connections.RESERVED_CONNECTIONS


def test_when_there_is_room_again_those_in_the_reserve_are_answered(served, connect):
    server = served(max_connections=1)
    first = connect(server)
    until(lambda: server.open == 1)
    second = connect(server)
    until(lambda: server.open == 2)
    first.close()
    until(lambda: server.open == 1)
    assert second.send(GET).answer().status == 200


def test_400_silent_sockets_keep_no_health_check_waiting(served, connect):
    server = served(head_timeout_seconds=1, max_connections=300)
    clients = [connect(server) for _ in range(400)]
    assert connect(server).send(GET.replace(b"/a", b"/health/live")).answer().status == 200
    clients.clear()
    until(lambda: server.open == 0)


# Other protocols.


@pytest.mark.parametrize(
    "wish",
    [
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n",
        b"Connection: keep-alive\r\nConnection: upgrade\r\nUpgrade: TLS/1.0\r\n",
    ],
)
def test_a_wish_for_another_protocol_is_ignored_and_the_body_is_read(strict, connect, wish):
    client = connect(strict)
    assert client.send(post(b"abc", more=wish)).answer().heard["size"] == 3
    request = post(bytes(100_000), more=wish)
    client.send(request[:300])
    assert client.send(request[300:] + GET).answer().heard["size"] == 100_000
    assert client.answer().heard["method"] == "GET"
    chunked = CHUNKED.replace(b"Host: x\r\n", b"Host: x\r\n" + wish)
    assert client.send(chunked + b"3\r\nabc\r\n0\r\n\r\n").answer().heard["size"] == 3
    assert client.send(GET.replace(b"\r\n\r\n", b"\r\n" + wish + b"\r\n")).answer().heard["path"] == "/a"


def test_a_wish_for_another_protocol_keeps_the_wish_to_close(strict, connect):
    client = connect(strict).send(post(b"abc", more=b"Connection: Upgrade, close\r\nUpgrade: h2c\r\n"))
    answer = client.answer()
    assert (answer.heard["size"], answer.says_close) == (3, True)
    assert client.is_closed()


def test_the_server_is_no_proxy(strict, connect):
    client = connect(strict).send(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\nabc")
    answer = client.answer()
    assert answer.error == (405, "method_not_allowed")
    assert "POST" in answer.headers["allow"]


# What is no request.


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        bytes(100),
        b"hello\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /a HTTP/9.9\r\n\r\n",
        b"GET /a HTTP/2.0\r\n\r\n",
        b"GET /a\r\n\r\n",
        b"GET http://a:99999/ HTTP/1.1\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET /a HTTP/1.1\r\nA: b\0c\r\n\r\n",
        b"GET /a HTTP/1.1\nHost: x\n\n",
        b"GET /a HTTP/1.1\r\nA: b\n\r\n",
        b"GET /a HTTP/1.1\r\nA: b\rc\r\n\r\n",
        b"GET /a HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
        b"GET /a HTTP/1.1\r\nA : b\r\n\r\n",
        POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        POST + b"Content-Length: 3, 3\r\n\r\nabc",
        POST + b"Content-Length: +3\r\n\r\nabc",
        POST + b"Content-Length: -3\r\n\r\nabc",
        POST + b"Content-Length: 0x3\r\n\r\nabc",
        POST + b"Content-Length: " + b"9" * 500 + b"\r\n\r\nabc",
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        CHUNKED + b"3\nabc\r\n0\r\n\r\n",
        CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n",
        CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
        CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n",
        CHUNKED + b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        CHUNKED + b"0\r\nContent-Length: 7\r\n\r\n",
    ],
)
def test_what_is_no_request_is_told_in_the_shape_of_every_error(strict, connect, sent):
    with refused("bad_request"):
        client = connect(strict).send(sent + GET)
        assert client.answer().error == (400, "bad_request")
        assert client.end().is_closed()
    assert strict.application.begun in ([], ["/a"])
    until(lambda: strict.application.begun == strict.application.gone)


def test_nothing_follows_a_refusal(strict, connect, caplog):
    client = connect(strict).send(CHUNKED.replace(b"Host", b"Expect: 100-continue\r\nHost") + b"zz\r\n")
    assert client.answer().error == (400, "bad_request")
    assert client.end().is_closed()
    until(lambda: strict.application.gone == ["/a"])
    assert not caplog.records


def test_an_application_that_dies_is_told_in_the_shape_of_every_error(served, connect, caplog):
    client = connect(served())
    answer = client.send(GET.replace(b"/a", b"/die")).answer()
    assert (answer.status, answer.says_close) == (500, True)
    assert json.loads(answer.body)["error"]["code"] == "internal_error"
    assert b"secret" not in answer.body
    assert client.is_closed()


# The forms of a request.


def test_http_1_0_is_answered_and_closed(strict, connect):
    for head in (b"GET /a HTTP/1.0\r\n\r\n", b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"):
        client = connect(strict).send(head)
        answer = client.answer()
        assert (answer.status, answer.says_close) == (200, True)
        assert client.is_closed()


def test_an_absolute_target_has_its_path(strict, connect):
    client = connect(strict)
    for target, path in ((b"http://x/a%20b?c=d", "/a b"), (b"http://x", "/"), (b"/a//b", "/a//b")):
        assert client.send(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % target).answer().heard["path"] == path


MESSAGES = (
    post(b"\r\n\r\nabc\r\n\r\n")
    + CHUNKED
    + b"9;a=b\r\na\r\n\r\nb\r\n\r\r\n0\r\nA: b\r\n\r\n"
    + b"\r\n"
    + GET
    + CHUNKED
    + b"0\r\n\r\n"
    + post(b"abc", more=b"Connection: upgrade\r\nUpgrade: h2c\r\n")
    + GET
)
SIZES = [11, 9, 0, 0, 3, 0]


def test_a_request_may_be_cut_anywhere(strict, connect):
    for cut in range(1, len(MESSAGES)):
        client = connect(strict).send(MESSAGES[:cut])
        client.send(MESSAGES[cut:])
        assert [client.answer().heard["size"] for _ in SIZES] == SIZES
        client.close()
    client = connect(strict)
    for position in range(len(MESSAGES)):
        client.send(MESSAGES[position : position + 1])
    assert [client.answer().heard["size"] for _ in SIZES] == SIZES


def test_requests_in_one_piece_are_answered_in_order(strict, connect):
    client = connect(strict)
    client.send(b"".join(GET.replace(b"/a", b"/%d" % number) for number in range(500)))
    assert [client.answer().heard["path"] for _ in range(500)] == [f"/{number}" for number in range(500)]


def test_requests_that_wait_for_their_turn_are_bytes(served, connect):
    server = served()
    client = connect(server).send(GET.replace(b"/a", b"/gate") + GET * 5000)
    until(lambda: server.application.begun == ["/gate"])
    threading.Thread(target=client.flood, args=(GET, 1_000_000), daemon=True).start()
    for _ in range(20):
        threading.Event().wait(0.02)
        assert sum(issubclass(type(each), RequestResponseCycle) for each in gc.get_objects()) < 10
    (connection,) = server.server.server_state.connections
    assert len(connection._waiting) < 2**20
    client.close()


def test_what_waits_has_a_bound_over_all_connections(served, connect):
    server = served(max_inflight_body_bytes=1000)
    client = connect(server).send(GET.replace(b"/a", b"/gate"))
    until(lambda: server.application.begun == ["/gate"])
    client.send(GET * 5000)
    until(lambda: any(each._is_ending for each in server.server.server_state.connections))
    server.application.gate.set()
    answer = client.answer()
    assert (answer.heard["path"], answer.says_close) == ("/gate", True)
    assert client.end().is_closed()
    assert server.application.begun == ["/gate"]


# A client that closes its side.


def test_a_client_that_closes_its_side_is_answered(strict, connect):
    for sent, count in ((post(bytes(100_000)), 1), (GET * 3, 3), (CHUNKED + b"0\r\n\r\n", 1)):
        client = connect(strict).send(sent).end()
        assert [client.answer().status for _ in range(count)] == [200] * count
        assert client.is_closed()


def test_a_client_that_closes_its_side_waits_for_its_answer(served, connect):
    server = served()
    client = connect(server).send(GET.replace(b"/a", b"/gate")).end()
    until(lambda: any(each._has_eof for each in server.server.server_state.connections))
    server.application.gate.set()
    answer = client.answer()
    assert (answer.heard["path"], answer.says_close) == ("/gate", True)
    assert client.is_closed()


def test_a_request_that_is_not_whole_ends_with_its_client(strict, connect):
    client = connect(strict).send(post(bytes(1000))[:-1]).end()
    assert client.is_closed()
    until(lambda: strict.application.gone == ["/a"])
    assert connect(strict).send(GET[:-1]).end().is_closed()


def test_a_client_that_may_have_gone_is_not_waited_for_long(served, connect, monkeypatch):
    monkeypatch.setattr(protocol, "HALF_CLOSED_SECONDS", 0.3)
    server = served()
    connect(server).send(GET.replace(b"/a", b"/gate")).end()
    until(lambda: server.application.gone == ["/gate"])
    until(lambda: server.open == 0)


# The drain.


def test_a_server_that_drains_says_close(served, connect):
    server = served()
    client = connect(server)
    assert not client.send(GET).answer().says_close
    server.lifecycle.drain()
    assert client.send(post(b"abc")).answer().says_close
    assert client.is_closed()
    client = connect(server).send(GET * 3)
    assert [client.answer().says_close for _ in range(3)] == [False, False, True]
    assert client.is_closed()


def test_what_has_arrived_when_the_listener_closes_is_answered(served, connect):
    server = served()
    idle, asked, asking, busy = (connect(server) for _ in range(4))
    for client in (idle, asked, asking, busy):
        assert client.send(GET).answer().status == 200
    busy.send(GET.replace(b"/a", b"/gate") + GET)
    asking.send(GET[:-2])
    until(lambda: sum(each._idle_bytes for each in server.server.server_state.connections))
    until(lambda: "/gate" in server.application.begun)
    on_tick = server.server.on_tick

    async def tick_and_send(counter):
        """The request arrives in the same turn of the loop in which the server closes."""
        ends = await on_tick(counter)
        if ends:
            asked.send(GET)
        return ends

    server.server.on_tick = tick_and_send
    server.server.should_exit = True
    assert idle.is_closed()
    answer = asked.answer()
    assert (answer.status, answer.says_close) == (200, True)
    answer = asking.send(GET[-2:]).answer()
    assert (answer.status, answer.says_close) == (200, True)
    server.application.gate.set()
    assert busy.answer().heard["path"] == "/gate"
    assert busy.answer().says_close
    assert all(client.is_closed() for client in (asked, asking, busy))
