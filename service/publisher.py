"""Writes the model repository: uploads, settings, routing, deletions; each of them whole or not at all."""

import asyncio
import errno
import fcntl
import hashlib
import os
import shutil
import tarfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from models import formats
from models.artifact import CONFIG_FILE
from models.errors import ArtifactError
from models.publish import next_version, publish, sync
from service.errors import (
    BodyTimeout,
    BodyTooLarge,
    Conflict,
    EmptyBody,
    InsufficientStorage,
    RepositoryReadOnly,
    ServiceError,
    UploadInvalid,
)
from service.routing import ROUTING_FILE, Routing

STAGING = ".staging"
"""Beside the models, so that a rename puts what lies here in its place. A name with a dot is no model's."""

MAX_FILES = 10_000
_CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Upload:
    """What was received."""

    bytes: int
    sha256: str


class Publisher:
    """Only here is the repository written. Whatever is killed half-way leaves a room under STAGING, and no more."""

    def __init__(self, root: Path, max_bytes: int, idle_seconds: float) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._idle_seconds = idle_seconds

    def tidy(self) -> None:
        """Removes what was left by processes that are gone; a room that is in use is locked."""
        with suppress(OSError):  # no repository, or one that is only read
            for room in (self._root / STAGING).iterdir():
                descriptor = os.open(room, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(room, ignore_errors=True)
                except BlockingIOError:
                    pass
                finally:
                    os.close(descriptor)

    @contextmanager
    def _room(self) -> Iterator[Path]:
        """A directory of one's own, on the repository's file system, gone in the end."""
        room = self._root / STAGING / uuid.uuid4().hex
        with _told():
            room.mkdir(parents=True)
            descriptor = os.open(room, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield room
        finally:
            shutil.rmtree(room, ignore_errors=True)
            os.close(descriptor)

    @asynccontextmanager
    async def receive(
        self, chunks: AsyncIterator[bytes], *, filename: str, is_archive: bool, sha256: str | None
    ) -> AsyncIterator[tuple[Path, Upload]]:
        """A version's directory, made of a body: one file of that name, or the files of a tar.

        It is `publish`ed before the context ends, or is gone. Raises BodyTooLarge, BodyTimeout, EmptyBody,
        UploadInvalid, InsufficientStorage, RepositoryReadOnly; starlette's ClientDisconnect where the client goes.
        """
        with self._room() as room:
            version = room / "version"
            version.mkdir()
            file = room / "archive.tar" if is_archive else version / filename
            upload = await self._write(chunks, file)
            if sha256 is not None and sha256.lower() != upload.sha256:
                raise UploadInvalid(
                    f"the {upload.bytes} bytes that arrived have the SHA-256 {upload.sha256}", cure="send them again"
                )
            if is_archive:
                await asyncio.to_thread(self._unpack, file, version)
            else:
                try:
                    await asyncio.to_thread(formats.tell, file)
                except ArtifactError as error:
                    raise UploadInvalid(str(error), cure=error.cure) from error
            yield version, upload

    async def _write(self, chunks: AsyncIterator[bytes], path: Path) -> Upload:
        digest, size, pending = hashlib.sha256(), 0, bytearray()

        def flush() -> None:
            digest.update(pending)
            file.write(pending)
            pending.clear()

        with _told(), path.open("wb") as file:
            async for chunk in self._in_time(chunks):
                size += len(chunk)
                if size > self._max_bytes:
                    raise BodyTooLarge(
                        f"the upload has more than {self._max_bytes} bytes", cure="raise MENAGERIE_MAX_UPLOAD_BYTES"
                    )
                pending += chunk
                if len(pending) >= _CHUNK_BYTES:
                    await asyncio.to_thread(flush)
            await asyncio.to_thread(flush)
        if size == 0:
            raise EmptyBody("the upload is empty", cure="send the file as the body: curl -T weights.pth -X POST URL")
        return Upload(size, digest.hexdigest())

    async def _in_time(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The chunks, none of which may be waited for too long."""
        while True:
            try:
                async with asyncio.timeout(self._idle_seconds):
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise BodyTimeout(f"nothing of the upload arrived for {self._idle_seconds:g} s") from None
            yield chunk

    def _unpack(self, archive: Path, target: Path) -> None:
        """Plain files and directories alone; nothing lands elsewhere, and nothing is larger than it was sent."""
        files = 0
        try:
            with _told(), tarfile.open(archive, "r:") as tar:
                for member in tar:
                    path = PurePosixPath(member.name)
                    if path.is_absolute() or ".." in path.parts:
                        raise UploadInvalid(f"the archive holds {member.name!r}, which lies outside of the version")
                    if not (member.isdir() or (member.isreg() and not member.issparse())):
                        raise UploadInvalid(f"the archive holds {member.name!r}, which is no plain file")
                    files += 1
                    if files > MAX_FILES:
                        raise UploadInvalid(f"the archive holds more than {MAX_FILES} files")
                    _write_member(tar, member, target / path)
        except tarfile.TarError as error:
            raise UploadInvalid(f"the archive cannot be unpacked: {error}") from error
        if not any(path.is_file() for path in target.iterdir()):
            raise UploadInvalid("the archive holds no file at its top")

    def publish(self, staged: Path, model: str, version: int | None = None) -> int:
        """Puts a received version into its place, under the next free number unless one is given. Raises Conflict."""
        directory = self._root / model
        for _ in range(100):  # another process may take a number first
            number = version or next_version(directory)
            try:
                with _told():
                    publish(staged, directory / str(number))
            except FileExistsError:
                if version is not None:
                    raise Conflict(
                        f"{model} has a version {number}", cure="leave the number out, or delete it"
                    ) from None
            else:
                return number
        raise Conflict(f"no number was free for a version of {model}", cure="try again")

    def write_config(self, model: str, text: str) -> None:
        """Writes a model.toml, if it is not the same already; a model that was not there is there with it."""
        present = self._root / model / CONFIG_FILE
        if present.is_file() and present.read_bytes() == text.encode():
            return
        with _told(), self._room() as room:
            (room / CONFIG_FILE).write_text(text, encoding="utf-8")
            if (self._root / model).is_dir():
                _replace(room / CONFIG_FILE, present)
            else:
                (room / model).mkdir()
                (room / CONFIG_FILE).rename(room / model / CONFIG_FILE)
                publish(room / model, self._root / model)

    def write_routing(self, model: str, routing: Routing) -> None:
        """Writes a routing.toml."""
        with _told(), self._room() as room:
            (room / ROUTING_FILE).write_text(routing.to_toml(), encoding="utf-8")
            _replace(room / ROUTING_FILE, self._root / model / ROUTING_FILE)

    def delete(self, model: str, version: int) -> None:
        """Removes a version: it is gone at once, and its files soon."""
        with _told(), self._room() as room:
            (self._root / model / str(version)).rename(room / "version")
            sync(self._root / model)


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    """Its content alone: no owner, mode or time. tarfile's own filters came with Python 3.11.4."""
    try:
        if member.isdir():
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        content = tar.extractfile(member)
        assert content is not None  # of a plain file
        with content, path.open("xb") as file:
            shutil.copyfileobj(content, file, _CHUNK_BYTES)
    except OSError as error:
        if error.errno not in {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}:
            raise
        raise UploadInvalid(
            f"the archive holds {member.name[:64]!r}, which cannot be written: {error.strerror}"
        ) from error


def _replace(source: Path, target: Path) -> None:
    sync(source)
    source.replace(target)
    sync(target.parent)


@contextmanager
def _told() -> Iterator[None]:
    """What the system refuses, in our words; an occupied place is the caller's business."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.EEXIST, errno.ENOTEMPTY}:
            raise FileExistsError(*error.args) from error
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise InsufficientStorage("the model repository's disk is full") from error
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise RepositoryReadOnly("the server may not write to the model repository") from error
        raise ServiceError(f"the model repository cannot be written: {error.strerror}", detail=str(error)) from error
