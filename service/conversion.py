"""Artifacts in, published directories out: a cache keyed by content, filled by a child process."""

import asyncio
import contextlib
import fcntl
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Self

import structlog

from models.artifact import Artifact
from models.formats import is_regular
from models.manifest import MANIFEST_FILE, ONNX_FILE, published_manifest
from models.publish import publish
from service.child import Child, Limits, OnStep
from service.errors import ConversionError
from service.machine import available_memory_bytes
from service.settings import DEFAULT_CONVERSION_MEMORY_BYTES, MIB, Settings

log = structlog.get_logger()

FILE_BYTES = 4 * 1024 * MIB  # of one file that a conversion writes; an ONNX file ends at 2 GiB
_MANIFEST_BYTES = 16 * MIB  # most of it is labels
_MEMORY_SHARE = 0.9  # of what is free: where a container's memory ends, the kernel may end all that is in it
_LOCK_SECONDS = 0.1


class Converter:
    """Each artifact is converted once, whichever process asks."""

    def __init__(
        self,
        cache: Path,
        timeout_seconds: float,
        memory_bytes: int = DEFAULT_CONVERSION_MEMORY_BYTES,
        *,
        file_bytes: int = FILE_BYTES,
        allow_code: bool = False,
        module: str = "models.convert",
    ) -> None:
        self._cache = cache.absolute()
        self._limits = Limits(timeout_seconds, memory_bytes, file_bytes)
        self._allow_code = allow_code
        self._module = module
        self._warned = False

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The converter that the settings ask for."""
        return cls(
            settings.cache,
            settings.conversion_timeout_seconds,
            settings.conversion_memory_bytes,
            allow_code=settings.allow_code,
        )

    def published(self, artifact: Artifact) -> Path | None:
        """Where the artifact lies converted; None where it was not yet."""
        directory = self._cache / artifact.fingerprint
        return None if published_manifest(directory) is None else directory

    async def convert(self, artifact: Artifact, on_step: OnStep = lambda _: None) -> Path:
        """The published directory of an artifact, converted now if need be.

        `on_step` hears the name of each step as it begins. Raises ConversionError with the step, the reason and the
        cure. A cancelled call, or one over its limits, leaves no process and nothing half-written.
        """
        if found := self.published(artifact):
            return found
        try:
            async with self._room(artifact.fingerprint) as room:
                if found := self.published(artifact):  # by who held the lock before
                    return found
                built = room / "published"
                job = {
                    "artifact": artifact.model_dump(mode="json"),
                    "directory": str(built),
                    "allow_code": self._allow_code,
                }
                await Child(self._module, room, self._limits_now(), on_step, self._warn).run(json.dumps(job))
                return self._publish(artifact, built)
        except OSError as error:
            raise ConversionError(
                f"a file could not be written or read: {error.strerror}",
                cure="make MENAGERIE_CACHE a writable directory with room",
                detail=str(error),
            ) from error

    @contextlib.asynccontextmanager
    async def _room(self, fingerprint: str) -> AsyncIterator[Path]:
        """A directory to convert this artifact in, while nobody else does; it is removed in the end."""
        staging = self._cache / "staging"
        staging.mkdir(parents=True, exist_ok=True)
        with (staging / f"{fingerprint}.lock").open("w") as lock:  # the kernel unlocks it, however this process ends
            while not _locked(lock.fileno()):  # noqa: ASYNC110 - who holds it tells nobody when it lets go
                await asyncio.sleep(_LOCK_SECONDS)
            for left in staging.glob(f"{fingerprint}.*/"):  # by a server that was killed
                await asyncio.to_thread(_remove, left)
            room = Path(tempfile.mkdtemp(prefix=f"{fingerprint}.", dir=staging))
            try:
                yield room
            finally:
                await asyncio.to_thread(_remove, room)

    def _limits_now(self) -> Limits:
        """The limits, with no more memory than there is."""
        free = available_memory_bytes()
        if free is None:
            return self._limits
        return replace(self._limits, memory_bytes=min(self._limits.memory_bytes, int(_MEMORY_SHARE * free)))

    def _publish(self, artifact: Artifact, built: Path) -> Path:
        """Puts what the child built into the cache, if it is what was asked for. Raises ConversionError."""
        files = {MANIFEST_FILE, ONNX_FILE}
        if (
            built.is_symlink()
            or {path.name for path in built.glob("*")} != files
            or not all(is_regular(built / name) for name in files)
            or (built / MANIFEST_FILE).stat().st_size > _MANIFEST_BYTES
            or (manifest := published_manifest(built)) is None
            or manifest.fingerprint != artifact.fingerprint
            or not artifact.spec.admits(manifest.spec)
        ):
            raise ConversionError("publish: the converting process did not leave the files of this artifact")
        target = self._cache / artifact.fingerprint
        shutil.rmtree(target, ignore_errors=True)  # one that is not whole, if any
        return publish(built, target)

    def _warn(self, unconfined: str) -> None:
        """Says once what of the sandbox this system does not offer."""
        if not self._warned:
            self._warned = True
            cure = "serve only weights that you trust, or use a kernel and a container that allow seccomp and Landlock"
            log.warning("conversion is not confined", missing=unconfined, cure=cure)


def _remove(directory: Path) -> None:
    """As far as it can be: a child may have made what Python cannot remove, such as a thousand nested directories."""
    with contextlib.suppress(RecursionError):
        shutil.rmtree(directory, ignore_errors=True)


def _locked(descriptor: int) -> bool:
    """Whether the lock is now this process'."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
