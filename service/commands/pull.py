"""menagerie pull: a process that has the frameworks fetches the weights."""

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
from service.commands.console import errors_told, out
from service.errors import RepositoryError
from service.host.child import CHILD_ENVIRONMENT


def pull(
    architecture: Annotated[str, typer.Argument(help="Such as torchvision:resnet50 or keras:ResNet50")],
    output: Annotated[Path, typer.Option(help="Directory of models to put it into")],
    name: Annotated[str | None, typer.Option(help="Name of the model [that of the architecture]")] = None,
    weights: Annotated[str | None, typer.Option(help="One of several official weights [the recommended]")] = None,
) -> None:
    """Fetch official weights of torchvision or keras.applications: a model, or its next version."""
    with errors_told():
        try:
            found = catalog.find(architecture).name
        except ArtifactError as error:
            raise RepositoryError(str(error), cure=error.cure) from error
        model = name or found.rpartition(":")[-1].lower()
        if not MODEL_NAME.fullmatch(model):
            cure = "lower-case letters, digits, '.', '_' and '-', at most 64"
            raise RepositoryError(f"{model!r} is no name for a model", cure=cure)
        job = {"architecture": found, "weights": weights, "output": str(output.absolute()), "name": model}
        child = subprocess.run(
            [sys.executable, "-P", "-m", "models.pull"],
            check=False,
            input=json.dumps(job),
            stdout=subprocess.PIPE,  # how far it has come is shown: standard error is ours
            text=True,
            env={**os.environ, **CHILD_ENVIRONMENT},
        )
        outcome = json.loads(child.stdout or "{}")
        if "pulled" not in outcome:
            reason = outcome.get("reason", f"the pulling process ended with code {child.returncode}")
            raise RepositoryError(reason, cure=outcome.get("cure", "try again; what it said last is above"))
    out.print(f"pulled {outcome['pulled']}: {outcome['weights']}\nserve it with: menagerie serve --repository {output}")
