"""Work on threads, which cannot be interrupted."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")


async def to_its_end(work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of work on a thread. A thread cannot be interrupted, so a cancellation is raised when it has ended."""
    running, cancelled = asyncio.ensure_future(work), None
    while not running.done():
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from running.exception()
    return running.result()
