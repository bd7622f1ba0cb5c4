"""create_app(settings): the lifespan, the routes, and the one error handler."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from service.api import admin, predict
from service.api.body import BodyReader
from service.api.middleware import RequestFacts, RequestMiddleware, error_response
from service.api.openapi import document_predict
from service.api.routes import router
from service.api.state import AppState
from service.errors import InvalidInput, MethodNotAllowed, RouteNotFound, ServiceError
from service.host.memory import tune_malloc
from service.http.head import HeadMiddleware
from service.images.decode_pool import DecodePool
from service.lifecycle import Lifecycle
from service.repository.publisher import Publisher
from service.repository.repository import Repository
from service.settings import Settings
from service.versions.loader import Loader
from service.versions.operations import Operations
from service.versions.reconciler import Reconciler
from service.versions.registry import Registry
from service.versions.shadow import Mirror


def create_app(settings: Settings, lifecycle: Lifecycle | None = None) -> FastAPI:
    """The application. It takes requests at once, and is ready once its models are loaded."""
    lifecycle = lifecycle or Lifecycle()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        tune_malloc()
        decoders = DecodePool.of(settings)
        decoders.start()
        mirror = Mirror(settings.request_timeout_seconds)
        registry = Registry(mirror)
        reconciler = Reconciler(settings, registry, Loader(settings, decoders, lifecycle))
        publisher = Publisher(
            settings.repository,
            settings.max_upload_bytes,
            settings.body_timeout_seconds,
            settings.min_free_disk_bytes,
        )
        if settings.admin_token is not None:
            publisher.tidy()
        reconciler.start()
        try:
            yield AppState(
                settings=settings,
                lifecycle=lifecycle,
                bodies=BodyReader(settings),
                registry=registry,
                operations=Operations(registry, reconciler, Repository(settings.repository), publisher),
            ).as_mapping()
        finally:
            await mirror.close()
            await reconciler.close()
            await decoders.close()

    app = FastAPI(
        title="Menagerie",
        summary=metadata.metadata("menagerie")["Summary"],
        version=metadata.version("menagerie"),
        routes=[predict.route],
        lifespan=lifespan,
    )
    document_predict(app)
    app.include_router(router)
    if settings.admin_token is not None:
        app.include_router(admin.router)
    app.add_middleware(HeadMiddleware)  # inside of the next, which tells of each request as it came
    app.add_middleware(RequestMiddleware)
    for kind in (ServiceError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, answer_error)
    return app


def _allowed(request: Request) -> Iterator[str]:
    """The methods that some route takes at the request's path; the framework tells those of the first route alone."""
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        asked = {**request.scope, "method": method}
        if any(route.matches(asked)[0] is Match.FULL for route in request.app.routes):
            yield from ("GET", "HEAD") if method == "GET" else (method,)


async def answer_error(request: Request, error: Exception) -> Response:
    """Every error in one shape; what the framework raises is said in our words."""
    if isinstance(error, RequestValidationError):
        problem = error.errors()[0]
        error = InvalidInput(f"{problem['loc'][-1]}: {problem['msg']}", cure="GET /docs shows what each route takes")
    elif isinstance(error, HTTPException):
        if error.status_code == MethodNotAllowed.status:
            error = MethodNotAllowed(f"this route does not take {request.method}", ", ".join(_allowed(request)))
        else:
            error = RouteNotFound("there is no such route")
    assert isinstance(error, ServiceError)
    RequestFacts.of(request).outcome = error.code
    return error_response(error)
