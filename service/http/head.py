"""HEAD: GET without the body (RFC 9110, 9.3.2). Health checkers and load balancers send it."""

from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadMiddleware:
    """Answers HEAD on every GET route with the status and headers of GET."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a HEAD request; all others pass through."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] != "http.response.body":
                await send(message)
                return
            await send({"type": "http.response.body"})
            if message.get("more_body", False):
                raise _Answered  # do not wait for the rest of a stream, such as the progress of a load

        with suppress(_Answered):
            await self.app({**scope, "method": "GET"}, receive, send_head)


class _Answered(Exception):
    """Ends the GET: everything that HEAD needs has been sent."""
