"""Writes to the model repository: uploads, settings, routing and deletions, each completely or not at all."""

import asyncio
import errno
import hashlib
import json
import os
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from models.artifact import formats, staging, toml_file, unpack
from models.artifact.artifact import CONFIG_FILE, ModelConfig
from models.artifact.versions import add_version
from models.errors import ArtifactError
from service.errors import (
    BodyTimeout,
    BodyTooLarge,
    Conflict,
    ConversionError,
    EmptyBody,
    InsufficientStorage,
    RepositoryError,
    RepositoryReadOnly,
    ServiceError,
    UploadInvalid,
)
from service.host.child import UNPACKING, Child, Limits, Unconfined
from service.host.staging import staged
from service.repository.repository import overridden
from service.repository.routing import ROUTING_FILE, Routing

STAGING = ".staging"
"""A directory beside the models, from which files are renamed into place. Names with a leading dot are not models."""

_CHUNK_BYTES = 2**20
_UNPACKERS = 2  # archives unpacked at the same time; other uploads wait

log = structlog.get_logger()


@dataclass(frozen=True)
class Upload:
    """Size and hash of a received body."""

    bytes: int
    sha256: str


class Publisher:
    """The part of the server that writes to the repository. If it is killed, it leaves files only below STAGING."""

    def __init__(self, root: Path, max_bytes: int, idle_seconds: float, min_free_bytes: int = 0) -> None:
        self._root = root.absolute()
        self._max_bytes = max_bytes
        self._idle_seconds = idle_seconds
        self._min_free_bytes = min_free_bytes
        self._unpacking = asyncio.Semaphore(_UNPACKERS)
        self._unconfined = Unconfined(UNPACKING)

    def tidy(self) -> None:
        """Removes the leftovers of processes that were killed."""
        with suppress(OSError):  # no repository, or a read-only one
            staging.remove_leftovers((self._root / STAGING).iterdir())

    @asynccontextmanager
    async def receive(
        self,
        chunks: AsyncIterator[bytes],
        *,
        filename: str,
        is_archive: bool,
        sha256: str | None,
        declared_bytes: int = 0,
    ) -> AsyncIterator[tuple[Path, Upload]]:
        """Writes a body into a new version's directory: as one file of that name, or as the files of a tar.

        The directory is removed at the end of the context unless it was passed to `publish`. A body whose declared
        length is too large is refused before it is read. Raises BodyTooLarge, BodyTimeout, EmptyBody, UploadInvalid,
        InsufficientStorage, RepositoryReadOnly; starlette's ClientDisconnect if the client disconnects.
        """
        self._check_size(declared_bytes)
        async with AsyncExitStack() as stack:
            with _translate_errors():
                directory = await stack.enter_async_context(staged(self._root / STAGING, "upload"))
            self._check_free(directory, declared_bytes * (2 if is_archive else 1))  # the archive and its files
            version = directory / "version"
            version.mkdir()
            file = directory / "archive.tar" if is_archive else version / filename
            upload = await self._write(chunks, file)
            if sha256 is not None and sha256.lower() != upload.sha256:
                raise UploadInvalid(
                    f"the {upload.bytes} bytes that arrived have the SHA-256 {upload.sha256}", cure="send them again"
                )
            if is_archive:
                self._check_free(directory, upload.bytes)
                await self._unpack(file, version, upload.bytes)
            else:
                try:
                    await asyncio.to_thread(formats.detect, file)
                except ArtifactError as error:
                    raise UploadInvalid(str(error), cure=error.cure) from error
            yield version, upload

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise BodyTooLarge(
                f"the upload has {size} bytes or more, and {self._max_bytes} are allowed",
                cure="raise MENAGERIE_MAX_UPLOAD_BYTES",
            )

    def _check_free(self, directory: Path, size: int) -> None:
        """Raises InsufficientStorage if writing that many bytes would leave less than the minimum free on the disk."""
        disk = os.statvfs(directory)
        free = disk.f_bavail * disk.f_frsize
        if size + self._min_free_bytes > free:
            raise InsufficientStorage(
                f"the model repository's disk has {free} bytes free, the upload needs {size}, "
                f"and {self._min_free_bytes} must stay free"
            )

    async def _write(self, chunks: AsyncIterator[bytes], path: Path) -> Upload:
        digest, size, pending = hashlib.sha256(), 0, bytearray()

        def flush() -> None:
            self._check_free(path.parent, len(pending))
            digest.update(pending)
            file.write(pending)
            pending.clear()

        with _translate_errors(), path.open("wb") as file:
            async for chunk in self._in_time(chunks):
                size += len(chunk)
                self._check_size(size)
                pending += chunk
                if len(pending) >= _CHUNK_BYTES:
                    await asyncio.to_thread(flush)
            await asyncio.to_thread(flush)
        if size == 0:
            raise EmptyBody("the upload is empty", cure="send the file as the body: curl -T weights.pth -X POST URL")
        return Upload(size, digest.hexdigest())

    async def _in_time(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The chunks. Raises BodyTimeout if one of them takes too long to arrive."""
        while True:
            try:
                async with asyncio.timeout(self._idle_seconds):
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise BodyTimeout(f"nothing of the upload arrived for {self._idle_seconds:g} s") from None
            yield chunk

    async def _unpack(self, archive: Path, target: Path, size: int) -> None:
        """Unpacks an archive in a sandboxed child process. Raises UploadInvalid, InsufficientStorage, ServiceError."""
        seconds = unpack.MAX_SECONDS + size / unpack.MIN_BYTES_PER_SECOND
        limits = Limits(seconds, unpack.MAX_MEMORY_BYTES, file_bytes=size)
        child = Child(UNPACKING, archive.parent, limits, lambda _: None, self._unconfined)
        try:
            async with self._unpacking:
                await child.run(json.dumps({"archive": str(archive), "directory": str(target)}))
        except ConversionError as error:
            step, _, reason = error.message.partition(": ")
            if step == "unpack":
                raise UploadInvalid(f"the archive cannot be unpacked: {reason}", cure=error.cure) from error
            if step == "disk":
                raise InsufficientStorage("the model repository's disk is full") from error
            if step == "write":
                raise ServiceError(f"the model repository cannot be written: {reason}") from error
            log.warning("unpacking failed", reason=error.message, detail=error.detail)
            raise UploadInvalid(
                "the archive cannot be unpacked: that needs too much time or memory", cure=unpack.AGAIN
            ) from error
        await asyncio.to_thread(_check_unpacked, target, size)

    def publish(self, fresh: Path, model: str, version: int | None = None) -> int:
        """Renames a received version into place, with the next free number unless one is given. Raises Conflict."""
        target = self._root / model
        try:
            with _translate_errors():
                if version is None:
                    return int(add_version(fresh, target).name)
                staging.rename(fresh, target / str(version))
                return version
        except ArtifactError as error:
            raise Conflict(str(error), cure="give a free number: ?version=2; or delete that version") from error
        except FileExistsError:
            raise Conflict(f"{model} has a version {version}", cure="leave the number out, or delete it") from None

    def write_config(self, model: str, content: bytes) -> None:
        """Writes a model.toml unless the file has that content already. A new model is created together with it."""
        present = self._root / model / CONFIG_FILE
        if present.is_file() and present.stat().st_size == len(content) and present.read_bytes() == content:
            return
        with _translate_errors():
            if (self._root / model).is_dir():
                staging.write_file(present, content, self._root / STAGING)
                return
            with staging.staged(self._root / STAGING, "model") as directory:
                (directory / model).mkdir()
                (directory / model / CONFIG_FILE).write_bytes(content)
                staging.rename(directory / model, self._root / model)

    def write_routing(self, model: str, routing: Routing) -> None:
        """Writes a routing.toml. Raises Conflict if the file would be too long to be read again."""
        content = routing.to_toml().encode()
        try:
            toml_file.parse(content, ROUTING_FILE)
        except ArtifactError as error:
            raise Conflict(str(error), cure="remove labels that nobody uses") from error
        with _translate_errors():
            staging.write_file(self._root / model / ROUTING_FILE, content, self._root / STAGING)

    def delete(self, model: str, version: int) -> None:
        """Removes a version in one step; its files are deleted afterwards."""
        with _translate_errors(), staging.staged(self._root / STAGING, "deleted") as directory:
            (self._root / model / str(version)).rename(directory / "version")
            staging.sync(self._root / model)


def _check_unpacked(directory: Path, size: int) -> None:
    """Checks the files that the child unpacked, because it is not trusted. Raises UploadInvalid."""
    pending, held = [directory], 0
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                    continue
                found = entry.stat(follow_symlinks=False)
                held += found.st_size
                if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or held > size:
                    raise UploadInvalid("the unpacked files are not those of the archive")
    try:
        overridden(ModelConfig(), directory)
    except RepositoryError as error:
        raise UploadInvalid(error.message, cure=error.cure) from error


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Turns an OSError into a ServiceError, but for FileExistsError, which the caller handles."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise InsufficientStorage("the model repository's disk is full") from error
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise RepositoryReadOnly("the server may not write to the model repository") from error
        raise ServiceError(f"the model repository cannot be written: {error.strerror}", detail=str(error)) from error
