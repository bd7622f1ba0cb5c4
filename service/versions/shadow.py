"""Shows requests to versions on trial, and counts how often their best labels are the live version's."""

import asyncio
import time
from collections.abc import Sequence

import structlog

from service import metrics
from service.errors import ServiceError
from service.inference.postprocess import Prediction
from service.inference.servable import Item, Servable

log = structlog.get_logger()

MAX_REQUESTS = 8
"""At once, over all models: what is mirrored beyond is dropped, so that a trial cannot hold up or fill the server."""

Result = Sequence[Prediction] | ServiceError


class Mirror:
    """Asks a version on trial in the background. Lives on the event loop."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._tasks: set[asyncio.Task[None]] = set()

    def show(self, servable: Servable, items: Sequence[Item | ServiceError], results: Sequence[Result]) -> None:
        """Has the version answer what the live one has answered already; returns at once."""
        if len(self._tasks) >= MAX_REQUESTS:
            metrics.SHADOW_ITEMS.labels(servable.name, str(servable.version), "dropped").inc(len(items))
            return
        task = asyncio.create_task(self._compare(servable, items, results))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Asks nobody any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _compare(
        self, servable: Servable, items: Sequence[Item | ServiceError], results: Sequence[Result]
    ) -> None:
        try:
            with servable.lease():
                outcome = await servable.predict(items, 1, time.monotonic() + self._timeout_seconds)
            verdicts = [_verdict(*pair) for pair in zip(outcome.results, results, strict=True)]
        except ServiceError as error:
            verdicts = ["dropped" if error.retry_after_seconds else "failed"] * len(items)
        except Exception:
            log.exception("a shadow failed", model=servable.name, version=servable.version)
            verdicts = ["failed"] * len(items)
        for verdict in verdicts:
            metrics.SHADOW_ITEMS.labels(servable.name, str(servable.version), verdict).inc()


def _verdict(found: Result, live: Result) -> str:
    if isinstance(found, ServiceError) or isinstance(live, ServiceError):
        return "agree" if isinstance(found, ServiceError) and isinstance(live, ServiceError) else "failed"
    return "agree" if found[0].label == live[0].label else "differ"
