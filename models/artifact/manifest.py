"""The manifest beside a converted ONNX file: its origin, and how it compares with the original network."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from models.artifact.artifact import Precision, Spec
from models.artifact.formats import is_regular
from models.errors import ArtifactError
from models.inputs import Frozen

ONNX_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 16 * 2**20  # mostly labels
MAX_ONNX_BYTES = 2**31 - 1  # the limit of protocol buffers

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""Hexadecimal digits; some are names of directories."""


class Parity(Frozen):
    """How much the outputs of ONNX Runtime differ from the framework's, or those of fp16 and int8 from fp32."""

    relative_error: float
    """Largest difference between the network's outputs, relative to the largest output."""
    probability_error: float
    """Largest difference between probabilities."""
    top1_agreement: float
    """Share of the items with the same top class."""
    batches: tuple[int, ...]
    items: int


class Trial(Frozen):
    """The evaluation of one precision against fp32, on items that were not used to calibrate it."""

    precision: Precision
    chosen: bool
    reason: str
    calibrated_on: int = 0
    """Images, or rows of numbers."""
    judged_on: int = 0
    """Images, or rows of numbers. A few images are used in several views each, which `parity` counts."""
    parity: Parity | None = None
    """None if it was not tried."""
    speed: float | None = None
    """Items per second relative to fp32, on the machine that converted it."""


class Choice(Frozen):
    """The evaluations from which a precision was chosen."""

    trials: tuple[Trial, ...]
    fp32: Parity
    """The fp32 graph, from which the others are made, against the framework."""


class Manifest(Frozen):
    """The content of manifest.json."""

    schema_version: Literal[1] = 1
    fingerprint: Sha256
    spec: Spec
    parity: Parity
    """Of the served graph: fp32 against the framework, fp16 and int8 against fp32 on held-out items."""
    precision: Precision = "fp32"
    choice: Choice | None = None
    """None if model.toml asks for fp32."""
    onnx_sha256: Sha256
    onnx_bytes: int
    opset: int
    producers: Mapping[str, str]
    """Versions of the libraries that wrote the file."""
    seconds: Mapping[str, float]
    """Duration of each step."""
    peak_memory_bytes: int = 0
    """Peak memory of the conversion; 0 if the system does not tell."""


def converted_manifest(directory: Path) -> Manifest | None:
    """The manifest of a converted version; None if its files are incomplete, or of another release."""
    try:
        manifest = read_manifest(directory)
        whole = (directory / ONNX_FILE).stat().st_size == manifest.onnx_bytes
    except (OSError, ValueError):
        return None
    return manifest if whole else None


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a converted version. Raises ArtifactError, pydantic.ValidationError, OSError."""
    manifest = Manifest.model_validate_json(_content(directory / MANIFEST_FILE, MAX_MANIFEST_BYTES))
    try:  # the API shows it as JSON, which has neither infinity nor NaN
        json.dumps(manifest.model_dump(mode="json", exclude={"spec": {"labels"}}), allow_nan=False)
    except ValueError as error:
        raise ArtifactError(f"{MANIFEST_FILE} holds an infinite number or NaN", CONVERT_AGAIN) from error
    return manifest


def read_converted(directory: Path) -> tuple[Manifest, bytes]:
    """The manifest and the content of the ONNX file, which is checked against it.

    If the directory is replaced meanwhile, both are read from the new one. Raises ArtifactError,
    pydantic.ValidationError, OSError.
    """
    while True:
        before = _identity(directory)
        try:
            return _read_both(directory)
        except (OSError, ValueError):
            if _identity(directory) == before:
                raise


def _identity(directory: Path) -> tuple[int, int] | None:
    """Differs if another directory is there, or if files were added to it or removed."""
    try:
        found = directory.stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


def _read_both(directory: Path) -> tuple[Manifest, bytes]:
    manifest = read_manifest(directory)
    content = _content(directory / ONNX_FILE, MAX_ONNX_BYTES)
    if hashlib.sha256(content).hexdigest() != manifest.onnx_sha256:
        raise ArtifactError(f"{ONNX_FILE} is not the file that {MANIFEST_FILE} was written for", CONVERT_AGAIN)
    if len(content) != manifest.onnx_bytes:
        raise ArtifactError(
            f"{MANIFEST_FILE} claims {manifest.onnx_bytes} bytes, and {ONNX_FILE} has {len(content)}", CONVERT_AGAIN
        )
    return manifest, content


CONVERT_AGAIN = "delete the directory and convert again: menagerie convert"


def _content(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises ArtifactError, OSError."""
    if os.path.lexists(path) and not is_regular(path):
        raise ArtifactError(f"{path.name} is not a regular file", "replace the link by the file itself")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ArtifactError(f"{path.name} has {size:,} bytes, and {most:,} are allowed", CONVERT_AGAIN)
        return file.read(size)
