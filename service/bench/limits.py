"""The throughput of each part of the server alone: preprocessing, the engine, HTTP."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from models.inputs import ImageInput
from service.bench import load, server
from service.bench.agreement import pixels_of, whole
from service.images import preprocess
from service.images.shortcuts import Shortcuts
from service.inference.engine import Engine

Array = np.ndarray[Any, Any]

LARGE = (4000, 3000)  # 12 megapixels, as a telephone's camera has


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The throughput of one part of the server alone."""

    part: str
    setting: str
    rate: float
    """Images, or requests, per second."""
    cpu_milliseconds: float
    """CPU time of all cores together, for one image or request."""


def _measure(part: str, setting: str, work: Callable[[], int], seconds: float) -> Limit:
    """Repeats the work, which returns its number of images, for that long. The first call is a warm-up."""
    work()
    done, elapsed, cpu, started = 0, 0.0, time.process_time(), time.perf_counter()
    while done == 0 or elapsed < seconds:
        done += work()
        elapsed = time.perf_counter() - started
    used = time.process_time() - cpu
    return Limit(part=part, setting=setting, rate=done / elapsed, cpu_milliseconds=used / done * 1000)


def preprocessing(body: bytes, spec: ImageInput, shortcuts: Shortcuts, threads: int, seconds: float) -> Limit:
    """Decoding and resizing the image, in that many threads."""

    def once(_: int) -> Array:
        return preprocess.decode(body, spec, max_pixels=pixels_of(body), shortcuts=shortcuts)

    with ThreadPoolExecutor(threads) as pool:
        count = 8 * threads
        name = f"{threads} thread{'s' if threads > 1 else ''}"
        return _measure("preprocessing", name, lambda: len(list(pool.map(once, range(count)))), seconds)


def pillow(body: bytes, spec: ImageInput, seconds: float) -> Limit:
    """The same work as torchvision does it, on the whole picture: the reference for `preprocessing`."""

    def once() -> int:
        whole(body, spec)
        return 1

    return _measure("Pillow", "1 thread", once, seconds)


def engine(opened: Engine, item: Array, seconds: float) -> list[Limit]:
    """The engine alone, at each of its batch sizes."""
    batches = {size: np.stack([item] * size) for size in opened.plan.buckets}
    return [
        _measure("engine", f"batch {size}", lambda batch=batch: len(opened.run(batch)), seconds)  # type: ignore[misc]
        for size, batch in batches.items()
    ]


def http(request: load.Request, clients: int, seconds: float) -> Limit:
    """The web server and the framework alone, with a constant answer. The CPU time is the server's."""
    with server.started({}, "service.bench.echo") as echo:
        url = echo.url + "/predict/echo"
        before = echo.cpu_seconds()
        found = load.apply(load.Request(url, request.body, request.content_type), clients, seconds)
        after = echo.cpu_seconds()
    assert before is not None
    assert after is not None
    cpu = (after - before) / found.requests * 1000
    return Limit(part="HTTP", setting=f"{clients} clients", rate=found.rate, cpu_milliseconds=cpu)


def enlarged(body: bytes) -> bytes:
    """The picture as a JPEG of 12 megapixels."""
    file = BytesIO()
    with Image.open(BytesIO(body)) as image:
        image.convert("RGB").resize(LARGE, Image.Resampling.LANCZOS).save(file, "JPEG", quality=90)
    return file.getvalue()
