"""Reads requests with uvicorn's parser, and bounds their heads, chunks and trailers."""

import asyncio
import urllib.parse
from typing import Any, NoReturn

import httptools
import structlog
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.errors import UNEXPECTED, BadRequest, HeadTooLarge, MethodNotAllowed, ServiceError, UrlTooLong
from service.settings import Settings

log = structlog.get_logger()

_METHODS = "GET, HEAD, POST, PUT, DELETE, OPTIONS"

# A chunk costs as much as some hundred bytes of a body.
_FREE_CHUNKS = 16_384
_BYTES_PER_CHUNK = 64

_BLANK_LINE = b"\r\n\r\n"
_LINE_ENDS = b"\r\n"
_BODY_HEADERS = {b"content-length", b"transfer-encoding", b"expect"}
_UPGRADE_HEADERS = {b"upgrade", b"http2-settings", b"connection"}


class RequestReader(HttpToolsProtocol):
    """Parses one request at a time. A subclass handles its head, the pieces of its body and its end."""

    def __init__(
        self,
        settings: Settings,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._max_head_bytes = settings.max_head_bytes
        self._max_head_lines = settings.max_head_lines
        self._max_url_bytes = settings.max_url_bytes
        self._in_head = True
        self._is_upgrade = False
        self._is_complete = False
        self._length: int | None = 0  # None if the body is chunked
        self._received_bytes = 0
        self._idle_bytes = 0  # of the head, or between two bytes of a chunked body
        self._trailer_bytes = 0
        self._trailers = 0
        self._chunks = 0
        self._fault: ServiceError | None = None

    def head_received(self, version: str) -> None:
        """Begins to answer a request, whose head is whole and in `scope`."""
        raise NotImplementedError

    def _read(self, data: bytes, start: int) -> int:
        """Parses a piece of the data that does not go beyond the end of the request. Returns where the piece ends.

        Raises ServiceError, HttpParserError.
        """
        if self._in_head or self._length is None:
            return self._read_lines(data, start)
        end = start + max(1, self._length - self._received_bytes)
        self.parser.feed_data(memoryview(data)[start:end])
        return end

    def _read_lines(self, data: bytes, start: int) -> int:
        """Parses a piece of a head or a chunked body. Both end with a blank line, which earlier data may have begun."""
        if start < len(_BLANK_LINE) and data[start] in _LINE_ENDS:
            end = start + 1
        else:
            found = data.find(_BLANK_LINE, start)
            end = len(data) if found < 0 else found + len(_BLANK_LINE)
        piece, limit, received = data[start:end], self._max_head_bytes, self._received_bytes
        is_head = self._in_head
        if is_head:
            self._idle_bytes += end - start
            if self._idle_bytes > limit:  # the parser gets as much as is allowed, and so finds which part is too long
                piece = piece[: limit - self._idle_bytes]
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self._read_without_upgrade()
        if not is_head and not self._in_head:
            self._idle_bytes = 0 if self._received_bytes > received else self._idle_bytes + len(piece)
            self._count_chunk()
        if self._idle_bytes > limit:
            raise HeadTooLarge(f"the head has more than {limit} bytes")
        return end

    def _count_chunk(self) -> None:
        self._chunks += 1
        if self._chunks > _FREE_CHUNKS + self._received_bytes // _BYTES_PER_CHUNK:
            self._fail(BadRequest("the body has too many small chunks", cure="send larger chunks"))

    def _read_without_upgrade(self) -> None:
        """Parses the head again without its request for another protocol, because none is supported (RFC 9110, 7.8).

        Otherwise, the parser would take the data that follows for that protocol.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            raise MethodNotAllowed("this server is not a proxy", _METHODS)
        options = [each.strip() for name, value in self.headers if name == b"connection" for each in value.split(b",")]
        kept = [each for each in options if each and each.lower() not in _UPGRADE_HEADERS]
        lines = [method + b" " + self.url + b" HTTP/" + version]
        lines += [name + b": " + value for name, value in self.headers if name not in _UPGRADE_HEADERS]
        lines += [b"Connection: " + b", ".join(kept)] if kept else []
        self._is_upgrade, self._length = False, 0
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(b"\r\n".join(lines) + _BLANK_LINE)

    def _fail(self, fault: ServiceError) -> NoReturn:
        """Stops the parser. It raises an error of its own, which may not show this one, so the fault is kept."""
        self._fault = fault
        raise fault

    def _fault_of(self, error: httptools.HttpParserError) -> ServiceError:
        """The error that a callback or the parser found in the request."""
        if self._fault is None and isinstance(error, httptools.HttpParserCallbackError):
            log.error("internal error", exc_info=error)
            return ServiceError(UNEXPECTED)
        return self._fault or BadRequest(f"this is not an HTTP/1.1 request: {error}")

    # Callbacks of the parser. It wraps the errors that they raise in its own.

    def on_url(self, url: bytes) -> None:
        """Adds a part of the target."""
        self.url += url
        if len(self.url) > self._max_url_bytes:
            self._fail(UrlTooLong(f"the URL has more than {self._max_url_bytes} bytes"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Adds a header. A trailer, which follows the body, is only counted."""
        if not self._in_head:
            self._check_trailer(len(name) + len(value))
            return
        headers = self.headers
        if len(headers) >= self._max_head_lines:
            self._fail(HeadTooLarge(f"there are more than {self._max_head_lines} header lines"))
        name = name.lower()
        if name in _BODY_HEADERS:
            if name == b"content-length":
                self._length = int(value)
            elif name == b"transfer-encoding":
                self._length = None
            else:
                self.expect_100_continue = value.lower() == b"100-continue"
        headers.append((name, value))

    def _check_trailer(self, size: int) -> None:
        self._trailers += 1
        self._trailer_bytes += size
        if self._trailers > self._max_head_lines or self._trailer_bytes > self._max_head_bytes:
            limits = f"{self._max_head_lines} lines or {self._max_head_bytes} bytes"
            self._fail(HeadTooLarge(f"the trailers have more than {limits}"))

    def on_headers_complete(self) -> None:
        """Completes the scope of the request."""
        parser = self.parser
        if parser.should_upgrade():
            self._is_upgrade = True  # HttpParserUpgrade follows
            return
        version = parser.get_http_version()
        if version not in {"1.1", "1.0"}:
            self._fail(BadRequest(f"HTTP/{version} is not supported", cure="send HTTP/1.1"))
        try:
            target = httptools.parse_url(self.url)
        except httptools.HttpParserInvalidURLError:
            self._fail(BadRequest("the URL is not valid"))
        raw_path = target.path or b"/"
        path = raw_path.decode("ascii")
        scope = self.scope
        scope["method"] = parser.get_method().decode("ascii")
        scope["http_version"] = version
        scope["path"] = self.root_path + (urllib.parse.unquote(path) if "%" in path else path)
        scope["raw_path"] = self.root_path.encode("ascii") + raw_path
        scope["query_string"] = target.query or b""
        self.head_received(version)

    def _begin_body(self) -> None:
        self._in_head = self._is_complete = False
        self._idle_bytes = self._received_bytes = self._trailers = self._trailer_bytes = self._chunks = 0

    def _begin_head(self) -> None:
        self._is_complete = self._in_head = True
        self._idle_bytes = self._length = 0

    def on_chunk_header(self) -> None:
        """Counts a chunk."""
        self._count_chunk()
