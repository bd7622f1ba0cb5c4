"""What an interrupted training leaves: the best weights, and all that the next epoch begins with."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pydantic import ValidationError

from models.artifact.staging import locked, rename, staged
from models.errors import ArtifactError
from models.inputs import Frozen
from models.train.recipe import Recipe

PROGRESS_FILE = "progress.json"


class Epoch(Frozen):
    """One pass over the training examples, and how the network then did on the validation examples."""

    number: int
    loss: float
    """Mean over the steps, penalties included."""
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    seconds: float


class Progress(Frozen):
    """What has been done of a training."""

    recipe: Recipe
    digest: str
    """Of the data."""
    epochs: tuple[Epoch, ...] = ()


class Checkpoints:
    """A directory with one subdirectory: the last whole epoch's. A process that is killed leaves the one before it."""

    def __init__(self, model: Path) -> None:
        # Beside the model, and hidden: the service does not look at it, and renames from it stay on one file system.
        self.directory = model.with_name(f".training-{model.name}")

    @contextmanager
    def held(self) -> Iterator[None]:
        """One process at a time may train here. Raises ArtifactError."""
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = self.directory / "lock"
        lock.touch()
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(lock, wait=False))
            except BlockingIOError:
                raise ArtifactError(
                    f"another process trains in {self.directory}", "wait for it, or name another --output"
                ) from None
            try:
                yield
            finally:
                if self.latest() is None:  # nothing to go on from
                    self.clear()

    def latest(self) -> Path | None:
        """The last whole epoch's directory."""
        found = [path for path in self.directory.glob("epoch-*") if re.fullmatch(r"epoch-\d+", path.name)]
        return max(found, key=lambda path: int(path.name[6:]), default=None)

    def progress(self) -> Progress | None:
        """What has been done, as the last whole epoch tells it. Raises ArtifactError."""
        latest = self.latest()
        if latest is None:
            return None
        try:
            return Progress.model_validate_json((latest / PROGRESS_FILE).read_bytes())
        except (OSError, ValidationError) as error:
            raise ArtifactError(
                f"{latest} was left by another release, or is damaged", f"delete {self.directory} and train again"
            ) from error

    def save(self, progress: Progress, write: Callable[[Path], None], kept: str | None = None) -> None:
        """Puts what `write` writes into a directory beside `progress`; then the earlier one goes.

        `kept` is a file that is taken over from the earlier one: the best weights, where this epoch's are not.
        """
        before, target = self.latest(), self.directory / f"epoch-{len(progress.epochs)}"
        with staged(self.directory, ".staging") as room:
            fresh = room / target.name
            fresh.mkdir()
            write(fresh)
            if kept is not None and before is not None:
                os.link(before / kept, fresh / kept)
            (fresh / PROGRESS_FILE).write_text(progress.model_dump_json(), encoding="utf-8")
            rename(fresh, target)
        if before is not None:
            shutil.rmtree(before)

    def staging(self) -> Path:
        """An empty directory for the files of a version."""
        directory = self.directory / "version"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        return directory

    def clear(self) -> None:
        """Nothing is left to resume."""
        shutil.rmtree(self.directory, ignore_errors=True)
