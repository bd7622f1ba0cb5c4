"""Checks of archives, HDF5 files and headers before they are read: a file must not claim more than its size allows.

Nothing here unpacks, allocates or follows anything because a file says so.
"""

import json
import math
import stat
import struct
import zipfile
from collections.abc import Iterator
from operator import index
from pathlib import Path, PurePosixPath
from typing import Any

from models.artifact.formats import BROKEN_FILE
from models.errors import ArtifactError

MAX_CONFIG_BYTES = 32 * 2**20  # the longest in the Keras library, NASNetLarge's, has less than 2 MiB
MAX_VALUES = 2**29  # in one tensor between two layers, for one item

_EXPANSION = 100  # times its own size: apart from zeros, weights hardly compress
_FREE_BYTES = 2**20  # a file may claim this much beyond it: a small file of zeros is harmless
_MAX_OBJECTS = 200_000
_MAX_DEPTH = 64
_MAX_DIMENSIONS = 64  # the maximum of NumPy

_UNPACKS = "save the model again with its own library, without compression"


def check_zip(path: Path) -> None:
    """Raises ArtifactError if an archive would unpack to far more than its size, or outside its directory."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ArtifactError(f"{path.name} cannot be read: its archive is cut short or damaged", BROKEN_FILE) from error
    for entry in entries:
        inside = PurePosixPath(entry.filename.replace("\\", "/"))
        if inside.is_absolute() or ".." in inside.parts or ":" in entry.filename or "\0" in entry.orig_filename:
            raise ArtifactError(f"{path.name} holds {entry.filename!r}, which is outside of the archive", _UNPACKS)
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise ArtifactError(f"{path.name} holds {entry.filename!r}, which is a link", _UNPACKS)
        if entry.flag_bits & 1:
            raise ArtifactError(f"{path.name} is encrypted", "save it without a password")
    if len({entry.filename for entry in entries}) < len(entries):
        raise ArtifactError(f"{path.name} holds two files of one name", _UNPACKS)
    if sum(entry.compress_size for entry in entries) > size:
        raise ArtifactError(f"{path.name} holds files that overlap", _UNPACKS)
    check_claim(path.name, sum(entry.file_size for entry in entries), size)


def check_claim(name: str, claimed: int, size: int, expansion: int = _EXPANSION) -> None:
    """Raises ArtifactError if `size` stored bytes cannot hold the claimed number of bytes."""
    if claimed > expansion * size + _FREE_BYTES:
        raise ArtifactError(f"{name} has {size:,} bytes, and claims to hold {claimed:,}", _UNPACKS)


def check_safetensors(path: Path) -> None:
    """Raises ArtifactError if the header is larger than any network needs, or describes data that the file lacks."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(size - 8, MAX_CONFIG_BYTES):
            raise ArtifactError(
                f"{path.name} claims a header of {length:,} bytes, and {MAX_CONFIG_BYTES:,} are allowed", BROKEN_FILE
            )
        content = file.read(length)
    held = size - 8 - length
    for name, tensor in json_object(content, path.name).items():
        if name == "__metadata__":
            continue
        try:
            start, end = map(index, tensor["data_offsets"])
            sizes = [index(size) for size in tensor["shape"][: _MAX_DIMENSIONS + 1]]
        except (TypeError, KeyError, ValueError) as error:
            raise ArtifactError(f"{path.name} cannot be read: {name!r} is not described", BROKEN_FILE) from error
        if len(sizes) > _MAX_DIMENSIONS or min(sizes, default=0) < 0:
            raise ArtifactError(f"{path.name} cannot be read: {name!r} has the shape {sizes}", BROKEN_FILE)
        claimed = math.prod(sizes)
        if not 0 <= start <= end <= held or claimed > 2 * (end - start):  # half a byte is the smallest number
            raise ArtifactError(f"{path.name} does not hold all of {name!r}", BROKEN_FILE)


def json_object(content: bytes, name: str) -> dict[str, Any]:
    """The JSON object in which a file describes itself; its length is bounded already. Raises ArtifactError."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{name} cannot be read: its description is not JSON", BROKEN_FILE) from error
    if not isinstance(found, dict):
        raise ArtifactError(f"{name} cannot be read: its description is a {type(found).__name__}", BROKEN_FILE)
    return found


def check_hdf5(path: Path, name: str) -> None:
    """Raises ArtifactError if a file refers to another file, or claims numbers that it does not hold.

    `name` is the name in error messages.
    """
    import h5py  # noqa: PLC0415

    size, claimed = path.stat().st_size, 0
    try:
        with h5py.File(path, "r") as file:
            for where, dataset in _datasets(file, name):
                claimed += _check_dataset(dataset, where, name)
    except ArtifactError:
        raise
    except Exception as error:  # h5py raises all kinds of errors for a broken file
        raise ArtifactError(f"{name} cannot be read: it is a cut or damaged HDF5 file", BROKEN_FILE) from error
    check_claim(name, claimed, size)


def _datasets(file: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every dataset with its path. Links are not followed. Raises ArtifactError."""
    import h5py  # noqa: PLC0415

    pending, seen = [("", file)], set()
    while pending:
        where, group = pending.pop()
        for key in group:
            inside = f"{where}/{key}"
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise ArtifactError(f"{name} holds a link: {inside}", _UNPACKS)
            found = group[key]
            address = h5py.h5o.get_info(found.id).addr
            if address in seen:
                raise ArtifactError(f"{name} holds {inside} twice", _UNPACKS)
            seen.add(address)
            if len(seen) > _MAX_OBJECTS or inside.count("/") > _MAX_DEPTH:
                raise ArtifactError(f"{name} holds more groups than any network has", _UNPACKS)
            if isinstance(found, h5py.Group):
                pending.append((inside, found))
            elif isinstance(found, h5py.Dataset):
                yield inside, found


def _check_dataset(dataset: Any, where: str, name: str) -> int:
    """The number of bytes that a dataset claims. Raises ArtifactError."""
    if dataset.is_virtual or dataset.external:
        raise ArtifactError(f"{name} keeps {where} in another file", _UNPACKS)
    if dataset.dtype.kind not in "biufVS":
        raise ArtifactError(f"{name} holds {where}, which are not numbers", _UNPACKS)
    claimed: int = math.prod(dataset.shape or ()) * dataset.dtype.itemsize
    check_claim(f"{where} of {name}", claimed, dataset.id.get_storage_size())
    return claimed
