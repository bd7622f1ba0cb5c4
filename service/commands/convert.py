"""menagerie convert: converts versions, and publishes them into another repository if asked to."""

import asyncio
import shutil
from pathlib import Path
from typing import Annotated

import typer

from models.artifact import staging
from models.artifact.artifact import CONFIG_FILE, OVERRIDE_FILE, Artifact
from models.artifact.manifest import MANIFEST_FILE
from service import logs
from service.commands.console import complain, out, report_errors, step_printer
from service.commands.listing import known, versions
from service.commands.options import CacheOption, RepositoryOption, read_settings
from service.conversion.conversion import Converter
from service.errors import RepositoryError, ServiceError
from service.repository.repository import Repository, Version


def convert(
    models: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="Default: all")] = None,
    repository: RepositoryOption = None,
    cache: CacheOption = None,
    output: Annotated[
        Path | None, typer.Option(help="Also make a repository here that serves without a framework")
    ] = None,
) -> None:
    """Convert what has not been converted yet."""
    settings = read_settings(repository=repository, cache=cache)
    logs.configure(settings)
    converter = Converter.of(settings)
    found = Repository(settings.repository)
    failed = 0
    with report_errors():
        wanted = known(found, models or [])
        chosen = [each for each in versions(found) if not wanted or each[0] in wanted]
    for position, (name, number, version) in enumerate(chosen, 1):
        title = f"{name} version {number} ({position} of {len(chosen)})" if number else name
        try:
            if isinstance(version, ServiceError):
                raise version
            directory = _converted(version, converter, title)
            if output is not None:
                _publish(found, version, directory, output)
        except ServiceError as error:
            failed += 1
            complain(error, title)
    raise typer.Exit(1 if failed else 0)


def _converted(version: Version, converter: Converter, title: str) -> Path:
    """The directory of the converted version. Prints each step when it begins."""
    if not isinstance(version.source, Artifact):
        out.print(f"{title}: converted already")
        return version.source
    if found := converter.converted(version.source):
        out.print(f"{title}: converted already")
        return found
    on_step = step_printer(title)
    directory = asyncio.run(converter.convert(version.source, on_step))
    on_step("done")
    return directory


def _publish(repository: Repository, version: Version, directory: Path, output: Path) -> None:
    """Copies a converted version and its settings into another repository. Raises RepositoryError.

    At every instant the old or the new version is there, whole; so it is after a crash.
    """
    source, model = repository.root / version.model, output / version.model
    target = model / str(version.number)
    if target.exists() and not (target / MANIFEST_FILE).exists():
        raise RepositoryError(f"{target} holds something else", cure="name an empty directory as --output")
    if target.resolve() == directory.resolve():
        raise RepositoryError(f"{output} is the repository itself", cure="name another directory as --output")
    try:
        with staging.staged(output, f".{version.model}.{version.number}.staging") as room:
            fresh = room / version.model / target.name
            shutil.copytree(directory, fresh)
            if (override := source / target.name / OVERRIDE_FILE).exists():
                shutil.copyfile(override, fresh / OVERRIDE_FILE)
            config = (source / CONFIG_FILE).read_bytes() if (source / CONFIG_FILE).exists() else None
            if model.exists():
                staging.replace(fresh, target)
                if config is not None:
                    staging.write_file(model / CONFIG_FILE, config)
            else:  # a new model appears with its settings
                if config is not None:
                    (fresh.parent / CONFIG_FILE).write_bytes(config)
                staging.rename(fresh.parent, model)
    except OSError as error:
        raise RepositoryError(
            f"{target} could not be written: {error.strerror}",
            cure="name a writable directory with enough space as --output",
            detail=str(error),
        ) from error
    out.print(f"published {target}")
