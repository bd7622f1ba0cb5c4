"""Errors -> responses, in one shape."""

from collections.abc import Iterator

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from service.api.middleware import RequestFacts, error_response
from service.errors import BadRequest, InvalidInput, MethodNotAllowed, RouteNotFound, ServiceError


async def answer_error(request: Request, error: Exception) -> Response:
    """The response to an error of a route. The framework's own errors are translated first."""
    if isinstance(error, RequestValidationError):
        problem = error.errors()[0]
        error = InvalidInput(f"{problem['loc'][-1]}: {problem['msg']}", cure=BadRequest.cure)
    elif isinstance(error, HTTPException):
        if error.status_code == MethodNotAllowed.status:
            error = MethodNotAllowed(f"this route does not support {request.method}", ", ".join(_allowed(request)))
        else:
            error = RouteNotFound("there is no such route")
    assert isinstance(error, ServiceError)
    RequestFacts.of(request).outcome = error.code
    return error_response(error)


def _allowed(request: Request) -> Iterator[str]:
    """The methods that any route supports at the path of the request. The framework names those of one route alone."""
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        asked = {**request.scope, "method": method}
        if any(route.matches(asked)[0] is Match.FULL for route in request.app.routes):
            yield from ("GET", "HEAD") if method == "GET" else (method,)
