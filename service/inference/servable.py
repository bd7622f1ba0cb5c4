"""A loaded version of a model: it preprocesses, batches and postprocesses requests."""

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
from service.images.decode_pool import Decoded, DecodeJob, DecodePool
from service.inference.batcher import Answer, Batcher, Slot
from service.inference.engine import Engine
from service.inference.postprocess import Prediction, top_classes
from service.inference.tuning import Tuning
from service.metrics import ServableMetrics

Array = np.ndarray[Any, Any]
Item = bytes | Array
"""An image file's bytes, or numbers of any shape."""


@dataclass(frozen=True)
class Outcome:
    """The answer to a request: for each item the best classes, or its error."""

    results: list[list[Prediction] | ServiceError]
    decode_seconds: float
    queue_seconds: float
    inference_seconds: float

    @property
    def worst_code(self) -> str:
        """`ok` if at least one item was answered, else the code of the first item's error."""
        errors = [result.code for result in self.results if isinstance(result, ServiceError)]
        return errors[0] if len(errors) == len(self.results) else "ok"


class Servable:
    """Answers the requests for one version. It is used on the event loop alone, by callers that hold a lease."""

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
        """By how many bytes the process grew while the version was opened; concurrent requests count too."""
        self._inflight = 0
        self._leases = 0
        self._unused = asyncio.Event()
        self._unused.set()

    def start(self) -> None:
        """Starts to take requests."""
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
        """Waits until no lease is held, then frees the engine."""
        await self._unused.wait()
        await self.batcher.close()
        await asyncio.to_thread(self._engine.close)

    async def predict(self, items: Sequence[Item | ServiceError], top_k: int, deadline: float) -> Outcome:
        """Returns the best `top_k` classes of each item, or the item's own error, in order.

        An item that is an error already, from reading the request, is returned as it is. `deadline` is a time of
        time.monotonic. Raises QueueFull, ModelNotReady, DeviceLost, ShuttingDown or DeadlinePassed if the request
        fails as a whole.
        """
        started = time.monotonic()
        checked = [self._checked(item) for item in items]
        usable = [item for item in checked if not isinstance(item, ServiceError)]
        slots = self.batcher.reserve(len(usable), deadline)
        self._inflight += len(items)
        jobs: Sequence[DecodeJob] = ()
        try:
            jobs = self._prepare(usable, slots)
            answers = await self.batcher.wait(slots)
        finally:
            self._inflight -= len(items)
            for job in jobs:
                self._decoders.drop(job)
        for answer in answers:
            if isinstance(answer, ServiceError) and answer.retry_after_seconds is not None:
                raise answer  # the engine failed, not the item: the client may send the whole request again
        remaining = iter(answers)
        outcomes = [item if isinstance(item, ServiceError) else next(remaining) for item in checked]
        answered = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
        return Outcome(
            results=[self._postprocess(outcome, top_k) for outcome in outcomes],
            decode_seconds=max((slot.submitted - started for slot in slots), default=0.0),
            queue_seconds=max((answer.queue_seconds for answer in answered), default=0.0),
            inference_seconds=max((answer.inference_seconds for answer in answered), default=0.0),
        )

    def _postprocess(self, outcome: Answer | ServiceError, top_k: int) -> list[Prediction] | ServiceError:
        return (
            outcome if isinstance(outcome, ServiceError) else top_classes(outcome.row, self.manifest.spec.labels, top_k)
        )

    def _checked(self, item: Item | ServiceError) -> Item | ServiceError:
        """The item, or the error that can be found without decoding it."""
        spec = self.manifest.spec.input
        if isinstance(item, ServiceError):
            return item
        if isinstance(spec, ImageInput):
            return item if isinstance(item, bytes) else InvalidInput(f"{self.name} takes images, not numbers")
        if isinstance(item, bytes):
            return InvalidInput("the model takes numbers, not images", cure='send JSON: {"instances": [[5.1, 3.5]]}')
        if item.shape != spec.shape:
            shapes = f"{list(item.shape)}, and the model takes {list(spec.shape)}"
            return InvalidInput(f"an instance has the shape {shapes}")
        return item

    def _prepare(self, items: Sequence[Item], slots: Sequence[Slot]) -> Sequence[DecodeJob]:
        """Submits numbers at once, and images once they are decoded. Raises QueueFull, ShuttingDown."""
        spec, pairs = self.manifest.spec.input, list(zip(slots, items, strict=True))
        if not isinstance(spec, ImageInput):
            self.batcher.submit(*((slot, item) for slot, item in pairs if not isinstance(item, bytes)))
            return []
        jobs = [DecodeJob(item, spec, self._on_decoded(slot)) for slot, item in pairs if isinstance(item, bytes)]
        try:
            self._decoders.put(jobs)
        except ServiceError:
            self.batcher.submit(*((slot, None) for slot in slots))
            raise
        return jobs

    def _on_decoded(self, slot: Slot) -> Decoded:
        """The callback that submits an image's pixels."""
        started = time.monotonic()

        def submit(outcome: Array | ServiceError | None) -> None:
            if outcome is not None:
                self.metrics.decode_seconds.observe(time.monotonic() - started)
            self.batcher.submit((slot, outcome))

        return submit
