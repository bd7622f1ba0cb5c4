"""One benchmark from beginning to end: the server under load, then each of its parts alone."""

import itertools
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from models.artifact.artifact import Artifact
from models.artifact.manifest import Manifest
from models.inputs import ImageInput
from service.bench import agreement, limits, load
from service.bench.report import Report, Result
from service.bench.server import BenchError, Served, running, started, wait_until_ready
from service.conversion.conversion import Converter
from service.host.machine import gpu_names, processor, usable_cores
from service.host.memory import tune_malloc
from service.images import raster
from service.images.preprocess import decode
from service.images.shortcuts import Shortcuts
from service.inference.engine import CPU, Engine, plan
from service.repository.repository import Repository, read_converted
from service.settings import Settings

TINY = Path(__file__).with_name("tiny")
"""A repository of one model that costs almost nothing: the mean colour of a few pixels."""
PHOTOGRAPH = Path(__file__).parents[2] / "models" / "samples" / "coffee.jpg"
WARM_SECONDS = 1.0
LIMIT_SECONDS = 1.0

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One measurement that was asked for."""

    model: str
    url: str | None
    """A server that runs already; None to start one."""
    image: Path
    clients: Sequence[int]
    seconds: float
    """Of load for each number of clients."""
    photographs: Path | None = None
    """A directory of JPEGs on which the shortcuts of preprocessing are compared too, beside `image`."""


def run(settings: Settings, wanted: Benchmark, say: Say) -> Report:
    """Blocks until everything is measured; `say` is called with each step. Raises ServiceError."""
    load.find_wrk()
    photographs = _photographs(wanted.photographs)
    with TemporaryDirectory() as directory:
        with _served(settings, wanted, say) as served:
            described = _live(served.model(wanted.model))
            body, kind = _body(wanted, described["input"])
            file = Path(directory) / "body"
            file.write_bytes(body)
            request = load.Request(f"{served.url}/predict/{wanted.model}", file, kind)
            results = [_result(served, request, wanted, clients, say) for clients in wanted.clients]
        on_gpu = described["provider"] != CPU
        report = Report(
            model=wanted.model,
            machine=_machine(wanted, body, kind, described["provider"]),
            results=results,
            cores=usable_cores(),
            on_gpu=on_gpu,
        )
        if wanted.url:
            say("the parts are measured only if the benchmark starts the server itself, without --url")
            return report
        return _with_limits(report, settings, request, max(wanted.clients), body, photographs, say)


@contextmanager
def _served(settings: Settings, wanted: Benchmark, say: Say) -> Iterator[Served]:
    """The server to measure, once its model is ready."""
    if wanted.url:
        yield running(wanted.url)
        return
    environment = {
        "MENAGERIE_REPOSITORY": str(settings.repository.absolute()),
        "MENAGERIE_CACHE": str(settings.cache.absolute()),
        "MENAGERIE_MODELS": wanted.model,
    }
    with started(environment, "service", "serve") as served:
        say(f"loading {wanted.model}, which is converted first if it has not been yet")
        wait_until_ready(served, wanted.model, settings.conversion_timeout_seconds)
        yield served


def _live(model: dict[str, Any]) -> dict[str, Any]:
    """The server's description of the live version. Raises BenchError if there is none."""
    if model["live"] is None:
        reason = model["problem"] or "; ".join(each["reason"] for each in model["versions"])
        raise BenchError(
            f"{model['name']} is not ready: {reason}", cure="wait until it is loaded, or correct what the reason names"
        )
    return next(each for each in model["versions"] if each["version"] == model["live"])


def _body(wanted: Benchmark, takes: dict[str, Any]) -> tuple[bytes, str]:
    """The body of one request, and its Content-Type."""
    if takes["kind"] != "image":
        zeros = np.zeros(takes["shape"]).tolist()
        return json.dumps({"instances": [zeros]}).encode(), "application/json"
    try:
        return wanted.image.read_bytes(), "application/octet-stream"
    except OSError as error:
        raise BenchError(f"{wanted.image} cannot be read: {error.strerror}", cure="name an image file") from error


def _result(served: Served, request: load.Request, wanted: Benchmark, clients: int, say: Say) -> Result:
    say(f"{clients} clients, {wanted.seconds:g} s")
    warmed = load.apply(request, clients, min(WARM_SECONDS, wanted.seconds))
    if warmed.refused == warmed.requests:
        raise BenchError("the server answers with errors only", cure=f"try: menagerie predict --model {wanted.model}")
    cpu, counts = served.cpu_seconds(), served.metrics(wanted.model)
    found = load.apply(request, clients, wanted.seconds)
    cpu_after, counts_after = served.cpu_seconds(), served.metrics(wanted.model)

    def mean(name: str) -> float:
        count = counts_after.get(f"{name}_count", 0.0) - counts.get(f"{name}_count", 0.0)
        return (counts_after.get(f"{name}_sum", 0.0) - counts.get(f"{name}_sum", 0.0)) / count if count else 0.0

    stages = ("request", "decode", "queue", "inference")
    return Result(
        load=found,
        mean_batch=mean("serving_batch_size"),
        server_cpu_milliseconds=None if cpu is None or cpu_after is None else (cpu_after - cpu) / found.requests * 1000,
        memory_mib=served.memory_mib(),
        stages={name: mean(f"serving_{name}_seconds") * 1000 for name in stages},
    )


def _with_limits(
    report: Report,
    settings: Settings,
    request: load.Request,
    clients: int,
    body: bytes,
    photographs: Sequence[Path],
    say: Say,
) -> Report:
    tune_malloc()  # as the server does
    manifest, content = _published(settings, report.model)
    spec, shortcuts = manifest.spec.input, Shortcuts.of(settings)
    found, large = [], []
    agreements: Mapping[str, agreement.Agreement] = {}
    item = np.zeros(spec.shape, np.float32)
    if isinstance(spec, ImageInput):
        item = decode(body, spec, max_pixels=settings.max_image_pixels, shortcuts=shortcuts)
        say("preprocessing alone")
        cores = usable_cores()
        counts = sorted({cores, *(2**exponent for exponent in range(cores.bit_length()))})  # 1, 2, 4 ... and all
        found += [limits.preprocessing(body, spec, shortcuts, threads, LIMIT_SECONDS) for threads in counts]
        found.append(limits.pillow(body, spec, LIMIT_SECONDS))
        enlarged = limits.enlarged(body)
        large = [
            limits.pillow(enlarged, spec, LIMIT_SECONDS),
            limits.preprocessing(enlarged, spec, shortcuts, 1, LIMIT_SECONDS),
        ]
    say("the engine alone")
    planned = plan(
        settings,
        gpus=gpu_names(),
        cores=usable_cores(),
        precision=manifest.precision,
        fingerprint=manifest.fingerprint,
        item_shape=spec.shape,
    )
    engine = Engine(content, planned)
    engine.open(manifest.spec.num_classes)
    try:
        found += limits.engine(engine, item, LIMIT_SECONDS / 2)
        if isinstance(spec, ImageInput):
            say("accuracy of the shortcuts in preprocessing")
            bodies = itertools.chain((body, enlarged), (path.read_bytes() for path in photographs))
            agreements = agreement.measure(bodies, spec, engine, shortcuts)
    finally:
        engine.close()
    say("HTTP alone")
    found.append(limits.http(request, clients, max(LIMIT_SECONDS, 2.0)))
    return Report(**(vars(report) | {"limits": found, "large": large, "agreement": agreements}))


def _photographs(directory: Path | None) -> Sequence[Path]:
    """The JPEG files in a directory and its subdirectories."""
    if directory is None:
        return []
    paths = [path for path in directory.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg") and path.is_file()]
    if not paths:
        raise BenchError(f"{directory} holds no JPEG", cure="name a directory of photographs")
    return sorted(paths)


def _published(settings: Settings, model: str) -> tuple[Manifest, bytes]:
    repository = Repository(settings.repository)
    source = repository.resolve(model, repository.wanted(model)[-1]).source
    if isinstance(source, Artifact):
        directory = Converter.of(settings).converted(source)
        if directory is None:
            raise BenchError(f"{model} changed while it was measured", cure="measure again")
        source = directory
    return read_converted(source)


def _machine(wanted: Benchmark, body: bytes, kind: str, provider: str) -> dict[str, str]:
    libraries = ["onnxruntime-gpu", "onnxruntime", "pillow", "uvicorn", "fastapi"]
    libraries += ["simplejpeg", "cykooz-resizer"] if raster.IS_AVAILABLE else []
    request = f"{len(body)} bytes of JSON"
    if kind != "application/json":
        with Image.open(wanted.image) as image:
            request = f"{wanted.image.name}, {image.format} of {image.width}x{image.height}, {len(body)} bytes"
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "processor": f"{processor()}, {usable_cores()} cores",
        "GPU": ", ".join(gpu_names()) or "none",
        "provider": provider,
        "request": request,
        "clients": f"wrk, on the same machine; {wanted.seconds:g} s each",
        "software": ", ".join([f"Python {platform.python_version()}", *_versions(libraries)]),
    }


def _versions(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        try:
            yield f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
