"""Checks converted versions in a child process before the server opens them. Results are kept by content."""

import asyncio
import hashlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import structlog
from pydantic import ValidationError

from models.artifact import manifest as manifests
from models.artifact.manifest import Manifest
from models.artifact.staging import write_file
from models.conversion.check import CheckJob, Found
from service.conversion.slots import Slots
from service.errors import RepositoryError
from service.host.child import CHECK, Child, Limits, OnStep, Unconfined
from service.host.machine import usable_cores
from service.host.staging import exclusive
from service.repository.repository import translate_errors
from service.settings import Settings

log = structlog.get_logger()

_RELEASE = 1  # of the checks: versions that passed an earlier one are checked again
_FILE_BYTES = 2**20  # a check writes nothing


@dataclass(frozen=True)
class Passed:
    """A converted version that matches its manifest."""

    manifest: Manifest
    opened_bytes: int
    """The memory that a process needs to open and run it."""


class Checker:
    """Checks each converted version once, in a child process."""

    def __init__(self, settings: Settings) -> None:
        self._cache = settings.cache
        self._limits = Limits(settings.check_timeout_seconds, settings.check_memory_bytes, _FILE_BYTES)
        self._slots = Slots(settings.check_memory_bytes)
        self._unconfined = Unconfined(CHECK)

    async def check(self, model: str, directory: Path, batches: Sequence[int], on_step: OnStep) -> Passed:
        """Checks that the version in a directory runs on batches of these sizes. Raises RepositoryError."""
        with translate_errors(directory):
            manifest = await asyncio.to_thread(manifests.read_manifest, directory)
        key = await asyncio.to_thread(_key, manifest, batches)
        kept = self._cache / "checked" / f"{key}.json"
        if (found := await asyncio.to_thread(_read, kept)) is None:
            async with self._slots.slot(model):
                found = await self._try(directory, batches, key, kept, on_step)
        return Passed(manifest, found.opened_bytes)

    async def _try(self, directory: Path, batches: Sequence[int], key: str, kept: Path, on_step: OnStep) -> Found:
        limits = self._limits.now()
        job = CheckJob(
            directory=directory.absolute(),  # noqa: ASYNC240 - it asks no disk
            batches=tuple(batches),
            threads=usable_cores(),
            memory_bytes=limits.memory_bytes,
        )
        try:
            async with self._staged(key) as workspace:
                if found := await asyncio.to_thread(_read, kept):  # by the process that had the lock before
                    return found
                child = Child(CHECK, workspace, limits, on_step, self._unconfined)
                found = Found.model_validate_json(await child.run(job.model_dump_json()))
        except ValidationError as error:
            raise RepositoryError("the checking process did not report a result", cure=CHECK.cure) from error
        except OSError as error:
            raise RepositoryError(
                f"the version could not be checked: {error.strerror}",
                cure="make MENAGERIE_CACHE a writable directory with free space",
                detail=str(error),
            ) from error
        await asyncio.to_thread(_write, kept, found)
        return found

    @asynccontextmanager
    async def _staged(self, key: str) -> AsyncIterator[Path]:
        """An empty directory in the cache; if the cache is read-only, a temporary one of the system. Raises OSError."""
        if _is_writable(self._cache):
            async with exclusive(self._cache / "staging", key) as directory:
                yield directory
        else:
            with tempfile.TemporaryDirectory() as name:
                yield Path(name)


def _key(manifest: Manifest, batches: Sequence[int]) -> str:
    """Identifies the check and the content, because the manifest holds the SHA-256 of the graph."""
    described = [_RELEASE, onnxruntime.__version__, list(batches), manifest.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _read(kept: Path) -> Found | None:
    try:
        return Found.model_validate_json(kept.read_bytes())
    except (OSError, ValidationError):
        return None


def _write(kept: Path, found: Found) -> None:
    try:
        write_file(kept, found.model_dump_json().encode())
    except OSError as error:
        log.warning("the result of the check is not kept", reason=error.strerror, cure="make MENAGERIE_CACHE writable")


def _is_writable(directory: Path) -> bool:
    """Whether the directory is writable; if it is missing, whether its nearest existing parent is."""
    existing = next(each for each in (directory, *directory.parents) if each.exists())
    return os.access(existing, os.W_OK)
