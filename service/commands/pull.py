"""menagerie pull: a child process with the frameworks downloads official weights."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from models import catalog
from models.artifact.artifact import MODEL_NAME
from models.errors import ArtifactError
from service.commands.console import CommandError, out, report_errors
from service.host.child import CHILD_ENVIRONMENT


def pull(
    architecture: Annotated[str, typer.Argument(help="Such as torchvision:resnet50 or keras:ResNet50")],
    output: Annotated[Path, typer.Option(help="Model repository to put it into; created if missing")],
    name: Annotated[str | None, typer.Option(help="Name of the model; by default the architecture's")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Which of several official weights; by default the recommended ones")
    ] = None,
) -> None:
    """Download official weights of torchvision or keras.applications, as a new model or as its next version."""
    with report_errors():
        try:
            found = catalog.find(architecture).name
        except ArtifactError as error:
            raise CommandError(str(error), cure=error.cure) from error
        model = name or found.rpartition(":")[-1].lower()
        if not MODEL_NAME.fullmatch(model):
            rule = "a name has lower-case letters, digits, '.', '_' and '-', at most 64"
            raise typer.BadParameter(f"{model!r} is not a valid name of a model: {rule}", param_hint="--name")
        job = {"architecture": found, "weights": weights, "output": str(output.absolute()), "name": model}
        child = subprocess.run(
            [sys.executable, "-P", "-m", "models.pull"],
            check=False,
            input=json.dumps(job),
            stdout=subprocess.PIPE,  # its progress goes to standard error, which it shares with this process
            text=True,
            env={**os.environ, **CHILD_ENVIRONMENT},
        )
        outcome = json.loads(child.stdout or "{}")
        if "pulled" not in outcome:
            reason = outcome.get("reason", f"the pulling process ended with code {child.returncode}")
            raise CommandError(reason, cure=outcome.get("cure", "try again; the end of its output is above"))
    out.print(f"pulled {outcome['pulled']}: {outcome['weights']}\nserve it with: menagerie serve --repository {output}")
