"""Puts files in their place so that others see all of them or none, even if the process is killed or the power fails.

New files are written into a staging directory beside their place, synced to disk, then renamed. A staging directory is
locked while it is in use. The kernel releases the lock when the process ends, so an unlocked one is a leftover.
"""

import ctypes
import errno
import fcntl
import glob
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds the exclusive lock of a file or directory against other processes and threads.

    The kernel releases it if this process is killed. Raises OSError: BlockingIOError if `wait` is false and the lock is
    taken.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def staged(parent: Path, name: str) -> Iterator[Path]:
    """A new, locked directory in `parent`, which is created if missing; removed in the end with what is still in it.

    Leftovers of the same name are removed first. Others cannot read the directory: rename what is in it, not the
    directory itself. Raises OSError.
    """
    parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(parent.glob(f"{glob.escape(name)}*"))
    with ExitStack() as stack:
        while True:
            directory = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=parent))
            with suppress(FileNotFoundError):
                stack.enter_context(locked(directory))
            if directory.exists():  # otherwise another process took it for a leftover before it was locked
                break
        try:
            yield directory
        finally:
            remove(directory)


def remove_leftovers(candidates: Iterable[Path]) -> None:
    """Removes those directories that nobody has locked: they were left by a process that was killed."""
    for path in candidates:
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError), locked(path, wait=False):
                remove(path)


def rename(fresh: Path, target: Path) -> Path:
    """Syncs a finished directory and renames it to `target`, which is returned.

    Raises FileExistsError if `target` exists already, unless it is an empty directory; OSError.
    """
    _sync_tree(fresh)
    try:
        fresh.rename(target)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:  # the system's word for the same
            raise FileExistsError(*error.args) from error
        raise
    sync(target.parent)
    return target


def replace(fresh: Path, target: Path) -> Path:
    """Syncs a finished directory and puts it in the place of `target`: at every instant one of the two is there, whole.

    The old directory moves to the path of `fresh`, or is removed. On a file system that cannot exchange two directories
    (NFS), `target` is missing for an instant; if the process is killed then, `restore` brings the old one back. Raises
    OSError, and leaves `target` unchanged.
    """
    restore(target)
    if not target.exists():
        return rename(fresh, target)
    _sync_tree(fresh)
    if not _exchange(fresh, target):
        target.rename(_aside(target))
        try:
            fresh.rename(target)
        finally:
            restore(target)
    sync(fresh.parent)
    sync(target.parent)
    return target


def restore(target: Path) -> None:
    """Ends a `replace` that was killed: if `target` is missing, the old one is put back. Raises OSError."""
    aside = _aside(target)
    if not aside.exists():
        return
    if target.exists():
        sync(target.parent)  # the new one is on disk before the old one goes
        remove(aside)
    else:
        aside.rename(target)
        sync(target.parent)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two directories in one step; False if the system or its file system cannot. Raises OSError."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def write_file(path: Path, content: bytes, parent: Path | None = None) -> None:
    """Writes a file, or replaces the old one with it in one step. Raises OSError.

    Its staging directory is made in `parent`, on the same file system; by default beside it.
    """
    with staged(parent or path.parent, f".{path.name}.staging") as directory:
        fresh = directory / path.name
        fresh.write_bytes(content)
        sync(fresh)
        fresh.replace(path)
        sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file's content, or a directory's names, are on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(directory: Path) -> None:
    for path in (*directory.rglob("*"), directory):
        sync(path)


def remove(directory: Path) -> None:
    """Removes a directory with everything in it, however deeply nested. What the system refuses to remove stays.

    shutil.rmtree recurses: a thousand levels raise a RecursionError.
    """
    with suppress(OSError):
        while inner := _emptied(directory):
            for path in inner:
                for nested in _emptied(path):
                    nested.rename(directory / uuid4().hex)
                path.rmdir()
        directory.rmdir()


def _emptied(directory: Path) -> list[Path]:
    """Removes the files of a directory, and returns the directories in it."""
    with os.scandir(directory) as entries:
        found = list(entries)
    for entry in found:
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.path)  # noqa: PTH108 - a Path of each would take twice as long
    return [Path(entry.path) for entry in found if entry.is_dir(follow_symlinks=False)]
