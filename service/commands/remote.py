"""Requests to a running server."""

from typing import Any

import httpx2

from service.commands.console import CommandError
from service.errors import ServiceError

TIMEOUT_SECONDS = 60.0


def get(url: str) -> Any:
    """The JSON of the answer.

    Raises CommandError if no Menagerie answers, and ServiceError with the server's own message if it reports an error.
    """
    return _answer("GET", url)


def post(url: str, *, params: dict[str, int], content: bytes) -> Any:
    """Sends bytes of any type. Returns and raises the same as `get`."""
    headers = {"Content-Type": "application/octet-stream"}
    return _answer("POST", url, params=params, content=content, headers=headers)


def _answer(method: str, url: str, **request: Any) -> Any:
    try:
        answer = httpx2.request(method, url, timeout=TIMEOUT_SECONDS, **request)
        body = answer.json()
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        raise CommandError(f"no Menagerie answers at {url}: {error}", cure="start one with: menagerie serve") from error
    if answer.is_error and isinstance(body, dict) and "error" in body:
        raise ServiceError(body["error"]["message"], cure=body["error"]["cure"])
    return body
