"""Runs `python -m models.convert` in a child process, with a cache keyed by content."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.artifact import Artifact, published_manifest
from service.errors import ConversionError

OnStep = Callable[[str], None]

# A child works on the CPU, quietly, and reports to nobody.
CHILD_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "ORT_DISABLE_TELEMETRY": "1",
}
_LAST_WORDS = 20  # lines of the child's standard error that are kept


class Converter:
    """Artifacts in, published directories out; each artifact is converted once."""

    def __init__(self, cache: Path, timeout_seconds: float, *, allow_code: bool = False) -> None:
        self._cache = cache
        self._timeout_seconds = timeout_seconds
        self._allow_code = allow_code

    def published(self, artifact: Artifact) -> Path | None:
        """Where the artifact lies converted; None where it was not yet."""
        directory = self._cache / artifact.fingerprint
        return None if published_manifest(directory) is None else directory

    async def convert(self, artifact: Artifact, on_step: OnStep = lambda _: None) -> Path:
        """The published directory of an artifact, converted now if need be.

        `on_step` hears the name of each step as it begins. Raises ConversionError with the step, the reason and the
        cure. A cancelled call, or one over its time, leaves no process and nothing half-written.
        """
        if found := self.published(artifact):
            return found
        job = json.dumps(
            {
                "artifact": artifact.model_dump(mode="json"),
                "cache": str(self._cache.absolute()),
                "allow_code": self._allow_code,
            }
        )
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # a directory called models where the server was started is not our package
            "-m",
            "models.convert",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **CHILD_ENVIRONMENT},
            start_new_session=True,
        )
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await _follow(child, job, on_step)
        except TimeoutError:
            raise ConversionError(
                f"the conversion was killed after {time.monotonic() - started:.0f} s",
                cure="raise MENAGERIE_CONVERSION_TIMEOUT_SECONDS",
            ) from None
        finally:
            _kill_group(child)
            await child.wait()


async def _follow(child: asyncio.subprocess.Process, job: str, on_step: OnStep) -> Path:
    """Reads the child's events until it ends. Raises ConversionError."""
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    words = asyncio.ensure_future(_last_lines(child.stderr))
    with contextlib.suppress(ConnectionError):  # a child that died at once says so below
        child.stdin.write(job.encode())
        child.stdin.write_eof()
    step, outcome = "start", dict[str, Any]()
    async for line in child.stdout:
        event = json.loads(line)
        if "step" in event:
            step = event["step"]
            on_step(step)
        else:
            outcome = event
    code = await child.wait()
    _kill_group(child)  # a grandchild would hold standard error open
    last_words = await words
    if "published" in outcome:
        return Path(outcome["published"])
    if "failed" in outcome:
        raise ConversionError(f"{outcome['failed']}: {outcome['reason']}", cure=outcome["cure"])
    ending = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    raise ConversionError(f"{step}: the converting process {ending}", cure=_cure(code), detail="\n".join(last_words))


def _kill_group(child: asyncio.subprocess.Process) -> None:
    """Ends the child, if it has not ended, and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


async def _last_lines(stream: asyncio.StreamReader) -> list[str]:
    """The end of what a process wrote; a line of any length is read in pieces."""
    tail = b""
    while chunk := await stream.read(65536):
        tail = (tail + chunk)[-65536:]
    return list(deque((line for line in tail.decode(errors="replace").splitlines() if line.strip()), _LAST_WORDS))


def _cure(code: int) -> str:
    if code == -signal.SIGKILL:
        return "most often memory ran out: give the container more, or convert on a larger machine (menagerie convert)"
    return "menagerie convert MODEL shows every step; if the weights are sound, report it"
