"""A confined process for one piece of work: its environment, limits and events. Nothing that it sends is trusted."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import structlog
from pydantic import TypeAdapter

from models.process import resident_bytes
from service.errors import ConversionError, RepositoryError
from service.host.machine import available_memory_bytes

log = structlog.get_logger()

OnStep = Callable[[str], None]

# A child works on the CPU, logs little, and sends no telemetry.
CHILD_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "ORT_DISABLE_TELEMETRY": "1",
}
# The variables that a child inherits, for Python and its libraries. Others of the server may hold secrets.
_INHERITED = {"PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "OMP_NUM_THREADS"}
_INHERITED_PREFIXES = ("LC_", "PYTHON")

_MAX_EVENTS, _MAX_LOG = 2**16, 2**25  # bytes of standard output and standard error; a conversion needs kilobytes
_MEMORY_SHARE = 0.9  # of the free memory: if a container runs out, the kernel may end every process in it
_LAST_LINES = 20  # of standard error, for the error message
_WATCH_SECONDS = 0.1
_EVENT = TypeAdapter(dict[str, str])


@dataclass(frozen=True)
class Work:
    """The work of a child, and the words for its failures."""

    module: str
    title: str
    process: str
    timeout_setting: str
    memory_setting: str
    error: type[ConversionError | RepositoryError]
    cure: str
    """The cure if it ended without a reason."""
    elsewhere: str
    """The cure if this machine has too little memory."""


CONVERSION = Work(
    module="models.conversion.convert",
    title="conversion",
    process="converting process",
    timeout_setting="MENAGERIE_CONVERSION_TIMEOUT_SECONDS",
    memory_setting="MENAGERIE_CONVERSION_MEMORY_BYTES",
    error=ConversionError,
    cure="menagerie convert MODEL shows every step; if the weights are sound, report it",
    elsewhere="convert on a larger machine (menagerie convert)",
)
CHECK = Work(
    module="models.conversion.check",
    title="check",
    process="checking process",
    timeout_setting="MENAGERIE_CHECK_TIMEOUT_SECONDS",
    memory_setting="MENAGERIE_CHECK_MEMORY_BYTES",
    error=RepositoryError,
    cure="convert the weights again (menagerie convert), and publish the result",
    elsewhere="serve a smaller network, or smaller batches ([batching] in model.toml)",
)
TRANSPLANT = replace(
    CONVERSION,
    module="models.transplant",
    title="transplant",
    process="transplanting process",
    cure="if the weights are sound, report it with the output above",
    elsewhere="transplant on a larger machine",
)
UNPACKING = replace(CONVERSION, module="models.artifact.unpack", title="unpacking", process="unpacking process")


@dataclass(frozen=True)
class Limits:
    """The limits of one child."""

    seconds: float
    memory_bytes: int
    file_bytes: int
    """The largest file that it may write."""

    def now(self) -> Self:
        """These limits, with no more memory than is free now."""
        return replace(self, memory_bytes=min(self.memory_bytes, int(_MEMORY_SHARE * available_memory_bytes())))


class Child:
    """One run of a module in the sandbox, in which it may write into one directory."""

    def __init__(self, work: Work, directory: Path, limits: Limits, on_step: OnStep, on_unconfined: OnStep) -> None:
        self._work = work
        self._directory = directory
        self._limits = limits
        self._on_step = on_step
        self._on_unconfined = on_unconfined
        self._step = "start"
        self._result = ""
        self._failure: dict[str, str] = {}

    async def run(self, job: str) -> str:
        """Runs the job, and returns the result that the child sent, if any. Raises the work's error.

        When it returns or is cancelled, no process is left.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # else a directory called models, where the server was started, would be imported
            "-m",
            "models.conversion.sandbox",
            str(self._directory),
            str(self._limits.file_bytes),
            self._work.module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(os.environ, self._directory),
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stderr is not None
        with contextlib.suppress(ConnectionError):  # the child has died: this is reported below
            process.stdin.write(job.encode())
            process.stdin.write_eof()
        ending = asyncio.ensure_future(self._listen(process))
        log_end = asyncio.ensure_future(self._last_lines(process.stderr))
        try:
            await self._watch(process, ending, log_end)
        finally:
            _kill_group(process)
            ending.cancel()
            log_end.cancel()
            await asyncio.gather(ending, log_end, return_exceptions=True)
            await process.communicate()  # asyncio notices the end of a process only once its output is read
        if {"failed", "reason", "cure"} <= self._failure.keys():
            reason = f"{self._failure['failed']}: {self._failure['reason']}"
            raise self._work.error(reason, cure=self._failure["cure"], detail=log_end.result())
        if (code := ending.result()) != 0:
            reason, cure = self._ending(code)
            raise self._work.error(
                f"{self._step}: the {self._work.process} {reason}", cure=cure, detail=log_end.result()
            )
        return self._result

    async def _watch(self, process: asyncio.subprocess.Process, *readers: asyncio.Future[Any]) -> None:
        """Waits until all output is read. Raises the work's error if a limit is exceeded."""
        started = time.monotonic()
        while True:
            read, waiting = await asyncio.wait(readers, timeout=_WATCH_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
            for reader in read:
                reader.result()
            if not waiting:
                return
            if process.returncode is not None:
                _kill_group(process)  # a grandchild would keep the pipes open
            seconds, held = time.monotonic() - started, resident_bytes(process.pid)
            if seconds > self._limits.seconds:
                reason = f"{self._step}: the {self._work.title} was killed after {seconds:.0f} s"
                raise self._work.error(reason, cure=f"raise {self._work.timeout_setting}")
            if held > self._limits.memory_bytes:
                raise self._work.error(
                    f"{self._step}: the {self._work.title} was killed with {_gigabytes(held)} in memory; "
                    f"it may have {_gigabytes(self._limits.memory_bytes)}",
                    cure=f"raise {self._work.memory_setting} if the machine has more free memory; "
                    f"or {self._work.elsewhere}",
                )

    async def _listen(self, process: asyncio.subprocess.Process) -> int:
        """Handles each event, and returns the exit code."""
        assert process.stdout is not None
        async for event in self._events(process.stdout):
            if "step" in event:
                self._step = event["step"]
                self._on_step(self._step)
            elif "result" in event:
                self._result = event["result"]
            elif "unconfined" in event:
                self._on_unconfined(event["unconfined"])
            else:
                self._failure = event
        return await process.wait()

    def _ending(self, code: int) -> tuple[str, str]:
        """How a child ended that sent no reason, and the cure."""
        if code >= 0:
            return f"ended with code {code}", self._work.cure
        name = next((each.name for each in signal.Signals if each == -code), f"signal {-code}")
        if code == -signal.SIGKILL:
            cure = f"most often memory ran out: give the container more, or {self._work.elsewhere}"
            return f"was ended by {name}", cure
        if code == -signal.SIGXFSZ:
            return f"wrote a file of more than {_gigabytes(self._limits.file_bytes)}", _FILE_CURE
        return f"was ended by {name}", self._work.cure

    async def _events(self, stream: asyncio.StreamReader) -> AsyncIterator[dict[str, str]]:
        """The lines of JSON on standard output. Raises the work's error if they are anything else, or too many."""
        said = 0
        garbled = self._work.error(f"the {self._work.process} wrote something else than its steps to standard output")
        try:
            while line := await stream.readline():
                said += len(line)
                if said > _MAX_EVENTS:
                    raise garbled
                yield _EVENT.validate_json(line)
        except ValueError as error:  # too long a line, or not JSON
            raise garbled from error

    async def _last_lines(self, stream: asyncio.StreamReader) -> str:
        """The last lines of standard error, however long they are. Raises the work's error if there is too much."""
        tail, said = b"", 0
        while chunk := await stream.read(65536):
            tail = (tail + chunk)[-65536:]
            said += len(chunk)
            if said > _MAX_LOG:
                raise self._work.error(f"the {self._work.process} wrote more than {_MAX_LOG} bytes to standard error")
        lines = (line for line in tail.decode(errors="replace").splitlines() if line.strip())
        return "\n".join(deque(lines, _LAST_LINES))


_FILE_CURE = "an ONNX file has 2 GB at most: serve a smaller network; if it is one, report it"


class Unconfined:
    """Logs once which restrictions of the sandbox this system does not support."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._logged = False

    def __call__(self, missing: str) -> None:
        """Logs the missing restrictions, the first time."""
        if not self._logged:
            self._logged = True
            cure = (
                "serve only weights that you trust, or use a kernel and a container that support seccomp and Landlock"
            )
            log.warning("not confined", work=self._work.title, missing=missing, cure=cure)


def environment(server: Mapping[str, str], directory: Path) -> dict[str, str]:
    """The environment of a child. Temporary files and Keras' settings go to its own directory."""
    return inherited(server) | CHILD_ENVIRONMENT | {"TMPDIR": str(directory), "KERAS_HOME": str(directory)}


def inherited(server: Mapping[str, str]) -> dict[str, str]:
    """The variables of the server's environment that any child may see."""
    return {name: value for name, value in server.items() if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)}


def _kill_group(process: asyncio.subprocess.Process) -> None:
    """Ends the child, and everything that it could start if the sandbox is incomplete."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB"
