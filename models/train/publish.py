"""A trained version -> a model repository, whole or not at all."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from models import catalog
from models.artifact import formats, toml_file
from models.artifact.artifact import CONFIG_FILE, MODEL_NAME, OVERRIDE_FILE, Draft, ModelConfig, Spec
from models.artifact.publish import next_version, publish, sync
from models.artifact.resolution import find_weights, specify
from models.errors import ArtifactError

LABELS_FILE = "labels.txt"


def check_name(model: Path) -> None:
    """Raises ArtifactError where the service would not take this for a model."""
    if not MODEL_NAME.fullmatch(model.name):
        raise ArtifactError(
            f"{model.name!r} is no name for a model",
            "name REPOSITORY/MODEL: lower-case letters, digits, '.', '_' and '-', at most 64",
        )
    if model.exists() and not model.is_dir():
        raise ArtifactError(f"{model} is a file", "name another --output")


def check_settings(model: Path, staging: Path, weights_file: str, spec: Spec) -> None:
    """Raises ArtifactError where `publish_version` would, before anything is trained."""
    (staging / weights_file).touch()
    if (model / CONFIG_FILE).exists():
        _override(model, staging, spec)


def publish_version(model: Path, staging: Path, spec: Spec) -> Path:
    """Makes the files in `staging` the model's next version, which resolves to `spec`; returns its directory.

    A new model appears with its version at once. Where there is one already, what the version needs of its own goes
    into its artifact.toml. Raises ArtifactError where the model's settings cannot be overridden.
    """
    if model.exists():
        return _add_version(model, staging, spec)
    whole = staging.with_name(f"{staging.name}-model")
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir()
    version = _add_version(whole, staging, spec)
    publish(whole, model)
    return model / version.name


def _add_version(model: Path, staging: Path, spec: Spec) -> Path:
    config = model / CONFIG_FILE
    if not config.exists():  # settings first: a version without them would be half of one
        labels = model / LABELS_FILE
        if not labels.exists():
            _write(labels, "".join(f"{label}\n" for label in spec.labels))
        _write(config, toml_file.dumps({"architecture": spec.architecture, "input": _input(spec)}))
    _override(model, staging, spec)
    while True:
        target = model / str(next_version(model))
        try:
            publish(staging, target)
        except OSError:
            if not target.exists():  # else another process was quicker
                raise
        else:
            return target


def _override(model: Path, staging: Path, spec: Spec) -> None:
    """Writes an artifact.toml where the model's own settings do not make of the version what it is."""
    if _resolved(model, staging, spec) == spec:
        return
    values = {
        "architecture": spec.architecture,
        "framework": spec.framework,
        "weights": next(path.name for path in staging.glob("weights.*")),
        "num_classes": spec.num_classes,
        "labels": spec.labels,
        "output": spec.output,
        "input": _input(spec),
    }
    (staging / OVERRIDE_FILE).write_text(toml_file.dumps(values), encoding="utf-8")
    if _resolved(model, staging, spec) != spec:
        raise ArtifactError(
            f"the settings in {model / CONFIG_FILE} cannot be those of this version", "name another --output"
        )


def _resolved(model: Path, version: Path, spec: Spec) -> Spec | Draft | None:
    """What the service would take the version for; None where it would refuse it."""
    written = formats.KERAS if spec.framework == "keras" else formats.STATE_DICT
    try:
        config = ModelConfig.model_validate(toml_file.read(model / CONFIG_FILE))
        config = config.overridden(toml_file.read(version / OVERRIDE_FILE))
        architecture = None if config.architecture is None else catalog.find(config.architecture)
        weights = find_weights(config, version)
        return specify(config, architecture, written, model / LABELS_FILE, weights.name)
    except (ArtifactError, ValidationError, ValueError):
        return None


def _input(spec: Spec) -> Mapping[str, Any]:
    return spec.input.model_dump(mode="json", exclude_none=True)


def _write(path: Path, text: str) -> None:
    """The whole file, or none."""
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    staging.write_text(text, encoding="utf-8")
    sync(staging)
    staging.rename(path)
    sync(path.parent)
