"""Request bodies -> items. A body is received within limits and a deadline, then read as image, multipart or JSON."""

import asyncio
import base64
import binascii
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from pydantic_core import from_json
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.errors import (
    BadRequest,
    BodyTimeout,
    BodyTooLarge,
    EmptyBody,
    InvalidInput,
    QueueFull,
    ServiceError,
    UnsupportedMediaType,
)
from service.inference.servable import Item
from service.settings import Settings

_MAX_FORM_FIELDS = 8
_MAX_JSON_VALUES = 2**18  # parsed within a tenth of a second
_SMALL_BYTES = 2**16  # parsed within a millisecond
_MAX_DIMENSIONS = 64  # numpy's
_NUMBERS = {int, float}


def declared_bytes(request: Request) -> int:
    """The length of the body according to Content-Length; 0 if there is none."""
    declared = request.headers.get("content-length", "")
    return min(int(declared[:20]), sys.maxsize) if declared.isascii() and declared.isdigit() else 0


class BodyReader:
    """Receives bodies, and counts the bytes that the server currently holds."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._held_bytes = 0

    @asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[bytes]:
        """Receives the whole body, which counts as held until the context ends.

        Raises BodyTooLarge, BodyTimeout, QueueFull, EmptyBody, and Starlette's ClientDisconnect if the client is gone.
        """
        limit = self._settings.max_body_bytes
        if (declared := declared_bytes(request)) > limit:
            raise self._too_large(declared)
        chunks: list[bytes] = []
        held = 0
        try:
            try:
                async with asyncio.timeout(self._settings.body_timeout_seconds):
                    async for chunk in request.stream():
                        held += len(chunk)
                        self._held_bytes += len(chunk)
                        if held > limit:
                            raise self._too_large(held)
                        if self._held_bytes > self._settings.max_inflight_body_bytes:
                            raise QueueFull("the server holds as many bytes of request bodies as allowed")
                        chunks.append(chunk)
            except TimeoutError:
                seconds = self._settings.body_timeout_seconds
                raise BodyTimeout(f"the body did not arrive within {seconds:g} s") from None
            if not held:
                raise EmptyBody("the request has no body")
            yield b"".join(chunks)
        finally:
            self._held_bytes -= held

    def _too_large(self, size: int) -> BodyTooLarge:
        return BodyTooLarge(f"the body has at least {size} bytes; {self._settings.max_body_bytes} are allowed")

    async def items(self, body: bytes, headers: Mapping[str, str]) -> Sequence[Item | ServiceError]:
        """The items of a body, in order. Raises UnsupportedMediaType, BadRequest, EmptyBody, InvalidInput."""
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type == "multipart/form-data":
            return await self._files(body, headers)
        if media_type == "application/json":
            if len(body) < _SMALL_BYTES:
                return self._instances(body)
            return await asyncio.to_thread(self._instances, body)  # takes some tenths of a second at worst
        if media_type.startswith("image/") or media_type in {"", "application/octet-stream"}:
            return [body]
        raise UnsupportedMediaType(f"the content type {media_type[:64]!r} is not supported")

    def _too_many(self) -> InvalidInput:
        limit = self._settings.max_images_per_request
        return InvalidInput(f"the request has more than {limit} items", cure="split them into several requests")

    async def _files(self, body: bytes, headers: Mapping[str, str]) -> Sequence[Item | ServiceError]:
        async def stream() -> AsyncIterator[bytes]:
            yield body

        limit = self._settings.max_images_per_request
        parser = MultiPartParser(
            headers,  # type: ignore[arg-type]  # it is Starlette's Headers, seen here as a mapping
            stream(),  # type: ignore[arg-type]  # request.stream() is an async generator, too
            max_files=limit,
            max_fields=_MAX_FORM_FIELDS,
        )
        parser.spool_max_size = len(body) + 1  # the body is already in memory: do not write it to disk
        try:
            form = await parser.parse()
        except (MultiPartException, KeyError, UnicodeError) as error:
            reason = error.message if isinstance(error, MultiPartException) else "its boundary or charset is wrong"
            if reason.startswith("Too many files"):
                raise self._too_many() from error
            raise BadRequest(
                f"the multipart body cannot be read: {reason}", cure="send it with curl -F file=@photo.jpg"
            ) from error
        try:
            files = [await value.read() for _, value in form.multi_items() if isinstance(value, UploadFile)]
        finally:
            await form.close()
        if not files:
            raise EmptyBody("the form has no file", cure="send one with curl -F file=@photo.jpg")
        return [file or EmptyBody("the file is empty") for file in files]

    def _instances(self, body: bytes) -> Sequence[Item | ServiceError]:
        # Counted before parsing, because parsing holds the GIL and delays every other request.
        if sum(body.count(separator) for separator in (b",", b"[", b"{")) > _MAX_JSON_VALUES:
            raise InvalidInput(
                f"the body has more than {_MAX_JSON_VALUES} values", cure="send several requests; send images as base64"
            )
        try:
            document = from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise BadRequest(f"the body is not valid JSON: {error}", cure='send {"instances": [...]}') from error
        instances = document.get("instances") if isinstance(document, dict) else None
        if not isinstance(instances, list) or not instances:
            raise InvalidInput(
                "the body has no list `instances`",
                cure='send {"instances": [[5.1, 3.5, 1.4, 0.2]]} or {"instances": [{"b64": "..."}]}',
            )
        if len(instances) > self._settings.max_images_per_request:
            raise self._too_many()
        return [_instance(instance) for instance in instances]


def _instance(instance: Any) -> Item | ServiceError:
    """The bytes of an image from {"b64": ...}, or a float32 array from nested lists."""
    if isinstance(instance, dict):
        try:
            return base64.b64decode(instance["b64"], validate=True) or EmptyBody("the image is empty")
        except (KeyError, TypeError, ValueError, binascii.Error):
            return InvalidInput('an instance is not a base64 image: {"b64": "..."}')
    # Checked before numpy gets it: in an array of strings, each takes as much memory as the longest.
    if not _is_numeric(instance):
        return InvalidInput("an instance contains something other than numbers")
    try:
        numbers = np.asarray(instance)
    except ValueError:  # lists of different lengths
        return InvalidInput("an instance has rows of different lengths")
    if numbers.dtype.kind not in "iuf":  # integers beyond 64 bits
        return InvalidInput("an instance contains a number that float32 cannot hold")
    with np.errstate(over="ignore"):
        floats = numbers.astype(np.float32)
    return (
        floats if np.isfinite(floats).all() else InvalidInput("an instance contains a number that float32 cannot hold")
    )


def _is_numeric(value: Any, depth: int = 0) -> bool:
    """Whether the value is a number, or nested lists of only numbers."""
    if not isinstance(value, list):
        return type(value) in _NUMBERS
    return set(map(type, value)) <= _NUMBERS or (
        depth < _MAX_DIMENSIONS and all(isinstance(row, list) and _is_numeric(row, depth + 1) for row in value)
    )
