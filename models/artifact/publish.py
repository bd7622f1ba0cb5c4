"""Files -> a version in its place, whole or not at all."""

import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from models.errors import ArtifactError

MAX_VERSION = 2**53 - 1
"""The highest number of a version: the highest that JSON gives to every reader as it is."""


def publish(staging: Path, target: Path) -> Path:
    """Renames a finished directory: a reader, or the next process, sees all of its files or none. Returns `target`.

    Raises OSError where the target is there already, unless as an empty directory.
    """
    for path in (*staging.rglob("*"), staging):
        sync(path)
    staging.rename(target)
    sync(target.parent)
    return target


def sync(path: Path) -> None:
    """What is there survives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_version(name: str) -> bool:
    """Whether a directory of that name is a version: 1 to MAX_VERSION, as a number is written."""
    return name.isascii() and name.isdigit() and not name.startswith("0") and int(name) <= MAX_VERSION


def next_version(model: Path) -> int:
    """The number after the highest in a model's directory. Raises ArtifactError where none is left."""
    highest = max((int(path.name) for path in model.iterdir() if is_version(path.name)), default=0)
    if highest == MAX_VERSION:
        raise ArtifactError(
            f"{model.name} has the version {highest}, and no number is higher", "give a free number, or delete it"
        )
    return highest + 1


def remove(directory: Path) -> None:
    """Removes a directory with all that is in it, however deep that goes; what the system refuses stays.

    shutil.rmtree calls itself for each level: of a thousand it makes a RecursionError.
    """
    with suppress(OSError):
        while inner := _emptied(directory):
            for path in inner:
                for nested in _emptied(path):
                    nested.rename(directory / uuid4().hex)
                path.rmdir()
        directory.rmdir()


def _emptied(directory: Path) -> list[Path]:
    """Removes what is no directory; the directories that are left."""
    with os.scandir(directory) as entries:
        found = list(entries)
    for entry in found:
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.path)  # noqa: PTH108 - a Path of each would take twice as long
    return [Path(entry.path) for entry in found if entry.is_dir(follow_symlinks=False)]
