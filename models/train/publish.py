"""Publishes a trained version into a model repository, completely or not at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from models import catalog
from models.artifact import formats, staging, toml_file
from models.artifact.artifact import CONFIG_FILE, MODEL_NAME, OVERRIDE_FILE, Draft, ModelConfig, Spec
from models.artifact.resolution import find_weights, specify
from models.artifact.versions import add_version
from models.errors import ArtifactError

LABELS_FILE = "labels.txt"


def check_name(model: Path) -> None:
    """Raises ArtifactError if the path is not legal for a model."""
    if not MODEL_NAME.fullmatch(model.name):
        raise ArtifactError(
            f"{model.name!r} is no name for a model",
            "name REPOSITORY/MODEL: lower-case letters, digits, '.', '_' and '-', at most 64",
        )
    if model.exists() and not model.is_dir():
        raise ArtifactError(f"{model} is a file", "name another --output")


def check_settings(model: Path, fresh: Path, weights_file: str, spec: Spec) -> None:
    """Raises ArtifactError if `publish_version` would: it is called before the training."""
    (fresh / weights_file).touch()
    if (model / CONFIG_FILE).exists():
        _override(model, fresh, spec)


def publish_version(model: Path, fresh: Path, spec: Spec) -> Path:
    """Renames the directory `fresh` to the model's next version, which resolves to `spec`; returns the version's path.

    A new model appears together with its version. If the model exists and its settings differ, the version gets an
    artifact.toml. Raises ArtifactError if the model's settings cannot be overridden.
    """
    if model.exists():
        return _add_version(model, fresh, spec)
    with staging.staged(fresh.parent, f"{fresh.name}-model") as room:
        whole = room / model.name
        whole.mkdir()
        version = _add_version(whole, fresh, spec)
        return staging.rename(whole, model) / version.name


def _add_version(model: Path, fresh: Path, spec: Spec) -> Path:
    config = model / CONFIG_FILE
    if not config.exists():  # settings first: a version is incomplete without them
        labels = model / LABELS_FILE
        if not labels.exists():
            staging.write_file(labels, "".join(f"{label}\n" for label in spec.labels).encode())
        settings = {"architecture": spec.architecture, "input": _input(spec)}
        staging.write_file(config, toml_file.dumps(settings).encode())
    _override(model, fresh, spec)
    return add_version(fresh, model)


def _override(model: Path, fresh: Path, spec: Spec) -> None:
    """Writes an artifact.toml if the model's settings alone do not resolve to `spec`. Raises ArtifactError."""
    if _resolved(model, fresh, spec) == spec:
        return
    values = {
        "architecture": spec.architecture,
        "framework": spec.framework,
        "weights": next(path.name for path in fresh.glob("weights.*")),
        "num_classes": spec.num_classes,
        "labels": spec.labels,
        "output": spec.output,
        "input": _input(spec),
    }
    (fresh / OVERRIDE_FILE).write_text(toml_file.dumps(values), encoding="utf-8")
    if _resolved(model, fresh, spec) != spec:
        raise ArtifactError(
            f"this version cannot override the settings in {model / CONFIG_FILE}", "name another --output"
        )


def _resolved(model: Path, version: Path, spec: Spec) -> Spec | Draft | None:
    """The spec to which the service resolves the version; None if it would refuse it."""
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
