"""Reads the names in a zip archive from its central directory.

zipfile creates an object for each entry, and takes quadratic time in the size of an entry's extra fields: a hostile
archive of a few MB takes a minute.
"""

import struct
from pathlib import Path

from models.errors import ArtifactError

MAX_BYTES = 16 * 2**20  # of the directory: with 100,000 tensors it has less
MAX_ENTRIES = 100_000

_END = struct.Struct("<4s8xLL2x")  # signature, size and offset of the directory; a comment follows
_LOCATOR = struct.Struct("<4s16x")
_END64 = struct.Struct("<4s36xQQ")
_ENTRY = struct.Struct("<4s4xH18x3H12x")  # signature, flags, lengths of the name, the extra fields and the comment
_MAX_COMMENT_BYTES = 2**16
_UTF8 = 0x800


class Damaged(ValueError):
    """The archive's directory is missing or broken."""


def names(path: Path) -> list[str]:
    """The names of all entries, in order. Raises Damaged, OSError; ArtifactError if there are too many."""
    directory, found, at = _directory(path), list[str](), 0
    while at < len(directory):
        if len(directory) - at < _ENTRY.size:
            raise Damaged
        signature, flags, name, extra, comment = _ENTRY.unpack_from(directory, at)
        at += _ENTRY.size
        if signature != b"PK\1\2" or at + name + extra + comment > len(directory):
            raise Damaged
        found.append(directory[at : at + name].decode("utf-8" if flags & _UTF8 else "cp437"))
        at += name + extra + comment
        if len(found) > MAX_ENTRIES:
            raise _too_large(path)
    return found


def _directory(path: Path) -> bytes:
    """The bytes of the directory, which is located from the end of the file as in zipfile."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        before = max(size - _MAX_COMMENT_BYTES - _END.size - _LOCATOR.size - _END64.size, 0)
        file.seek(before)
        tail = file.read()
        at = tail.rfind(b"PK\5\6")
        if not 0 <= at <= len(tail) - _END.size:
            raise Damaged
        _, length, _ = _END.unpack_from(tail, at)
        end64 = at - _LOCATOR.size - _END64.size
        if end64 >= 0 and tail[end64 + _END64.size :].startswith(b"PK\6\7") and tail[end64:].startswith(b"PK\6\6"):
            at, (_, length, _) = end64, _END64.unpack_from(tail, end64)
        if length > MAX_BYTES:
            raise _too_large(path)
        if length > before + at:
            raise Damaged
        file.seek(before + at - length)
        return file.read(length)


def _too_large(path: Path) -> ArtifactError:
    return ArtifactError(
        f"{path.name} is a zip archive of more than {MAX_ENTRIES} entries", "save only the weights, in one file"
    )
