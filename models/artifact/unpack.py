"""Extracts the files of a version from a tar. It runs in the sandbox, because an archive may be made to do harm.

Standard input has {"archive": PATH, "directory": PATH}. Failures are reported as models.conversion.convert reports its
own: the step is `unpack` if the archive is at fault, `disk` if there is no room.
"""

import errno
import json
import resource
import shutil
import sys
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Self

from models.artifact import formats
from models.errors import ArtifactError

MAX_MEMBERS = 10_000
MAX_DEPTH = 16  # a SavedModel's files lie three deep
MAX_EXTENSION_BYTES = 16 * 1024  # of a header that says more of the next file; an honest one has some hundred bytes
MEMORY_BYTES = 512 * 2**20
CPU_SECONDS = 60

_CHUNK_BYTES = 2**20
_MAX_NAME_BYTES = 255  # bytes, on every usual file system
_EXTENSIONS = frozenset(
    (
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    )
)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}
_RESERVED = {"model.toml", "routing.toml"}
_UNWRITABLE = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

AGAIN = "make it again, and send it whole: tar -C DIRECTORY -cf version.tar ."
_PLAIN = "a version's directory is made of plain files and directories: send those alone"


class Header(tarfile.TarInfo):
    """One header of an archive, refused before tarfile acts on what it says."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Raises ArtifactError where tarfile would take a broken header for the end of the archive."""
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the end of the archive
            raise ArtifactError("it is cut short or damaged, or no tar", AGAIN) from None
        if header.size < 0:
            raise ArtifactError(f"{_shown(header.name)} has a negative size", AGAIN)
        if header.type in _EXTENSIONS and header.size > MAX_EXTENSION_BYTES:
            raise ArtifactError(
                f"a header of it has {header.size} bytes, and {MAX_EXTENSION_BYTES} are allowed",
                "give the files shorter names, and leave out their attributes: tar --no-xattrs --no-acls",
            )
        return header


def unpack(archive: Path, directory: Path) -> None:
    """Writes the files of an archive into a directory that is there and empty. Raises ArtifactError, OSError.

    All of the archive is looked through before the first file is written.
    """
    size, files, members = archive.stat().st_size, set[str](), list[tuple[tarfile.TarInfo, PurePosixPath]]()
    with archive.open("rb") as file:
        _check_plain(file.read(8))
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:", tarinfo=Header, encoding="utf-8", errors="surrogateescape") as tar:
            while (member := tar.next()) is not None:
                path = _path(member)
                if member.isreg():
                    _check_file(member, path, files, size)
                members.append((member, path))
                if len(members) > MAX_MEMBERS:
                    raise ArtifactError(f"it holds more than {MAX_MEMBERS} files", "send the weights alone")
            _check_rest(file.read)
            for member, path in members:
                if not _is_of_macos(path):
                    _write(tar, member, directory / path)
    _check_top(directory)


def _check_plain(start: bytes) -> None:
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise ArtifactError(f"it is compressed with {name}", "send a plain tar: tar -cf version.tar, without -z")


def _path(member: tarfile.TarInfo) -> PurePosixPath:
    """Where a member is to lie, below the version's directory. Raises ArtifactError."""
    name, path = _shown(member.name), PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise ArtifactError(f"{name} lies outside of the version", AGAIN)
    if not member.name.isprintable():  # half of a surrogate pair, which is not UTF-8, neither
        raise ArtifactError(f"{name} is no name for a file", "give the files names of ordinary letters, in UTF-8")
    if len(path.parts) > MAX_DEPTH:
        raise ArtifactError(f"{name} lies more than {MAX_DEPTH} directories deep", "send a version's directory alone")
    if any(len(part.encode()) > _MAX_NAME_BYTES for part in path.parts):
        raise ArtifactError(f"{name} is too long a name", f"a name has at most {_MAX_NAME_BYTES} bytes")
    if not (member.isdir() or (member.isreg() and not member.issparse())):
        raise ArtifactError(f"{name} is neither a plain file nor a directory", _PLAIN)
    if str(path) in _RESERVED:
        raise ArtifactError(
            f"{name} belongs beside the versions, not into one",
            "PUT /admin/models/MODEL takes a model.toml; what differs for one version goes into its artifact.toml",
        )
    return path


def _is_of_macos(path: PurePosixPath) -> bool:
    """Whether it is what macOS adds of its own: extended attributes, and how a folder is shown."""
    return any(part.startswith("._") or part in {".DS_Store", "__MACOSX"} for part in path.parts)


def _check_file(member: tarfile.TarInfo, path: PurePosixPath, files: set[str], size: int) -> None:
    """Raises ArtifactError where a file is longer than the archive, or has the name of another one."""
    if not 0 <= member.size <= size - member.offset_data:
        raise ArtifactError(f"{_shown(member.name)} is longer by its header than what was sent", AGAIN)
    name = unicodedata.normalize("NFC", str(path))  # macOS has one file for both ways of writing a letter
    if name in files:
        raise ArtifactError(f"it holds {_shown(member.name)} twice", "send each file once")
    files.add(name)


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    """Its content alone: no owner, mode or time."""
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
        if error.errno not in _UNWRITABLE:
            raise
        raise ArtifactError(
            f"{_shown(member.name)} cannot be written: {error.strerror}", "send each file once, under a name of its own"
        ) from error


def _check_rest(read: Callable[[int], bytes]) -> None:
    """Nothing but zeros may follow the end: a second archive would be lost silently."""
    while chunk := read(_CHUNK_BYTES):
        if chunk.count(0) != len(chunk):
            raise ArtifactError("something follows its end", AGAIN)


def _check_top(directory: Path) -> None:
    """Raises ArtifactError where nothing at the top could be a version's weights."""
    found = sorted(directory.iterdir())
    if any(not path.is_dir() or _is_artifact(path) for path in found):
        return
    if len(found) == 1:
        raise ArtifactError(
            f"it holds the directory {_shown(found[0].name)} and no file beside it",
            "send what is in it: tar -C DIRECTORY -cf version.tar .",
        )
    raise ArtifactError("it holds no file at its top", AGAIN)


def _is_artifact(directory: Path) -> bool:
    """Whether weights may be a directory: a SavedModel, or a TensorFlow checkpoint."""
    return (directory / formats.SAVED_MODEL_FILE).is_file() or any(directory.glob(f"*{formats.INDEX_SUFFIX}"))


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 64 else name[:64] + "...")  # noqa: PLR2004


def _tell(step: str, reason: str, cure: str) -> None:
    sys.stdout.write(json.dumps({"failed": step, "reason": reason, "cure": cure}) + "\n")


def main() -> None:
    """Unpacks what standard input names, and says what was wrong with it."""
    for limit, most in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CPU, CPU_SECONDS)):
        resource.setrlimit(limit, (most, most))
    job = json.load(sys.stdin)
    try:
        unpack(Path(job["archive"]), Path(job["directory"]))
    except ArtifactError as error:
        _tell("unpack", str(error), error.cure)
    except OSError as error:
        _tell("disk" if error.errno in _FULL else "write", error.strerror or "no file", AGAIN)
    except MemoryError:
        _tell("unpack", "its headers take too much memory", AGAIN)
    except Exception as error:  # noqa: BLE001 - of hostile bytes tarfile raises whatever it comes upon
        _tell("unpack", f"it cannot be read ({type(error).__name__})", AGAIN)


if __name__ == "__main__":
    main()
