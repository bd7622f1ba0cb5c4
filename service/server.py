"""Runs the application under uvicorn, and ends it gracefully.

SIGTERM: readiness says 503 at once, requests are still accepted for the drain delay, what waits is answered, and the
process ends with 0. SIGINT (Ctrl-C) skips the delay; a second signal, or the end of the grace period, ends the process
whatever it is doing.
"""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import structlog
import uvicorn

from service.app import create_app
from service.lifecycle import Lifecycle
from service.protocol import http_protocol
from service.settings import Settings

log = structlog.get_logger()

IMPATIENT_SECONDS = 2.0
EXIT_FORCED = 1


def uvicorn_options(settings: Settings, lifecycle: Lifecycle | None = None) -> dict[str, Any]:
    """How uvicorn serves, whatever the application."""
    return {
        "host": settings.host,
        "port": settings.port,
        "loop": "uvloop",
        "http": http_protocol(settings, lifecycle or Lifecycle()),
        "ws": "none",
        "log_config": None,
        "access_log": False,
        "proxy_headers": False,  # nobody asks where a request came from
        "server_header": False,
        # What still waits then is told so, a second before the process ends in any case.
        "timeout_graceful_shutdown": max(1, int(settings.grace_seconds - settings.drain_delay_seconds) - 1),
        "limit_concurrency": settings.max_connections,
    }


class Server(uvicorn.Server):
    """uvicorn's server, with signals that drain before they stop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lifecycle = Lifecycle()
        self._stop_at: float | None = None
        self._is_patient = True
        super().__init__(
            uvicorn.Config(
                create_app(settings, self._lifecycle), lifespan="on", **uvicorn_options(settings, self._lifecycle)
            )
        )

    def serve_until_stopped(self) -> int:
        """Blocks until the process is to end; returns its exit code."""
        self.run()
        if not self.started:
            return 1
        return self._lifecycle.exit_code

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Says where it listens, once it does."""
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.started:
            for server in self.servers:
                for socket in server.sockets:
                    host, port = socket.getsockname()[:2]
                    log.info("listening", url=f"http://{host}:{port}", repository=str(self._settings.repository))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begins to drain at the first signal; a second one does not wait."""
        if self._lifecycle.draining:
            self._end_within(IMPATIENT_SECONDS)
            self.force_exit = self.should_exit = True
        self._lifecycle.drain()
        self._is_patient = sig != signal.SIGINT

    async def on_tick(self, counter: int) -> bool:
        """Uvicorn asks ten times a second whether to stop."""
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
        """Ends the process then, if it has not ended by itself: an engine call or a load may never return."""

        def end() -> None:
            log.warning("ended before everything was answered", after_seconds=seconds)
            os._exit(self._lifecycle.exit_code or EXIT_FORCED)

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
