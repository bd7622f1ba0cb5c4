"""Sends copies of requests to shadow versions, and counts how often they give the live version's label."""

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
"""Copies in flight over all models. Further ones are dropped, so that shadows cannot slow down or fill the server."""

Result = Sequence[Prediction] | ServiceError


class Mirror:
    """Runs copies of requests in the background. It is used on the event loop alone."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, servable: Servable, items: Sequence[Item | ServiceError], results: Sequence[Result]) -> None:
        """Lets a shadow answer a request that the live version has answered already. Returns at once."""
        if len(self._tasks) >= MAX_REQUESTS:
            metrics.SHADOW_ITEMS.labels(servable.name, str(servable.version), "dropped").inc(len(items))
            return
        task = asyncio.create_task(self._compare(servable, items, results))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Cancels the copies in flight."""
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
