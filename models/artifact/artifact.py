"""What an artifact is: the settings of a model, what a version is to be, its weights and fingerprint."""

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
"""How many a network may tell apart: each has a label, and the largest public lists have 21,841."""


class Batching(Frozen):
    """`[batching]` of a model.toml; what is left out comes from the server's settings."""

    max_batch_size: int | None = Field(None, ge=1, le=1024)
    max_queue_delay_seconds: float | None = Field(None, ge=0, le=60, allow_inf_nan=False)


class ModelConfig(Frozen):
    """model.toml, and over it the artifact.toml of one version."""

    architecture: str | None = None
    """Only a file that holds a whole model does without."""
    framework: Framework | None = None
    """Default: told from the weights' bytes."""
    weights: str | None = None
    """What of the version's directory, or `package:NAME/PATH`. Default: what is there called weights, or weights.*"""
    num_classes: Classes | None = None
    """Default: as many as there are labels, else as the architecture has."""
    labels: str | tuple[str, ...] | None = None
    """The labels themselves, or the name of a built-in list (imagenet). Default: the lines of labels.txt."""
    output: Output | None = None
    """What the network gives. Default: as the architecture says."""
    input: dict[str, Any] = Field(default_factory=dict)
    """Settings that differ from the architecture's own input."""
    precision: Precision | Literal["auto"] = "fp32"
    """What the graph computes in. `auto` keeps the fastest that passes its gates."""
    precision_agreement: float | None = Field(None, gt=0, le=1)
    """The share of the held-out images on which fp16 or int8 must give the label of fp32. Default: that of its gate."""
    batching: Batching = Batching()
    versions: Literal["latest", "all"] | tuple[VersionNumber, ...] = "latest"
    """Which versions are loaded; the highest of them answers unless a request names another."""
    min_agreement: float = Field(0.0, ge=0, le=1)
    """The share of the golden inputs to which a version must give the live one's label, else it does not go live."""
    tune: bool = False
    """Whether the engine's threads, instances, level and largest batch are found by measurement at the first load."""
    unload_first: bool = False
    """Whether the live version is unloaded before the new one is loaded, where memory does not hold both."""

    @field_validator("input")
    @classmethod
    def _expand(cls, values: dict[str, Any]) -> dict[str, Any]:
        return expand(values)

    def overridden(self, values: Mapping[str, Any]) -> Self:
        """These settings with those of an artifact.toml over them, key by key. Raises ValueError."""
        if misplaced := _OF_ALL_VERSIONS & values.keys():
            raise ValueError(f"{min(misplaced)} belongs into model.toml: it is about all versions")
        over = type(self).model_validate(values)
        given = {name: getattr(over, name) for name in values}
        batching = self.batching.model_copy(update=over.batching.model_dump(exclude_unset=True))
        return self.model_copy(update={**given, "input": self.input | over.input, "batching": batching})


Runtime = Framework | Literal["onnx"]
"""What gives the answers that the published file is held against."""


class Spec(Frozen):
    """What decides the graph and the answers, whatever the weights."""

    architecture: str
    """Its name in the catalog; of a whole model, `whole:` and the name of the format."""
    framework: Runtime
    num_classes: Classes
    input: Input
    output: Output
    labels: tuple[str, ...]
    layout: Literal["NCHW", "NHWC"] | None = None
    """How the network takes images. Default: as its framework does."""
    dtype: Literal["float32", "uint8"] = "float32"
    """What the network takes; the answers are float32 in any case."""
    precision: Precision | Literal["auto"] = "fp32"
    """What was asked for; the manifest says what it became."""
    precision_agreement: float | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.labels) != self.num_classes:
            raise ValueError(f"there are {len(self.labels)} labels for {self.num_classes} classes")
        if self.outputs == 1 and self.num_classes != 2:  # noqa: PLR2004
            raise ValueError(f"one {self.output} tells two classes apart, and there are {self.num_classes}")
        return self

    @property
    def outputs(self) -> int:
        """How many numbers the network gives for an item."""
        return outputs_of(self.output, self.num_classes)

    @property
    def channels_first(self) -> bool:
        """Whether the network takes images as [N, channels, height, width]."""
        return self.layout == "NCHW" or (self.layout is None and self.framework == "torch")

    def admits(self, spec: "Spec") -> bool:
        """Whether the spec is this one."""
        return spec == self


class Draft(Frozen):
    """What is known of a version but for its network: what model.toml and the labels say."""

    architecture: str
    framework: Runtime
    num_classes: Classes | None
    input: dict[str, Any]
    """Settings that differ from the network's own input."""
    output: Output | None
    labels: tuple[str, ...]
    """None where nobody gave any."""
    precision: Precision | Literal["auto"] = "fp32"
    precision_agreement: float | None = None

    def complete(self, num_classes: int, item: Input, output: Output, **layout: Any) -> Spec:
        """The spec of this version for a network that has so many classes, takes that and gives that.

        Raises ArtifactError, pydantic.ValidationError.
        """
        classes = self.num_classes or len(self.labels) or num_classes
        if self.labels and len(self.labels) != classes:
            raise ArtifactError(
                f"there are {len(self.labels)} labels for {classes} classes", "make num_classes and the labels agree"
            )
        if classes > MAX_CLASSES:
            raise ArtifactError(f"there are {classes} classes, of {MAX_CLASSES} at most", "serve a network of fewer")
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
        """Whether the spec is this draft's, completed for some network."""
        try:
            completed = self.complete(spec.num_classes, spec.input, spec.output, layout=spec.layout, dtype=spec.dtype)
        except ValueError:
            return False
        return completed == spec


class Artifact(Frozen):
    """One trained version, resolved: nothing is left to defaults."""

    spec: Spec | Draft
    """A draft where the file holds a whole model: the child completes it from there."""
    weights: Path
    """The file; of a SavedModel the directory, of a TensorFlow checkpoint the index."""
    calibration: tuple[Path, ...] = ()
    """Images, or a file of numbers, on which another precision than fp32 is calibrated and judged."""
    fingerprint: str
    """SHA-256 over the weights, the spec, the calibration files and the code that converts them."""


def _changed(default: Input, changes: Mapping[str, Any]) -> Input:
    """An input with these changes; one of another kind is not built on it. Raises ValidationError."""
    same_kind = changes.get("kind", default.kind) == default.kind
    found: Input = TypeAdapter(Input).validate_python({**(default.model_dump() if same_kind else {}), **changes})
    return found
