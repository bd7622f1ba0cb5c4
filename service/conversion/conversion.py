"""Converts artifacts to ONNX in a child process, with a cache keyed by content."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Self

from models.artifact import staging
from models.artifact.artifact import Artifact
from models.artifact.formats import is_regular
from models.artifact.manifest import MANIFEST_FILE, ONNX_FILE, converted_manifest
from service.errors import ConversionError
from service.host.child import CONVERSION, Child, Limits, OnStep, Unconfined
from service.host.staging import exclusive
from service.host.threads import to_its_end
from service.settings import DEFAULT_CONVERSION_MEMORY_BYTES, MIB, Settings

FILE_BYTES = 4 * 1024 * MIB  # in one file that a conversion writes; an ONNX file has 2 GiB at most


class Converter:
    """Converts each artifact once, even if several processes ask for it."""

    def __init__(
        self,
        cache: Path,
        timeout_seconds: float,
        memory_bytes: int = DEFAULT_CONVERSION_MEMORY_BYTES,
        *,
        file_bytes: int = FILE_BYTES,
        allow_code: bool = False,
        module: str = CONVERSION.module,
    ) -> None:
        self._cache = cache.absolute()
        self._limits = Limits(timeout_seconds, memory_bytes, file_bytes)
        self._allow_code = allow_code
        self._work = replace(CONVERSION, module=module)
        self._unconfined = Unconfined(CONVERSION)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """A converter with these settings."""
        return cls(
            settings.cache,
            settings.conversion_timeout_seconds,
            settings.conversion_memory_bytes,
            allow_code=settings.allow_code,
        )

    def converted(self, artifact: Artifact) -> Path | None:
        """The directory of the converted artifact; None if it has not been converted."""
        directory = self._cache / artifact.fingerprint
        return None if converted_manifest(directory) is None else directory

    async def convert(self, artifact: Artifact, on_step: OnStep = lambda _: None) -> Path:
        """The directory of the converted artifact, which is converted now unless it was before.

        `on_step` is called with the name of each step when it begins. Raises ConversionError with the step, the reason
        and the cure. A call that is cancelled, or exceeds its limits, leaves no process and no incomplete files.
        """
        if found := self.converted(artifact):
            return found
        try:
            async with exclusive(self._cache / "staging", artifact.fingerprint) as directory:
                if found := self.converted(artifact):  # by the process that had the lock before
                    return found
                built = directory / "published"
                job = {
                    "artifact": artifact.model_dump(mode="json"),
                    "directory": str(built),
                    "allow_code": self._allow_code,
                }
                await Child(self._work, directory, self._limits.now(), on_step, self._unconfined).run(json.dumps(job))
                return await to_its_end(asyncio.to_thread(self._keep, artifact, built))
        except OSError as error:
            raise ConversionError(
                f"a file could not be written or read: {error.strerror}",
                cure="make MENAGERIE_CACHE a writable directory with free space",
                detail=str(error),
            ) from error

    def _keep(self, artifact: Artifact, built: Path) -> Path:
        """Moves the child's files into the cache, if they are those of the artifact. Raises ConversionError."""
        files = {MANIFEST_FILE, ONNX_FILE}
        if (
            built.is_symlink()
            or {path.name for path in built.glob("*")} != files
            or not all(is_regular(built / name) for name in files)
            or (manifest := converted_manifest(built)) is None
            or manifest.fingerprint != artifact.fingerprint
            or not artifact.spec.admits(manifest.spec)
        ):
            raise ConversionError("publish: the converting process did not leave the files of this artifact")
        return staging.replace(built, self._cache / artifact.fingerprint)  # an incomplete one, if any
