"""Reads the model repository: lists models and versions, resolves them, and reads converted files."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from models import catalog
from models.artifact import manifest, toml_file
from models.artifact.artifact import (
    CALIBRATION_DIRECTORY,
    CONFIG_FILE,
    MODEL_NAME,
    OVERRIDE_FILE,
    Artifact,
    ModelConfig,
)
from models.artifact.formats import MAX_ENTRIES, below
from models.artifact.manifest import MANIFEST_FILE, Manifest
from models.artifact.resolution import resolve
from models.artifact.versions import is_version
from models.errors import ArtifactError
from service.errors import RepositoryError
from service.repository.routing import ROUTING_FILE, Routing


@dataclass(frozen=True)
class Signature:
    """Identifies the state of a version's files: it changes when one of them does."""

    files: tuple[tuple[str, int, int], ...]
    """Name, size in bytes, and change time in nanoseconds since 1970."""

    def is_settled(self, seconds: float) -> bool:
        """Whether the files have not changed for that long. If they have, they may still be being copied."""
        newest = max((changed for _, _, changed in self.files), default=0)
        return seconds == 0 or time.time_ns() - newest >= seconds * 1e9


@dataclass(frozen=True)
class Version:
    """One version of a model, resolved: converted already, or to be converted."""

    model: str
    number: int
    config: ModelConfig
    source: Artifact | Path
    """The artifact to convert, or the directory with the converted files."""


@dataclass(frozen=True)
class Inventory:
    """The versions, the routing and the settings of one model."""

    wanted: Mapping[int, Signature]
    """The versions to load, ascending, each with the state of its files."""
    present: Sequence[int]
    """All versions in the repository, ascending."""
    routing: Routing
    config: ModelConfig


class Repository:
    """A directory of `<model>/model.toml` and `<model>/<version>/`, which is only read here."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Models, in alphabetical order. Raises RepositoryError if the root cannot be read."""
        return [name for name in self._directories() if MODEL_NAME.fullmatch(name)]

    def ignored(self) -> list[str]:
        """Directories whose names are not legal for a model. Raises RepositoryError if the root cannot be read."""
        return [name for name in self._directories() if not MODEL_NAME.fullmatch(name)]

    def _directories(self) -> list[str]:
        try:
            found = sorted(path.name for path in self.root.iterdir() if path.is_dir())
        except OSError as error:
            raise RepositoryError(
                f"the model repository cannot be read: {error.strerror}",
                cure="set MENAGERIE_REPOSITORY to a directory of models",
                detail=str(self.root),
            ) from error
        return [name for name in found if not name.startswith(".") and name != "lost+found"]

    def wanted(self, name: str) -> list[int]:
        """The versions of a model to load, ascending. Raises RepositoryError."""
        return self._wanted(name, self.config(name), self.routing(name))

    def inventory(self, name: str) -> Inventory:
        """The versions, the routing and the settings of a model. Raises RepositoryError."""
        config, routing = self.config(name), self.routing(name)
        signatures = {number: self.signature(name, number) for number in self._wanted(name, config, routing)}
        return Inventory(signatures, self.present(name), routing, config)

    def _wanted(self, name: str, config: ModelConfig, routing: Routing) -> list[int]:
        present = self.present(name)
        if not present:
            missing = "version" if (self.root / name / CONFIG_FILE).exists() else f"{CONFIG_FILE} and no version"
            raise RepositoryError(
                f"model {name} has no {missing}", cure=f"put its weights into {name}/1/, such as {name}/1/weights.pth"
            )
        if isinstance(config.versions, tuple) and (absent := sorted(set(config.versions) - set(present))):
            raise RepositoryError(
                f"model.toml of {name} asks for version {absent[0]}, and there is none",
                cure=f"correct versions; present are {', '.join(map(str, present))}",
            )
        return sorted(routing.wanted(present, config.versions))

    def present(self, name: str) -> list[int]:
        """All versions of a model, ascending, whether they are to be loaded or not. Raises RepositoryError."""
        with _readable(name):
            return sorted(
                int(path.name) for path in (self.root / name).iterdir() if path.is_dir() and is_version(path.name)
            )

    def ignored_versions(self, name: str) -> list[str]:
        """Directories of a model whose number is not legal for a version. Raises RepositoryError."""
        with _readable(name):
            found = [path.name for path in (self.root / name).iterdir() if path.is_dir()]
        return sorted(each for each in found if each.isdigit() and not is_version(each))

    def signature(self, name: str, number: int) -> Signature:
        """The state of a version's files. Raises RepositoryError."""
        model = self.root / name
        with _readable(name):
            settings = [path for path in model.glob("*.toml") if path.name != ROUTING_FILE]
            paths = [*settings, *model.glob("*.txt"), *_files(model / str(number))]
            paths += _files(model / CALIBRATION_DIRECTORY)
            stats = [(str(path.relative_to(model)), path.lstat()) for path in sorted(paths)]
        return Signature(tuple((path, stat.st_size, stat.st_ctime_ns) for path, stat in stats))

    def routing(self, name: str) -> Routing:
        """The content of routing.toml. Raises RepositoryError."""
        path = self.root / name / ROUTING_FILE
        if not os.path.lexists(path):
            return Routing()
        try:
            return Routing.model_validate(_read_toml(path))
        except ValidationError as error:
            cure = "correct it; docs/guides/versions-and-swapping.md lists its keys"
            raise RepositoryError(f"{ROUTING_FILE} of {name}: {first_problem(error)}", cure=cure) from error

    def resolve(self, name: str, number: int) -> Version:
        """Resolves a version without converting it. Raises RepositoryError."""
        config, directory = self.config(name, number), self.root / name / str(number)
        if (directory / MANIFEST_FILE).exists():
            return Version(name, number, config, directory)
        try:
            architecture = catalog.find(config.architecture) if config.architecture else None
            with _readable(name):
                artifact = resolve(config, architecture, directory, labels_file=self.root / name / "labels.txt")
        except ArtifactError as error:
            raise RepositoryError(str(error), cure=error.cure) from error
        except ValidationError as error:
            raise RepositoryError(f"[input] of model.toml: {first_problem(error)}", cure=_CORRECT) from error
        return Version(name, number, config, artifact)

    def config(self, name: str, number: int | None = None) -> ModelConfig:
        """The settings in model.toml, overridden by a version's artifact.toml if it has one. Raises RepositoryError."""
        path = self.root / name / CONFIG_FILE
        values = _read_toml(path) if os.path.lexists(path) else {}  # optional for whole models
        try:
            config = ModelConfig.model_validate(values)
        except ValidationError as error:
            raise RepositoryError(f"model.toml of {name}: {first_problem(error)}", cure=_CORRECT) from error
        if number is None:
            return config
        return overridden(config, self.root / name / str(number), f"{OVERRIDE_FILE} of {name}/{number}")


def _files(directory: Path) -> list[Path]:
    """The files below a directory; if they are too many for a version, only those at its top. Raises OSError."""
    try:
        return below(directory)
    except ArtifactError:
        return [*islice(directory.iterdir(), MAX_ENTRIES)]


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turns an OSError into a RepositoryError, which concerns only this model."""
    try:
        yield
    except OSError as error:
        raise RepositoryError(
            f"files of {name} cannot be read: {error.strerror}", cure="check their permissions", detail=str(error)
        ) from error


_CORRECT = "correct it; docs/reference/model-toml.md lists its keys"


def read_converted(directory: Path) -> tuple[Manifest, bytes]:
    """The manifest and the content of the ONNX file, which is checked against it. Raises RepositoryError."""
    with translate_errors(directory):
        return manifest.read_converted(directory)


@contextmanager
def translate_errors(directory: Path) -> Iterator[None]:
    """Turns errors of reading a converted version into a RepositoryError."""
    try:
        yield
    except ValidationError as error:
        raise RepositoryError(
            f"{MANIFEST_FILE} is not one of this release: {first_problem(error)}", cure=manifest.CONVERT_AGAIN
        ) from error
    except ArtifactError as error:
        raise RepositoryError(str(error), cure=error.cure, detail=str(directory)) from error
    except OSError as error:
        raise RepositoryError(
            f"a converted file cannot be read: {error.strerror}", cure=manifest.CONVERT_AGAIN, detail=str(error)
        ) from error


def overridden(config: ModelConfig, directory: Path, title: str = OVERRIDE_FILE) -> ModelConfig:
    """The settings, overridden by the artifact.toml of a version if it has one. Raises RepositoryError."""
    path = directory / OVERRIDE_FILE
    if not os.path.lexists(path):
        return config
    values = _read_toml(path)
    try:
        return config.overridden(values)
    except ValidationError as error:
        raise RepositoryError(f"{title}: {first_problem(error)}", cure=_CORRECT) from error
    except ValueError as error:
        raise RepositoryError(f"{title}: {error}", cure=_CORRECT) from error


def _read_toml(path: Path) -> Mapping[str, Any]:
    try:
        return toml_file.read(path)
    except ArtifactError as error:
        raise RepositoryError(f"{path.parent.name}/{error}", cure=error.cure) from error
    except OSError as error:
        raise RepositoryError(f"{path.parent.name}/{path.name} cannot be read: {error}", cure=_CORRECT) from error


def first_problem(error: ValidationError) -> str:
    """The first error, with the name of its setting."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"]
