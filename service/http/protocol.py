"""HTTP/1.1 connections: uvicorn's, with a bound and a deadline for everything that a client sends or leaves unread.

A connection reads one request at a time. The bytes behind it wait unparsed, unread beyond one buffer, until it is
answered. What the connection answers by itself has the shape of every other error.
"""

import asyncio
import fcntl
import math
import random
import struct
import termios
import urllib.parse
from collections.abc import Coroutine
from functools import partial
from typing import Any, NoReturn

import httptools
import structlog
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service import metrics
from service.api.middleware import error_response
from service.errors import (
    BadRequest,
    BodyTimeout,
    HeadTimeout,
    HeadTooLarge,
    MethodNotAllowed,
    ServiceError,
    TooManyConnections,
    UrlTooLong,
)
from service.lifecycle import Lifecycle
from service.settings import Settings

log = structlog.get_logger()

SWEEP_SECONDS = 0.25

# Beyond max_connections, for health checks alone. The oldest makes room for the next.
RESERVED_CONNECTIONS = 32
_HEALTH = "/health/"
_METHODS = "GET, HEAD, POST, PUT, DELETE, OPTIONS"

# A client that has closed its side waits for its answer, or has gone: nobody can tell which.
HALF_CLOSED_SECONDS = 5.0

# A chunk costs as much as some hundred bytes of a body.
_FREE_CHUNKS = 16_384
_BYTES_PER_CHUNK = 64

_BLANK_LINE = b"\r\n\r\n"
_LINE_ENDS = b"\r\n"
_OF_THE_BODY = {b"content-length", b"transfer-encoding", b"expect"}
_OF_AN_UPGRADE = {b"upgrade", b"http2-settings", b"connection"}
_CLIENT_GONE = "client_gone"


class Exchange(RequestResponseCycle):
    """A request and its answer, which says whether it is the connection's last."""

    connection: "Connection"
    is_last = False

    def send(self, message: Any) -> Coroutine[Any, Any, None]:
        """As uvicorn's, but that the connection decides what follows the answer."""
        if self.response_started:
            if not self.keep_alive:
                self.is_last = self.keep_alive = True  # it has been said; uvicorn would close at once
        elif not self.disconnected:
            self.keep_alive = self.keep_alive and self.connection.may_go_on()
        return RequestResponseCycle.send(self, message)

    async def send_500_response(self) -> None:
        """The application failed before it answered."""
        response = error_response(ServiceError("the server failed unexpectedly"))
        response.headers["Connection"] = "close"
        await response(self.scope, self.receive, self.send)  # type: ignore[arg-type]


class Connections:
    """What all connections of a server share, and the clock that ends those whose time is over."""

    def __init__(self, settings: Settings, lifecycle: Lifecycle) -> None:
        self.settings = settings
        self.lifecycle = lifecycle
        self.reserved: dict[Connection, None] = {}  # the oldest first
        self.waiting_bytes = 0
        self._clock: asyncio.TimerHandle | None = None

    def reserve(self, connection: "Connection") -> None:
        """A place in the reserve: the oldest that is not being answered leaves it if it is full."""
        self.reserved[connection] = None
        if len(self.reserved) > RESERVED_CONNECTIONS:
            next((each for each in self.reserved if not each.is_answering), connection).make_room()

    def watch(self, open_connections: set[Any], loop: asyncio.AbstractEventLoop) -> None:
        """Looks at the deadline of each from now on, until none is open."""
        if self._clock is None:
            self._clock = loop.call_later(SWEEP_SECONDS, self._sweep, open_connections, loop)

    def _sweep(self, open_connections: set[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._clock = None
        if open_connections:
            self.watch(open_connections, loop)
        now = loop.time()
        for connection in tuple(open_connections):
            if connection.deadline < now or connection.write_deadline < now:
                connection.expire()


class Connection(HttpToolsProtocol):
    """One client's connection."""

    cycle: Exchange | None  # type: ignore[assignment]

    def __init__(
        self,
        shared: Connections,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._shared = shared
        self._settings = settings = shared.settings
        self._max_head_bytes = settings.max_head_bytes
        self._max_head_lines = settings.max_head_lines
        self._max_url_bytes = settings.max_url_bytes
        self._is_reserved = False

        # When the sweep ends the connection: each phase sets it once, and no byte moves it.
        self.deadline = math.inf
        self.write_deadline = math.inf

        # The message that is being read.
        self._in_head = True
        self._is_upgrade = False
        self._is_complete = False
        self._length: int | None = 0  # None where it is chunked
        self._received_bytes = 0
        self._idle_bytes = 0  # of the head, or without a byte of the body between them
        self._trailer_bytes = 0
        self._trailers = 0
        self._chunks = 0
        self._fault: ServiceError | None = None

        # What follows it.
        self.is_answering = False  # it is whole, and waits for the end of its answer
        self._waiting, self._waiting_from = b"", 0
        self._has_eof = False
        self._is_ending = False
        self._has_finished = False
        self._dropped_bytes = 0

    # The transport's calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes the connection, in the reserve if there are too many."""
        super().connection_made(transport)
        self._due_in(self._settings.head_timeout_seconds)
        self._shared.watch(self.connections, self.loop)
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency:
            self._is_reserved = True
            self._shared.reserve(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells the application."""
        super().connection_lost(exc)
        self._shared.reserved.pop(self, None)
        self._hold(b"")
        self.cycle = None  # they hold each other

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends nothing more: it is owed the answers to the requests that are whole."""
        if self._has_finished or not self.is_answering:
            return False
        self._has_eof = True
        self._due_in(HALF_CLOSED_SECONDS)
        return True

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self.write_deadline = self.loop.time() + self._settings.write_timeout_seconds

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        self.write_deadline = math.inf

    def data_received(self, data: bytes, start: int = 0) -> None:
        """Gives the parser the data from `start`, in pieces of which none goes beyond the end of a message."""
        if self._has_finished:
            self._drop(len(data))
            return
        had_begun, size = self._idle_bytes > 0, len(data)
        try:
            while start < size:
                if self.is_answering:
                    self._keep(data, start)
                    return
                if self._in_head or self._length is None:
                    start = self._read_piece(data, start)
                else:
                    end = start + max(1, self._length - self._received_bytes)
                    self.parser.feed_data(memoryview(data)[start:end])
                    start = end
        except ServiceError as error:
            self._refuse(error)
        except httptools.HttpParserError as error:
            self._refuse(self._fault_of(error))
        else:
            if self._in_head and self._idle_bytes and not had_begun:
                self._due_in(self._settings.head_timeout_seconds)

    # Reading.

    def _fault_of(self, error: httptools.HttpParserError) -> ServiceError:
        """What a callback found wrong, or the parser."""
        if self._fault is None and isinstance(error, httptools.HttpParserCallbackError):
            log.error("internal error", exc_info=error)
            return ServiceError("the server failed unexpectedly")
        return self._fault or BadRequest(f"this is no request of HTTP/1.1: {error}")

    def _fail(self, fault: ServiceError) -> NoReturn:
        """Has the parser stop: it raises an error of its own, in which this one may be lost."""
        self._fault = fault
        raise fault

    def _keep(self, data: bytes, start: int) -> None:
        """What was sent before its turn; more of it waits in the kernel. All connections together keep only so much."""
        cycle = self.cycle
        assert cycle is not None
        if not cycle.is_last:
            if self._waiting:
                data, start = self._waiting[self._waiting_from :] + data[start:], 0
            self._hold(data, start)
        if self._shared.waiting_bytes > self._settings.max_inflight_body_bytes:
            self._hold(b"")
            cycle.is_last = self._is_ending = True
        self.flow.pause_reading()

    def _hold(self, data: bytes, start: int = 0) -> None:
        self._shared.waiting_bytes += len(data) - len(self._waiting)
        self._waiting, self._waiting_from = data, start

    def _read_piece(self, data: bytes, start: int) -> int:
        """Of a head or a chunked body: as far as it may reach. Raises ServiceError, HttpParserError.

        Both end with a blank line, which may have begun in other data.
        """
        if start < len(_BLANK_LINE) and data[start] in _LINE_ENDS:
            end = start + 1
        else:
            found = data.find(_BLANK_LINE, start)
            end = len(data) if found < 0 else found + len(_BLANK_LINE)
        piece, limit, received = data[start:end], self._max_head_bytes, self._received_bytes
        is_head = self._in_head
        if is_head:
            self._idle_bytes += end - start
            if self._idle_bytes > limit:  # the parser sees as much as is allowed, to tell which part is too long
                piece = piece[: limit - self._idle_bytes]
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self._read_without_upgrade()
        if not is_head and not self._in_head:
            self._idle_bytes = 0 if self._received_bytes > received else self._idle_bytes + len(piece)
            self._count_chunk()
        if self._idle_bytes > limit:
            raise HeadTooLarge(f"the head has more than {limit} bytes")
        return end

    def _count_chunk(self) -> None:
        self._chunks += 1
        if self._chunks > _FREE_CHUNKS + self._received_bytes // _BYTES_PER_CHUNK:
            self._fail(BadRequest("the body comes in too many small chunks", cure="send larger chunks"))

    def _read_without_upgrade(self) -> None:
        """Reads the head again without its wish for another protocol, of which there is none (RFC 9110, 7.8).

        The parser would take what follows for bytes of that protocol.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            raise MethodNotAllowed("this server is no proxy", _METHODS)
        wishes = [wish.strip() for name, value in self.headers if name == b"connection" for wish in value.split(b",")]
        kept = [wish for wish in wishes if wish and wish.lower() not in _OF_AN_UPGRADE]
        lines = [method + b" " + self.url + b" HTTP/" + version]
        lines += [name + b": " + value for name, value in self.headers if name not in _OF_AN_UPGRADE]
        lines += [b"Connection: " + b", ".join(kept)] if kept else []
        self._is_upgrade, self._length = False, 0
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(b"\r\n".join(lines) + _BLANK_LINE)

    # The parser's calls. What they raise ends up as the context of the parser's own error.

    def on_url(self, url: bytes) -> None:
        """The target, or a part of it."""
        self.url += url
        if len(self.url) > self._max_url_bytes:
            self._fail(UrlTooLong(f"the URL has more than {self._max_url_bytes} bytes"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or behind the body a trailer, of which the application hears nothing."""
        if not self._in_head:
            self._check_trailer(len(name) + len(value))
            return
        headers = self.headers
        if len(headers) >= self._max_head_lines:
            self._fail(HeadTooLarge(f"there are more than {self._max_head_lines} header lines"))
        name = name.lower()
        if name in _OF_THE_BODY:
            if name == b"content-length":
                self._length = int(value)
            elif name == b"transfer-encoding":
                self._length = None
            else:
                self.expect_100_continue = value.lower() == b"100-continue"
        headers.append((name, value))

    def _check_trailer(self, size: int) -> None:
        self._trailers += 1
        self._trailer_bytes += size
        if self._trailers > self._max_head_lines or self._trailer_bytes > self._max_head_bytes:
            limits = f"{self._max_head_lines} lines or {self._max_head_bytes} bytes"
            self._fail(HeadTooLarge(f"the trailers have more than {limits}"))

    def on_headers_complete(self) -> None:
        """The head is whole: the application is asked."""
        parser = self.parser
        if parser.should_upgrade():
            self._is_upgrade = True  # HttpParserUpgrade follows
            return
        version = parser.get_http_version()
        if version not in {"1.1", "1.0"}:
            self._fail(BadRequest(f"HTTP/{version} is not spoken here", cure="send HTTP/1.1"))
        try:
            target = httptools.parse_url(self.url)
        except httptools.HttpParserInvalidURLError:
            self._fail(BadRequest("the URL cannot be read"))
        raw_path = target.path or b"/"
        path = raw_path.decode("ascii")
        scope = self.scope
        scope["method"] = parser.get_method().decode("ascii")
        scope["http_version"] = version
        scope["path"] = self.root_path + (urllib.parse.unquote(path) if "%" in path else path)
        scope["raw_path"] = self.root_path.encode("ascii") + raw_path
        scope["query_string"] = target.query or b""
        if self._is_reserved:
            self._check_reserve()
        assert not self.is_answering  # an answer would go to the wrong request
        self._in_head = self._is_complete = False
        self._idle_bytes = self._received_bytes = self._trailers = self._trailer_bytes = self._chunks = 0
        self.cycle = Exchange(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue and version == "1.1",
            keep_alive=version == "1.1" and parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        self.cycle.connection = self
        self.deadline = self.loop.time() + HALF_CLOSED_SECONDS if self._has_eof else math.inf
        self._start_asgi_task(self.cycle, self.app)

    def _check_reserve(self) -> None:
        limit = self.limit_concurrency
        is_health = self.scope["path"].startswith(_HEALTH) and self.scope["method"] in {"GET", "HEAD"}
        if not is_health and limit is not None and len(self.connections) > limit:
            self._fail(TooManyConnections("the server has as many connections as it may"))

    def on_chunk_header(self) -> None:
        """A chunk begins."""
        self._count_chunk()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._received_bytes += len(body)
        cycle = self.cycle
        assert cycle is not None
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._is_upgrade:
            return
        self._is_complete = self._in_head = True
        self._idle_bytes = self._length = 0
        cycle = self.cycle
        assert cycle is not None
        if cycle.response_complete:  # it was answered early, and the rest has been dropped
            self._due_in(self._settings.keep_alive_seconds)
            return
        if not self.parser.should_keep_alive():  # a trailer may say so, too
            if cycle.response_started:
                self._is_ending = True
            else:
                cycle.keep_alive = False
        self.is_answering = True
        cycle.more_body = False
        cycle.message_event.set()

    # Answering.

    def may_go_on(self) -> bool:
        """Whether, now that an answer begins, another may follow it."""
        if self._has_eof:
            self.deadline = math.inf  # write_deadline is the one for what is left
        if self._is_ending or self._has_eof or self._shared.lifecycle.draining:
            return bool(self._waiting)
        if self._is_complete or self._is_reserved:
            return not self._is_reserved
        # The application has answered early. A body that is asked for with 100-continue may never come.
        cycle = self.cycle
        assert cycle is not None
        return (
            self._length is not None
            and self._length - self._received_bytes <= self._settings.max_linger_bytes
            and not cycle.waiting_for_100_continue
        )

    def on_response_complete(self) -> None:
        """The answer is written: the next request, a pause, or the end."""
        self.server_state.total_requests += 1
        self.is_answering = False
        cycle = self.cycle
        if cycle is None or self.transport.is_closing():
            return
        if cycle.is_last or (self._is_ending and not self._waiting):
            self._finish()
            return
        self.flow.resume_reading()
        if not self._is_complete:
            self._due_in(self._settings.linger_seconds)
            return
        self._due_in(self._settings.keep_alive_seconds)
        if self._waiting:
            data, start = self._waiting, self._waiting_from
            self._hold(b"")
            self.data_received(data, start)
        if self._has_eof and not self.is_answering and not self._has_finished:
            self._close()

    def _refuse(self, error: ServiceError) -> None:
        """Answers in the application's place, and ends the connection."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            self.is_answering = False
            cycle.disconnected, cycle.waiting_for_100_continue = True, False
            cycle.message_event.set()
            if cycle.response_started:
                self._tell(error.code, reason=error.message)
                self.transport.abort()  # what has begun can only be cut off
                return
        response = error_response(error)
        request_id = f"{random.getrandbits(128):032x}"
        response.headers["Connection"] = "close"
        response.headers["X-Request-ID"] = request_id
        headers = [*self.server_state.default_headers, *response.raw_headers]
        head = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[error.status] + head + b"\r\n" + bytes(response.body))
        self._tell(error.code, status=error.status, reason=error.message, request_id=request_id)
        self._is_complete = False  # what the client still sends is not known
        self._finish()

    def _tell(self, code: str, **facts: object) -> None:
        metrics.REFUSALS.labels(code).inc()
        if self._settings.log_requests != "none":
            log.info("refused", outcome=code, **facts)

    # Ending.

    def _finish(self) -> None:
        """Closes once the client has read the last answer.

        If a socket is closed while bytes lie unread in it, its connection is reset, and the client may lose the answer.
        """
        self._has_finished = True
        if self._has_eof or (self._is_complete and not self._waiting and not self._has_unread()):
            self._close()
            return
        self._hold(b"")
        self.transport.write_eof()
        self.flow.resume_reading()
        self._due_in(self._settings.linger_seconds)

    def _drop(self, size: int) -> None:
        self._dropped_bytes += size
        if self._dropped_bytes > self._settings.max_linger_bytes:
            self._close()

    def _close(self) -> None:
        """Closes once everything is written, which may take so long and no longer."""
        self.transport.close()
        self._due_in(self._settings.write_timeout_seconds)

    def make_room(self) -> None:
        """Leaves the reserve to a newer connection."""
        self._shared.reserved.pop(self, None)
        if not (self._has_finished or self.transport.is_closing()):
            self._refuse(TooManyConnections("the server has as many connections as it may"))
        self._close()

    def shutdown(self) -> None:
        """Nothing new is accepted any more: closes unless a request has arrived, which is answered first."""
        self._is_ending = True
        if self._has_finished or self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            return
        if self._idle_bytes or self._has_unread():
            self.deadline = min(self.deadline, self.loop.time() + self._settings.linger_seconds)
        else:
            self._close()

    def expire(self) -> None:
        """A deadline has passed."""
        if self.transport.is_closing() or self.write_deadline < self.loop.time():
            self._tell(_CLIENT_GONE)
            self.transport.abort()
        elif self._has_finished and self.write_deadline < math.inf:
            self.deadline = self.write_deadline  # it still reads the answer
        elif self._has_finished or self._has_eof:
            self.transport.abort()
        elif not self._in_head:
            self._tell(BodyTimeout.code)
            self.transport.abort()
        elif self._idle_bytes:
            self._refuse(HeadTimeout(f"the head did not arrive within {self._settings.head_timeout_seconds:g} s"))
        elif self._has_unread():
            self._due_in(self._settings.head_timeout_seconds)
        else:
            self._close()

    def _due_in(self, seconds: float) -> None:
        self.deadline = self.loop.time() + seconds

    def _has_unread(self) -> bool:
        """Whether the kernel holds bytes that the loop has not read yet."""
        count = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.FIONREAD, b"\0" * 4)
        return bool(struct.unpack("i", count)[0])


def http_protocol(settings: Settings, lifecycle: Lifecycle) -> Any:
    """Makes the connections of a server; uvicorn takes it as its option `http`."""
    return partial(Connection, Connections(settings, lifecycle))
