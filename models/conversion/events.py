"""What a child process tells the server that started it: a line of JSON each, on what was standard output."""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from models.errors import ArtifactError, first_line

_MOST_OF_REASON = 2000  # it may quote names of a file


class Events:
    """The steps of one job, each announced as it begins and timed, and why it failed."""

    def __init__(self, memory_setting: str) -> None:
        self._memory_setting = memory_setting
        self.seconds: dict[str, float] = {}
        self._step = "start"
        self._stream = _standard_output()

    def tell(self, **event: str) -> None:
        """Writes one line for the parent."""
        self._stream.write(json.dumps(event) + "\n")
        self._stream.flush()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Announces and times a step."""
        self._step = name
        self.tell(step=name)
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)

    def run(self, job: Callable[[], None], framework: Callable[[], str]) -> int:
        """The exit code of a job: 0 where it has ended well. Whatever it raises is told with a reason and a cure.

        `framework` is what a module that is missing belongs to.
        """
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - a file breaks libraries in ways of their own, a panic of Rust's too
            reason, cure = _told(error, framework, self._memory_setting)
            self.tell(failed=self._step, reason=_plain(reason), cure=cure)
            return 1
        return 0


def _standard_output() -> TextIO:
    """Frameworks print to standard output: it is kept for events, and their words go to standard error."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return stream


def _told(error: BaseException, framework: Callable[[], str], memory_setting: str) -> tuple[str, str]:
    """The reason, and the cure. What nobody expected leaves its traceback on standard error."""
    match error:
        case ArtifactError():
            return str(error), error.cure
        case ModuleNotFoundError():
            name = framework()
            return (
                f"{error.name} is not installed, and {name} models need it",
                f"pip install 'menagerie[{name}]', or serve what was converted elsewhere (menagerie convert)",
            )
        case OSError() if error.strerror:
            return (
                f"a file could not be written or read: {error.strerror}",
                "make MENAGERIE_CACHE a writable directory with room",
            )
        case MemoryError():
            return (
                f"{first_line(error) or 'it'}: memory ran out",
                f"raise {memory_setting} where the machine has more; or serve a smaller network",
            )
    traceback.print_exception(error, file=sys.stderr)
    return (
        f"it could not be read: {type(error).__name__}: {first_line(error)}",
        "save it again; if it is sound, report it with the traceback in the server's log",
    )


def _plain(reason: str) -> str:
    """The reason in a length for people, without halves of characters: JSON's readers refuse those."""
    return reason[:_MOST_OF_REASON].encode("utf-8", "replace").decode()
