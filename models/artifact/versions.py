"""Version numbers of a model: which are legal, and which is next."""

from contextlib import suppress
from pathlib import Path

from models.artifact import staging
from models.errors import ArtifactError

MAX_VERSION = 2**53 - 1
"""The highest number of a version: the highest integer that every JSON reader represents exactly."""


def is_version(name: str) -> bool:
    """Whether a directory of that name is a version: 1 to MAX_VERSION, without leading zeros."""
    return name.isascii() and name.isdigit() and not name.startswith("0") and int(name) <= MAX_VERSION


def next_version(model: Path) -> int:
    """The number after the highest in a model's directory. Raises ArtifactError if there is no higher number."""
    highest = max((int(path.name) for path in model.iterdir() if is_version(path.name)), default=0)
    if highest == MAX_VERSION:
        raise ArtifactError(
            f"{model.name} has the version {highest}, and no number is higher", "give a free number, or delete it"
        )
    return highest + 1


def add_version(fresh: Path, model: Path) -> Path:
    """Renames a finished directory to the model's next version, and returns the new path.

    Several processes may add versions at once: each gets its own number. Raises ArtifactError, OSError.
    """
    while True:
        target = model / str(next_version(model))
        with suppress(FileExistsError):  # another process has taken the number
            return staging.rename(fresh, target)
