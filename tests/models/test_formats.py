"""What a file is, is told from its bytes; what its name says does not matter."""

import struct

import pytest

from models import formats
from models.artifact import ModelConfig
from models.catalog import CATALOG
from models.errors import ArtifactError
from models.inputs import ImageInput
from models.resolution import find_weights, fingerprint, resolve
from tests.models.published import softmax_onnx
from tests.models.saved import HDF5_BYTES, SAFETENSORS_BYTES, archive, keras_bytes, torch_bytes
from tests.models.test_outputs import spec_of

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
    assert formats.tell(path) is formats.FORMATS[name]


def test_a_saved_model_is_a_directory(tmp_path):
    with pytest.raises(ArtifactError, match=r"holds no saved_model\.pb"):
        formats.tell(tmp_path)
    (tmp_path / "saved_model.pb").touch()
    assert formats.tell(tmp_path) is formats.SAVED_MODEL


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it is empty"),
        (b"<html>no such file", "it begins with b'<html>no'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (torch_bytes()[:60], "cut short or damaged"),
        (archive(README_md="hello"), "neither PyTorch nor Keras wrote it: it holds README.md"),
        (struct.pack("<Q", 2**62) + b"{}", "no format that is known"),  # longer than the file
        (softmax_onnx(spec_of("logits"))[:-1], "no format that is known"),
    ],
)
def test_other_bytes_are_shown_with_a_cure(tmp_path, content, problem):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        formats.tell(path)
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
        ("state_dict", None, {}, "holds weights alone, and model.toml names no architecture", "architecture ="),
        ("checkpoint", None, {}, "holds weights alone", "architecture ="),
        ("onnx", "lenet5", {}, "brings its own network, and model.toml names lenet5", "leave architecture out"),
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
