"""Staging directories for the event loop, which waits neither for the disk nor for a lock."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from models.artifact import staging
from service.host.threads import to_its_end

_LOCK_SECONDS = 0.1  # the holder of a lock does not announce when it releases it


@asynccontextmanager
async def staged(parent: Path, name: str) -> AsyncIterator[Path]:
    """A new, locked directory in `parent`, removed in the end with what is still in it. Raises OSError."""
    stack = ExitStack()
    try:
        yield await to_its_end(asyncio.to_thread(stack.enter_context, staging.staged(parent, name)))
    finally:
        await to_its_end(asyncio.to_thread(stack.close))


@asynccontextmanager
async def exclusive(parent: Path, key: str) -> AsyncIterator[Path]:
    """The same for work that only one caller, in this process or any other, does at a time. Raises OSError."""
    lock = parent / f"{key}.lock"
    await asyncio.to_thread(_touch, lock)
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(staging.locked(lock, wait=False))
            except BlockingIOError:
                await asyncio.sleep(_LOCK_SECONDS)
            else:
                break
        async with staged(parent, key) as directory:
            yield directory


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
