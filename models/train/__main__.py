"""Trains a catalog architecture on your images, or on the built-in digits, and publishes it into a model repository."""

import argparse
import json
import platform
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args, get_origin

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from models.artifact.artifact import Spec
from models.errors import ArtifactError
from models.train import data, fit, publish, report
from models.train.checkpoints import Checkpoints, Epoch
from models.train.checkpoints import Progress as TrainingProgress
from models.train.recipe import DIGITS, Recipe, find_architecture, find_input, reason

LIBRARIES = {
    "torch": ("torch", "numpy", "pillow", "scikit-learn"),
    "keras": ("keras", "tensorflow", "numpy", "pillow", "scikit-learn"),
}
INTERRUPTED = 130  # the shell's exit status after Ctrl-C

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


class Options(NamedTuple):
    """The options of the command that are not part of the recipe."""

    output: Path
    """The model's directory, in a repository."""
    resume: bool
    publish_best: bool


def parse(arguments: Sequence[str]) -> tuple[Recipe, Options]:
    """Parses the command line, which has an option for each field of the recipe.

    Raises ArtifactError if a value is wrong; ends the process, as argparse does, if an option is unknown.
    """
    parser = argparse.ArgumentParser(
        prog="menagerie train", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    for name, field in Recipe.model_fields.items():
        if field.is_required():
            parser.add_argument(name, help=field.description)
            continue
        kinds = [field.annotation, *get_args(field.annotation)]
        kind: dict[str, Any] = {}
        if bool in kinds:
            kind["action"] = argparse.BooleanOptionalAction
        elif literal := next((each for each in kinds if get_origin(each) is Literal), None):
            kind["choices"] = get_args(literal)
        else:
            kind["metavar"] = "VALUE"
        default = argparse.SUPPRESS if field.default is None else field.default
        help_text = (field.description or "").replace("%", "%%")
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, help=help_text, **kind)
    parser.add_argument(
        "--output", type=Path, required=True, help="REPOSITORY/MODEL: the model that gets a new version"
    )
    exclusive = parser.add_mutually_exclusive_group()
    exclusive.add_argument("--resume", action="store_true", help="Continue where the same command was interrupted")
    exclusive.add_argument(
        "--publish-best", action="store_true", help="Publish the best epoch of an interrupted training"
    )
    given = vars(parser.parse_args(arguments))
    options = Options(given.pop("output"), given.pop("resume"), given.pop("publish_best"))
    try:
        return Recipe.model_validate(given), options
    except ValidationError as error:
        name = "".join(f"--{str(part).replace('_', '-')}: " for part in error.errors()[0]["loc"][:1])
        raise ArtifactError(f"{name}{reason(error)}", "menagerie train --help lists what each option takes") from error


def run(recipe: Recipe, options: Options, command: str) -> Path:
    """Trains and publishes; returns the version's directory. Raises ArtifactError, KeyboardInterrupt."""
    architecture = find_architecture(recipe)
    publish.check_name(options.output)
    item = find_input(recipe, architecture)
    checkpoints = Checkpoints(options.output)
    examples = data.load(recipe)
    spec = _spec(recipe, architecture.output, item, examples.classes)
    with checkpoints.held():
        done = _begin(recipe, options, checkpoints, examples)
        sizes = {name: len(getattr(examples, name)) for name in ("train", "validation", "test")}
        sizes = {name: size for name, size in sizes.items() if size}
        out.print(
            f"{recipe.architecture} in {recipe.framework}, input {'x'.join(map(str, item.shape))}; {_describe(sizes)}"
        )
        learner = make_learner(recipe, architecture, spec)
        publish.check_settings(options.output, checkpoints.staging(), learner.weights_file, spec)
        batches = data.Batches(recipe, item)
        try:
            if not options.publish_best:
                with Listener(recipe.epochs) as listener:
                    done = fit.fit(learner, examples, batches, done, checkpoints, listener)
            version = _publish(learner, examples, batches, spec, done, checkpoints, options.output, command)
        finally:
            batches.close()
        checkpoints.clear()
    return version


def _describe(sizes: dict[str, int]) -> str:
    return ", ".join(f"{size} {name}" for name, size in sizes.items())


def _spec(recipe: Recipe, output: Any, item: Any, classes: tuple[str, ...]) -> Spec:
    try:
        return Spec(
            architecture=recipe.architecture,
            framework=recipe.framework,
            num_classes=len(classes),
            input=item,
            output=output,
            labels=classes,
        )
    except ValidationError as error:
        raise ArtifactError(
            f"{recipe.architecture} cannot be trained on {recipe.data}: {reason(error)}", "name another architecture"
        ) from error


def _begin(recipe: Recipe, options: Options, checkpoints: Checkpoints, examples: data.Data) -> TrainingProgress:
    """The progress to continue from. Raises ArtifactError if it does not belong to this command."""
    found = checkpoints.progress()
    if not (options.resume or options.publish_best):
        if found is not None:
            raise ArtifactError(
                f"{options.output} has a training that was interrupted after epoch {len(found.epochs)}",
                f"add --resume or --publish-best to its command, or delete {checkpoints.directory}",
            )
        return TrainingProgress(recipe=recipe, digest=examples.digest)
    if found is None:
        raise ArtifactError(
            f"no epoch of a training in {options.output} was completed", "repeat the command without --resume"
        )
    # The number of epochs may change. Every other option has influenced the epochs so far.
    now, then = recipe.model_dump(exclude={"epochs"}), found.recipe.model_dump(exclude={"epochs"})
    if differing := [name for name in now if now[name] != then[name]]:
        name = differing[0]
        raise ArtifactError(
            f"the interrupted training had {name} {then[name]!r}, and this command has {now[name]!r}",
            f"repeat the same command, or delete {checkpoints.directory}",
        )
    if found.digest != examples.digest:
        raise ArtifactError(
            f"the files in {recipe.data} have changed since the training was interrupted",
            f"restore them, or delete {checkpoints.directory}",
        )
    return found.model_copy(update={"recipe": recipe})


def make_learner(recipe: Recipe, architecture: Any, spec: Spec) -> fit.Learner:
    """Creates an untrained network. Raises ArtifactError if the input is too small for it."""
    try:
        if recipe.framework == "torch":
            from models.train.torch_learner import TorchLearner  # noqa: PLC0415 - a process uses one framework

            return TorchLearner(architecture, spec, recipe)
        from models.train.keras_learner import KerasLearner  # noqa: PLC0415

        return KerasLearner(architecture, spec, recipe)
    except ArtifactError:
        raise
    except (ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise ArtifactError(
            f"{recipe.architecture} cannot be built for an input of {spec.input.shape}: {why}",
            f"give a larger --size; the default input is {architecture.input.shape}",
        ) from error


def _publish(
    learner: fit.Learner,
    examples: data.Data,
    batches: data.Batches,
    spec: Spec,
    done: TrainingProgress,
    checkpoints: Checkpoints,
    model: Path,
    command: str,
) -> Path:
    recipe, last = done.recipe, checkpoints.latest()
    assert last is not None
    learner.load_weights(last / learner.weights_file)
    measured = "test" if len(examples.test) else "validation"
    judged: data.Examples = getattr(examples, measured)
    shares = fit.probabilities(fit.predict(learner, batches, judged))
    found = report.figures(shares, judged.labels)
    best = fit.best(done.epochs, recipe)
    record = {
        "command": command,
        "recipe": recipe.model_dump(),
        "spec": spec.model_dump(mode="json"),
        "data": {
            "source": "sklearn.datasets.load_digits" if recipe.data == DIGITS else recipe.data,
            "digest": examples.digest,
            "train": len(examples.train),
            "validation": len(examples.validation),
            "test": len(examples.test),
        },
        "measured_on": measured,
        "figures": found,
        "best_epoch": best.number,
        "epochs": [epoch.model_dump() for epoch in done.epochs],
        "seconds": round(sum(epoch.seconds for epoch in done.epochs), 2),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in LIBRARIES[recipe.framework]},
    }
    staging = checkpoints.staging()
    learner.save_weights(staging / learner.weights_file)
    (staging / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    report.draw_confusion(staging / "confusion.png", shares, judged.labels, spec.labels)
    report.draw_curves(staging / "curves.png", done.epochs)
    version = publish.publish_version(model, staging, spec)
    line = "  ".join(f"{name} {'-' if value is None else f'{value:.4f}'}" for name, value in found.items())
    out.print(f"best epoch {best.number}; on {len(judged)} {measured} examples: {line}")
    return version


class Listener:
    """Shows a progress bar on a terminal, and prints a line for each epoch."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        self._bar = Progress(*columns, TimeRemainingColumn(), console=out, transient=True) if out.is_terminal else None
        self._task = self._bar.add_task("epoch 1", total=None) if self._bar else None

    def __enter__(self) -> Self:
        (self._bar or nullcontext()).__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, epoch: int, done: int, total: int) -> None:
        """Updates the bar after a step."""
        if self._bar and self._task is not None:
            self._bar.update(self._task, description=f"epoch {epoch}/{self._epochs}", completed=done, total=total)

    def epoch(self, epoch: Epoch) -> None:
        """Prints the line of an epoch, once its checkpoint is on disk."""
        out.print(
            f"epoch {epoch.number:>3}/{self._epochs}  loss {epoch.loss:.4f}"
            f"  validation loss {epoch.validation_loss:.4f}  accuracy {epoch.validation_accuracy:.4f}"
            f"  rate {epoch.learning_rate:.2g}  {epoch.seconds:.1f} s"
        )


def main(arguments: Sequence[str]) -> int:
    """Runs the command. Returns 0 if a version was published, 1 for an error, 130 if it was interrupted."""
    try:
        recipe, options = parse(arguments)
        words = [each for each in arguments if each not in {"--resume", "--publish-best"}]
        command = shlex.join(["menagerie", "train", *words])
        try:
            version = run(recipe, options, command)
        except KeyboardInterrupt:
            return _interrupted(Checkpoints(options.output), command)
    except ArtifactError as error:
        return _print_error(str(error), error.cure)
    except ModuleNotFoundError as error:
        return _print_error(f"{error.name} is not installed", "pip install 'menagerie[torch,keras,train]'")
    except OSError as error:
        return _print_error(str(error), "check the folder, its permissions and the free space on the disk")
    out.print(f"published {escape(str(version))}")
    return 0


def _interrupted(checkpoints: Checkpoints, command: str) -> int:
    latest = checkpoints.latest()
    if latest is None:
        err.print("interrupted before the end of the first epoch; nothing was published")
        return INTERRUPTED
    err.print(f"interrupted; {latest.name.replace('-', ' ')} was the last complete one. Nothing was published")
    err.print(
        f"  to continue: {escape(command)} --resume\n  to publish the best epoch: {escape(command)} --publish-best"
    )
    return INTERRUPTED


def _print_error(message: str, cure: str) -> int:
    err.print(f"[red]{escape(message)}[/red]\n  {escape(cure)}")
    return 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
