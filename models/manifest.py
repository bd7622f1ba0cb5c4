"""What is published beside an ONNX file: where it came from, and how it was judged."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from models.artifact import Precision, Spec
from models.inputs import Frozen

ONNX_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"


class Parity(Frozen):
    """How far ONNX Runtime's answers are from the framework's own, or those of fp16 and int8 from those of fp32."""

    relative_error: float
    """Largest difference of the network's outputs, over the largest output."""
    probability_error: float
    """Largest difference of the probabilities."""
    top1_agreement: float
    """Share of the items whose best class is the same."""
    batches: tuple[int, ...]
    items: int


class Trial(Frozen):
    """What was found of one precision, beside fp32 and on items that it was not calibrated on."""

    precision: Precision
    chosen: bool
    reason: str
    calibrated_on: int = 0
    """Images, or rows of numbers."""
    judged_on: int = 0
    """Images, or rows of numbers; of few images several views each, which `parity` counts."""
    parity: Parity | None = None
    """None where it was not tried."""
    speed: float | None = None
    """Items a second over those of fp32, on the machine that converted it."""


class Choice(Frozen):
    """How a precision was chosen."""

    trials: tuple[Trial, ...]
    fp32: Parity
    """Of the fp32 graph, from which the others are made, against the framework."""


class Manifest(Frozen):
    """What was published beside an ONNX file."""

    schema_version: Literal[1] = 1
    fingerprint: str
    spec: Spec
    parity: Parity
    """Of what is served: fp32 against the framework, fp16 and int8 against fp32 on held-out items."""
    precision: Precision = "fp32"
    choice: Choice | None = None
    """None where fp32 was asked for."""
    onnx_sha256: str
    onnx_bytes: int
    opset: int
    producers: Mapping[str, str]
    """Versions of the libraries that made the file."""
    seconds: Mapping[str, float]
    """How long each step took."""
    peak_memory_bytes: int = 0
    """The most that the conversion had in memory at once; 0 where the system does not say."""


def published_manifest(directory: Path) -> Manifest | None:
    """The manifest of a published directory; None where it is not whole, or of another release."""
    try:
        manifest = Manifest.model_validate_json((directory / MANIFEST_FILE).read_bytes())
        whole = (directory / ONNX_FILE).stat().st_size == manifest.onnx_bytes
    except (OSError, ValidationError):
        return None
    return manifest if whole else None
