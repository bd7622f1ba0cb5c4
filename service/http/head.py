"""HEAD, as GET without its body (RFC 9110, 9.3.2): health checkers and load balancers send it."""

from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadMiddleware:
    """Answers HEAD on every route that takes GET, with its status and headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; all but HEAD pass through."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] != "http.response.body":
                await send(message)
                return
            await send({"type": "http.response.body"})
            if message.get("more_body", False):
                raise _Answered  # a stream, such as a load's progress, need not be waited for

        with suppress(_Answered):
            await self.app({**scope, "method": "GET"}, receive, send_head)


class _Answered(Exception):
    """All that HEAD asks for has been sent."""
