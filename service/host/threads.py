"""Work that cannot be interrupted, such as a thread's."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

_Result = TypeVar("_Result")


async def to_its_end(work: Awaitable[_Result]) -> _Result:
    """The result of work that is not interrupted: a cancellation is raised when it has ended."""
    running, cancelled = asyncio.ensure_future(work), None
    while not running.done():
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from running.exception()
    return running.result()
