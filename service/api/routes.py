"""/predict /models /health /metrics: HTTP and nothing else."""

import asyncio
import time
from collections.abc import Awaitable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request, Response
from starlette.requests import ClientDisconnect

from models.artifact.artifact import VersionNumber
from service import metrics
from service.api.body import BodyReader
from service.api.middleware import RequestFacts
from service.api.schemas import (
    LabelsAnswer,
    LiveAnswer,
    ModelBody,
    ModelsAnswer,
    PredictAnswer,
    ReadyAnswer,
    errors,
)
from service.inference.servable import Outcome
from service.lifecycle import Lifecycle
from service.repository.routing import Label
from service.settings import Settings
from service.versions.registry import Registry

STUCK_SECONDS = 120.0  # an engine call this long is no call any more
WATCH_AFTER_SECONDS = 0.05  # most requests are over by then; to watch them all took a tenth of the loop's time

T = TypeVar("T")

_TEXT = {"type": "string"}
_PICTURE = {"schema": {"type": "string", "format": "binary"}}
_BODIES = {
    "image/jpeg": _PICTURE,
    "image/png": _PICTURE,
    "image/webp": _PICTURE,
    "image/bmp": _PICTURE,
    "image/gif": _PICTURE,
    "application/octet-stream": _PICTURE,
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
        }
    },
    "application/json": {
        "schema": {"type": "object", "required": ["instances"], "properties": {"instances": {"type": "array"}}},
        "examples": {
            "numbers": {"value": {"instances": [[5.1, 3.5, 1.4, 0.2]]}},
            "images": {"value": {"instances": [{"b64": "/9j/4AAQSkZJRg..."}]}},
        },
    },
}
_NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": ReadyAnswer}}

VersionQuery = Annotated[
    VersionNumber | Label | None,
    Query(union_mode="left_to_right", description="A version or its label. Default: the live one, or a canary's turn"),
]

router = APIRouter()


@router.post(
    "/predict/{model}",
    response_model=PredictAnswer,
    response_model_exclude_none=True,
    responses=errors(400, 404, 408, 413, 415, 422, 429, 500, 503, 504),
    openapi_extra={"requestBody": {"required": True, "content": _BODIES}},
)
async def predict(
    request: Request,
    model: str,
    top_k: Annotated[int, Query(ge=1, le=1000, description="How many classes to answer with")] = 5,
    version: VersionQuery = None,
) -> Response:
    """Says what is on an image, on each of several, or in rows of numbers."""
    facts = RequestFacts.of(request)
    registry: Registry = request.state.registry
    settings: Settings = request.state.settings
    bodies: BodyReader = request.state.bodies
    facts.model = registry.model(model).name
    facts.version = str(registry.servable(model, version).version)  # before the body is read
    try:
        async with bodies.receive(request) as body:
            items = await bodies.items(body, request.headers)
            with registry.lease(model, version) as servable:
                facts.version = str(servable.version)
                deadline = time.monotonic() + settings.request_timeout_seconds
                outcome = await _unless_gone(request, servable.predict(items, top_k, deadline))
                facts.outcome = outcome.worst_code
                answer = PredictAnswer.encoded(servable, outcome)
            if version is None:
                registry.mirror(servable, items, outcome)
    except ClientDisconnect:
        facts.outcome = "client_gone"
        return Response(status_code=499)  # nobody reads it
    return Response(
        answer,
        media_type="application/json",
        headers={"Server-Timing": _server_timing(outcome)},
    )


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Awaits the work, and cancels it when the client hangs up. Raises ClientDisconnect."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    is_gone, watching = False, set[asyncio.Task[None]]()

    async def watch() -> None:
        nonlocal is_gone
        await request.receive()  # the body is read: the next message is the disconnect
        is_gone = True
        task.cancel()

    timer = loop.call_later(WATCH_AFTER_SECONDS, lambda: watching.add(loop.create_task(watch())))
    try:
        return await work
    except asyncio.CancelledError:
        if is_gone and task.uncancel() == 0:  # else the server cancelled it as well
            raise ClientDisconnect from None
        raise
    finally:
        timer.cancel()
        for watcher in watching:
            watcher.cancel()


def _server_timing(outcome: Outcome) -> str:
    parts = {
        "decode": outcome.decode_seconds,
        "queue": outcome.queue_seconds,
        "inference": outcome.inference_seconds,
    }
    return ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in parts.items())


@router.get("/models")
async def list_models(request: Request) -> ModelsAnswer:
    """Every model, with its versions, their states and their parity figures."""
    registry: Registry = request.state.registry
    return ModelsAnswer(models=[ModelBody.of(model) for model in registry.models()])


@router.get("/models/{model}", responses=errors(404, 422))
async def show_model(request: Request, model: str) -> ModelBody:
    """One model, with its versions, their states and their parity figures."""
    registry: Registry = request.state.registry
    return ModelBody.of(registry.model(model))


@router.get("/models/{model}/labels", responses=errors(404, 422, 503))
async def show_labels(request: Request, model: str, version: VersionQuery = None) -> LabelsAnswer:
    """The labels of a version, in class order."""
    registry: Registry = request.state.registry
    servable = registry.servable(model, version)
    return LabelsAnswer(model=servable.name, version=servable.version, labels=servable.manifest.spec.labels)


@router.get("/models/{model}/ready", responses=errors(404, 422) | _NOT_READY)
async def model_ready(request: Request, response: Response, model: str) -> ReadyAnswer:
    """Whether the model answers."""
    registry: Registry = request.state.registry
    found = registry.model(model)
    if not found.is_ready:
        response.status_code = 503
    return ReadyAnswer(ready=found.is_ready, reasons={} if found.is_ready else {found.name: found.why_unready})


@router.get("/health/live", responses={503: {"model": LiveAnswer}})
async def live(request: Request, response: Response) -> LiveAnswer:
    """Whether the process is up: the event loop turns, and no engine call is stuck."""
    registry: Registry = request.state.registry
    is_live = registry.stuck_seconds() < STUCK_SECONDS
    if not is_live:
        response.status_code = 503
    return LiveAnswer(live=is_live)


@router.get("/health/ready", responses=_NOT_READY)
async def ready(request: Request, response: Response) -> ReadyAnswer:
    """Whether the models that are to serve do, and the process is not about to end.

    200 when every model that MENAGERIE_MODELS names answers, or, where it names none, when a model answers and all
    that lay in the repository at the start has been loaded or refused. A model that came later, or that could not be
    loaded, keeps no other from serving.
    """
    registry: Registry = request.state.registry
    lifecycle: Lifecycle = request.state.lifecycle
    reasons = {"server": "it is stopping"} if lifecycle.draining else registry.unready()
    if reasons:
        response.status_code = 503
    return ReadyAnswer(ready=not reasons, reasons=reasons)


@router.get(
    "/metrics", response_class=Response, responses={200: {"content": {metrics.CONTENT_TYPE_LATEST: {"schema": _TEXT}}}}
)
def show_metrics() -> Response:
    """Every metric, in Prometheus's text format."""
    return Response(metrics.generate_latest(), headers={"Content-Type": metrics.CONTENT_TYPE_LATEST})
