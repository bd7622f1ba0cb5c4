"""Limits how many requests enter the application in one iteration of the event loop.

The response to a new connection takes three iterations. If the requests of a thousand clients ran in each of them, the
new connection would wait for three thousand responses.
"""

import asyncio
from collections import deque

from starlette.types import ASGIApp, Receive, Scope, Send

REQUESTS_PER_ITERATION = 64  # some 10 ms
PROBES = "/health/"


class Gate:
    """Stands before the application. Requests enter in order; health checks have their own lane."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._requests, self._probes = _Lane(REQUESTS_PER_ITERATION), _Lane(REQUESTS_PER_ITERATION)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request; other scopes pass at once."""
        if scope["type"] == "http":
            lane = self._probes if scope["path"].startswith(PROBES) else self._requests
            if not lane.is_open():
                await lane.wait()
        await self._app(scope, receive, send)


class _Lane:
    """Admits `width` callers in each iteration of the loop, in order."""

    def __init__(self, width: int) -> None:
        self._width = self._left = width
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_counting = False

    def is_open(self) -> bool:
        """Whether the caller may enter now; if so, it counts as entered. Otherwise it must wait."""
        if not self._is_counting:
            self._is_counting = True
            asyncio.get_running_loop().call_soon(self._next_iteration)
        if not self._left:
            return False
        self._left -= 1
        return True

    async def wait(self) -> None:
        """Returns when the caller may enter. A caller that is cancelled meanwhile enters, and is cancelled inside."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()  # at the first await of the application, which knows how to answer the client

    def _next_iteration(self) -> None:
        """Admits callers at the start of an iteration."""
        self._left = self._width
        while self._waiting and self._left:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._left -= 1
        self._is_counting = self._left < self._width
        if self._is_counting:
            asyncio.get_running_loop().call_soon(self._next_iteration)
