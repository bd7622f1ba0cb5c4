"""One version, loaded and warm: preprocess, batch, postprocess."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.artifact.manifest import Manifest
from models.inputs import ImageInput
from service.errors import InvalidInput, ServiceError
from service.images.decode_pool import Decoded, DecodePool, Job
from service.inference.batcher import Answer, Batcher, Place
from service.inference.engine import Engine
from service.inference.postprocess import Prediction, top_classes
from service.inference.tuning import Tuning
from service.metrics import ServableMetrics

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

    def show_metrics(self) -> None:
        """Makes the gauges of the version show this servable from now on."""
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
        `deadline` is on the clock of time.monotonic. Raises QueueFull, ModelNotReady, DeviceLost, ShuttingDown and
        DeadlinePassed, which befall the request as a whole.
        """
        started = time.monotonic()
        checked = [self._checked(item) for item in items]
        usable = [item for item in checked if not isinstance(item, ServiceError)]
        places = self.batcher.expect(len(usable), deadline)
        self._inflight += len(items)
        jobs: Sequence[Job] = ()
        try:
            jobs = self._prepare(usable, places)
            answers = await self.batcher.answers(places)
        finally:
            self._inflight -= len(items)
            for job in jobs:
                self._decoders.drop(job)
        for answer in answers:
            if isinstance(answer, ServiceError) and answer.retry_after_seconds is not None:
                raise answer  # it befell the engine, not the item: the whole request may come again
        remaining = iter(answers)
        outcomes = [item if isinstance(item, ServiceError) else next(remaining) for item in checked]
        answered = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
        return Outcome(
            results=[self._postprocess(outcome, top_k) for outcome in outcomes],
            decode_seconds=max((place.entered - started for place in places), default=0.0),
            queue_seconds=max((answer.queue_seconds for answer in answered), default=0.0),
            inference_seconds=max((answer.inference_seconds for answer in answered), default=0.0),
        )

    def _postprocess(self, outcome: Answer | ServiceError, top_k: int) -> list[Prediction] | ServiceError:
        return (
            outcome if isinstance(outcome, ServiceError) else top_classes(outcome.row, self.manifest.spec.labels, top_k)
        )

    def _checked(self, item: Item | ServiceError) -> Item | ServiceError:
        """The item, or why it cannot be used, as far as that is known before it is decoded."""
        spec = self.manifest.spec.input
        if isinstance(item, ServiceError):
            return item
        if isinstance(spec, ImageInput):
            return item if isinstance(item, bytes) else InvalidInput(f"{self.name} takes images, not numbers")
        if isinstance(item, bytes):
            return InvalidInput("the model takes numbers, not an image", cure='send JSON: {"instances": [[5.1, 3.5]]}')
        if item.shape != spec.shape:
            shapes = f"{list(item.shape)}, and the model takes {list(spec.shape)}"
            return InvalidInput(f"an instance has the shape {shapes}")
        return item

    def _prepare(self, items: Sequence[Item], places: Sequence[Place]) -> Sequence[Job]:
        """Numbers join the queue at once, images when they are decoded. Raises QueueFull, ShuttingDown."""
        spec, pairs = self.manifest.spec.input, list(zip(places, items, strict=True))
        if not isinstance(spec, ImageInput):
            self.batcher.enter(*((place, item) for place, item in pairs if not isinstance(item, bytes)))
            return []
        jobs = [Job(item, spec, self._joining(place)) for place, item in pairs if isinstance(item, bytes)]
        try:
            self._decoders.put(jobs)
        except ServiceError:
            self.batcher.enter(*((place, None) for place in places))
            raise
        return jobs

    def _joining(self, place: Place) -> Decoded:
        """What an image's pixels do: they join the queue."""
        started = time.monotonic()

        def join(outcome: Array | ServiceError | None) -> None:
            if outcome is not None:
                self.metrics.decode_seconds.observe(time.monotonic() - started)
            self.batcher.enter((place, outcome))

        return join
