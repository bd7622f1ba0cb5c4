"""The fewest bytes that are told for what each framework saves. Nothing in them can be loaded."""

import io
import struct
import zipfile
from pathlib import Path


def archive(**entries: str | bytes) -> bytes:
    """A zip archive of these entries, `__` standing for a slash and `_` for a point; the same bytes at any time."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        for name, content in entries.items():
            zipped.writestr(zipfile.ZipInfo(name.replace("__", "/").replace("_", ".")), content)
    return file.getvalue()


EMPTY_PICKLE = b"\x80\x02}q\x00."


def torch_bytes(note: bytes = b"") -> bytes:
    """As torch.save writes a state_dict; another note, other bytes."""
    return archive(archive__data_pkl=EMPTY_PICKLE + note)


def note_of(path: Path) -> str:
    """The note in a file of `torch_bytes`."""
    with zipfile.ZipFile(path) as zipped:
        return zipped.read("archive/data.pkl").removeprefix(EMPTY_PICKLE).decode()


def keras_bytes() -> bytes:
    """As Keras writes a .keras."""
    return archive(config_json="{}", model_weights_h5=b"")


HDF5_BYTES = b"\x89HDF\r\n\x1a\n" + bytes(88)
SAFETENSORS_BYTES = struct.pack("<Q", 2) + b"{}"
