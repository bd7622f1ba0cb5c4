"""What a file is, is told from its bytes; what its name says does not matter."""

import struct
import time
import zipfile

import pytest

from models.artifact import formats, zip_directory
from models.artifact.artifact import ModelConfig
from models.artifact.resolution import find_weights, fingerprint, resolve
from models.catalog import CATALOG
from models.errors import ArtifactError
from models.inputs import ImageInput
from tests.models.published import softmax_onnx, spec_of
from tests.models.saved import HDF5_BYTES, SAFETENSORS_BYTES, archive, keras_bytes, torch_bytes

TABLE_END = struct.pack("<Q", 0xDB4775248B80FB57)  # of a TensorFlow index
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

CASES = {
    "state_dict": torch_bytes(),
    "pickle": LEGACY,
    "safetensors": SAFETENSORS_BYTES,
    "torchscript": archive(archive__data_pkl="", archive__code____torch__Net_py="", archive__constants_pkl=""),
    "pt2": archive(model__models__model_json="{}", model__archive_format="pt2"),
    "keras": keras_bytes(),
    "hdf5": HDF5_BYTES,
    "checkpoint": bytes(40) + TABLE_END,
    "onnx": softmax_onnx(spec_of("logits")),
}


@pytest.mark.parametrize("name", CASES)
def test_the_bytes_tell(tmp_path, name):
    path = tmp_path / "weights.pth"  # whatever it is
    path.write_bytes(CASES[name])
    assert formats.detect(path) is formats.FORMATS[name]


def test_a_saved_model_is_a_directory(tmp_path):
    with pytest.raises(ArtifactError, match=r"holds no saved_model\.pb"):
        formats.detect(tmp_path)
    (tmp_path / "saved_model.pb").touch()
    assert formats.detect(tmp_path) is formats.SAVED_MODEL


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it is empty"),
        (b"<html>no such file", "it begins with b'<html>no'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (torch_bytes()[:60], "cut short or damaged"),
        (archive(README_md="hello"), "neither PyTorch nor Keras wrote it: it holds README.md"),
        (struct.pack("<Q", 2**62) + b"{}", "no known format"),  # longer than the file
        (softmax_onnx(spec_of("logits"))[:-1], "no known format"),
    ],
)
def test_other_bytes_are_shown_with_a_cure(tmp_path, content, problem):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        formats.detect(path)
    assert problem in str(caught.value)
    assert "weights.pth" in str(caught.value)
    assert "again" in caught.value.cure or "unpack" in caught.value.cure


def version(tmp_path, **files):
    for name, content in files.items():
        path = tmp_path / "1" / name.replace("__", "/").replace("_", ".", 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "1"


def test_a_checkpoint_is_one_artifact_of_two_files(tmp_path):
    directory = version(tmp_path, weights_index=CASES["checkpoint"])
    (directory / "weights.data-00000-of-00001").write_bytes(b"values")
    (directory / "checkpoint").write_text("TensorFlow's note of the latest")
    path = find_weights(ModelConfig(), directory)
    assert path.name == "weights.index"
    before = fingerprint(spec_of("logits"), path, [])
    (directory / "weights.data-00000-of-00001").write_bytes(b"other values")
    assert fingerprint(spec_of("logits"), path, []) != before


def test_a_checkpoint_may_lie_in_a_directory_called_weights(tmp_path):
    (tmp_path / "1" / "weights").mkdir(parents=True)
    for name in ("ckpt.index", "ckpt.data-00000-of-00001", "checkpoint"):
        (tmp_path / "1" / "weights" / name).write_bytes(CASES["checkpoint"])
    assert find_weights(ModelConfig(), tmp_path / "1").name == "ckpt.index"


def test_the_names_and_contents_of_a_directory_are_its_fingerprint(tmp_path):
    directory = tmp_path / "weights"
    (directory / "variables").mkdir(parents=True)
    (directory / "saved_model.pb").write_bytes(b"graph")
    (directory / "variables" / "a").write_bytes(b"values")
    found = [fingerprint(spec_of("logits"), directory, [])]
    (directory / "variables" / "a").rename(directory / "variables" / "b")
    found.append(fingerprint(spec_of("logits"), directory, []))
    (directory / "variables" / "b").write_bytes(b"others")
    found.append(fingerprint(spec_of("logits"), directory, []))
    assert len(set(found)) == 3


def test_links_are_refused_inside_of_a_directory_too(tmp_path):
    directory = tmp_path / "1" / "weights"
    (directory / "variables").mkdir(parents=True)
    (directory / "saved_model.pb").touch()
    assert find_weights(ModelConfig(), tmp_path / "1") == directory
    (tmp_path / "elsewhere").write_bytes(b"values")
    (directory / "variables" / "variables.index").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match=r"variables\.index is not a regular file"):
        find_weights(ModelConfig(), tmp_path / "1")
    (directory / "variables" / "variables.index").unlink()
    (directory / "variables" / "variables.index").hardlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match=r"variables\.index is a hard link"):
        find_weights(ModelConfig(), tmp_path / "1")


def resolved(tmp_path, content, architecture=None, **config):
    return resolve(
        ModelConfig(**config), CATALOG.get(architecture), version(tmp_path, weights_x=content), tmp_path / "no"
    )


@pytest.mark.parametrize(
    ("name", "architecture", "config", "problem", "cure"),
    [
        (
            "hdf5",
            "lenet5",
            {"framework": "torch"},
            "HDF5 file, as Keras writes, and model.toml says",
            "leave framework",
        ),
        ("state_dict", None, {}, "holds only weights, and model.toml names no architecture", "architecture ="),
        ("checkpoint", None, {}, "holds only weights", "architecture ="),
        ("onnx", "lenet5", {}, "holds its own network, and model.toml names lenet5", "leave architecture out"),
    ],
)
def test_a_file_that_is_not_what_model_toml_says_is_told(tmp_path, name, architecture, config, problem, cure):
    with pytest.raises(ArtifactError) as caught:
        resolved(tmp_path, CASES[name], architecture, **config)
    assert problem in str(caught.value)
    assert cure in caught.value.cure


def test_a_whole_model_stays_a_draft_until_its_file_is_read(tmp_path):
    draft = resolved(tmp_path, CASES["onnx"], labels=("a", "b")).spec
    assert (draft.architecture, draft.framework, draft.labels) == ("whole:onnx", "onnx", ("a", "b"))
    complete = draft.complete(2, ImageInput(height=8, width=8), "logits", layout="NCHW")
    assert (complete.num_classes, complete.channels_first) == (2, True)
    assert resolved(tmp_path / "other", HDF5_BYTES).spec.architecture == "whole:hdf5"


def entry(name, extra=b""):
    """One entry of a zip archive's directory."""
    return struct.pack("<4s4xH18x3H12x", b"PK\1\2", 0, len(name), len(extra), 0) + name + extra


HOSTILE = {
    "numbers without end": b"\x08\x01" * 10_000_000,
    "empty fields": b"\x3a\x00" * 10_000_000,
    "long numbers": b"\x88\x80\x80\x80\x80\x80\x80\x80\x00" * 2_000_000,
}
HOSTILE_ZIPS = {
    "a million entries": entry(b"archive/data/1") * 1_000_000,
    "as many as are allowed": b"".join(entry(b"x/models/%d.jso" % number) for number in range(100_000)),
    "extra fields": entry(b"x", b"\1\1\0\0" * 16_000) * 200,
    "long names": entry(b"x/models/" + b"a" * 65_000) * 200,
}


@pytest.mark.parametrize("name", [*HOSTILE, *HOSTILE_ZIPS])
def test_no_bytes_take_long_to_tell(tmp_path, name):
    path = tmp_path / "weights"
    if name in HOSTILE:
        path.write_bytes(HOSTILE[name])
    else:
        directory = HOSTILE_ZIPS[name]
        path.write_bytes(b"PK\3\4" + directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(directory), 4, 0))
    started = time.process_time()
    with pytest.raises(ArtifactError):
        formats.detect(path)
    assert time.process_time() - started < 3  # seconds; 85 were taken


def field(number, content):
    """A field of a ProtoBuf message: of bytes or of a number."""
    if isinstance(content, int):
        return bytes([number << 3, content])
    length, size = b"", len(content)
    while size >= 0x80:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    tag = number << 3 | 2
    return (bytes([tag]) if tag < 0x80 else bytes([tag & 0x7F | 0x80, tag >> 7])) + length + bytes([size]) + content


def test_a_large_onnx_file_is_told_by_its_few_fields(tmp_path):
    path = tmp_path / "weights"
    opsets, functions, notes = field(8, b"\n\0\x10\x11") * 20, field(25, b"f" * 300) * 5000, field(14, b"kv") * 5000
    path.write_bytes(
        field(1, 8) + opsets + field(7, bytes(10_000_000)) + functions + notes + field(20, b"t") + field(26, b"c")
    )
    assert formats.detect(path) is formats.ONNX


@pytest.mark.parametrize("change", ["as it is", "a comment", "a prefix", "many entries"])
def test_the_names_in_an_archive_are_those_that_zipfile_reads(tmp_path, change):
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a/data.pkl", "ä/中", *(map(str, range(66_000)) if change == "many entries" else ())):
            archive.writestr(name, b"x")
        archive.comment = b"PK and more " * 100 if change == "a comment" else b""
    if change == "a prefix":
        path.write_bytes(b"#!/bin/sh\n" * 1000 + path.read_bytes())
    assert zip_directory.names(path) == zipfile.ZipFile(path).namelist()
    whole = path.read_bytes()
    for length in (0, 10, 21, 60):
        path.write_bytes(whole[:length])
        with pytest.raises(zip_directory.Damaged):
            zip_directory.names(path)


def test_many_files_are_sorted_into_artifacts_at_once():
    names = [f"weights.{number}{suffix}" for number in range(20_000) for suffix in (".index", ".data-00000-of-00001")]
    started = time.process_time()
    assert len(formats.entries([*names, "weights.other.data-00000-of-00001"])) == 20_001
    assert time.process_time() - started < 3  # seconds
