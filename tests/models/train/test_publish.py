"""Versions: whole, and what the service takes them for is what was trained."""

import pytest

from models.artifact.artifact import Spec
from models.errors import ArtifactError
from models.inputs import NORMALIZATIONS, ImageInput, NumbersInput
from models.train import publish
from service.repository.repository import Repository
from tests.models.saved import HDF5_BYTES, torch_bytes

LABELS = ("ant", "bee", "häß\U0001f41d \"c'")
IMAGE = ImageInput(height=20, width=20, channels=3, resize="stretch", **NORMALIZATIONS["caffe"])


def spec(**changes):
    values = {
        "architecture": "lenet5",
        "framework": "torch",
        "num_classes": 3,
        "input": IMAGE,
        "output": "logits",
        "labels": LABELS,
    }
    return Spec.model_validate(values | changes)


@pytest.fixture
def model(tmp_path):
    (tmp_path / "repository").mkdir()
    return tmp_path / "repository" / "model"


def add(model, wanted, *, weights="weights.pth"):
    staging = model.with_name(".staging")
    staging.mkdir(exist_ok=True)
    (staging / weights).write_bytes(HDF5_BYTES if weights.endswith(".h5") else torch_bytes())
    (staging / "training.json").write_text("{}")
    return publish.publish_version(model, staging, wanted)


def resolved(version):
    repository = Repository(version.parent.parent)
    return repository.resolve(version.parent.name, int(version.name)).source.spec


@pytest.mark.parametrize(
    "wanted", [spec(), spec(architecture="mlp_iris", input=NumbersInput(shape=(64,)), labels=("1", "2", "3"))]
)
def test_a_new_model_is_what_was_trained(model, wanted):
    version = add(model, wanted)
    assert version == model / "1"
    assert resolved(version) == wanted
    assert sorted(path.name for path in model.iterdir()) == ["1", "labels.txt", "model.toml"]
    assert sorted(path.name for path in version.iterdir()) == ["training.json", "weights.pth"]
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_the_next_version_keeps_the_models_settings(model):
    add(model, spec())
    (model / "10").mkdir()
    before = {path.name: path.read_text() for path in model.glob("*.*")}
    version = add(model, spec())
    assert version == model / "11"
    assert not (version / "artifact.toml").exists()
    assert {path.name: path.read_text() for path in model.glob("*.*")} == before


@pytest.mark.parametrize(
    ("changes", "weights"),
    [
        ({"labels": ("one", "two", "three")}, "weights.pth"),
        ({"labels": tuple("0123"), "num_classes": 4}, "weights.pth"),
        ({"framework": "keras"}, "weights.weights.h5"),
        ({"architecture": "convnet_functional"}, "weights.pth"),
        ({"input": ImageInput(height=32, width=32, channels=1)}, "weights.pth"),
    ],
)
def test_what_differs_stands_beside_the_version(model, changes, weights):
    first = add(model, spec())
    second = add(model, spec(**changes), weights=weights)
    assert resolved(first) == spec()
    assert resolved(second) == spec(**changes)


def test_settings_that_were_there_already_are_kept(model):
    model.mkdir()
    (model / "model.toml").write_text('architecture = "resnet18"\nweights = "mine.pth"\nframework = "keras"\n')
    (model / "labels.txt").write_text("a\nb\n")
    version = add(model, spec())
    assert resolved(version) == spec()
    assert (model / "labels.txt").read_text() == "a\nb\n"


def test_settings_that_cannot_be_overridden_are_told(model):
    add(model, spec())
    numbers = spec(architecture="mlp_iris", input=NumbersInput(shape=(64,)))
    with pytest.raises(ArtifactError, match="cannot override the settings") as caught:
        add(model, numbers)
    assert "--output" in caught.value.cure
    assert not (model / "2").exists()


def test_they_are_told_before_anything_is_trained(model, tmp_path):
    publish.check_settings(model, tmp_path, "weights.pth", spec())
    add(model, spec())
    publish.check_settings(model, tmp_path, "weights.pth", spec(labels=("one", "two", "three")))
    numbers = spec(architecture="mlp_iris", input=NumbersInput(shape=(64,)))
    with pytest.raises(ArtifactError, match="cannot override the settings"):
        publish.check_settings(model, tmp_path, "weights.pth", numbers)


def test_a_file_is_no_model(model):
    model.touch()
    with pytest.raises(ArtifactError, match="is a file"):
        publish.check_name(model)


@pytest.mark.parametrize("name", ["Model", ".model", "a" * 65])
def test_a_name_that_the_service_would_not_take(model, name):
    with pytest.raises(ArtifactError, match="is no name for a model"):
        publish.check_name(model.with_name(name))


@pytest.mark.parametrize("target", ["1", "model"])
def test_an_interruption_leaves_no_half_of_it(model, monkeypatch, target):
    rename = type(model).rename

    def interrupt(path, other):
        if other.name == target:
            raise KeyboardInterrupt
        return rename(path, other)

    monkeypatch.setattr(type(model), "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        add(model, spec())
    assert Repository(model.parent).names() == []
    monkeypatch.undo()
    assert resolved(add(model, spec())) == spec()
