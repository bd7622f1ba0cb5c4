"""GET /models, /health and /metrics."""

from typing import Any

from fastapi import APIRouter, Request, Response

from service import metrics
from service.api.predict import VersionOrLabel
from service.api.schemas import LabelsAnswer, LiveAnswer, ModelBody, ModelsAnswer, ReadyAnswer, errors
from service.api.state import AppState

STUCK_SECONDS = 120.0  # an engine call that takes so long will never return

_TEXT = {"type": "string"}
_NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": ReadyAnswer}}

router = APIRouter()


@router.get("/models")
async def list_models(request: Request) -> ModelsAnswer:
    """Lists every model with its versions, their states and their parity figures."""
    registry = AppState.of(request).registry
    return ModelsAnswer(models=[ModelBody.of(model) for model in registry.models()])


@router.get("/models/{model}", responses=errors(404, 422))
async def show_model(request: Request, model: str) -> ModelBody:
    """Shows a model with its versions, their states and their parity figures."""
    registry = AppState.of(request).registry
    return ModelBody.of(registry.model(model))


@router.get("/models/{model}/labels", responses=errors(404, 422, 503))
async def show_labels(request: Request, model: str, version: VersionOrLabel = None) -> LabelsAnswer:
    """Lists the labels of a version in class order."""
    registry = AppState.of(request).registry
    servable = registry.servable(model, version)
    return LabelsAnswer(model=servable.name, version=servable.version, labels=servable.manifest.spec.labels)


@router.get("/models/{model}/ready", responses=errors(404, 422) | _NOT_READY)
async def model_ready(request: Request, response: Response, model: str) -> ReadyAnswer:
    """Whether the model can answer requests."""
    registry = AppState.of(request).registry
    found = registry.model(model)
    if not found.is_ready:
        response.status_code = 503
    return ReadyAnswer(ready=found.is_ready, reasons={} if found.is_ready else {found.name: found.why_unready})


@router.get("/health/live", responses={503: {"model": LiveAnswer}})
async def live(request: Request, response: Response) -> LiveAnswer:
    """Whether the process is alive: the event loop responds, and no engine call is stuck."""
    registry = AppState.of(request).registry
    is_live = registry.stuck_seconds() < STUCK_SECONDS
    if not is_live:
        response.status_code = 503
    return LiveAnswer(live=is_live)


@router.get("/health/ready", responses=_NOT_READY)
async def ready(request: Request, response: Response) -> ReadyAnswer:
    """Whether the server can answer requests and is not shutting down.

    If MENAGERIE_MODELS names models, all of them must be ready. Otherwise, at least one model must be ready, and every
    model that was in the repository at start-up must have been loaded or refused. A model that was added later or
    could not be loaded does not make the server unready.
    """
    state = AppState.of(request)
    reasons = {"server": "it is stopping"} if state.lifecycle.draining else state.registry.unready()
    if reasons:
        response.status_code = 503
    return ReadyAnswer(ready=not reasons, reasons=reasons)


@router.get(
    "/metrics", response_class=Response, responses={200: {"content": {metrics.CONTENT_TYPE_LATEST: {"schema": _TEXT}}}}
)
def show_metrics() -> Response:
    """All metrics in the Prometheus text format."""
    return Response(metrics.generate_latest(), headers={"Content-Type": metrics.CONTENT_TYPE_LATEST})
