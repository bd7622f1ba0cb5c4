"""The command line: the table of the commands."""

import typer

from service.commands.bench import bench
from service.commands.check import check
from service.commands.convert import convert
from service.commands.models import models
from service.commands.predict import predict
from service.commands.pull import pull
from service.commands.serve import serve
from service.commands.train import train
from service.commands.transplant import transplant

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Serves Keras and PyTorch image classifiers. Every setting is an environment variable, MENAGERIE_*.",
)

# --help shows the commands in this order, with their docstrings.
app.command()(serve)
app.command()(convert)
app.command()(pull)
app.command()(transplant)
app.command()(models)
app.command()(predict)
app.command()(bench)
app.command()(check)
# Every word is passed on to the trainer unchanged, --help too.
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)(train)


def main() -> None:
    """Entry point of `menagerie`."""
    app()


if __name__ == "__main__":
    main()
