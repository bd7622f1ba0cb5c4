"""Checkpoints of a training: the best weights so far, and the state from which the next epoch continues."""

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
    """One pass over the training examples, and the network's results on the validation examples after it."""

    number: int
    loss: float
    """Mean over the steps, including penalties."""
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    seconds: float


class Progress(Frozen):
    """The epochs of a training so far."""

    recipe: Recipe
    digest: str
    """Digest of the data."""
    epochs: tuple[Epoch, ...] = ()


class Checkpoints:
    """A directory that contains the last complete epoch. If the process is killed, the last one stays complete."""

    def __init__(self, model: Path) -> None:
        # Beside the model, and hidden: the service ignores it, and a rename from it stays on one file system.
        self.directory = model.with_name(f".training-{model.name}")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Makes sure that no other process trains here. Raises ArtifactError."""
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
                if self.latest() is None:  # there is nothing to resume
                    self.clear()

    def latest(self) -> Path | None:
        """The directory of the last complete epoch."""
        found = [path for path in self.directory.glob("epoch-*") if re.fullmatch(r"epoch-\d+", path.name)]
        return max(found, key=lambda path: int(path.name[6:]), default=None)

    def progress(self) -> Progress | None:
        """The progress recorded with the last complete epoch. Raises ArtifactError."""
        latest = self.latest()
        if latest is None:
            return None
        try:
            return Progress.model_validate_json((latest / PROGRESS_FILE).read_bytes())
        except (OSError, ValidationError) as error:
            raise ArtifactError(
                f"{latest} was written by another release, or is damaged", f"delete {self.directory} and train again"
            ) from error

    def save(self, progress: Progress, write: Callable[[Path], None], kept: str | None = None) -> None:
        """Writes a checkpoint of `progress` and of the files that `write` creates, and deletes the earlier one.

        `kept` is a file to take over from the earlier checkpoint: the best weights, if this epoch is not the best.
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
        """Creates an empty directory for the files of a version."""
        directory = self.directory / "version"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        return directory

    def clear(self) -> None:
        """Deletes everything: there is nothing to resume any more."""
        shutil.rmtree(self.directory, ignore_errors=True)
