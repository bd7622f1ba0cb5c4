"""HTTP/1.1 connections: uvicorn's, with a limit and a deadline for everything that a client sends or does not read.

A connection handles one request at a time. Data behind the request is neither parsed nor, beyond one buffer, read from
the socket until the request is answered. Errors of the connection itself have the same JSON shape as all others.
"""

import asyncio
import fcntl
import math
import random
import struct
import termios
from functools import partial
from typing import Any

import httptools
import structlog
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from service import metrics
from service.api.middleware import error_response
from service.errors import BodyTimeout, HeadTimeout, ServiceError, TooManyConnections
from service.http.connections import Connections
from service.http.exchange import Exchange
from service.http.reader import RequestReader
from service.lifecycle import Lifecycle
from service.settings import Settings

log = structlog.get_logger()

_HEALTH = "/health/"

# A client that has closed its sending side may still wait for the answer, or may be gone. Nobody can tell which.
HALF_CLOSED_SECONDS = 5.0

_CLIENT_GONE = "client_gone"


class Connection(RequestReader):
    """The connection of a client."""

    cycle: Exchange | None  # type: ignore[assignment]

    def __init__(
        self,
        shared: Connections,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(shared.settings, config, server_state, app_state, _loop)
        self._shared = shared
        self._settings = shared.settings
        self._is_reserved = False

        # When the clock ends the connection. Each phase sets the deadline once; data that arrives does not move it.
        self.deadline = math.inf
        self.write_deadline = math.inf

        self.is_answering = False  # the request has been read, and its response has not been written
        self._waiting, self._waiting_from = b"", 0  # data behind the request
        self._has_eof = False
        self._is_ending = False
        self._has_finished = False
        self._dropped_bytes = 0

    # Callbacks of the transport.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the connection, in the reserve if there are too many."""
        super().connection_made(transport)
        self._due_in(self._settings.head_timeout_seconds)
        self._shared.watch(self.connections, self.loop)
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency:
            self._is_reserved = True
            self._shared.reserve(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells the application that the client is gone."""
        super().connection_lost(exc)
        self._shared.reserved.pop(self, None)
        self._hold(b"")
        self.cycle = None  # breaks a reference cycle

    def eof_received(self) -> bool:  # type: ignore[override]
        """Handles the end of what the client sends. Complete requests are still answered."""
        if self._has_finished or not self.is_answering:
            return False
        self._has_eof = True
        self._due_in(HALF_CLOSED_SECONDS)
        return True

    def pause_writing(self) -> None:
        """Sets a deadline, because the client does not read."""
        super().pause_writing()
        self.write_deadline = self.loop.time() + self._settings.write_timeout_seconds

    def resume_writing(self) -> None:
        """Removes the deadline, because the client has read."""
        super().resume_writing()
        self.write_deadline = math.inf

    def data_received(self, data: bytes, start: int = 0) -> None:
        """Parses the data from `start` on, up to the end of a request that is to be answered first."""
        if self._has_finished:
            self._drop(len(data))
            return
        had_begun, size = self._idle_bytes > 0, len(data)
        try:
            while start < size:
                if self.is_answering:
                    self._keep(data, start)
                    return
                start = self._read(data, start)
        except ServiceError as error:
            self._refuse(error)
        except httptools.HttpParserError as error:
            self._refuse(self._fault_of(error))
        else:
            if self._in_head and self._idle_bytes and not had_begun:
                self._due_in(self._settings.head_timeout_seconds)

    # Data behind the request.

    def _keep(self, data: bytes, start: int) -> None:
        """Keeps data behind the request, and stops reading more. The amount is limited for all connections together."""
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

    # Callbacks of the parser.

    def head_received(self, version: str) -> None:
        """Gives the request to the application."""
        if self._is_reserved:
            self._check_reserve()
        assert not self.is_answering  # otherwise a response would go to the wrong request
        self._begin_body()
        self.cycle = Exchange(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue and version == "1.1",
            keep_alive=version == "1.1" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        self.cycle.may_go_on = self._may_go_on
        self.deadline = self.loop.time() + HALF_CLOSED_SECONDS if self._has_eof else math.inf
        self._start_asgi_task(self.cycle, self.app)

    def _check_reserve(self) -> None:
        limit = self.limit_concurrency
        is_health = self.scope["path"].startswith(_HEALTH) and self.scope["method"] in {"GET", "HEAD"}
        if not is_health and limit is not None and len(self.connections) > limit:
            self._fail(TooManyConnections("the server has reached its maximum number of connections"))

    def on_body(self, body: bytes) -> None:
        """Hands a piece of the body to the application."""
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
        """Tells the application that the request is complete."""
        if self._is_upgrade:
            return
        self._begin_head()
        cycle = self.cycle
        assert cycle is not None
        if cycle.response_complete:  # it was answered early, and its rest has been dropped
            self._due_in(self._settings.keep_alive_seconds)
            return
        if not self.parser.should_keep_alive():  # a trailer may ask for it, too
            if cycle.response_started:
                self._is_ending = True
            else:
                cycle.keep_alive = False
        self.is_answering = True
        cycle.more_body = False
        cycle.message_event.set()

    # Answering.

    def _may_go_on(self) -> bool:
        """Whether another response may follow the one that begins now."""
        if self._has_eof:
            self.deadline = math.inf  # write_deadline applies to the rest
        if self._is_ending or self._has_eof or self._shared.lifecycle.draining:
            return bool(self._waiting)
        if self._is_complete or self._is_reserved:
            return not self._is_reserved
        # The application has answered early. If the client still waits for 100-continue, the body may never come.
        cycle = self.cycle
        assert cycle is not None
        return (
            self._length is not None
            and self._length - self._received_bytes <= self._settings.max_linger_bytes
            and not cycle.waiting_for_100_continue
        )

    def on_response_complete(self) -> None:
        """Goes on with the next request, waits for one, or ends the connection."""
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
        """Answers with an error instead of the application, and ends the connection."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            self.is_answering = False
            cycle.disconnected, cycle.waiting_for_100_continue = True, False
            cycle.message_event.set()
            if cycle.response_started:
                self._record_refusal(error.code, reason=error.message)
                self.transport.abort()  # a response that has begun can only be cut off
                return
        response = error_response(error)
        request_id = f"{random.getrandbits(128):032x}"
        response.headers["Connection"] = "close"
        response.headers["X-Request-ID"] = request_id
        headers = [*self.server_state.default_headers, *response.raw_headers]
        head = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[error.status] + head + b"\r\n" + bytes(response.body))
        self._record_refusal(error.code, status=error.status, reason=error.message, request_id=request_id)
        self._is_complete = False  # the client may still be sending
        self._finish()

    def _record_refusal(self, code: str, **facts: object) -> None:
        metrics.REFUSALS.labels(code).inc()
        if self._settings.log_requests != "none":
            log.info("refused", outcome=code, **facts)

    # Ending.

    def _finish(self) -> None:
        """Closes the connection when the client has read the last response.

        Closing a socket that holds unread data resets the connection, and the client may lose the response.
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
        """Closes the connection when everything is written, within the time limit for writing."""
        self.transport.close()
        self._due_in(self._settings.write_timeout_seconds)

    def make_room(self) -> None:
        """Leaves the reserve, for a newer connection."""
        self._shared.reserved.pop(self, None)
        if not (self._has_finished or self.transport.is_closing()):
            self._refuse(TooManyConnections("the server has reached its maximum number of connections"))
        self._close()

    def shutdown(self) -> None:
        """Closes the connection when the server shuts down, but first answers a request that has arrived."""
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
        """Ends the connection or answers with an error, because a deadline has passed."""
        if self.transport.is_closing() or self.write_deadline < self.loop.time():
            self._record_refusal(_CLIENT_GONE)
            self.transport.abort()
        elif self._has_finished and self.write_deadline < math.inf:
            self.deadline = self.write_deadline  # the client still reads the response
        elif self._has_finished or self._has_eof:
            self.transport.abort()
        elif not self._in_head:
            self._record_refusal(BodyTimeout.code)
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
        """Whether the kernel holds data that has not been read yet."""
        count = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.FIONREAD, b"\0" * 4)
        return bool(struct.unpack("i", count)[0])


def http_protocol(settings: Settings, lifecycle: Lifecycle) -> Any:
    """A factory of connections, for uvicorn's option `http`."""
    return partial(Connection, Connections(settings, lifecycle))
