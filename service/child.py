"""The converting process: its environment, its limits, what it says. Nothing that it does is trusted."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from service.errors import ConversionError
from service.machine import resident_bytes

OnStep = Callable[[str], None]

# A child works on the CPU, quietly, and reports to nobody.
CHILD_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "ORT_DISABLE_TELEMETRY": "1",
}
# What it gets of the server's own environment, which may hold secrets: where Python and its libraries lie.
_INHERITED = {"PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "OMP_NUM_THREADS"}
_INHERITED_PREFIXES = ("LC_", "PYTHON")

_MOST_EVENTS, _MOST_WORDS = 2**16, 2**25  # bytes of standard output and standard error; a conversion needs kilobytes
_LAST_WORDS = 20  # lines of standard error that are kept
_WATCH_SECONDS = 0.1
_EVENT = TypeAdapter(dict[str, str])


@dataclass(frozen=True)
class Limits:
    """What one conversion may take."""

    seconds: float
    memory_bytes: int
    file_bytes: int
    """Of each file that it writes."""


class Child:
    """One run of a module in models.sandbox, which may write into one directory."""

    def __init__(self, module: str, directory: Path, limits: Limits, on_step: OnStep, on_unconfined: OnStep) -> None:
        self._module = module
        self._directory = directory
        self._limits = limits
        self._on_step = on_step
        self._on_unconfined = on_unconfined
        self._step = "start"
        self._failure: dict[str, str] = {}

    async def run(self, job: str) -> None:
        """Returns when the work is done; then, or if cancelled, no process is left. Raises ConversionError."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # a directory called models where the server was started is not our package
            "-m",
            "models.sandbox",
            str(self._directory),
            str(self._limits.file_bytes),
            self._module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(os.environ, self._directory),
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stderr is not None
        with contextlib.suppress(ConnectionError):  # a child that died at once says so below
            process.stdin.write(job.encode())
            process.stdin.write_eof()
        ending = asyncio.ensure_future(self._listen(process))
        last_words = asyncio.ensure_future(_last_lines(process.stderr))
        try:
            await self._watch(process, ending, last_words)
        finally:
            _kill_group(process)
            ending.cancel()
            last_words.cancel()
            await asyncio.gather(ending, last_words, return_exceptions=True)
            await process.communicate()  # asyncio sees no end of a process whose last words nobody reads
        if {"failed", "reason", "cure"} <= self._failure.keys():
            raise ConversionError(f"{self._failure['failed']}: {self._failure['reason']}", cure=self._failure["cure"])
        if (code := ending.result()) != 0:
            reason, cure = self._ending(code)
            raise ConversionError(
                f"{self._step}: the converting process {reason}", cure=cure, detail=last_words.result()
            )

    async def _watch(self, process: asyncio.subprocess.Process, *readers: asyncio.Future[Any]) -> None:
        """Waits until all is read, while the limits hold. Raises ConversionError."""
        started = time.monotonic()
        while True:
            read, waiting = await asyncio.wait(readers, timeout=_WATCH_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
            for reader in read:
                reader.result()
            if not waiting:
                return
            if process.returncode is not None:
                _kill_group(process)  # a grandchild would hold the pipes open
            seconds, held = time.monotonic() - started, resident_bytes(process.pid)
            if seconds > self._limits.seconds:
                reason = f"{self._step}: the conversion was killed after {seconds:.0f} s"
                raise ConversionError(reason, cure="raise MENAGERIE_CONVERSION_TIMEOUT_SECONDS")
            if held > self._limits.memory_bytes:
                raise ConversionError(
                    f"{self._step}: the conversion was killed with {_gigabytes(held)} in memory; "
                    f"it may have {_gigabytes(self._limits.memory_bytes)}",
                    cure="raise MENAGERIE_CONVERSION_MEMORY_BYTES where the machine has more memory free; "
                    "or convert on a larger machine (menagerie convert)",
                )

    async def _listen(self, process: asyncio.subprocess.Process) -> int:
        """Hears each event; the exit code."""
        assert process.stdout is not None
        async for event in _events(process.stdout):
            if "step" in event:
                self._step = event["step"]
                self._on_step(self._step)
            elif "unconfined" in event:
                self._on_unconfined(event["unconfined"])
            else:
                self._failure = event
        return await process.wait()

    def _ending(self, code: int) -> tuple[str, str]:
        """How a child ended that did not say why, and the cure."""
        if code >= 0:
            return f"ended with code {code}", _CURE
        name = next((each.name for each in signal.Signals if each == -code), f"signal {-code}")
        if code == -signal.SIGKILL:
            return f"was ended by {name}", _MEMORY_CURE
        if code == -signal.SIGXFSZ:
            return f"wrote a file of more than {_gigabytes(self._limits.file_bytes)}", _FILE_CURE
        return f"was ended by {name}", _CURE


_CURE = "menagerie convert MODEL shows every step; if the weights are sound, report it"
_MEMORY_CURE = "most often memory ran out: give the container more, or convert on a larger machine (menagerie convert)"
_FILE_CURE = "an ONNX file has 2 GB at most: serve a smaller network; if it is one, report it"


def environment(server: Mapping[str, str], directory: Path) -> dict[str, str]:
    """The child's: what it needs of the server's, and its own directory for temporary files and for Keras' settings."""
    return inherited(server) | CHILD_ENVIRONMENT | {"TMPDIR": str(directory), "KERAS_HOME": str(directory)}


def inherited(server: Mapping[str, str]) -> dict[str, str]:
    """What any child may see of the server's environment."""
    return {name: value for name, value in server.items() if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)}


async def _events(stream: asyncio.StreamReader) -> AsyncIterator[dict[str, str]]:
    """A child's lines of JSON. Raises ConversionError where it says anything else, or too much."""
    said = 0
    try:
        while line := await stream.readline():
            said += len(line)
            if said > _MOST_EVENTS:
                raise _garbled()
            yield _EVENT.validate_json(line)
    except ValueError as error:  # a line of any length, or no JSON
        raise _garbled() from error


def _garbled() -> ConversionError:
    return ConversionError("the converting process wrote something else than its steps to standard output")


async def _last_lines(stream: asyncio.StreamReader) -> str:
    """The end of what a process wrote; a line of any length is read in pieces. Raises ConversionError."""
    tail, said = b"", 0
    while chunk := await stream.read(65536):
        tail = (tail + chunk)[-65536:]
        said += len(chunk)
        if said > _MOST_WORDS:
            raise ConversionError(f"the converting process wrote more than {_MOST_WORDS} bytes to standard error")
    lines = (line for line in tail.decode(errors="replace").splitlines() if line.strip())
    return "\n".join(deque(lines, _LAST_WORDS))


def _kill_group(process: asyncio.subprocess.Process) -> None:
    """Ends the child, if it has not ended, and all that it started where the sandbox is incomplete."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB"
