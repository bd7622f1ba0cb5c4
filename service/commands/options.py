"""Options that several commands share, and the settings read from them."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.markup import escape

from service.commands.console import err
from service.settings import PREFIX, Settings

RepositoryOption = Annotated[Path | None, typer.Option(help="Model repository [MENAGERIE_REPOSITORY]")]
CacheOption = Annotated[Path | None, typer.Option(help="Directory for converted models [MENAGERIE_CACHE]")]
UrlOption = Annotated[str | None, typer.Option(help="URL of a running server, such as http://127.0.0.1:8000")]


def read_settings(**options: object) -> Settings:
    """The settings of the environment; options that were given replace them.

    An invalid setting ends the command with exit code 2 and a message that names its variable.
    """
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        for problem in error.errors():
            name = "".join(f"{PREFIX}{str(part).upper()}: " for part in problem["loc"][:1])
            err.print(f"{name}{escape(problem['msg'])}")
        raise typer.Exit(2) from None
