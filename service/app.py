"""create_app(settings): the lifespan, and how requests find their routes."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Mount, Router
from starlette.types import ASGIApp

from service.api import admin, predict
from service.api.body import BodyReader
from service.api.failures import answer_error
from service.api.middleware import RequestMiddleware
from service.api.openapi import document_predict
from service.api.routes import router
from service.api.state import AppState
from service.errors import ServiceError
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


def create_app(settings: Settings, lifecycle: Lifecycle | None = None) -> ASGIApp:
    """The application. It accepts requests at once, and is ready when its models are loaded."""
    lifecycle = lifecycle or Lifecycle()

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[Mapping[str, Any]]:
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

    documented = _documented(settings)
    return Router(
        # A prediction goes to its route at once: FastAPI's layers would add a tenth to its time.
        [predict.route, Mount("/", documented)],
        default=documented,  # for a path without a slash, as in OPTIONS *
        lifespan=lifespan,
    )


def _documented(settings: Settings) -> FastAPI:
    """Every other route, the OpenAPI document and the errors for paths and methods that do not exist."""
    app = FastAPI(
        title="Menagerie",
        summary=metadata.metadata("menagerie")["Summary"],
        version=metadata.version("menagerie"),
        routes=[predict.route],  # so that other methods get a 405, and not a 404
    )
    document_predict(app)
    app.include_router(router)
    if settings.admin_token is not None:
        app.include_router(admin.router)
    app.add_middleware(HeadMiddleware)  # within RequestMiddleware, which logs the request with its own method
    app.add_middleware(RequestMiddleware)
    for kind in (ServiceError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, answer_error)
    return app
