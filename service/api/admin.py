"""/admin: HTTP and nothing else. It exists only where MENAGERIE_ADMIN_TOKEN is set."""

import hmac
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import Field
from starlette.requests import ClientDisconnect

from models.artifact.publish import MAX_VERSION
from models.artifact.toml_file import MOST_BYTES
from service.api.body import BodyReader, declared_bytes
from service.api.schemas import ModelBody, UploadAnswer, VersionBody, errors
from service.errors import BadRequest, BodyTooLarge, Unauthorized
from service.repository.routing import LABEL, SHADOW_PERCENT
from service.settings import Settings
from service.versions.operations import Operations
from service.versions.registry import Registry

TAR = "application/x-tar"
_LINES = "application/x-ndjson"
_BYTES = {"schema": {"type": "string", "format": "binary"}}

bearer = HTTPBearer(auto_error=False, description="The token of MENAGERIE_ADMIN_TOKEN")


def authorize(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)] = None
) -> None:
    """Raises Unauthorized unless the token was sent. How long the comparison takes tells nothing of it."""
    settings: Settings = request.state.settings
    assert settings.admin_token is not None
    given = credentials.credentials if credentials else ""
    if not hmac.compare_digest(given.encode(), settings.admin_token.get_secret_value().encode()):
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
    bool, Query(description="Where memory does not hold both, unload the live version before the new one is loaded")
]


def _operations(request: Request) -> Operations:
    operations: Operations = request.state.operations
    return operations


def _model(request: Request, model: str) -> ModelBody:
    registry: Registry = request.state.registry
    return ModelBody.of(registry.model(model))


@router.put(
    "",
    responses=errors(400, 408, 413, 429),
    openapi_extra={"requestBody": {"required": True, "content": {"application/toml": {"schema": {"type": "string"}}}}},
)
async def define_model(request: Request, model: str) -> ModelBody:
    """Writes the model's model.toml, which is the body: of a new model, or in the place of the old one."""
    bodies: BodyReader = request.state.bodies
    async with bodies.receive(request) as body:
        if len(body) > MOST_BYTES:
            raise BodyTooLarge(f"a model.toml has at most {MOST_BYTES} bytes", cure="put labels into labels.txt")
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
        str, Query(pattern=r"^weights(\.[a-z0-9]{1,16}){0,2}$", description="What the weights file is to be called")
    ] = "weights",
    sha256: Annotated[str | None, Query(pattern="^[0-9a-fA-F]{64}$", description="Refuse other bytes")] = None,
    version: Annotated[int | None, Query(ge=1, le=MAX_VERSION, description="Default: the next free number")] = None,
    live: Annotated[bool, Query(description="false: only store it, and keep the live version live")] = True,
) -> UploadAnswer:
    """Publishes the body as a version: a weights file, or (application/x-tar) a tar of the version's directory.

    It is loaded as if it had been dropped into the repository; `progress` tells how far that has come.
    """
    registry: Registry = request.state.registry
    operations = _operations(request)
    name = registry.model(model).name
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
        raise BadRequest("the upload ended early") from None  # nobody reads it
    return UploadAnswer(model=name, version=number, bytes=upload.bytes, sha256=upload.sha256)


@router.delete("/versions/{version}")
async def delete_version(request: Request, model: str, version: Version) -> ModelBody:
    """Removes a version that is neither live nor labelled from the repository."""
    await _operations(request).delete(model, version)
    return _model(request, model)


@router.post("/versions/{version}/load")
async def load_version(
    request: Request, model: str, version: Version, *, unload_first: UnloadFirst = False
) -> VersionBody:
    """Loads a version beside the live one, and answers when it is ready; requests for the same load share it."""
    return VersionBody.of(await _operations(request).load(model, version, unload_first=unload_first))


@router.post("/versions/{version}/cancel")
async def cancel_load(request: Request, model: str, version: Version) -> ModelBody:
    """Ends the load of a version that is under way, its conversion included."""
    await _operations(request).cancel(model, version)
    return _model(request, model)


@router.post("/versions/{version}/unload")
async def unload_version(request: Request, model: str, version: Version) -> ModelBody:
    """Unloads a version that is neither live nor labelled, once its last callers are answered."""
    await _operations(request).unload(model, version)
    return _model(request, model)


@router.post("/versions/{version}/activate")
async def activate_version(
    request: Request, model: str, version: Version, *, unload_first: UnloadFirst = False
) -> VersionBody:
    """Makes a version live, loading it first if need be. What fails leaves the live version live."""
    return VersionBody.of(await _operations(request).activate(model, version, unload_first=unload_first))


@router.get(
    "/versions/{version}/progress",
    response_class=Response,
    responses={200: {"content": {_LINES: {"schema": {"type": "string"}}}}},
)
async def follow_version(request: Request, model: str, version: Version) -> StreamingResponse:
    """Lines of JSON, each the version as it stands: one now, and one for each step until its load has ended."""
    registry: Registry = request.state.registry
    record = registry.record(model, version)

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
    canary: Annotated[Percent, Query(description="Per cent of the requests that it answers")] = 0.0,
    shadow: Annotated[
        Annotated[float, Field(ge=0, le=100)] | bool,
        Query(
            union_mode="left_to_right",  # 1 is one per cent
            description=f"Per cent of the requests it is shown as well; true is {SHADOW_PERCENT:g}",
        ),
    ] = False,
) -> ModelBody:
    """Gives a version that is not live its share of the requests; with neither, its trial ends and it is unloaded."""
    await _operations(request).set_shares(model, version, canary=canary, shadow=shadow)
    return _model(request, model)


@router.post("/rollback")
async def roll_back(request: Request, model: str) -> VersionBody:
    """Makes the version live that was so before."""
    return VersionBody.of(await _operations(request).roll_back(model))


@router.post("/unpin")
async def unpin(request: Request, model: str) -> ModelBody:
    """Lets the highest version be live again, now and as others come."""
    await _operations(request).unpin(model)
    return _model(request, model)


@router.put("/labels/{label}")
async def set_label(
    request: Request, model: str, label: Label, version: Annotated[int, Query(ge=1, le=MAX_VERSION)]
) -> ModelBody:
    """Moves a label to a version, which is loaded first if need be; `?version=LABEL` then asks for it."""
    await _operations(request).label(model, label, version)
    return _model(request, model)


@router.delete("/labels/{label}")
async def remove_label(request: Request, model: str, label: Label) -> ModelBody:
    """Takes a label away."""
    await _operations(request).label(model, label, None)
    return _model(request, model)
