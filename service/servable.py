"""One version, loaded and warm: preprocess, batch, postprocess."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.artifact import Manifest
from models.inputs import ImageInput, NumbersInput
from service.batcher import Answer, Batcher
from service.engine import Engine
from service.errors import DeadlinePassed, InvalidInput, ServiceError
from service.metrics import ServableMetrics
from service.postprocess import Prediction, top_classes
from service.preprocess import DecodePool
from service.tuning import Tuning

Array = np.ndarray[Any, Any]
Item = bytes | Array
"""An image file's bytes, or numbers of any shape."""


@dataclass(frozen=True)
class Outcome:
    """The answer to a request: for each of its items the best classes, or why there are none."""

    results: list[list[Prediction] | ServiceError]
    decode_seconds: float
    queue_seconds: float
    inference_seconds: float

    @property
    def worst_code(self) -> str:
        """`ok` where at least one item was answered, else the first item's error."""
        errors = [result.code for result in self.results if isinstance(result, ServiceError)]
        return errors[0] if len(errors) == len(self.results) else "ok"


class Servable:
    """Answers for one version. Lives on the event loop; whoever uses it holds a lease."""

    def __init__(
        self,
        name: str,
        version: int,
        *,
        manifest: Manifest,
        engine: Engine,
        batcher: Batcher,
        decoders: DecodePool,
        metrics: ServableMetrics,
        tuning: Tuning | None,
        memory_bytes: int,
    ) -> None:
        self.name = name
        self.version = version
        self.manifest = manifest
        self.provider = engine.provider
        self.batcher = batcher
        self._engine = engine
        self._decoders = decoders
        self.metrics = metrics
        self.plan = engine.plan
        self.tuning = tuning
        self.memory_bytes = memory_bytes
        """By how much the process grew as it was opened, requests of that time included."""
        self._inflight = 0
        self._leases = 0
        self._unused = asyncio.Event()
        self._unused.set()

    def start(self) -> None:
        """Takes work from now on."""
        self.batcher.start()

    def announce(self) -> None:
        """Is what the metrics of its version tell of from now on."""
        self.metrics.watch(self.batcher.depth, lambda: self._inflight)
        self.metrics.describe(self.provider, self.manifest.precision, self.memory_bytes)

    @contextmanager
    def lease(self) -> Iterator["Servable"]:
        """Keeps the servable open until the caller is done with it."""
        self._leases += 1
        self._unused.clear()
        try:
            yield self
        finally:
            self._leases -= 1
            if self._leases == 0:
                self._unused.set()

    async def close(self) -> None:
        """Waits for the leases, then gives everything back."""
        await self._unused.wait()
        await self.batcher.close()
        await asyncio.to_thread(self._engine.close)

    async def predict(self, items: Sequence[Item | ServiceError], top_k: int, deadline: float) -> Outcome:
        """The best `top_k` classes of each item, in order; an item that cannot be used fails alone.

        An item that is an error already, from reading the request, keeps its place in the answer.
        `deadline` is on the clock of time.monotonic. Raises QueueFull, ModelNotReady, DeviceLost and
        DeadlinePassed, which befall the request as a whole.
        """
        started = time.monotonic()
        self._inflight += len(items)
        try:
            async with asyncio.timeout(deadline - started):
                values = await self._prepare(items)
                decoded = time.monotonic()
                usable = [value for value in values if not isinstance(value, ServiceError)]
                answers = await self.batcher.submit(usable, deadline) if usable else []
        except TimeoutError:
            raise DeadlinePassed("the answer was not ready before the deadline") from None
        finally:
            self._inflight -= len(items)
        for answer in answers:
            if isinstance(answer, ServiceError) and answer.retry_after_seconds is not None:
                raise answer  # it befell the engine, not the item: the whole request may come again
        remaining = iter(answers)
        outcomes = [value if isinstance(value, ServiceError) else next(remaining) for value in values]
        answered = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
        return Outcome(
            results=[self._postprocess(outcome, top_k) for outcome in outcomes],
            decode_seconds=decoded - started,
            queue_seconds=max((answer.queue_seconds for answer in answered), default=0.0),
            inference_seconds=max((answer.inference_seconds for answer in answered), default=0.0),
        )

    def _postprocess(self, outcome: Answer | ServiceError, top_k: int) -> list[Prediction] | ServiceError:
        return (
            outcome if isinstance(outcome, ServiceError) else top_classes(outcome.row, self.manifest.spec.labels, top_k)
        )

    async def _prepare(self, items: Sequence[Item | ServiceError]) -> list[Array | ServiceError]:
        spec = self.manifest.spec.input
        if isinstance(spec, NumbersInput):
            return [_numbers(item, spec) for item in items]
        if len(items) == 1:
            return [await self._decode(items[0], spec)]
        decoding = [asyncio.ensure_future(self._decode(item, spec)) for item in items]
        try:
            return await asyncio.gather(*decoding)
        finally:
            for each in decoding:  # where one item has no place, the others are not decoded for nobody
                each.cancel()

    async def _decode(self, item: Item | ServiceError, spec: ImageInput) -> Array | ServiceError:
        if isinstance(item, ServiceError):
            return item
        if not isinstance(item, bytes):
            return InvalidInput(f"{self.name} takes images, not numbers")
        started = time.monotonic()
        try:
            return await self._decoders.decode(item, spec)
        except ServiceError as error:
            if error.retry_after_seconds is not None:  # not the item's fault: the request may come again
                raise
            return error
        finally:
            self.metrics.decode_seconds.observe(time.monotonic() - started)


def _numbers(item: Item | ServiceError, spec: NumbersInput) -> Array | ServiceError:
    if isinstance(item, ServiceError):
        return item
    if isinstance(item, bytes):
        return InvalidInput("the model takes numbers, not an image", cure='send JSON: {"instances": [[5.1, 3.5]]}')
    if item.shape != spec.shape:
        return InvalidInput(f"an instance has the shape {list(item.shape)}, and the model takes {list(spec.shape)}")
    return item
