"""The terminal: output, and how an expected error is shown."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from service.errors import ServiceError

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


class CommandError(ServiceError):
    """The command cannot do what it was asked to do."""

    code = "command_failed"
    cure = "menagerie COMMAND --help"


def step_printer(title: str) -> Callable[[str], None]:
    """A function that prints the name of a step, with the seconds since this call."""
    started = time.monotonic()
    return lambda step: out.print(f"{title}: {time.monotonic() - started:5.1f} s  {step}")


@contextmanager
def report_errors() -> Iterator[None]:
    """Shows an expected error as two lines and ends the command with exit code 1, without a traceback."""
    try:
        yield
    except ServiceError as error:
        complain(error)
        raise typer.Exit(1) from None


def complain(error: ServiceError, title: str = "") -> None:
    """Shows an error and its cure; `title` names what it concerns."""
    err.print(f"[red]{escape(f'{title}: ' if title else '')}{escape(error.message)}[/red]\n  {escape(error.cure)}")
    if error.detail:
        err.print(f"  {escape(error.detail)}")
