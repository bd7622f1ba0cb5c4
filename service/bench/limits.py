"""What each part of the server reaches alone, with nothing else to do: preprocessing, the engine, HTTP."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from models.inputs import ImageInput
from service import preprocess
from service.bench import load, server
from service.engine import Engine
from service.preprocess import EXACT, Shortcuts

Array = np.ndarray[Any, Any]

LARGE = (4000, 3000)  # 12 megapixels, as a telephone takes them


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One part of the server, alone."""

    part: str
    setting: str
    rate: float
    """Images, or requests, a second."""
    cpu_milliseconds: float
    """Of all cores together, for each of them."""


def _measure(part: str, setting: str, work: Callable[[], int], seconds: float) -> Limit:
    """Does the work, which tells of how many images it was, again and again for so long; once before, uncounted."""
    work()
    done, cpu, started = 0, time.process_time(), time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        done += work()
    used = time.process_time() - cpu
    return Limit(part=part, setting=setting, rate=done / elapsed, cpu_milliseconds=used / done * 1000)


def preprocessing(body: bytes, spec: ImageInput, shortcuts: Shortcuts, threads: int, seconds: float) -> Limit:
    """Decoding and fitting the image in so many threads."""

    def once(_: int) -> Array:
        return preprocess.decode(body, spec, max_pixels=_pixels(body), shortcuts=shortcuts)

    with ThreadPoolExecutor(threads) as pool:
        count = 8 * threads
        name = f"{threads} thread{'s' if threads > 1 else ''}"
        return _measure("preprocessing", name, lambda: len(list(pool.map(once, range(count)))), seconds)


def pillow(body: bytes, spec: ImageInput, seconds: float) -> Limit:
    """What `preprocessing` is measured against: Pillow decodes and resizes the whole picture, as torchvision does."""

    def once() -> int:
        with Image.open(BytesIO(body)) as image:
            picture = image.convert("L" if spec.channels == 1 else "RGB")
        resampling = Image.Resampling[spec.interpolation.upper()]
        if spec.resize == "stretch":
            np.asarray(picture.resize((spec.width, spec.height), resampling))
            return 1
        scale = spec.shorter_side / min(picture.size)
        whole = picture.resize((round(picture.width * scale), round(picture.height * scale)), resampling)
        left, top = (whole.width - spec.width) // 2, (whole.height - spec.height) // 2
        np.asarray(whole.crop((left, top, left + spec.width, top + spec.height)))
        return 1

    return _measure("Pillow", "1 thread", once, seconds)


def engine(opened: Engine, item: Array, seconds: float) -> list[Limit]:
    """Every bucket."""
    batches = {size: np.stack([item] * size) for size in opened.plan.buckets}
    return [
        _measure("engine", f"batch {size}", lambda batch=batch: len(opened.run(batch)), seconds)  # type: ignore[misc]
        for size, batch in batches.items()
    ]


def http(request: load.Request, clients: int, seconds: float) -> Limit:
    """The web server and the framework, with an answer that never changes. The CPU is the server's."""
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


@dataclass(frozen=True)
class Agreement:
    """How far the shortcuts are from Pillow alone, on one picture."""

    largest_difference: int
    """Of 255."""
    mean_difference: float
    same_top1: bool
    probability_difference: float


def agreement(body: bytes, spec: ImageInput, shortcuts: Shortcuts, opened: Engine) -> Agreement:
    """By the pixels, and by what the model makes of them."""
    pixels = [preprocess.decode(body, spec, max_pixels=_pixels(body), shortcuts=each) for each in (EXACT, shortcuts)]
    exact, quick = (opened.run(each[np.newaxis])[0] for each in pixels)
    difference = np.abs(pixels[0].astype(int) - pixels[1])
    return Agreement(
        int(difference.max()),
        float(difference.mean()),
        bool(exact.argmax() == quick.argmax()),
        float(np.abs(exact - quick).max()),
    )


def _pixels(body: bytes) -> int:
    with Image.open(BytesIO(body)) as image:
        return image.width * image.height
