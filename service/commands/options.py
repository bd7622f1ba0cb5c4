"""The options that several commands take, and the settings that come of them."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.markup import escape

from service.commands.console import err
from service.settings import PREFIX, Settings

RepositoryOption = Annotated[Path | None, typer.Option(help="Directory of the models [MENAGERIE_REPOSITORY]")]
CacheOption = Annotated[Path | None, typer.Option(help="Directory for converted models [MENAGERIE_CACHE]")]
UrlOption = Annotated[str | None, typer.Option(help="Ask this server, such as http://127.0.0.1:8000")]


def read_settings(**options: object) -> Settings:
    """The environment's settings, with the options that were given in their place.

    A wrong one is told by its variable's name, and ends the command with exit code 2.
    """
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        for problem in error.errors():
            name = "".join(f"{PREFIX}{str(part).upper()}: " for part in problem["loc"][:1])
            err.print(f"{name}{escape(problem['msg'])}")
        raise typer.Exit(2) from None
