"""menagerie serve: runs the server until it is stopped."""

from typing import Annotated

import typer

from service import logs
from service.commands.options import CacheOption, RepositoryOption, read_settings
from service.server import Server


def serve(
    repository: RepositoryOption = None,
    cache: CacheOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on [MENAGERIE_HOST]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on [MENAGERIE_PORT]")] = None,
) -> None:
    """Load the model repository and answer requests, until SIGTERM."""
    settings = read_settings(repository=repository, cache=cache, host=host, port=port)
    logs.configure(settings)
    raise typer.Exit(Server(settings).serve_until_stopped())
