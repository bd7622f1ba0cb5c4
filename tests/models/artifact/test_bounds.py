"""Files that claim more than they hold, or reach outside of themselves: refused from what they say, unread."""

import json
import resource
import struct
import time
import zipfile

import h5py
import numpy as np
import pytest

from models.artifact import bounds
from models.errors import ArtifactError


@pytest.fixture(autouse=True)
def cheap():
    """No refusal takes more than a moment of a processor, or memory to speak of."""
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.process_time() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


def zipped(path, *entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def bomb(path):
    """256 MiB of zeros in a quarter of one."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("archive/data/0", "w") as entry:
        for _ in range(256):
            entry.write(bytes(2**20))
    return path


def link(path):
    entry = zipfile.ZipInfo("archive/data/0")
    entry.external_attr = 0o120777 << 16
    return zipped(path, (entry, "/etc/passwd"))


def encrypted(path):
    content = bytearray(zipped(path, ("a", b"0")).read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (bomb, "claims to hold 268,435,456"),
        (link, "which is a link"),
        (encrypted, "is encrypted"),
        (lambda path: zipped(path, ("/etc/passwd", "")), "outside of the archive"),
        (lambda path: zipped(path, ("archive/../../../etc/passwd", "")), "outside of the archive"),
        (lambda path: zipped(path, ("archive\\..\\..\\x", "")), "outside of the archive"),
        (lambda path: zipped(path, ("C:\\x", "")), "outside of the archive"),
    ],
)
def test_a_hostile_archive_is_refused(tmp_path, make, problem):
    with pytest.raises(ArtifactError, match=problem) as caught:
        bounds.check_zip(make(tmp_path / "weights.keras"))
    assert "save" in caught.value.cure


def test_two_entries_of_one_name_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        zipped(tmp_path / "weights.keras", ("config.json", "{}"), ("config.json", "[]"))
    with pytest.raises(ArtifactError, match="two files of one name"):
        bounds.check_zip(tmp_path / "weights.keras")


def test_entries_that_overlap_are_refused(tmp_path):
    path = tmp_path / "weights.keras"
    content = b"0" * 10_000
    zipped(path, ("a", content), *((f"b{index}", b"") for index in range(50)))
    raw = bytearray(path.read_bytes())
    at = raw.index(b"PK\x01\x02")
    while at >= 0:  # every entry becomes the first
        raw[at + 16 : at + 28] = raw[raw.index(b"PK\x01\x02") + 16 : raw.index(b"PK\x01\x02") + 28]
        at = raw.find(b"PK\x01\x02", at + 4)
    path.write_bytes(raw)
    with pytest.raises(ArtifactError, match="overlap"):
        bounds.check_zip(path)


def test_an_honest_archive_passes_compressed_or_not(tmp_path):
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32).tobytes()
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        bounds.check_zip(zipped(tmp_path / "a.keras", ("config.json", "{}"), ("w", values), compression=compression))


def tensors(path, header, held=b""):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content + held)
    return path


def described(shape, start, end):
    return {"w": {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}}


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (described([10**6, 10**6], 0, 16), "does not hold all of 'w'"),
        (described([4], 0, 10**12), "does not hold all of 'w'"),
        (described([4], -16, 0), "does not hold all of 'w'"),
        (described([4], "a", 16), "'w' is not described"),
        (described([4], 0, None), "'w' is not described"),
        (described([4], 0.5, 16), "'w' is not described"),
        (described([[1]], 0, 16), "'w' is not described"),
        (described(["4"], 0, 16), "'w' is not described"),
        (described([-1, -4], 0, 16), "has the shape"),
        (described([2] * 10**6, 0, 16), "has the shape"),
        (described([2**63, 2**63], 0, 16), "does not hold all of 'w'"),
        ({"w": {"shape": [4]}}, "'w' is not described"),
        ({"w": [0, 16]}, "'w' is not described"),
        (b'{"w": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1, 2]", "is a list"),
    ],
)
def test_a_hostile_safetensors_header_is_refused(tmp_path, header, problem):
    with pytest.raises(ArtifactError, match=problem):
        bounds.check_safetensors(tensors(tmp_path / "weights.safetensors", header, held=bytes(16)))


def test_a_safetensors_header_has_a_bound(tmp_path, monkeypatch):
    path = tensors(tmp_path / "weights.safetensors", described([4], 0, 16), held=bytes(16))
    bounds.check_safetensors(path)
    monkeypatch.setattr(bounds, "MAX_CONFIG_BYTES", 20)
    with pytest.raises(ArtifactError, match="claims a header of"):
        bounds.check_safetensors(path)


def external_link(file):
    file["layers"] = h5py.ExternalLink("/etc/passwd", "/")


def soft_link(file):
    file["layers"] = h5py.SoftLink("/other")


def external_storage(file):
    file.create_dataset("w", (10,), "u1", external=[("/etc/passwd", 0, 10)])


def virtual(file):
    layout = h5py.VirtualLayout(shape=(10,), dtype="u1")
    layout[:] = h5py.VirtualSource("/etc/passwd", "w", shape=(10,))
    file.create_virtual_dataset("w", layout)


def chunked_claim(file):
    file.create_dataset("w", (2**40,), "f4", chunks=(1024,))


def contiguous_claim(file):
    file.create_dataset("w", (2**40,), "f4")


def many_claims(file):
    for index in range(200):
        file.create_dataset(f"w{index}", (2**18,), "f4", chunks=(1024,))


def deflated(file):
    file.create_dataset("w", data=np.zeros(2**25, np.float32), compression="gzip", compression_opts=9)


def cycle(file):
    group = file.create_group("a")
    group["b"] = group


def deep(file):
    file.create_group("/".join("a" * 100))


def text(file):
    file.create_dataset("w", data=["import os"], dtype=h5py.string_dtype())


def overflowing(file):
    file.create_dataset("w", (2**40, 2**40), "f4", chunks=(1, 1))


HOSTILE = {
    "holds a link": (external_link, soft_link),
    "in another file": (external_storage, virtual),
    "claims to hold": (chunked_claim, contiguous_claim, many_claims, deflated, overflowing),
    "twice": (cycle,),
    "more groups": (deep,),
    "not numbers": (text,),
}


@pytest.mark.parametrize(
    ("make", "problem"), [(make, problem) for problem, makers in HOSTILE.items() for make in makers]
)
def test_a_hostile_hdf5_file_is_refused(tmp_path, make, problem):
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        make(file)
    assert path.stat().st_size < 2**20
    with pytest.raises(ArtifactError, match=problem) as caught:
        bounds.check_hdf5(path, path.name)
    assert "weights.h5" in str(caught.value)


def test_an_hdf5_file_that_is_cut_is_told(tmp_path):
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("w", data=np.ones(10_000, np.float32))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="cut or damaged"):
        bounds.check_hdf5(path, path.name)


def test_honest_weights_pass_zeros_and_compressed_ones_too(tmp_path):
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "layers/dense/vars/0", data=np.random.default_rng(0).normal(size=(64, 64)), compression="gzip"
        )
        file.create_dataset("layers/dense/vars/1", data=np.zeros(4096, np.float32), compression="gzip")
        file.create_dataset("layers/empty/vars/0", data=np.zeros((0, 3), np.float32))
        file.create_dataset("count", data=np.int64(3))
    bounds.check_hdf5(path, path.name)
