"""/models /health /metrics: HTTP and nothing else."""

from typing import Any

from fastapi import APIRouter, Request, Response

from service import metrics
from service.api.predict import VersionOrLabel
from service.api.schemas import LabelsAnswer, LiveAnswer, ModelBody, ModelsAnswer, ReadyAnswer, errors
from service.api.state import AppState

STUCK_SECONDS = 120.0  # an engine call this long is no call any more

_TEXT = {"type": "string"}
_NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": ReadyAnswer}}

router = APIRouter()


@router.get("/models")
async def list_models(request: Request) -> ModelsAnswer:
    """Every model, with its versions, their states and their parity figures."""
    registry = AppState.of(request).registry
    return ModelsAnswer(models=[ModelBody.of(model) for model in registry.models()])


@router.get("/models/{model}", responses=errors(404, 422))
async def show_model(request: Request, model: str) -> ModelBody:
    """One model, with its versions, their states and their parity figures."""
    registry = AppState.of(request).registry
    return ModelBody.of(registry.model(model))


@router.get("/models/{model}/labels", responses=errors(404, 422, 503))
async def show_labels(request: Request, model: str, version: VersionOrLabel = None) -> LabelsAnswer:
    """The labels of a version, in class order."""
    registry = AppState.of(request).registry
    servable = registry.servable(model, version)
    return LabelsAnswer(model=servable.name, version=servable.version, labels=servable.manifest.spec.labels)


@router.get("/models/{model}/ready", responses=errors(404, 422) | _NOT_READY)
async def model_ready(request: Request, response: Response, model: str) -> ReadyAnswer:
    """Whether the model answers."""
    registry = AppState.of(request).registry
    found = registry.model(model)
    if not found.is_ready:
        response.status_code = 503
    return ReadyAnswer(ready=found.is_ready, reasons={} if found.is_ready else {found.name: found.why_unready})


@router.get("/health/live", responses={503: {"model": LiveAnswer}})
async def live(request: Request, response: Response) -> LiveAnswer:
    """Whether the process is up: the event loop turns, and no engine call is stuck."""
    registry = AppState.of(request).registry
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
    state = AppState.of(request)
    reasons = {"server": "it is stopping"} if state.lifecycle.draining else state.registry.unready()
    if reasons:
        response.status_code = 503
    return ReadyAnswer(ready=not reasons, reasons=reasons)


@router.get(
    "/metrics", response_class=Response, responses={200: {"content": {metrics.CONTENT_TYPE_LATEST: {"schema": _TEXT}}}}
)
def show_metrics() -> Response:
    """Every metric, in Prometheus's text format."""
    return Response(metrics.generate_latest(), headers={"Content-Type": metrics.CONTENT_TYPE_LATEST})
