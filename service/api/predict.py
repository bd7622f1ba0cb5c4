"""POST /predict/{model}: images or numbers in, classes out.

This is a plain Starlette route, because FastAPI spends a good part of a request's time on the event loop on finding the
arguments of the function. The query is validated here, and openapi.py documents the route.
"""

import asyncio
import time
from collections.abc import Awaitable
from typing import Annotated, TypeVar
from urllib.parse import parse_qsl

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from models.artifact.artifact import VersionNumber
from service.api.failures import answer_error
from service.api.middleware import RequestFacts, RequestMiddleware
from service.api.schemas import PredictAnswer
from service.api.state import AppState
from service.errors import ServiceError
from service.inference.servable import Outcome
from service.repository.routing import Label

# Most requests are over by then. Watching every request took a tenth of the event loop's time.
WATCH_AFTER_SECONDS = 0.05

T = TypeVar("T")

VersionOrLabel = Annotated[
    VersionNumber | Label | None,
    Field(
        union_mode="left_to_right",
        description="A version number or label. Default: the live version, or a canary for its share of the requests",
    ),
]


class PredictQuery(BaseModel):
    """The query of a prediction."""

    top_k: int = Field(5, ge=1, le=1000, description="How many classes to return")
    version: VersionOrLabel = None

    @classmethod
    def of(cls, request: Request) -> "PredictQuery":
        """The query of a request. Raises RequestValidationError."""
        if not (query := request.scope["query_string"]):
            return _NO_QUERY
        try:
            return cls.model_validate(dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)))
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from None


_NO_QUERY = PredictQuery()


async def predict(request: Request) -> Response:
    """Classifies an image, several images or rows of numbers."""
    facts, state = RequestFacts.of(request), AppState.of(request)
    registry = state.registry
    name: str = request.path_params["model"]
    query = PredictQuery.of(request)
    facts.model = registry.model(name).name
    facts.version = str(registry.servable(name, query.version).version)  # fails before the body is read
    try:
        async with state.bodies.receive(request) as body:
            items = await state.bodies.items(body, request.headers)
            with registry.lease(name, query.version) as servable:
                facts.version = str(servable.version)
                deadline = time.monotonic() + state.settings.request_timeout_seconds
                outcome = await _unless_gone(request, servable.predict(items, query.top_k, deadline))
                facts.outcome = outcome.worst_code
                answer = PredictAnswer.encoded(servable, outcome)
            if query.version is None:
                registry.mirror(servable, items, outcome)
    except ClientDisconnect:
        facts.outcome = "client_gone"
        return Response(status_code=499)  # nobody reads it
    return Response(answer, media_type="application/json", headers={"Server-Timing": _server_timing(outcome)})


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive, send)
    try:
        response = await predict(request)
    except (ServiceError, RequestValidationError) as error:
        response = await answer_error(request, error)
    await response(scope, receive, send)


route = Route("/predict/{model}", RequestMiddleware(_answer), methods=["POST"])


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Awaits the work, and cancels it when the client hangs up. Raises ClientDisconnect."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    is_gone, watching = False, set[asyncio.Task[None]]()

    async def watch() -> None:
        nonlocal is_gone
        await request.receive()  # the body has been read, so the next message is the disconnect
        is_gone = True
        task.cancel()

    timer = loop.call_later(WATCH_AFTER_SECONDS, lambda: watching.add(loop.create_task(watch())))
    try:
        return await work
    except asyncio.CancelledError:
        if is_gone and task.uncancel() == 0:  # otherwise the server cancelled it as well
            raise ClientDisconnect from None
        raise
    finally:
        timer.cancel()
        for watcher in watching:
            watcher.cancel()


def _server_timing(outcome: Outcome) -> str:
    decode, queue, inference = outcome.decode_seconds, outcome.queue_seconds, outcome.inference_seconds
    return f"decode;dur={decode * 1000:.2f}, queue;dur={queue * 1000:.2f}, inference;dur={inference * 1000:.2f}"
