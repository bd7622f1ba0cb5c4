"""The admin API, under /admin. It exists only if MENAGERIE_ADMIN_TOKEN is set."""

import hmac
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import Field
from starlette.requests import ClientDisconnect

from models.artifact.toml_file import MAX_BYTES
from models.artifact.versions import MAX_VERSION
from service.api.body import declared_bytes
from service.api.schemas import ModelBody, UploadAnswer, VersionBody, errors
from service.api.state import AppState
from service.errors import BadRequest, BodyTooLarge, Unauthorized
from service.repository.routing import LABEL, SHADOW_PERCENT
from service.versions.operations import Operations

TAR = "application/x-tar"
_LINES = "application/x-ndjson"
_BYTES = {"schema": {"type": "string", "format": "binary"}}

bearer = HTTPBearer(auto_error=False, description="The value of MENAGERIE_ADMIN_TOKEN")


def authorize(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)] = None
) -> None:
    """Raises Unauthorized unless the right token was sent. The comparison takes constant time."""
    token = AppState.of(request).settings.admin_token
    assert token is not None
    given = credentials.credentials if credentials else ""
    if not hmac.compare_digest(given.encode(), token.get_secret_value().encode()):
        raise Unauthorized("the token is missing or wrong")


router = APIRouter(
    prefix="/admin/models/{model}",
    tags=["admin"],
    dependencies=[Depends(authorize)],
    responses=errors(401, 404, 409, 422, 507),
)

Version = Annotated[int, Path(ge=1, le=MAX_VERSION)]
Label = Annotated[str, Path(pattern=f"^{LABEL}$")]
Percent = Annotated[float, Query(ge=0, le=100)]
UnloadFirst = Annotated[
    bool, Query(description="If memory cannot hold both versions, unload the live version before loading the new one")
]


def _operations(request: Request) -> Operations:
    return AppState.of(request).operations


def _model(request: Request, model: str) -> ModelBody:
    return ModelBody.of(AppState.of(request).registry.model(model))


@router.put(
    "",
    responses=errors(400, 408, 413, 429),
    openapi_extra={"requestBody": {"required": True, "content": {"application/toml": {"schema": {"type": "string"}}}}},
)
async def define_model(request: Request, model: str) -> ModelBody:
    """Creates a model, or replaces its model.toml. The body is the content of model.toml."""
    async with AppState.of(request).bodies.receive(request) as body:
        if len(body) > MAX_BYTES:
            raise BodyTooLarge(f"model.toml has more than {MAX_BYTES} bytes", cure="put the labels into labels.txt")
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise BadRequest("the body is not UTF-8", cure="send a model.toml: curl -T model.toml URL") from error
        await _operations(request).define(model, body)
    return _model(request, model)


@router.post(
    "/versions",
    status_code=201,
    responses=errors(400, 408, 413),
    openapi_extra={
        "requestBody": {"required": True, "content": dict.fromkeys(("application/octet-stream", TAR), _BYTES)}
    },
)
async def upload_version(
    request: Request,
    model: str,
    *,
    filename: Annotated[
        str, Query(pattern=r"^weights(\.[a-z0-9]{1,16}){0,2}$", description="Name for the weights file")
    ] = "weights",
    sha256: Annotated[
        str | None,
        Query(pattern="^[0-9a-fA-F]{64}$", description="Expected SHA-256 of the body; other content is refused"),
    ] = None,
    version: Annotated[
        int | None, Query(ge=1, le=MAX_VERSION, description="Version number. Default: the next free number")
    ] = None,
    live: Annotated[bool, Query(description="false stores the version and keeps the current version live")] = True,
) -> UploadAnswer:
    """Publishes a version: a weights file, or a tar of the version's directory (application/x-tar).

    The server then loads it like any new version in the repository; `progress` follows the load.
    """
    state = AppState.of(request)
    operations, name = state.operations, state.registry.model(model).name
    is_archive = request.headers.get("content-type", "").partition(";")[0].strip().lower() == TAR
    try:
        receiving = operations.publisher.receive(
            request.stream(),
            filename=filename,
            is_archive=is_archive,
            sha256=sha256,
            declared_bytes=declared_bytes(request),
        )
        async with receiving as (staged, upload):
            if not live:
                await operations.pin(name)
            number = await operations.publish(staged, name, version)
    except ClientDisconnect:
        raise BadRequest("the upload ended early") from None  # for the log: the client is gone
    return UploadAnswer(model=name, version=number, bytes=upload.bytes, sha256=upload.sha256)


@router.delete("/versions/{version}")
async def delete_version(request: Request, model: str, version: Version) -> ModelBody:
    """Deletes a version from the repository, unless it is live or has a label."""
    await _operations(request).delete(model, version)
    return _model(request, model)


@router.post("/versions/{version}/load")
async def load_version(
    request: Request, model: str, version: Version, *, unload_first: UnloadFirst = False
) -> VersionBody:
    """Loads a version beside the live one, and responds when it is ready. Requests for one version share its load."""
    return VersionBody.of(await _operations(request).load(model, version, unload_first=unload_first))


@router.post("/versions/{version}/cancel")
async def cancel_load(request: Request, model: str, version: Version) -> ModelBody:
    """Cancels the load of a version, including its conversion."""
    await _operations(request).cancel(model, version)
    return _model(request, model)


@router.post("/versions/{version}/unload")
async def unload_version(request: Request, model: str, version: Version) -> ModelBody:
    """Unloads a version after its last requests, unless it is live or has a label."""
    await _operations(request).unload(model, version)
    return _model(request, model)


@router.post("/versions/{version}/activate")
async def activate_version(
    request: Request, model: str, version: Version, *, unload_first: UnloadFirst = False
) -> VersionBody:
    """Makes a version live, and loads it first if necessary. If this fails, the live version does not change."""
    return VersionBody.of(await _operations(request).activate(model, version, unload_first=unload_first))


@router.get(
    "/versions/{version}/progress",
    response_class=Response,
    responses={200: {"content": {_LINES: {"schema": {"type": "string"}}}}},
)
async def follow_version(request: Request, model: str, version: Version) -> StreamingResponse:
    """Streams the version as lines of JSON: its current state, then a line for each change until its load has ended."""
    record = AppState.of(request).registry.record(model, version)

    async def lines() -> AsyncIterator[str]:
        async for _ in record.follow():
            yield VersionBody.of(record).model_dump_json(exclude_none=True) + "\n"

    return StreamingResponse(lines(), media_type=_LINES)


@router.put("/versions/{version}/trial")
async def try_version(
    request: Request,
    model: str,
    version: Version,
    *,
    canary: Annotated[Percent, Query(description="Per cent of the requests without a version that it answers")] = 0.0,
    shadow: Annotated[
        Annotated[float, Field(ge=0, le=100)] | bool,
        Query(
            union_mode="left_to_right",  # 1 is one per cent
            description=f"Per cent of those requests that are mirrored to it; true means {SHADOW_PERCENT:g}",
        ),
    ] = False,
) -> ModelBody:
    """Makes a version that is not live a canary, a shadow or both. With neither, it stops being one and is unloaded."""
    await _operations(request).set_shares(model, version, canary=canary, shadow=shadow)
    return _model(request, model)


@router.post("/rollback")
async def roll_back(request: Request, model: str) -> VersionBody:
    """Makes the previous live version live again."""
    return VersionBody.of(await _operations(request).roll_back(model))


@router.post("/unpin")
async def unpin(request: Request, model: str) -> ModelBody:
    """Makes the highest version live, now and whenever a higher one is added."""
    await _operations(request).unpin(model)
    return _model(request, model)


@router.put("/labels/{label}")
async def set_label(
    request: Request, model: str, label: Label, version: Annotated[int, Query(ge=1, le=MAX_VERSION)]
) -> ModelBody:
    """Sets a label to a version, and loads the version first if necessary. `?version=LABEL` then selects it."""
    await _operations(request).label(model, label, version)
    return _model(request, model)


@router.delete("/labels/{label}")
async def remove_label(request: Request, model: str, label: Label) -> ModelBody:
    """Removes a label."""
    await _operations(request).label(model, label, None)
    return _model(request, model)
