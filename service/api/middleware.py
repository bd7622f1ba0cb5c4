"""Around every request: a request ID, a log line, metrics, and an error response if the application fails."""

import asyncio
import random
import re
import time
from dataclasses import dataclass

import structlog
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import metrics
from service.api.schemas import ErrorAnswer, ErrorBody
from service.api.state import AppState
from service.errors import UNEXPECTED, ServiceError, ShuttingDown
from service.logs import REQUEST_ID

log = structlog.get_logger()

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_QUIET = ("/health/", "/metrics")


@dataclass
class RequestFacts:
    """Facts about a request, set by its route and the error handler, for the log and the metrics."""

    is_prediction: bool
    model: str = metrics.NO_MODEL
    version: str = metrics.NO_MODEL
    outcome: str = "ok"

    @staticmethod
    def of(request: Request) -> "RequestFacts":
        """The facts of a request."""
        facts: RequestFacts = request.scope["facts"]
        return facts


def error_response(error: ServiceError) -> Response:
    """The JSON response for an error."""
    body = ErrorAnswer(error=ErrorBody.of(error)).model_dump_json()
    return Response(body, error.status, dict(error.headers), media_type="application/json")


class RequestMiddleware:
    """Wraps an application."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request; other scopes pass through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        # The ID is no secret. The system's random numbers would take a call that releases the GIL.
        request_id = given if _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
        facts = scope["facts"] = RequestFacts(scope["method"] == "POST" and scope["path"].startswith("/predict/"))
        started, status = time.monotonic(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        token = REQUEST_ID.set(request_id)
        try:
            await self.app(scope, receive, send_with_id)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, Exception):
                log.exception("internal error")
                failure = ServiceError(UNEXPECTED)
            else:  # the grace period is over
                failure = ShuttingDown("the server stopped before the answer was ready")
            facts.outcome = failure.code
            if status:  # the response has begun, so it can only be cut off
                raise
            await error_response(failure)(scope, receive, send_with_id)
        finally:
            _record(scope, facts, status, time.monotonic() - started)
            REQUEST_ID.reset(token)


def _record(scope: Scope, facts: RequestFacts, status: int, seconds: float) -> None:
    if facts.is_prediction:
        metrics.count_request(facts.model, facts.version, facts.outcome, seconds)
    wanted = AppState.in_scope(scope).settings.log_requests
    if wanted == "none" or (wanted == "failed" and facts.outcome == "ok"):
        return
    # Still percent-encoded, so that a client cannot forge a line.
    path = scope.get("raw_path", b"").decode("ascii", "replace")
    write = log.debug if path.startswith(_QUIET) else log.info
    known = {"model": facts.model, "version": facts.version} if facts.is_prediction else {}
    write(
        "request",
        method=scope["method"],
        path=path,
        status=status,
        outcome=facts.outcome,
        milliseconds=round(seconds * 1000, 2),
        **known,
    )
