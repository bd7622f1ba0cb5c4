"""Artifacts: the settings of a model, the specification of a version, its weights and its fingerprint."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, field_validator, model_validator

from models.architecture import Framework
from models.artifact.versions import MAX_VERSION
from models.errors import ArtifactError
from models.inputs import Frozen, Input, expand
from models.outputs import Output, outputs_of

CONFIG_FILE = "model.toml"
OVERRIDE_FILE = "artifact.toml"
MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
CALIBRATION_DIRECTORY = "calibration"
NUMBERS_FILE = "inputs.json"
SAMPLES = Path(__file__).parents[1] / "samples"

_OF_ALL_VERSIONS = {"versions", "min_agreement", "tune", "unload_first"}

Precision = Literal["fp32", "fp16", "int8"]
VersionNumber = Annotated[int, Field(ge=1, le=MAX_VERSION)]
MAX_CLASSES = 2**20
Classes = Annotated[int, Field(ge=1, le=MAX_CLASSES)]
"""The number of classes of a network. Each has a label; the largest public lists have 21,841."""


class Batching(Frozen):
    """`[batching]` of a model.toml. Missing values come from the server's settings."""

    max_batch_size: int | None = Field(None, ge=1, le=1024)
    max_queue_delay_seconds: float | None = Field(None, ge=0, le=60, allow_inf_nan=False)


class ModelConfig(Frozen):
    """The settings of model.toml; those in the artifact.toml of a version override them."""

    architecture: str | None = None
    """A name in the catalog. Only a file that holds a whole model needs none."""
    framework: Framework | None = None
    """Default: detected from the weights."""
    weights: str | None = None
    """A path in the version's directory, or `package:NAME/PATH`. Default: the file called weights or weights.*"""
    num_classes: Classes | None = None
    """Default: the number of labels, or else that of the architecture."""
    labels: str | tuple[str, ...] | None = None
    """The labels themselves, or the name of a built-in list (imagenet). Default: the lines of labels.txt."""
    output: Output | None = None
    """The kind of numbers that the network computes. Default: that of the architecture."""
    input: dict[str, Any] = Field(default_factory=dict)
    """Settings that differ from the architecture's input."""
    precision: Precision | Literal["auto"] = "fp32"
    """The numbers that the graph computes with. `auto` keeps the fastest precision that passes its tests."""
    precision_agreement: float | None = Field(None, gt=0, le=1)
    """The share of the held-out images on which fp16 or int8 must predict the label of fp32. Default: by precision."""
    batching: Batching = Batching()
    versions: Literal["latest", "all"] | tuple[VersionNumber, ...] = "latest"
    """The versions to load. The highest of them answers requests that name no version."""
    min_agreement: float = Field(0.0, ge=0, le=1)
    """A version goes live only if it predicts the live version's label for at least this share of the golden inputs."""
    tune: bool = False
    """Whether the first load measures the best threads, instances, optimization level and maximum batch size."""
    unload_first: bool = False
    """Whether the live version is unloaded before the new one is loaded if memory does not hold both."""

    @field_validator("input")
    @classmethod
    def _expand(cls, values: dict[str, Any]) -> dict[str, Any]:
        return expand(values)

    def overridden(self, values: Mapping[str, Any]) -> Self:
        """These settings, overridden key by key by those of an artifact.toml. Raises ValueError."""
        if misplaced := _OF_ALL_VERSIONS & values.keys():
            raise ValueError(f"{min(misplaced)} belongs into model.toml: it applies to all versions")
        over = type(self).model_validate(values)
        given = {name: getattr(over, name) for name in values}
        batching = self.batching.model_copy(update=over.batching.model_dump(exclude_unset=True))
        return self.model_copy(update={**given, "input": self.input | over.input, "batching": batching})


Runtime = Framework | Literal["onnx"]
"""The runtime whose outputs are the reference for the converted file."""


class Spec(Frozen):
    """Everything but the weights that determines the graph and its outputs."""

    architecture: str
    """The name in the catalog; for a whole model, `whole:` and the name of the format."""
    framework: Runtime
    num_classes: Classes
    input: Input
    output: Output
    labels: tuple[str, ...]
    layout: Literal["NCHW", "NHWC"] | None = None
    """The layout of the network's images. Default: that of its framework."""
    dtype: Literal["float32", "uint8"] = "float32"
    """The type of the network's input. The output is always float32."""
    precision: Precision | Literal["auto"] = "fp32"
    """The precision in model.toml; the manifest has the one that was chosen."""
    precision_agreement: float | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.labels) != self.num_classes:
            raise ValueError(f"there are {len(self.labels)} labels for {self.num_classes} classes")
        if self.outputs == 1 and self.num_classes != 2:  # noqa: PLR2004
            raise ValueError(f"one {self.output} distinguishes two classes, and there are {self.num_classes}")
        return self

    @property
    def outputs(self) -> int:
        """The number of outputs for each item."""
        return outputs_of(self.output, self.num_classes)

    @property
    def channels_first(self) -> bool:
        """Whether the network's images are [N, channels, height, width]."""
        return self.layout == "NCHW" or (self.layout is None and self.framework == "torch")

    def admits(self, spec: "Spec") -> bool:
        """Whether the spec equals this one."""
        return spec == self


class Draft(Frozen):
    """A spec without the network's part: model.toml and the labels only."""

    architecture: str
    framework: Runtime
    num_classes: Classes | None
    input: dict[str, Any]
    """Settings that differ from the network's input."""
    output: Output | None
    labels: tuple[str, ...]
    """Empty if none are given."""
    precision: Precision | Literal["auto"] = "fp32"
    precision_agreement: float | None = None

    def complete(self, num_classes: int, item: Input, output: Output, **layout: Any) -> Spec:
        """The spec of this version, for a network with that number of classes, that input and that output.

        Raises ArtifactError, pydantic.ValidationError.
        """
        classes = self.num_classes or len(self.labels) or num_classes
        if self.labels and len(self.labels) != classes:
            raise ArtifactError(
                f"there are {len(self.labels)} labels for {classes} classes", "make num_classes and the labels agree"
            )
        if classes > MAX_CLASSES:
            raise ArtifactError(
                f"there are {classes} classes, and {MAX_CLASSES} are allowed", "serve a network with fewer classes"
            )
        return Spec(
            architecture=self.architecture,
            framework=self.framework,
            num_classes=classes,
            input=_changed(item, self.input),
            output=self.output or output,
            labels=self.labels or tuple(str(index) for index in range(classes)),
            precision=self.precision,
            precision_agreement=self.precision_agreement,
            **layout,
        )

    def admits(self, spec: Spec) -> bool:
        """Whether the spec is this draft, completed for some network."""
        try:
            completed = self.complete(spec.num_classes, spec.input, spec.output, layout=spec.layout, dtype=spec.dtype)
        except ValueError:
            return False
        return completed == spec


class Artifact(Frozen):
    """One trained version with every default filled in."""

    spec: Spec | Draft
    """A draft if the file holds a whole model: the converting process completes it from the file."""
    weights: Path
    """The file; for a SavedModel the directory, for a TensorFlow checkpoint the index."""
    calibration: tuple[Path, ...] = ()
    """Images, or a file of numbers, to calibrate and evaluate fp16 and int8 with."""
    fingerprint: str
    """SHA-256 of the weights, the spec, the calibration files and the code that converts them."""


def _changed(default: Input, changes: Mapping[str, Any]) -> Input:
    """The default input with these changes; the changes alone if they are of another kind. Raises ValidationError."""
    same_kind = changes.get("kind", default.kind) == default.kind
    found: Input = TypeAdapter(Input).validate_python({**(default.model_dump() if same_kind else {}), **changes})
    return found
