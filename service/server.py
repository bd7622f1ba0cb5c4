"""Runs the application under uvicorn, and shuts it down gracefully.

After SIGTERM, readiness answers 503 at once, and requests are still accepted during the drain delay. Then the server
stops accepting connections, answers every request that has been sent, and exits with 0. SIGINT (Ctrl-C) skips the
delay. A second signal, or the end of the grace period, ends the process whatever it is doing.
"""

import asyncio
import os
import signal
import socket
import threading
import time
from types import FrameType
from typing import Any

import structlog
import uvicorn

from service.app import create_app
from service.http.descriptors import connection_limit, raise_limit
from service.http.gate import Gate
from service.http.listener import Listener, ListenError
from service.http.protocol import http_protocol
from service.lifecycle import Lifecycle
from service.settings import Settings

log = structlog.get_logger()

IMPATIENT_SECONDS = 2.0
# How long an idle connection is kept open at the end: its client may be about to send a request.
LINGER_SECONDS = 1.0
IMPATIENT_LINGER_SECONDS = 0.1

EXIT_FORCED = 1
EXIT_NOT_STARTED = 3  # as uvicorn's


def uvicorn_options(settings: Settings, lifecycle: Lifecycle | None = None) -> dict[str, Any]:
    """The options of uvicorn, for any application."""
    return {
        "host": settings.host,
        "port": settings.port,
        "loop": "uvloop",
        "http": http_protocol(settings, lifecycle or Lifecycle()),
        "ws": "none",
        "log_config": None,
        "access_log": False,
        "proxy_headers": False,  # the address of a client is used nowhere
        "server_header": False,
        # Requests that still wait then get an error, a second before the process is ended in any case.
        "timeout_graceful_shutdown": max(1, int(settings.grace_seconds - settings.drain_delay_seconds) - 1),
        "limit_concurrency": settings.max_connections,
    }


class Server(uvicorn.Server):
    """uvicorn's server with its own listener. The first signal drains, the second one stops."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lifecycle = Lifecycle()
        self._listener: Listener
        self._stop_at: float | None = None
        self._is_patient = True
        app = Gate(create_app(settings, self._lifecycle))
        super().__init__(uvicorn.Config(app, lifespan="on", **uvicorn_options(settings, self._lifecycle)))

    def serve_until_stopped(self) -> int:
        """Blocks until the process should end. Returns the exit code."""
        raise_limit()
        self.config.limit_concurrency = connection_limit(self._settings.max_connections)
        try:
            self._listener = Listener.on(self._settings.host, self._settings.port)
        except ListenError as error:
            log.error("cannot listen", reason=error.message, cure=error.cure)
            return EXIT_NOT_STARTED
        self.run()
        return self._lifecycle.exit_code if self.started else EXIT_NOT_STARTED

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts the application, then accepts connections."""
        assert sockets is None
        await super().startup(sockets=[])  # uvicorn itself must not listen
        self._listener.start(self._connect)
        for url in self._listener.urls:
            log.info("listening", url=url, repository=str(self._settings.repository))

    def _connect(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers the requests that have been sent, and closes the connections."""
        patient = self._is_patient and not (self.force_exit or self._lifecycle.device_lost)
        grace = self.config.timeout_graceful_shutdown or 0
        until = time.monotonic() + grace
        await self._listener.close(patient=patient)
        await self._linger(min(LINGER_SECONDS, grace / 4) if patient else IMPATIENT_LINGER_SECONDS)
        left = max(0.1, until - time.monotonic())
        self.config.timeout_graceful_shutdown = left  # type: ignore[assignment]  # fractions of a second work, too
        await super().shutdown(sockets)

    async def _linger(self, seconds: float) -> None:
        """Waits until every open connection has a request that is being answered, or until the time is over."""
        until = time.monotonic() + seconds
        connections = self.server_state.connections
        while time.monotonic() < until and not self.force_exit and any(map(_is_idle, connections)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Drains at the first signal, and stops at the second one."""
        if self._lifecycle.draining:
            self._end_within(IMPATIENT_SECONDS)
            self.force_exit = self.should_exit = True
        self._lifecycle.drain()
        self._is_patient = sig != signal.SIGINT

    async def on_tick(self, counter: int) -> bool:
        """Decides whether to stop; uvicorn calls it ten times a second."""
        if self._lifecycle.draining and self._stop_at is None:
            wait = self._is_patient and not self._lifecycle.device_lost
            delay = self._settings.drain_delay_seconds if wait else 0.0
            log.info("draining", seconds=delay)
            self._stop_at = time.monotonic() + delay
            self._end_within(self._settings.grace_seconds)
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            self.should_exit = True
        return await super().on_tick(counter)

    def _end_within(self, seconds: float) -> None:
        """Ends the process after that time unless it has ended by itself. An engine call or a load may never return."""

        def end() -> None:
            log.warning("ended before every request was answered", after_seconds=seconds)
            os._exit(self._lifecycle.exit_code or EXIT_FORCED)

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()


def _is_idle(connection: Any) -> bool:
    """Whether the connection is open and has no request that is being answered."""
    is_answering = connection.cycle is not None and not connection.cycle.response_complete
    return not (is_answering or connection.transport.is_closing())
