"""Every metric. Label values come from the registry and from errors.py, never from a client."""

from collections.abc import Callable, Sequence
from functools import cache

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

__all__ = ["CONTENT_TYPE_LATEST", "ServableMetrics", "generate_latest"]

disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the number of series

NO_MODEL = "none"
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LONG_SECONDS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SERVABLE = ("model", "version")

REQUESTS = Counter(
    "serving_requests", "Prediction requests; outcome is ok, client_gone or an error code", (*_SERVABLE, "outcome")
)
REQUEST_SECONDS = Histogram(
    "serving_request_seconds",
    "Time from the first byte of a prediction request to its answer",
    _SERVABLE,
    buckets=_SECONDS,
)
REFUSALS = Counter(
    "serving_refusals",
    "Connections closed by the server because of what the client sent, did not send or did not read; "
    "code is client_gone or an error code",
    ("code",),
)
DECODE_SECONDS = Histogram(
    "serving_decode_seconds", "Time to decode an image, including the wait for a decoder", _SERVABLE, buckets=_SECONDS
)
DECODER_DEATHS = Counter(
    "serving_decoder_deaths",
    "Decoders that ended unexpectedly; cause is a signal's name, timeout, memory, garbled, exit or fork_server",
    ("cause",),
)
QUEUE_SECONDS = Histogram(
    "serving_queue_seconds", "Time that an item waits for the engine", _SERVABLE, buckets=_SECONDS
)
INFERENCE_SECONDS = Histogram("serving_inference_seconds", "Duration of an engine call", _SERVABLE, buckets=_SECONDS)
BATCH_SIZE = Histogram("serving_batch_size", "Items in one engine call", _SERVABLE, buckets=_SIZES)
QUEUE_DEPTH = Gauge("serving_queue_depth", "Items waiting for the engine", _SERVABLE)
INFLIGHT_IMAGES = Gauge(
    "serving_inflight_images", "Images being decoded, waiting for the engine or in the engine", _SERVABLE
)

LOADS = Counter("serving_loads", "Loads of versions; outcome is ok or failed", ("model", "outcome"))
LOAD_SECONDS = Histogram(
    "serving_load_seconds", "Time to open and warm up a version", ("model",), buckets=_LONG_SECONDS
)
SWAPS = Counter(
    "serving_swaps",
    "Swaps: loads for a model that already has a live version; outcome is ok, or failed if the old version stays live",
    ("model", "outcome"),
)
SWAP_SECONDS = Histogram(
    "serving_swap_seconds",
    "Time from the start of a swap until the new version is live",
    ("model",),
    buckets=_LONG_SECONDS,
)
CONVERSIONS = Counter("serving_conversions", "Conversions; outcome is ok or failed", ("model", "outcome"))
CONVERSION_SECONDS = Histogram(
    "serving_conversion_seconds", "Duration of a conversion", ("model",), buckets=_LONG_SECONDS
)
GOLDEN_AGREEMENT = Gauge(
    "serving_golden_agreement",
    "Share of the golden inputs for which the version and the live version give the same label",
    _SERVABLE,
)
SHADOW_ITEMS = Counter(
    "serving_shadow_items",
    "Items mirrored to a shadow version; outcome is agree or differ (by the best label), failed or dropped",
    (*_SERVABLE, "outcome"),
)
MODEL_STATE = Gauge("serving_model_state", "1 for the current state of a version", (*_SERVABLE, "state"))
MODEL_INFO = Gauge(
    "serving_model_info", "1 for each loaded version; the labels say how it runs", (*_SERVABLE, "provider", "precision")
)
MODEL_MEMORY = Gauge(
    "serving_model_memory_bytes", "Growth of the process's memory when the version was opened", _SERVABLE
)


def count_request(model: str, version: str, outcome: str, seconds: float) -> None:
    """Counts an answered prediction request; `model` is NO_MODEL if there is no such model."""
    requests, request_seconds = _of_requests(model, version, outcome)
    requests.inc()
    request_seconds.observe(seconds)


@cache  # bounded by the number of series
def _of_requests(model: str, version: str, outcome: str) -> tuple[Counter, Histogram]:
    return REQUESTS.labels(model, version, outcome), REQUEST_SECONDS.labels(model, version)


class ServableMetrics:
    """The metrics of one loaded version, each looked up once."""

    def __init__(self, model: str, version: int) -> None:
        self._labels = labels = (model, str(version))
        self.decode_seconds = DECODE_SECONDS.labels(*labels)
        self._queue_seconds = QUEUE_SECONDS.labels(*labels)
        self._inference_seconds = INFERENCE_SECONDS.labels(*labels)
        self._batch_size = BATCH_SIZE.labels(*labels)

    def executed(self, images: int, queue_seconds: Sequence[float], inference_seconds: float) -> None:
        """Records an engine call: its items, how long each of them waited, and how long the call took."""
        self._batch_size.observe(images)
        self._inference_seconds.observe(inference_seconds)
        for seconds in queue_seconds:
            self._queue_seconds.observe(seconds)

    def watch(self, depth: Callable[[], float], inflight: Callable[[], float]) -> None:
        """Reads the queue depth and the number of images in flight at every scrape."""
        QUEUE_DEPTH.labels(*self._labels).set_function(depth)
        INFLIGHT_IMAGES.labels(*self._labels).set_function(inflight)

    def describe(self, provider: str, precision: str, memory_bytes: int) -> None:
        """Records how the version runs and how much memory it takes."""
        MODEL_INFO.labels(*self._labels, provider, precision).set(1)
        MODEL_MEMORY.labels(*self._labels).set(memory_bytes)


def forget(model: str, version: int) -> None:
    """Removes the gauges of an unloaded version. Its counters and histograms stay, because they must not decrease."""
    labels = {"model": model, "version": str(version)}
    for gauge in (QUEUE_DEPTH, INFLIGHT_IMAGES, MODEL_STATE, MODEL_INFO, MODEL_MEMORY, GOLDEN_AGREEMENT):
        gauge.remove_by_labels(labels)
