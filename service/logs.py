"""The log: one line for each event, as text on a terminal and as JSON elsewhere."""

import logging
import sys
from contextvars import ContextVar
from typing import Any

import structlog
from pydantic_core import to_json

from service.settings import Settings


def _json(event: Any, **_: object) -> str:
    """Encodes an event in a quarter of the time that the standard library takes."""
    return to_json(event, fallback=repr).decode()


REQUEST_ID = ContextVar("request_id", default="")
"""The ID of the current request."""


def _with_request_id(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if request_id := REQUEST_ID.get():
        event.setdefault("request_id", request_id)
    return event


def configure(settings: Settings) -> None:
    """Sends the events of this service and of its libraries to standard error, in one format."""
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
