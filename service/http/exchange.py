"""A request and its response on a connection."""

from collections.abc import Callable, Coroutine
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.api.middleware import error_response
from service.errors import UNEXPECTED, ServiceError


class Exchange(RequestResponseCycle):
    """uvicorn's cycle of a request and its response, which knows whether it is the last one on its connection."""

    may_go_on: Callable[[], bool]
    """Asks the connection, when a response begins, whether another one may follow it."""
    is_last = False

    def send(self, message: Any) -> Coroutine[Any, Any, None]:
        """Sends a message as uvicorn does, but leaves it to the connection what follows the response."""
        if self.response_started:
            if not self.keep_alive:
                self.is_last = self.keep_alive = True  # the header has been sent; uvicorn would close at once
        elif not self.disconnected:
            self.keep_alive = self.keep_alive and self.may_go_on()
        return RequestResponseCycle.send(self, message)

    async def send_500_response(self) -> None:
        """Answers for an application that failed before it responded."""
        response = error_response(ServiceError(UNEXPECTED))
        response.headers["Connection"] = "close"
        await response(self.scope, self.receive, self.send)  # type: ignore[arg-type]
