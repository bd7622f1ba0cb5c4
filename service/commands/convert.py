"""menagerie convert: each version in turn, and a repository of what came of them."""

import asyncio
import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from models.artifact.artifact import CONFIG_FILE, OVERRIDE_FILE, Artifact
from models.artifact.manifest import MANIFEST_FILE
from service import logs
from service.commands.console import complain, out, report_errors
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
    """The published directory of a version; each step is told as it begins."""
    if not isinstance(version.source, Artifact):
        out.print(f"{title}: published already")
        return version.source
    if found := converter.published(version.source):
        out.print(f"{title}: converted already")
        return found
    started = time.monotonic()

    def on_step(step: str) -> None:
        out.print(f"{title}: {time.monotonic() - started:5.1f} s  {step}")

    directory = asyncio.run(converter.convert(version.source, on_step))
    out.print(f"{title}: {time.monotonic() - started:5.1f} s  done")
    return directory


def _publish(repository: Repository, version: Version, directory: Path, output: Path) -> None:
    """Copies a published version into another repository, beside its settings; complete or not at all."""
    source, model = repository.root / version.model, output / version.model
    target, staging = model / str(version.number), model / f".{version.number}.staging"
    if target.exists() and not (target / MANIFEST_FILE).exists():
        raise RepositoryError(f"{target} holds something else", cure="name an empty directory as --output")
    if target.resolve() == directory.resolve():
        raise RepositoryError(f"{output} is the repository itself", cure="name another directory as --output")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(directory, staging)
    if (source / CONFIG_FILE).exists():
        shutil.copyfile(source / CONFIG_FILE, model / CONFIG_FILE)
    if (override := source / str(version.number) / OVERRIDE_FILE).exists():
        shutil.copyfile(override, staging / OVERRIDE_FILE)
    shutil.rmtree(target, ignore_errors=True)
    staging.rename(target)
    out.print(f"published {target}")
