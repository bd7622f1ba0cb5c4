"""The command line, in this process."""

import structlog
from typer.testing import CliRunner, Result

from service.__main__ import app


def menagerie(*arguments: object, **environment: str) -> Result:
    """Runs `menagerie` with these words."""
    try:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)
    finally:
        structlog.reset_defaults()  # it would log to what the runner has closed
