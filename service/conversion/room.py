"""A directory for one child's work, while nobody else does the same."""

import asyncio
import contextlib
import fcntl
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from models.artifact.publish import remove

_LOCK_SECONDS = 0.1


@contextlib.asynccontextmanager
async def room(staging: Path, key: str) -> AsyncIterator[Path]:
    """A directory for the work of that key, in this process and any other; it is removed in the end. Raises OSError."""
    staging.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - of some directories, at once
    with (staging / f"{key}.lock").open("w") as lock:  # the kernel unlocks it, however this process ends
        while not _locked(lock.fileno()):  # noqa: ASYNC110 - who holds it tells nobody when it lets go
            await asyncio.sleep(_LOCK_SECONDS)
        for left in staging.glob(f"{key}.*/"):  # noqa: ASYNC240 - by a server that was killed
            await asyncio.to_thread(remove, left)
        directory = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=staging))
        try:
            yield directory
        finally:
            await asyncio.to_thread(remove, directory)


def _locked(descriptor: int) -> bool:
    """Whether the lock is now this process'."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
