"""menagerie check: reads every version of a repository, without loading it."""

from pathlib import Path

import typer

from service.commands.console import complain, out, report_errors
from service.commands.listing import versions
from service.commands.options import RepositoryOption, read_settings
from service.errors import RepositoryError, ServiceError
from service.repository.repository import Repository, read_converted


def check(repository: RepositoryOption = None) -> None:
    """Validate a model repository and list its problems."""
    settings = read_settings(repository=repository)
    problems = count = 0
    with report_errors():
        for name, number, found in versions(Repository(settings.repository)):
            count += 1
            title = name if number is None else f"{name} version {number}"
            try:
                if isinstance(found, ServiceError):
                    raise found
                if isinstance(found.source, Path):
                    read_converted(found.source)
                out.print(f"{title}: sound")
            except ServiceError as error:
                problems += 1
                complain(error, title)
        if not count:
            raise RepositoryError("the repository is empty", cure="make a directory for a model in it")
    raise typer.Exit(1 if problems else 0)
