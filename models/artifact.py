"""What an artifact is: its settings, weights, fingerprint and manifest."""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from importlib import util
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, TypeAdapter, ValidationError, field_validator, model_validator

from models import formats, machine
from models.architecture import Architecture, Framework
from models.formats import ArtifactError as ArtifactError  # noqa: PLC0414 - known by this place
from models.formats import Format
from models.inputs import PICTURE_SUFFIXES, Frozen, Input, NumbersInput, expand
from models.outputs import Output, outputs_of

CONFIG_FILE = "model.toml"
OVERRIDE_FILE = "artifact.toml"
MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
CALIBRATION_DIRECTORY = "calibration"
NUMBERS_FILE = "inputs.json"
SAMPLES = Path(__file__).with_name("samples")
MOST_IMAGES = 512  # to calibrate and to judge on: more would teach little, and every start reads them
ONNX_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"

# With these, and the architecture's own file, a fingerprint changes.
_CONVERTER = (
    "architecture.py",
    "artifact.py",
    "bounds.py",
    "calibration.py",
    "checkpoint.py",
    "convert.py",
    "export.py",
    "formats.py",
    "inputs.py",
    "keras_config.py",
    "keras_export.py",
    "keras_weights.py",
    "machine.py",
    "onnx_file.py",
    "outputs.py",
    "parity.py",
    "precision.py",
    "programs.py",
    "train/data.py",
    "weights.py",
    "whole.py",
    "zoo/pieces.py",
)
_OF_ALL_VERSIONS = {"versions", "min_agreement", "tune", "unload_first"}
_BUILT_IN_LABELS = Path(__file__).with_name("labels")


Precision = Literal["fp32", "fp16", "int8"]


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
    num_classes: PositiveInt | None = None
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
    versions: Literal["latest", "all"] | tuple[PositiveInt, ...] = "latest"
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
    num_classes: PositiveInt
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
    num_classes: PositiveInt | None
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


def resolve(config: ModelConfig, architecture: Architecture | None, directory: Path, labels_file: Path) -> Artifact:
    """Fills in every default of one version in `directory`. Raises ArtifactError, pydantic.ValidationError."""
    weights = find_weights(config, directory)
    found = formats.tell(weights)
    spec = specify(config, architecture, found, labels_file, weights.name)
    calibration: tuple[Path, ...] = ()
    if spec.precision != "fp32":
        calibration = find_calibration(directory.parent, spec.input if isinstance(spec, Spec) else None)
    sources = [*converter_sources(architecture, found), *calibration]
    return Artifact(
        spec=spec, weights=weights, calibration=calibration, fingerprint=fingerprint(spec, weights, sources)
    )


def specify(
    config: ModelConfig, architecture: Architecture | None, found: Format, labels_file: Path, name: str
) -> Spec | Draft:
    """What a file of that format and name is to be taken for. Raises ArtifactError, pydantic.ValidationError."""
    _check_format(found, name, config, architecture)
    draft = Draft(
        architecture=f"whole:{found.name}" if architecture is None else architecture.name,
        framework=found.framework,
        num_classes=config.num_classes,
        input=config.input,
        output=config.output,
        labels=read_labels(config.labels, labels_file),
        precision=config.precision,
        precision_agreement=config.precision_agreement,
    )
    if architecture is None:
        return draft
    return draft.complete(architecture.num_classes, architecture.input, architecture.output)


def _check_format(found: Format, name: str, config: ModelConfig, architecture: Architecture | None) -> None:
    """Whether such a file can be what model.toml says. Raises ArtifactError."""
    if config.framework not in {None, found.framework}:
        raise ArtifactError(
            f'{name} is {found.title}, and model.toml says framework = "{config.framework}"',
            f'leave framework out of model.toml, or put a file of "{config.framework}" there',
        )
    if architecture is None:
        if found.holds == "weights":
            raise ArtifactError(
                f"{name} is {found.title}: it holds weights alone, and model.toml names no architecture",
                'write architecture = "NAME" into model.toml; menagerie models --catalog lists the names',
            )
    elif found.holds == "model":
        raise ArtifactError(
            f"{name} is {found.title}: it brings its own network, and model.toml names {architecture.name}",
            "leave architecture out of model.toml, or save the weights alone",
        )
    elif found.framework not in architecture.builders:
        built = " and ".join(architecture.builders)
        raise ArtifactError(
            f"{architecture.name} is built in {built}, and {name} is {found.title}",
            f"save the weights from {built}, or name another architecture",
        )


def find_calibration(model: Path, item: Input | None) -> tuple[Path, ...]:
    """Images of `<model>/calibration`, else ours; for numbers `inputs.json` there, else nothing. Raises ArtifactError.

    What a whole model takes is not known yet: numbers where there are some.
    """
    directory = model / CALIBRATION_DIRECTORY
    numbers = directory / NUMBERS_FILE
    if isinstance(item, NumbersInput) or (item is None and os.path.lexists(numbers)):
        found = [numbers] if os.path.lexists(numbers) else []
    else:
        root = directory if directory.is_dir() else SAMPLES
        found = sorted(path for path in root.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
    if irregular := [path.name for path in found if not is_regular(path)]:
        raise ArtifactError(f"calibration/{irregular[0]} is not a regular file", "replace it by the file itself")
    if len(found) > MOST_IMAGES:
        raise ArtifactError(
            f"calibration holds {len(found)} images", f"keep {MOST_IMAGES} at most, of every class some"
        )
    return tuple(found)


def _changed(default: Input, changes: Mapping[str, Any]) -> Input:
    """An input with these changes; one of another kind is not built on it. Raises ValidationError."""
    same_kind = changes.get("kind", default.kind) == default.kind
    found: Input = TypeAdapter(Input).validate_python({**(default.model_dump() if same_kind else {}), **changes})
    return found


def find_weights(config: ModelConfig, directory: Path) -> Path:
    """The weights of a version: regular files, never links. Raises ArtifactError."""
    if config.weights is None:
        names = (path.name for path in directory.iterdir())
        found = formats.entries(name for name in names if name == "weights" or name.startswith("weights."))
        if len(found) != 1:
            raise ArtifactError(
                f"version {directory.name} holds {len(found) or 'no'} files called weights.*",
                "put one there, such as weights.pth or weights.keras, and give other files other names",
            )
        root, path = directory, directory / found[0]
    elif config.weights.startswith("package:"):
        package, _, inside = config.weights.removeprefix("package:").partition("/")
        root = _package_directory(package)
        path = root / inside
    else:
        root, path = directory, directory / config.weights
    if not Path(os.path.normpath(path)).is_relative_to(root):
        raise ArtifactError(f"weights {config.weights!r} lie outside of their directory", "name a file inside it")
    if not os.path.lexists(path):
        raise ArtifactError(f"there is no file {config.weights!r}", "correct weights in model.toml or artifact.toml")
    if path.is_dir() and not path.is_symlink() and len(indexes := list(path.glob(f"*{formats.INDEX_SUFFIX}"))) == 1:
        path = indexes[0]
    _check_files(path, root, own=root == directory)
    return path


def _check_files(path: Path, root: Path, *, own: bool) -> None:
    """Raises ArtifactError where one is a link; `own` are those of the repository, which have no other name either."""
    for part in [path] if path.is_symlink() else formats.parts(path):
        if not is_regular(part) or not part.resolve().is_relative_to(root.resolve()):
            raise ArtifactError(f"{part.name} is not a regular file", "replace the link by the file itself")
        if own and part.lstat().st_nlink > 1:  # who writes to the other name would change it here
            raise ArtifactError(f"{part.name} is a hard link: the file has another name too", "copy the file")


def is_regular(path: Path) -> bool:
    """Whether there is a file itself, not a link to one."""
    return os.path.lexists(path) and stat.S_ISREG(path.lstat().st_mode)


def _package_directory(package: str) -> Path:
    """Where an installed package lies; it is not imported."""
    try:
        found = util.find_spec(package) if package.isidentifier() else None
    except ValueError:  # a module that was run rather than imported
        found = None
    if found is None or found.origin is None:
        raise ArtifactError(
            f"the package {package} that holds the weights is not installed",
            f"pip install {package.replace('_', '-')}; or serve what was converted elsewhere (menagerie convert)",
        )
    return Path(found.origin).parent


def read_labels(labels: str | tuple[str, ...] | None, labels_file: Path) -> tuple[str, ...]:
    """Labels in class order; none where nobody gave any. Raises ArtifactError."""
    if isinstance(labels, tuple):
        return labels
    path = labels_file if labels is None else _BUILT_IN_LABELS / f"{labels}.txt"
    if labels is not None and path not in _BUILT_IN_LABELS.iterdir():
        known = ", ".join(sorted(path.stem for path in _BUILT_IN_LABELS.glob("*.txt")))
        raise ArtifactError(
            f"there is no built-in list of labels {labels!r}", f"use one of {known}, a list, or a labels.txt"
        )
    if not path.is_file():
        return ()
    try:
        return tuple(path.read_text(encoding="utf-8-sig").splitlines())
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path.name} is not UTF-8", "save it as UTF-8") from error


def converter_sources(architecture: Architecture | None, found: Format) -> list[Path]:
    """The code that turns these weights into ONNX: when it changes, so does the fingerprint."""
    here = Path(__file__)
    own = [here.parent / name for name in _CONVERTER]
    if architecture is None or found.framework == "onnx":
        return own
    return [Path(architecture.builders[found.framework].__code__.co_filename), *own]


def fingerprint(spec: Spec | Draft, weights: Path, sources: Iterable[Path]) -> str:
    """SHA-256 over everything of this project and its user that decides the published files."""
    digest = hashlib.sha256(json.dumps(spec.model_dump(mode="json"), sort_keys=True).encode())
    if spec.precision != "fp32":  # elsewhere another one may be right
        digest.update(json.dumps([machine.int8_saturates(), machine.has_gpu()]).encode())
    parts = formats.parts(weights)
    if parts != [weights]:  # of several files the names matter too
        digest.update(json.dumps([str(path.relative_to(weights.parent)) for path in parts]).encode())
    for path in (*parts, *sources):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def published_manifest(directory: Path) -> Manifest | None:
    """The manifest of a published directory; None where it is not whole, or of another release."""
    try:
        manifest = Manifest.model_validate_json((directory / MANIFEST_FILE).read_bytes())
        whole = (directory / ONNX_FILE).stat().st_size == manifest.onnx_bytes
    except (OSError, ValidationError):
        return None
    return manifest if whole else None
