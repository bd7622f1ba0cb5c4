"""The events that a child process sends to its parent: one line of JSON each, on its standard output."""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from models.errors import ArtifactError, first_line

_MAX_REASON = 2000  # characters: it may quote names from a file


class Events:
    """Announces and times the steps of one job, and reports why it failed."""

    def __init__(self, memory_setting: str) -> None:
        self._memory_setting = memory_setting
        self.seconds: dict[str, float] = {}
        self._step = "start"
        self._stream = _standard_output()

    def tell(self, **event: str) -> None:
        """Writes one line to the parent."""
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
        """Runs a job and returns the exit code: 0 if it succeeded. Whatever it raises is reported with reason and cure.

        `framework` names the extra to install if a module is missing.
        """
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - a broken file makes libraries raise anything, even a panic of Rust
            reason, cure = _translated(error, framework, self._memory_setting)
            self.tell(failed=self._step, reason=_plain(reason), cure=cure)
            return 1
        return 0


def _standard_output() -> TextIO:
    """A stream to standard output for events alone: whatever frameworks print goes to standard error from now on."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return stream


def _translated(error: BaseException, framework: Callable[[], str], memory_setting: str) -> tuple[str, str]:
    """The reason and the cure. An unexpected error leaves its traceback on standard error."""
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
    """The reason, shortened, without lone surrogates: JSON readers refuse those."""
    return reason[:_MAX_REASON].encode("utf-8", "replace").decode()
