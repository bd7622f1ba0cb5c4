"""Lets requests into the application a few a turn of the event loop, so that no turn is long.

A new connection takes three turns to its answer. If the requests of a thousand clients all ran in one turn, it would
wait for three thousand answers.
"""

import asyncio
from collections import deque

from starlette.types import ASGIApp, Receive, Scope, Send

REQUESTS_IN_A_TURN = 64  # some 10 ms
PROBES = "/health/"


class Gate:
    """Stands before the application. Requests pass in their order; health checks have a lane of their own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._requests, self._probes = _Lane(REQUESTS_IN_A_TURN), _Lane(REQUESTS_IN_A_TURN)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; what is no request passes at once."""
        if scope["type"] == "http":
            lane = self._probes if scope["path"].startswith(PROBES) else self._requests
            if not lane.is_open():
                await lane.wait()
        await self._app(scope, receive, send)


class _Lane:
    """So many enter in one turn of the loop, the others in the next ones, in their order."""

    def __init__(self, width: int) -> None:
        self._width = self._left = width
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_counting = False

    def is_open(self) -> bool:
        """Whether the caller enters now; else it has to wait."""
        if not self._is_counting:
            self._is_counting = True
            asyncio.get_running_loop().call_soon(self._turn)
        if not self._left:
            return False
        self._left -= 1
        return True

    async def wait(self) -> None:
        """Returns when it is the caller's turn. Whoever is cancelled meanwhile enters, and is cancelled within."""
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()  # again, at the application's first wait: the application knows how to tell the client

    def _turn(self) -> None:
        """A new turn of the loop has begun."""
        self._left = self._width
        while self._waiting and self._left:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                self._left -= 1
        self._is_counting = self._left < self._width
        if self._is_counting:
            asyncio.get_running_loop().call_soon(self._turn)
