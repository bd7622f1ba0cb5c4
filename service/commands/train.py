"""menagerie train: gives way to models.train, which reads its own options."""

import os
import sys

import typer


def train(context: typer.Context) -> None:
    """Train an architecture on images, and publish it into a model repository."""
    # The trainer becomes this process: signals reach it, its exit status is this one's, and no framework comes in here.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "models.train", *context.args])  # noqa: S606
