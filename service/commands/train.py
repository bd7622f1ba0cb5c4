"""menagerie train: replaces this process with models.train, which reads its own options."""

import os
import sys

import typer


def train(context: typer.Context) -> None:
    """Train an architecture on images, and publish the result into a model repository."""
    # With exec, signals reach the trainer, its exit status is the command's, and this process imports no framework.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "models.train", *context.args])  # noqa: S606
