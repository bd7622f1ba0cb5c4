"""menagerie transplant: the other framework's network gives the same outputs, or nothing is published."""

import subprocess
import sys
import tomllib

import pytest

from models.artifact.artifact import Artifact
from service.repository.repository import Repository
from tests.command_line import menagerie
from tests.models.make_twins import make_twins
from tests.models.make_weights import make_weights
from tests.models.saved import torch_bytes

EQUAL = """
import sys, torch
first, second = (torch.load(path, weights_only=True) for path in sys.argv[1:])
assert first.keys() == second.keys()
assert all(torch.equal(first[name], second[name]) for name in first)
"""


def versions(model):
    """The versions of a model, and whatever else is in the repository."""
    return sorted(path.name for path in model.iterdir() if path.is_dir()), sorted(
        path.name for path in model.parent.iterdir()
    )


@pytest.fixture
def iris(repository):
    """A model of each kind beside `colour`, which is converted already. No framework can load these weights."""
    for name, architecture in (("iris", "mlp_iris"), ("library", "torchvision:resnet18")):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "model.toml").write_text(f'architecture = "{architecture}"\n')
        (repository / name / "1" / "weights.pth").write_bytes(torch_bytes())
    return repository


@pytest.mark.parametrize(
    ("version", "to", "message"),
    [
        ("tulips/1", "keras", "there is no model tulips"),
        ("iris/2", "keras", "iris has no version 2"),
        ("iris/1", "torch", "iris/1 holds weights of PyTorch already"),
        ("library/1", "keras", "torchvision:resnet18 is built in PyTorch only"),
        ("colour/1", "keras", "colour/1 is a whole model or converted already"),
    ],
)
def test_an_error_is_told_in_two_lines(iris, version, to, message):
    result = menagerie("transplant", version, "--to", to, "--repository", iris)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 2


@pytest.mark.parametrize("version", ["iris", "iris/", "iris/01", "iris/1/2", "/1", "iris/last"])
def test_a_version_is_a_model_and_a_number(iris, version):
    result = menagerie("transplant", version, "--to", "keras", "--repository", iris, COLUMNS="200")
    assert result.exit_code == 2
    assert "is not MODEL/VERSION, such as flowers/1" in result.stderr


def test_both_frameworks_are_needed(iris, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "keras" else name)
    result = menagerie("transplant", "iris/1", "--to", "keras", "--repository", iris)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "transplanting needs PyTorch and Keras; not installed: Keras",
        "  pip install 'menagerie[torch,keras]'",
    ]


def test_help_says_what_it_needs():
    found = " ".join(menagerie("transplant", "--help", COLUMNS="200").output.split())
    assert "PyTorch and Keras must both be installed" in found
    assert "only if the two networks give the same outputs" in found


@pytest.mark.slow
def test_weights_go_to_keras_and_come_back_unchanged(tmp_path):
    model = make_twins(tmp_path / "repository" / "flowers")
    options = ("--repository", model.parent, "--cache", tmp_path / "cache")
    result = menagerie("transplant", "flowers/1", "--to", "keras", *options[:2])
    assert result.exit_code == 0, result.stderr
    assert [line.split()[-1] for line in result.output.splitlines()[:-1]] == [
        *("build", "load", "transplant", "compare", "save")
    ]
    assert f"published {model / '3'}: its outputs differ by " in result.output
    result = menagerie("transplant", "flowers/3", "--to", "torch", *options[:2])
    assert result.exit_code == 0, result.stderr
    assert versions(model) == (["1", "2", "3", "4"], ["flowers"])
    assert sorted(path.name for path in (model / "3").iterdir()) == ["artifact.toml", "weights.weights.h5"]
    files = [str(model / number / "weights.pth") for number in "14"]
    subprocess.run([sys.executable, "-c", EQUAL, *files], check=True)
    settings = [tomllib.loads((model / number / "artifact.toml").read_text()) for number in "134"]
    assert settings[0] == settings[1] == settings[2]
    result = menagerie("convert", "flowers", *options)
    assert result.exit_code == 0, result.stderr


@pytest.mark.slow
def test_what_model_toml_says_of_the_file_is_said_of_the_new_one(tmp_path):
    model = tmp_path / "repository" / "iris"
    (model / "1").mkdir(parents=True)
    (model / "model.toml").write_text('architecture = "mlp_iris"\nframework = "torch"\nweights = "iris.pth"\n')
    make_weights("torch", "mlp_iris", model / "1" / "iris.pth")
    result = menagerie("transplant", "iris/1", "--to", "keras", "--repository", model.parent)
    assert result.exit_code == 0, result.stderr
    source = Repository(model.parent).resolve("iris", 2).source
    assert isinstance(source, Artifact)
    assert (source.spec.framework, source.weights) == ("keras", model / "2" / "weights.weights.h5")


SPOILT = """
import sys, torch
state = torch.load(sys.argv[1], weights_only=True)
next(iter(state.values())).flatten()[0] = float("nan")
torch.save(state, sys.argv[1])
"""


@pytest.mark.slow
def test_weights_that_do_not_fit_or_do_not_agree_are_not_published(tmp_path):
    model = tmp_path / "repository" / "iris"
    (model / "1").mkdir(parents=True)
    (model / "model.toml").write_text('architecture = "mlp_binary"\n')
    weights = make_weights("torch", "mlp_iris", model / "1" / "weights.pth")
    result = menagerie("transplant", "iris/1", "--to", "keras", "--repository", model.parent)
    assert result.exit_code == 1
    assert "load: weights.pth does not fit the network" in result.stderr
    (model / "model.toml").write_text('architecture = "mlp_iris"\n')
    subprocess.run([sys.executable, "-c", SPOILT, str(weights)], check=True)
    result = menagerie("transplant", "iris/1", "--to", "keras", "--repository", model.parent)
    assert result.exit_code == 1
    assert "compare: the two networks disagree: relative difference nan" in result.stderr
    assert versions(model) == (["1"], ["iris"])
