"""menagerie models: a table of the models of a repository or a server, or of the catalog."""

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from models import catalog as architectures
from models.artifact.artifact import Artifact
from service.commands import remote
from service.commands.console import out, report_errors
from service.commands.listing import versions
from service.commands.options import CacheOption, RepositoryOption, UrlOption, read_settings
from service.conversion.conversion import Converter
from service.errors import ServiceError
from service.repository.repository import Repository
from service.settings import Settings


def models(
    repository: RepositoryOption = None,
    cache: CacheOption = None,
    url: UrlOption = None,
    *,
    catalog: Annotated[bool, typer.Option("--catalog", help="List the architectures of the catalog instead")] = False,
) -> None:
    """List the models and their states: of the repository, or of a running server with --url."""
    if catalog:
        _list_architectures()
        return
    table = Table(
        "model", "version", "state", "architecture", "framework", "provider", "reason", box=None, pad_edge=False
    )
    with report_errors():
        if url:
            rows = _server_rows(url.rstrip("/"))
        else:
            rows = _repository_rows(read_settings(repository=repository, cache=cache))
        for row in rows:
            table.add_row(*map(escape, row))
    out.print(table)


def _list_architectures() -> None:
    table = Table("architecture", "paper", "input", "parameters", "frameworks", box=None, pad_edge=False)
    table.columns[1].overflow = "fold"  # so that a narrow terminal cuts nothing off
    table.columns[3].justify = "right"
    for row in architectures.rows():
        table.add_row(*map(escape, row))
    out.print(table)
    out.print("torchvision:NAME and keras:NAME name the networks of torchvision.models and keras.applications")


def _server_rows(url: str) -> Iterator[tuple[str, ...]]:
    for model in remote.get(f"{url}/models")["models"]:
        if model["problem"]:
            yield model["name"], "", "UNAVAILABLE", "", "", "", model["problem"]
        for each in model["versions"]:
            known = [each[key] or "" for key in ("state", "architecture", "framework", "provider", "reason")]
            yield model["name"], str(each["version"]), *known


def _repository_rows(settings: Settings) -> Iterator[tuple[str, ...]]:
    converter = Converter.of(settings)
    for name, number, found in versions(Repository(settings.repository)):
        label = str(number or "")
        if isinstance(found, ServiceError):
            yield name, label, "UNAVAILABLE", "", "", "", f"{found.message}; {found.cure}"
        elif isinstance(found.source, Artifact):
            spec, state = found.source.spec, "CONVERTED" if converter.converted(found.source) else "TO CONVERT"
            yield name, label, state, spec.architecture, spec.framework, "", ""
        else:
            yield name, label, "PUBLISHED", "", "", "", ""
