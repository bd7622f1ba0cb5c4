"""The state that all requests of an application share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.types import Scope

from service.api.body import BodyReader
from service.lifecycle import Lifecycle
from service.settings import Settings
from service.versions.operations import Operations
from service.versions.registry import Registry

_KEY = "menagerie"


@dataclass(frozen=True)
class AppState:
    """Everything that the lifespan starts and that routes use."""

    settings: Settings
    lifecycle: Lifecycle
    bodies: BodyReader
    registry: Registry
    operations: Operations

    def as_mapping(self) -> Mapping[str, Any]:
        """The form in which a lifespan yields it: the server copies this mapping into the scope of each request."""
        return {_KEY: self}

    @staticmethod
    def of(request: Request) -> "AppState":
        """The state of the application that received the request."""
        return AppState.in_scope(request.scope)

    @staticmethod
    def in_scope(scope: Scope) -> "AppState":
        """The same, for middleware, which has no request."""
        state: AppState = scope["state"][_KEY]
        return state
