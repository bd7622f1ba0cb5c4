"""What every request gets: an id, a line in the log, its place in the metrics, and an answer if all else fails."""

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
from service.errors import ServiceError, ShuttingDown
from service.logs import REQUEST_ID

log = structlog.get_logger()

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_QUIET = ("/health/", "/metrics")


@dataclass
class RequestFacts:
    """What a route and the error handler tell of a request."""

    is_prediction: bool
    model: str = metrics.NO_MODEL
    version: str = metrics.NO_MODEL
    outcome: str = "ok"

    @staticmethod
    def of(request: Request) -> "RequestFacts":
        """The facts of a request under way."""
        facts: RequestFacts = request.scope["facts"]
        return facts


def error_response(error: ServiceError) -> Response:
    """An error in its one JSON shape."""
    body = ErrorAnswer(error=ErrorBody.of(error)).model_dump_json()
    return Response(body, error.status, dict(error.headers), media_type="application/json")


class RequestMiddleware:
    """Stands around the whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; what is no request passes through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        # Nobody's secret; the system's randomness would cost a call that lets go of the GIL.
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
                told = ServiceError("the server failed unexpectedly")
            else:  # the grace period is over
                told = ShuttingDown("the server stopped before the answer was ready")
            facts.outcome = told.code
            if status:  # the answer has begun: it can only be cut off
                raise
            await error_response(told)(scope, receive, send_with_id)
        finally:
            _tell(scope, facts, status, time.monotonic() - started)
            REQUEST_ID.reset(token)


def _tell(scope: Scope, facts: RequestFacts, status: int, seconds: float) -> None:
    if facts.is_prediction:
        metrics.count_request(facts.model, facts.version, facts.outcome, seconds)
    wanted = AppState.in_scope(scope).settings.log_requests
    if wanted == "none" or (wanted == "failed" and facts.outcome == "ok"):
        return
    path = scope.get("raw_path", b"").decode("ascii", "replace")  # still percent-encoded: no line can be forged
    tell = log.debug if path.startswith(_QUIET) else log.info
    known = {"model": facts.model, "version": facts.version} if facts.is_prediction else {}
    tell(
        "request",
        method=scope["method"],
        path=path,
        status=status,
        outcome=facts.outcome,
        milliseconds=round(seconds * 1000, 2),
        **known,
    )
