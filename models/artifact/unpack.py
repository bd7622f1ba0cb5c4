"""Extracts the files of a version from a tar. It runs in the sandbox, because an archive may be malicious.

Standard input is {"archive": PATH, "directory": PATH}. Failures are reported as in models.conversion.convert. The step
is `unpack` if the archive is at fault, `disk` if the disk is full, and `write` for other errors of the disk.
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
MAX_DEPTH = 16  # the files of a SavedModel are three levels deep
MAX_EXTENSION_BYTES = 16 * 1024  # in a header with more about the next file; usual ones have a few hundred bytes

# This process limits itself; the server ends it if it exceeds these.
MAX_CPU_SECONDS = 60
MAX_ADDRESS_BYTES = 512 * 2**20
MAX_SECONDS = 60.0  # plus the time that MIN_BYTES_PER_SECOND allows for the archive: the disk may be slow
MIN_BYTES_PER_SECOND = 20e6
MAX_MEMORY_BYTES = 2**30

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

AGAIN = "create it again and send all of it: tar -C DIRECTORY -cf version.tar ."
_PLAIN = "send only regular files and directories"


class Header(tarfile.TarInfo):
    """A header in an archive. It is checked before tarfile acts on it."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Raises ArtifactError if the header is broken; tarfile would take it for the end of the archive."""
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the end of the archive
            raise ArtifactError("it is truncated or damaged, or not a tar", AGAIN) from None
        if header.size < 0:
            raise ArtifactError(f"{_shown(header.name)} has a negative size", AGAIN)
        if header.type in _EXTENSIONS and header.size > MAX_EXTENSION_BYTES:
            raise ArtifactError(
                f"one of its headers has {header.size} bytes, and {MAX_EXTENSION_BYTES} are allowed",
                "give the files shorter names, and leave out their attributes: tar --no-xattrs --no-acls",
            )
        return header


def unpack(archive: Path, directory: Path) -> None:
    """Writes the files of an archive into an empty directory. Raises ArtifactError, OSError.

    The whole archive is checked before the first file is written.
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
                    raise ArtifactError(f"it holds more than {MAX_MEMBERS} files", "send only the weights")
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
    """The path of a member in the version's directory. Raises ArtifactError."""
    name, path = _shown(member.name), PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise ArtifactError(f"{name} is outside of the version's directory", AGAIN)
    if not member.name.isprintable():  # names that are not UTF-8 hold surrogates, which are not printable
        raise ArtifactError(f"{name} is not a valid file name", "use printable characters in file names, in UTF-8")
    if len(path.parts) > MAX_DEPTH:
        raise ArtifactError(f"{name} is more than {MAX_DEPTH} directories deep", "send only the version's directory")
    if any(len(part.encode()) > _MAX_NAME_BYTES for part in path.parts):
        raise ArtifactError(f"the name {name} is too long", f"a name has at most {_MAX_NAME_BYTES} bytes")
    if not (member.isdir() or (member.isreg() and not member.issparse())):
        raise ArtifactError(f"{name} is neither a regular file nor a directory", _PLAIN)
    if str(path) in _RESERVED:
        raise ArtifactError(
            f"{name} belongs into the model's directory, not into a version's",
            "send model.toml with PUT /admin/models/MODEL; put settings of one version into its artifact.toml",
        )
    return path


def _is_of_macos(path: PurePosixPath) -> bool:
    """Whether it is a file that macOS adds: extended attributes, or the view of a folder."""
    return any(part.startswith("._") or part in {".DS_Store", "__MACOSX"} for part in path.parts)


def _check_file(member: tarfile.TarInfo, path: PurePosixPath, files: set[str], size: int) -> None:
    """Raises ArtifactError if a file is longer than the archive, or has the name of an earlier one."""
    if not 0 <= member.size <= size - member.offset_data:
        raise ArtifactError(f"{_shown(member.name)} is longer, by its header, than the rest of the archive", AGAIN)
    name = unicodedata.normalize("NFC", str(path))  # on macOS, both encodings of an accented letter name the same file
    if name in files:
        raise ArtifactError(f"it holds {_shown(member.name)} twice", "send each file once")
    files.add(name)


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    """Writes a member's content, without its owner, mode and time."""
    try:
        if member.isdir():
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        content = tar.extractfile(member)
        assert content is not None  # it is a regular file
        with content, path.open("xb") as file:
            shutil.copyfileobj(content, file, _CHUNK_BYTES)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise ArtifactError(
            f"{_shown(member.name)} cannot be written: {error.strerror}", "send each file once, under a name of its own"
        ) from error


def _check_rest(read: Callable[[int], bytes]) -> None:
    """Raises ArtifactError if anything but zeros follows the end: a second archive would be ignored silently."""
    while chunk := read(_CHUNK_BYTES):
        if chunk.count(0) != len(chunk):
            raise ArtifactError("there is data after its end", AGAIN)


def _check_top(directory: Path) -> None:
    """Raises ArtifactError if nothing in the directory can be the weights of a version."""
    found = sorted(directory.iterdir())
    if any(not path.is_dir() or _is_artifact(path) for path in found):
        return
    if len(found) == 1:
        raise ArtifactError(
            f"it holds the directory {_shown(found[0].name)} and no file beside it",
            "send its content: tar -C DIRECTORY -cf version.tar .",
        )
    raise ArtifactError("it holds no file at the top level", AGAIN)


def _is_artifact(directory: Path) -> bool:
    """Whether the directory may be weights: a SavedModel, or a TensorFlow checkpoint."""
    return (directory / formats.SAVED_MODEL_FILE).is_file() or any(directory.glob(f"*{formats.INDEX_SUFFIX}"))


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 64 else name[:64] + "...")  # noqa: PLR2004


def _report(step: str, reason: str, cure: str) -> None:
    sys.stdout.write(json.dumps({"failed": step, "reason": reason, "cure": cure}) + "\n")


def main() -> None:
    """Unpacks the archive that standard input names, and reports failures on standard output."""
    for limit, most in ((resource.RLIMIT_AS, MAX_ADDRESS_BYTES), (resource.RLIMIT_CPU, MAX_CPU_SECONDS)):
        resource.setrlimit(limit, (most, most))
    job = json.load(sys.stdin)
    try:
        unpack(Path(job["archive"]), Path(job["directory"]))
    except ArtifactError as error:
        _report("unpack", str(error), error.cure)
    except OSError as error:
        _report("disk" if error.errno in _FULL else "write", error.strerror or "no file", AGAIN)
    except MemoryError:
        _report("unpack", "its headers need too much memory", AGAIN)
    except Exception as error:  # noqa: BLE001 - tarfile raises all kinds of errors for hostile content
        _report("unpack", f"it cannot be read ({type(error).__name__})", AGAIN)


if __name__ == "__main__":
    main()
