"""menagerie transplant: a child process writes the weights of a version for the other framework's network."""

import asyncio
import json
import re
from enum import StrEnum
from importlib import util
from pathlib import Path
from typing import Annotated, Any

import typer

from models import catalog
from models.artifact import formats, staging, toml_file
from models.artifact.artifact import OVERRIDE_FILE, Artifact, Spec
from models.artifact.versions import add_version
from models.errors import ArtifactError
from service import logs
from service.commands.console import CommandError, out, report_errors, step_printer
from service.commands.listing import known
from service.commands.options import RepositoryOption, read_settings
from service.conversion.conversion import FILE_BYTES
from service.host.child import TRANSPLANT, Child, Limits, Unconfined
from service.repository.repository import Repository
from service.settings import Settings

_VERSION = re.compile(r"([^/]+)/([1-9][0-9]*)")
_TITLES = {"torch": "PyTorch", "keras": "Keras"}
_FILES = {"torch": "weights.pth", "keras": "weights.weights.h5"}


class Target(StrEnum):
    """A framework to write weights for."""

    torch = "torch"
    keras = "keras"


def transplant(
    version: Annotated[str, typer.Argument(metavar="MODEL/VERSION", help="The version to read, such as flowers/1")],
    to: Annotated[Target, typer.Option(help="The framework to write the weights for")],
    repository: RepositoryOption = None,
) -> None:
    """Write a version's weights for the other framework, as the model's next version.

    The catalog must have the architecture in both frameworks (see menagerie models --catalog).
    PyTorch and Keras must both be installed: the extras torch and keras of menagerie.
    The new version is published only if the two networks give the same outputs.
    """
    name, number = _parsed(version)
    settings = read_settings(repository=repository)
    logs.configure(settings)
    with report_errors():
        found = Repository(settings.repository.absolute())
        artifact = _find(found, name, number, to)
        _check_installed()
        try:
            directory, difference = asyncio.run(_transplant(found, name, number, artifact, to, settings))
        except KeyboardInterrupt:
            raise CommandError("interrupted: nothing was published", cure="give the same command again") from None
        except ArtifactError as error:
            raise CommandError(str(error), cure=error.cure) from error
        except OSError as error:
            raise CommandError(
                f"a file could not be written: {error.strerror}",
                cure="make the model repository a writable directory with room",
                detail=str(error),
            ) from error
    out.print(f"published {directory}: its outputs differ by {difference} of the largest", markup=False)


def _parsed(version: str) -> tuple[str, int]:
    """The model's name and the version's number. Raises BadParameter."""
    if (match := _VERSION.fullmatch(version)) is None:
        raise typer.BadParameter(f"{version!r} is not MODEL/VERSION, such as flowers/1", param_hint="MODEL/VERSION")
    return match[1], int(match[2])


def _find(repository: Repository, name: str, number: int, to: Target) -> Artifact:
    """The version, if its weights can be transplanted. Raises ServiceError."""
    known(repository, [name])
    if number not in (present := repository.present(name)):
        raise CommandError(
            f"{name} has no version {number}", cure=f"it has {', '.join(map(str, present)) or 'no version'}"
        )
    artifact = repository.resolve(name, number).source
    if not isinstance(artifact, Artifact) or not isinstance(artifact.spec, Spec):
        raise CommandError(
            f"{name}/{number} is a whole model or converted already, and cannot be transplanted",
            cure="name a version that holds weights of an architecture (menagerie models --catalog)",
        )
    spec = artifact.spec
    if spec.framework == to:
        raise CommandError(f"{name}/{number} holds weights of {_TITLES[to]} already", cure="name the other framework")
    if to not in (builders := catalog.find(spec.architecture).builders):
        built = " and ".join(_TITLES[each] for each in builders)
        raise CommandError(
            f"{spec.architecture} is built in {built} only",
            cure="menagerie models --catalog lists the frameworks of each architecture",
        )
    return artifact


def _check_installed() -> None:
    if missing := [_TITLES[each] for each in Target if util.find_spec(each) is None]:
        raise CommandError(
            f"transplanting needs PyTorch and Keras; not installed: {', '.join(missing)}",
            cure="pip install 'menagerie[torch,keras]'",
        )


async def _transplant(
    repository: Repository, name: str, number: int, artifact: Artifact, to: Target, settings: Settings
) -> tuple[Path, str]:
    """The new version's directory, and the relative difference of outputs. Raises ServiceError, OSError."""
    on_step = step_printer(f"{name}/{number}")
    limits = Limits(settings.conversion_timeout_seconds, settings.conversion_memory_bytes, FILE_BYTES).now()
    with staging.staged(repository.root, f".{name}.{number}.staging") as directory:
        built = directory / "version"
        file = built / _FILES[to]
        job = {"artifact": artifact.model_dump(mode="json"), "framework": to.value, "file": str(file)}
        child = Child(TRANSPLANT, directory, limits, on_step, Unconfined(TRANSPLANT))
        difference = await child.run(json.dumps(job))
        if built.is_symlink() or list(built.iterdir()) != [file] or not formats.is_regular(file):
            raise CommandError("the transplanting process left other files than the weights", cure=TRANSPLANT.cure)
        title = f"# The weights of {name}/{number}, transplanted to {_TITLES[to]} by menagerie transplant.\n"
        values = _settings(repository, name, number, to)
        (built / OVERRIDE_FILE).write_text(title + toml_file.dumps(values), encoding="utf-8")
        return add_version(built, repository.root / name), difference


def _settings(repository: Repository, name: str, number: int, to: Target) -> dict[str, Any]:
    """The artifact.toml of the new version: that of the old one, with the new framework and file."""
    path = repository.root / name / str(number) / OVERRIDE_FILE
    values: dict[str, Any] = dict(toml_file.read(path)) if path.exists() else {}
    config = repository.config(name)
    for key, value in (("framework", to.value), ("weights", _FILES[to])):
        values.pop(key, None)
        if getattr(config, key) is not None:  # model.toml describes the old one
            values[key] = value
    return values
