"""Runs the application under uvicorn, and ends it gracefully.

SIGTERM: readiness says 503 at once, requests are still accepted for the drain delay, what waits is answered, and the
process ends with 0 within the grace period. SIGINT (Ctrl-C) skips the delay; a second signal ends the wait.
"""

import asyncio
import signal
import time
from types import FrameType

import structlog
import uvicorn

from service.app import create_app
from service.lifecycle import Lifecycle
from service.settings import Settings

log = structlog.get_logger()

# A backstop: uvicorn counts idle connections too, and answers 503 in plain text beyond it.
_MAX_CONNECTIONS = 10_000
_KEEP_ALIVE_SECONDS = 75


class Server(uvicorn.Server):
    """uvicorn's server, with signals that drain before they stop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lifecycle = Lifecycle()
        self._stop_at: float | None = None
        super().__init__(
            uvicorn.Config(
                create_app(settings, self._lifecycle),
                host=settings.host,
                port=settings.port,
                loop="uvloop",
                http="httptools",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=max(1, int(settings.grace_seconds - settings.drain_delay_seconds)),
                limit_concurrency=_MAX_CONNECTIONS,
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
        """Begins to drain at the first signal; a second one, or Ctrl-C, does not wait."""
        if self._lifecycle.draining or sig == signal.SIGINT:
            self.force_exit = self.should_exit
            self.should_exit = True
        self._lifecycle.drain()

    async def on_tick(self, counter: int) -> bool:
        """Uvicorn asks ten times a second whether to stop."""
        if self._lifecycle.draining and self._stop_at is None:
            delay = 0.0 if self._lifecycle.device_lost else self._settings.drain_delay_seconds
            self._stop_at = time.monotonic() + delay
            log.info("draining", seconds=delay)
            asyncio.get_running_loop().call_later(self._settings.grace_seconds, self._give_up)
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            self.should_exit = True
        return await super().on_tick(counter)

    def _give_up(self) -> None:
        log.warning("the grace period is over", seconds=self._settings.grace_seconds)
        self.force_exit = self.should_exit = True
