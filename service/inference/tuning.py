"""Measures which engine settings are best for a model on this machine, and caches the result."""

import hashlib
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import structlog
from pydantic import ValidationError

from models.artifact.staging import write_file
from models.inputs import Frozen
from service.host.machine import processor
from service.inference.engine import CPU, Engine, EnginePlan

log = structlog.get_logger()

Array = np.ndarray[Any, Any]

MEASURED_BATCH = 8
MEASURED_SECONDS = 0.4
ROUNDS = 2
ENOUGH = 0.97
"""The smallest batch with this share of the best throughput is taken: in a larger one, items only wait longer."""
WORTH_INSTANCES = 1.1
"""More instances of fewer threads slow down a single request: they are taken if they are this many times as fast."""


class Tuning(Frozen):
    """The best settings, and the measurements that they come from."""

    optimization: Literal["all", "extended"]
    intra_op_threads: int
    instances: int
    max_batch_size: int
    images_per_second: Mapping[str, float]
    """The throughput of each candidate, by its settings."""

    def applied(self, plan: EnginePlan) -> EnginePlan:
        """The plan, changed to these settings."""
        return replace(
            plan,
            optimization=self.optimization,
            intra_op_threads=self.intra_op_threads,
            instances=self.instances,
            buckets=tuple(size for size in plan.buckets if size <= self.max_batch_size),
        )


def tuned(content: bytes, plan: EnginePlan, classes: int, cores: int, directory: Path) -> Tuning:
    """The best settings: from the cache, or measured now, which takes some seconds. Raises as `Engine.open` does."""
    path = directory / f"{_key(content, plan, cores)}.json"
    try:
        return Tuning.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        found = _measure(content, plan, classes, cores)
    try:
        write_file(path, found.model_dump_json(indent=2).encode())
    except OSError as error:
        log.warning("the tuning could not be cached", reason=error.strerror, cure="make MENAGERIE_CACHE writable")
    return found


def _key(content: bytes, plan: EnginePlan, cores: int) -> str:
    """The name in the cache. It is the same for the same model, plan, kind of machine and release of ONNX Runtime."""
    described = [onnxruntime.__version__, processor(), cores, plan.provider, plan.buckets]
    return hashlib.sha256(hashlib.sha256(content).digest() + json.dumps(described).encode()).hexdigest()


def candidates(plan: EnginePlan, cores: int) -> Sequence[EnginePlan]:
    """The plans to compare, the default first. On a GPU it is the only one: the others would be no faster."""
    if plan.provider != CPU:
        return [plan]
    levels: tuple[Literal["all", "extended"], ...] = ("all", "extended")
    splits = [(cores // instances, instances) for instances in (1, 2, 4, 8, 16, 32) if cores % instances == 0]
    return [
        replace(plan, optimization=optimization, intra_op_threads=threads, instances=instances)
        for (threads, instances), optimization in itertools.product(splits, levels)
    ]


def _measure(content: bytes, plan: EnginePlan, classes: int, cores: int) -> Tuning:
    measured: dict[str, float] = {}
    best, fastest = plan, 0.0
    batch = min(MEASURED_BATCH, plan.buckets[-1])
    for candidate in candidates(plan, cores):
        engine = Engine(content, candidate)
        engine.open(classes)
        try:
            speed = throughput(engine, batch)
        finally:
            engine.close()
        measured[_named(candidate, batch)] = round(speed, 1)
        if speed > fastest * (WORTH_INSTANCES if candidate.instances > best.instances else 1.0):
            best, fastest = candidate, speed
    engine = Engine(content, best)
    engine.open(classes)
    try:
        speeds = {size: throughput(engine, size) for size in plan.buckets}
    finally:
        engine.close()
    measured |= {_named(best, size): round(speed, 1) for size, speed in speeds.items()}
    return Tuning(
        optimization=best.optimization,
        intra_op_threads=best.intra_op_threads,
        instances=best.instances,
        max_batch_size=min(size for size, speed in speeds.items() if speed >= ENOUGH * max(speeds.values())),
        images_per_second=measured,
    )


def _named(plan: EnginePlan, batch: int) -> str:
    return f"{plan.optimization}, {plan.instances} x {plan.intra_op_threads} threads, batch {batch}"


def throughput(engine: Engine, batch: int) -> float:
    """Images per second, with a thread for each instance of the engine; the best of a few rounds."""
    items = engine.example(batch)

    def work() -> tuple[int, float]:
        started, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() - started < MEASURED_SECONDS:
            engine.run(items)
            count += batch
        return count, time.perf_counter() - started

    best = 0.0
    with ThreadPoolExecutor(engine.plan.instances) as threads:
        for _ in range(ROUNDS):
            done = list(threads.map(lambda _: work(), range(engine.plan.instances)))
            best = max(best, sum(count for count, _ in done) / max(seconds for _, seconds in done))
    return best
