"""The terminal: what is said there, and how an expected error is told."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from service.errors import ServiceError

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


@contextmanager
def errors_told() -> Iterator[None]:
    """An expected error becomes two lines and exit code 1, not a traceback."""
    try:
        yield
    except ServiceError as error:
        complain(error)
        raise typer.Exit(1) from None


def complain(error: ServiceError, title: str = "") -> None:
    """Tells of an error and its cure; `title` says whose it is."""
    err.print(f"[red]{escape(f'{title}: ' if title else '')}{escape(error.message)}[/red]\n  {escape(error.cure)}")
    if error.detail:
        err.print(f"  {escape(error.detail)}")
