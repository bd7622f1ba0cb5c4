"""How the service logs: a line an event, readable on a terminal and JSON elsewhere."""

import logging
import sys
from contextvars import ContextVar
from typing import Any

import structlog
from pydantic_core import to_json

from service.settings import Settings


def _json(event: Any, **_: object) -> str:
    """A quarter of the time of the standard library's encoder, which a request's line would show."""
    return to_json(event, fallback=repr).decode()


REQUEST_ID = ContextVar("request_id", default="")
"""Of the request that is being answered."""


def _with_request_id(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if request_id := REQUEST_ID.get():
        event.setdefault("request_id", request_id)
    return event


def configure(settings: Settings) -> None:
    """Sends this service's events, and what the libraries log, through one format to standard error."""
    text = settings.log_format == "text" or (settings.log_format == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _with_request_id,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if text else "iso", utc=not text),
    ]
    renderer: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)]
        if text
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_json)]
    )
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer]
        )
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
