"""File formats, detected from the content of a file and never from its name."""

import os
import re
import stat
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from models.architecture import Framework
from models.artifact import zip_directory
from models.errors import ArtifactError


@dataclass(frozen=True, kw_only=True)
class Format:
    """A file format for saved models."""

    name: str
    title: str
    """The name for messages, with its article."""
    framework: Framework | Literal["onnx"]
    holds: Literal["weights", "model", "either"]
    """`either`: the file may describe the network or not, which shows only when it is read."""
    code: bool = False
    """Whether the network is stored as code, which has to be run."""


STATE_DICT = Format(name="state_dict", title="a PyTorch state_dict", framework="torch", holds="weights")
LEGACY_PICKLE = Format(
    name="pickle", title="a PyTorch file from before version 1.6", framework="torch", holds="weights"
)
SAFETENSORS = Format(name="safetensors", title="a safetensors file", framework="torch", holds="weights")
TORCHSCRIPT = Format(name="torchscript", title="a TorchScript program", framework="torch", holds="model", code=True)
PT2 = Format(name="pt2", title="a program of torch.export", framework="torch", holds="model", code=True)
KERAS = Format(name="keras", title="a Keras model", framework="keras", holds="either")
HDF5 = Format(name="hdf5", title="an HDF5 file, as Keras writes", framework="keras", holds="either")
CHECKPOINT = Format(name="checkpoint", title="a TensorFlow checkpoint", framework="keras", holds="weights")
SAVED_MODEL = Format(name="saved_model", title="a SavedModel", framework="keras", holds="either", code=True)
ONNX = Format(name="onnx", title="an ONNX model", framework="onnx", holds="model")

FORMATS = {
    each.name: each
    for each in (
        STATE_DICT,
        LEGACY_PICKLE,
        SAFETENSORS,
        TORCHSCRIPT,
        PT2,
        KERAS,
        HDF5,
        CHECKPOINT,
        SAVED_MODEL,
        ONNX,
    )
}

SAVED_MODEL_FILE = "saved_model.pb"
INDEX_SUFFIX = ".index"
MAX_ENTRIES, _MAX_DEPTH = 10_000, 32
BROKEN_FILE = "copy the file again, or save it again"

_SHARD = re.compile(r"(.*)\.data-\d{5}-of-\d{5}", re.DOTALL)
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_TABLE_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)  # the last bytes of a TensorFlow index
_MAX_ONNX_FIELD = 26  # in the message ModelProto
_ONNX_GRAPH = 7
_MAX_ONNX_FIELDS = 2**16  # read within a second; a file has a field for each function and note, a few thousand at most


def detect(path: Path) -> Format:
    """The format of a file, of a SavedModel's directory, or of a checkpoint with this index.

    Raises ArtifactError if it is in no known format; OSError.
    """
    if path.is_dir():
        if not (path / SAVED_MODEL_FILE).is_file():
            raise ArtifactError(
                f"the directory {path.name} holds no {SAVED_MODEL_FILE}",
                "put a SavedModel's directory there, or one file, or the two files of a checkpoint",
            )
        return SAVED_MODEL
    with path.open("rb") as file:
        start = file.read(64)
        if start.startswith(b"PK"):
            return _of_zip(path)
        for known, is_it in _SIGNS.items():
            if is_it(file, start):
                return FORMATS[known]
    raise ArtifactError(
        f"{path.name} is in no known format: {_shown(start)}",
        "save it as a PyTorch state_dict, safetensors, .keras, .h5 or .onnx; if it is one, copy it again",
    )


def _shown(start: bytes) -> str:
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer (git lfs pull fetches the file)"
    return f"it begins with {start[:8]!r}"


def _of_zip(path: Path) -> Format:
    try:
        names = set(zip_directory.names(path))
    except (zip_directory.Damaged, UnicodeDecodeError, OSError) as error:
        raise ArtifactError(f"{path.name} cannot be read: its archive is cut short or damaged", BROKEN_FILE) from error
    if "config.json" in names and any(name.startswith("model.weights.") for name in names):
        return KERAS
    inside = {name.partition("/")[2] for name in names}
    if any(name.startswith("code/") for name in inside) or "constants.pkl" in inside:
        return TORCHSCRIPT
    if any(re.fullmatch(r"models/[^/]+\.json", name) for name in inside) or "serialized_exported_program.json" in names:
        return PT2
    if "data.pkl" in inside:
        return STATE_DICT
    raise ArtifactError(
        f"{path.name} is a zip archive, and neither PyTorch nor Keras wrote it: "
        f"it holds {', '.join(name[:64] for name in sorted(names)[:3]) or 'nothing'}",
        "unpack it, and use the weights in it",
    )


def _size(file: BinaryIO) -> int:
    return file.seek(0, 2)


def _is_pickle(_file: BinaryIO, start: bytes) -> bool:
    return re.match(rb"\x80[\x02-\x05]", start) is not None


def _is_safetensors(file: BinaryIO, start: bytes) -> bool:
    return start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= _size(file) - 8


def _is_checkpoint(file: BinaryIO, start: bytes) -> bool:
    file.seek(-min(_size(file), len(_TABLE_MAGIC)), 2)
    return bool(start) and file.read() == _TABLE_MAGIC


def _is_onnx(file: BinaryIO, _start: bytes) -> bool:
    """Whether the file is a sequence of ModelProto's fields to its last byte, with a graph among them."""
    size, seen = _size(file), set()
    file.seek(0)
    for _ in range(_MAX_ONNX_FIELDS):
        if (at := file.tell()) == size:
            return _ONNX_GRAPH in seen
        tag = _varint(file)
        field, kind = tag >> 3, tag & 7
        if not 1 <= field <= _MAX_ONNX_FIELD or kind not in {0, 2}:
            return False
        value = _varint(file)
        if kind == 2:  # noqa: PLR2004 - a length, then that number of bytes
            file.seek(value, 1)
        if not at < file.tell() <= size:
            return False
        seen.add(field)
    return False


def _varint(file: BinaryIO) -> int:
    """A number in the encoding of protocol buffers; 0, which is no field, if it is invalid."""
    value = 0
    for shift in range(0, 63, 7):
        byte = file.read(1)
        if not byte:
            return 0
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:  # noqa: PLR2004
            return value
    return 0


_SIGNS: Mapping[str, Callable[[BinaryIO, bytes], bool]] = {
    HDF5.name: lambda _, start: start.startswith(_HDF5_MAGIC),
    LEGACY_PICKLE.name: _is_pickle,
    SAFETENSORS.name: _is_safetensors,
    CHECKPOINT.name: _is_checkpoint,
    ONNX.name: _is_onnx,
}


def parts(path: Path) -> list[Path]:
    """The files of an artifact, sorted: one file, those in a SavedModel's directory, or those of a checkpoint."""
    if path.is_dir():
        return [each for each in below(path) if not stat.S_ISDIR(each.lstat().st_mode)]
    if path.name.endswith(INDEX_SUFFIX):
        stem = path.name.removesuffix(INDEX_SUFFIX)
        return [path, *sorted(each for each in path.parent.iterdir() if is_shard(each.name, stem))]
    return [path]


def below(directory: Path) -> list[Path]:
    """Everything below a directory, sorted; links are not followed. Empty if it is not a directory.

    Raises ArtifactError if there are more files or levels than any version has; OSError.
    """
    found: list[Path] = []
    pending = [(directory, 1)] if directory.is_dir() else []
    while pending:
        inside, depth = pending.pop()
        with os.scandir(inside) as entries:
            for entry in entries:
                found.append(inside / entry.name)
                if len(found) > MAX_ENTRIES or depth > _MAX_DEPTH:
                    raise ArtifactError(
                        f"{directory.name} holds more than {MAX_ENTRIES} files, or directories {_MAX_DEPTH} deep",
                        "keep only the files of the version there",
                    )
                if entry.is_dir(follow_symlinks=False):
                    pending.append((found[-1], depth + 1))
    return sorted(found)


def is_shard(name: str, stem: str) -> bool:
    """Whether a file of that name is a data file of the checkpoint `stem`."""
    shard = _SHARD.fullmatch(name)
    return shard is not None and shard[1] == stem


def entries(names: Iterable[str]) -> list[str]:
    """The names that stand for an artifact each: the data files of a checkpoint belong to its index."""
    found = sorted(names)
    stems = {name.removesuffix(INDEX_SUFFIX) for name in found if name.endswith(INDEX_SUFFIX)}
    return [name for name in found if not ((shard := _SHARD.fullmatch(name)) and shard[1] in stems)]


def is_regular(path: Path) -> bool:
    """Whether the path is a regular file, and not a link to one."""
    return os.path.lexists(path) and stat.S_ISREG(path.lstat().st_mode)
