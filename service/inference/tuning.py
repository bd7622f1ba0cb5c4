"""The best engine settings for a model on this machine, found by a short measurement and kept."""

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
from service.inference.engine import CPU, Engine, Plan

log = structlog.get_logger()

Array = np.ndarray[Any, Any]

MEASURED_BATCH = 8
MEASURED_SECONDS = 0.4
ROUNDS = 2
ENOUGH = 0.97
"""A batch is large enough that gives this share of the best throughput: a larger one only makes its items wait."""
WORTH_INSTANCES = 1.1
"""So many times as fast must more instances be, of fewer threads each: a lone request is slower with them."""


class Tuning(Frozen):
    """What was found, and what was measured for it."""

    optimization: Literal["all", "extended"]
    intra_op_threads: int
    instances: int
    max_batch_size: int
    images_per_second: Mapping[str, float]
    """Of each candidate, by its settings."""

    def applied(self, plan: Plan) -> Plan:
        """The plan with these settings."""
        return replace(
            plan,
            optimization=self.optimization,
            intra_op_threads=self.intra_op_threads,
            instances=self.instances,
            buckets=tuple(size for size in plan.buckets if size <= self.max_batch_size),
        )


def tuned(content: bytes, plan: Plan, classes: int, cores: int, directory: Path) -> Tuning:
    """What was found on this machine before, or is found now, in some seconds. Raises what `Engine.open` raises."""
    path = directory / f"{_key(content, plan, cores)}.json"
    try:
        return Tuning.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        found = _measure(content, plan, classes, cores)
    try:
        write_file(path, found.model_dump_json(indent=2).encode())
    except OSError as error:
        log.warning("the tuning is not kept", reason=error.strerror, cure="make MENAGERIE_CACHE writable")
    return found


def _key(content: bytes, plan: Plan, cores: int) -> str:
    """The same model under the same plan on the same kind of machine."""
    described = [onnxruntime.__version__, processor(), cores, plan.provider, plan.buckets]
    return hashlib.sha256(hashlib.sha256(content).digest() + json.dumps(described).encode()).hexdigest()


def candidates(plan: Plan, cores: int) -> Sequence[Plan]:
    """Plans to compare, the default first: on a GPU that alone, as neither threads nor level decide there."""
    if plan.provider != CPU:
        return [plan]
    levels: tuple[Literal["all", "extended"], ...] = ("all", "extended")
    splits = [(cores // instances, instances) for instances in (1, 2, 4, 8, 16, 32) if cores % instances == 0]
    return [
        replace(plan, optimization=optimization, intra_op_threads=threads, instances=instances)
        for (threads, instances), optimization in itertools.product(splits, levels)
    ]


def _measure(content: bytes, plan: Plan, classes: int, cores: int) -> Tuning:
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


def _named(plan: Plan, batch: int) -> str:
    return f"{plan.optimization}, {plan.instances} x {plan.intra_op_threads} threads, batch {batch}"


def throughput(engine: Engine, batch: int) -> float:
    """Images a second, by as many threads as the engine has instances; the best of some rounds."""
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
