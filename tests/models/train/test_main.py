"""`menagerie train`, from its options to a served answer."""

import asyncio
import json
import re
import signal
import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from models import pictures
from models.train import data, digits
from models.train.__main__ import main
from models.train.recipe import Recipe
from service.conversion.conversion import Converter
from service.inference.engine import Engine, plan
from service.repository.repository import Repository, read_converted
from service.settings import Settings
from tests.models.train.recipes import FRAMEWORKS, QUICK, RECIPES, train

TRAIN = [sys.executable, "-m", "models.train"]


# Errors before a framework is imported.


@pytest.mark.parametrize(
    ("words", "message", "cure"),
    [
        (("lenet6", "digits"), "no architecture 'lenet6'", "lenet5"),
        (("lenet5", "absent"), "there is no folder absent", "subfolder"),
        (("lenet5", "digits", "--epochs", "0"), "--epochs: ", "--help"),
        (("mlp_binary", "digits"), "distinguishes two classes, and there are 10", "another architecture"),
        (("lenet5", "digits", "--test-split", "0.1"), "the digits are split already", "--test-split"),
        (("lenet5", "digits", "--resume"), "no epoch of a training", "without --resume"),
    ],
)
def test_what_is_wrong_is_told_in_two_lines(tmp_path, capsys, words, message, cure):
    assert main([*words, "--output", str(tmp_path / "model")]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert message in first
    assert cure in second
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_cannot_be_served_is_refused(tmp_path, capsys):
    assert main(["lenet5", "digits", "--output", str(tmp_path / "Model")]) == 1
    assert "is no name for a model" in capsys.readouterr().err


# Two complete trainings in each framework, and their results.


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return tmp_path_factory.mktemp("repository")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of pictures, of every size and shape: light to the left, light to the right."""
    root, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for side, name in ((1, "left"), (-1, "right")):
        (root / name).mkdir()
        for index in range(30):
            height, width = random.integers(20, 60, 2)
            light = np.linspace(200, 50, width)[::side] + random.normal(0, 20, (height, width))
            colour = light[..., None] * random.uniform(0.5, 1, 3)
            Image.fromarray(colour.clip(0, 255).astype(np.uint8)).save(root / name / f"{index}.jpg")
    return root


@pytest.fixture(scope="module")
def trained(repository, photos):
    """A version for each framework of one model, trained on photographs: its output, by framework."""
    subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], check=True)  # a slow first time, it warns
    told = {}
    for framework in FRAMEWORKS:
        options = [
            "--framework",
            framework,
            "--size=24",
            "--epochs=4",
            "--batch-size=8",
            "--test-split=0.2",
            "--shift=0.1",
        ]
        command = [*TRAIN, "lenet5", str(photos), "--channels=3", "--output", str(repository / "sides"), *options]
        told[framework] = subprocess.run(command, check=True, capture_output=True, text=True)
    return told


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_training_tells_each_epoch_and_how_good_it_became(trained, repository, framework):
    told, number = trained[framework], FRAMEWORKS.index(framework) + 1
    assert told.stderr == ""
    lines = told.stdout.splitlines()
    assert re.fullmatch(rf"lenet5 in {framework}, input 24x24x3; 39 train, 9 validation, 12 test", lines[0])
    assert [line.split()[:2] for line in lines[1:-2]] == [["epoch", f"{epoch}/4"] for epoch in range(1, 5)]
    assert re.fullmatch(r"best epoch \d; on 12 test examples: accuracy \S+  precision \S+  .*auc \S+", lines[-2])
    assert lines[-1] == f"published {repository / 'sides' / str(number)}"


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_it_did_stands_beside_the_weights(trained, repository, photos, framework):
    version = repository / "sides" / str(FRAMEWORKS.index(framework) + 1)
    told = json.loads((version / "training.json").read_text())
    assert told["command"].startswith(f"menagerie train lenet5 {photos} --channels=3")
    assert told["recipe"]["epochs"] == 4
    assert {name: told["data"][name] for name in ("train", "validation", "test")} == {
        "train": 39,
        "validation": 9,
        "test": 12,
    }
    assert told["measured_on"] == "test"
    assert told["figures"]["accuracy"] == 1
    assert [epoch["number"] for epoch in told["epochs"]] == [1, 2, 3, 4]
    assert {"python", "numpy", framework} <= set(told["versions"])
    for name in ("curves.png", "confusion.png"):
        with Image.open(version / name) as image:
            image.load()
    assert not list(repository.glob(".training*"))


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_version_is_served_as_it_was_trained(trained, repository, photos, tmp_path, framework):
    """The conversion compares ONNX Runtime's answers with the framework's own."""
    artifact = Repository(repository).resolve("sides", FRAMEWORKS.index(framework) + 1).source
    assert artifact.spec.framework == framework
    assert artifact.spec.labels == ("left", "right")
    directory = asyncio.run(Converter(tmp_path / "cache", timeout_seconds=300).convert(artifact))
    manifest, content = read_converted(directory)
    assert manifest.parity.relative_error < 1e-5
    assert manifest.parity.top1_agreement == 1
    engine = Engine(content, plan(Settings(), gpus=(), cores=2, max_batch_size=64))
    engine.open(2)
    served = engine.run(
        np.stack([pictures.pixels(pictures.read(path), artifact.spec.input) for path in sorted(photos.glob("*/*.jpg"))])
    )
    engine.close()
    np.testing.assert_array_equal(served.argmax(axis=1), np.repeat([0, 1], 30))


# Interruptions.

SLOW = ["mlp_image", "digits", "--size=8", "--epochs=1000", "--batch-size=4", "--patience-epochs=0"]


def interrupted(signal_number, *command):
    """A training that is sent the signal after its third epoch."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("epoch   3/"):
                process.send_signal(signal_number)
                break
        rest, errors = process.communicate(timeout=60)
    return process.returncode, rest, errors


@pytest.mark.slow
def test_a_killed_training_publishes_nothing_and_goes_on(tmp_path, capsys):
    command = [*TRAIN, *SLOW, "--output", str(tmp_path / "model")]
    assert interrupted(signal.SIGKILL, *command)[0] == -signal.SIGKILL
    assert Repository(tmp_path).names() == []

    words = [*SLOW, "--output", str(tmp_path / "model")]
    assert main(words) == 1
    (killed_after,) = map(int, re.findall(r"was interrupted after epoch (\d+)\n", capsys.readouterr().err))
    assert killed_after >= 3
    assert main([*words, "--seed=1", "--resume"]) == 1
    assert "had seed 0, and this command has 1" in capsys.readouterr().err

    last = killed_after + 2  # the signal may come some epochs late
    less = [f"--epochs={last}" if word == "--epochs=1000" else word for word in command]
    done = subprocess.run([*less, "--resume"], check=True, capture_output=True, text=True)
    numbers = [int(number) for number in re.findall(rf"^epoch +(\d+)/{last}", done.stdout, re.MULTILINE)]
    assert numbers == [last - 1, last]
    assert Repository(tmp_path).resolve("model", 1).source.spec.framework == "torch"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_training_says_how_to_go_on(tmp_path, signal_number):
    """`menagerie train` becomes the trainer, so the signal reaches it."""
    command = [sys.executable, "-P", "-m", "service", "train", *SLOW, "--output", str(tmp_path / "model")]
    code, _, errors = interrupted(signal_number, *command)
    assert code == 130
    assert Repository(tmp_path).names() == []
    assert "Traceback" not in errors
    (best,) = re.findall(r"menagerie (train .* --publish-best)$", errors, re.MULTILINE)
    assert f"{best.removesuffix('--publish-best')}--resume\n" in errors
    if signal_number == signal.SIGTERM:
        subprocess.run([sys.executable, "-P", "-m", "service", *best.split()], check=True, capture_output=True)
        told = json.loads((tmp_path / "model" / "1" / "training.json").read_text())
        assert told["best_epoch"] <= len(told["epochs"]) < 1000


# The recipes of recipes.py.


def check(told):
    assert told["data"]["test"] == len(digits.load_digits()[1].labels) == 360
    assert told["measured_on"] == "test"
    assert told["figures"]["accuracy"] >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_small_networks_read_the_digits(tmp_path, framework):
    for told in train(QUICK, framework, tmp_path).values():
        check(told)


@pytest.mark.training
@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("network", RECIPES)
def test_a_network_reads_the_digits_and_is_served(tmp_path, application, record_property, network, framework):
    """Every held-out digit is sent over HTTP: as many answers are right as with the framework itself."""
    told = train([network], framework, tmp_path / "repository")[network]
    check(told)
    held_out = data.load(Recipe.model_validate(told["recipe"])).test
    with application(repository=tmp_path / "repository", conversion_timeout_seconds=600) as client:
        right = 0
        for ink, label in zip(held_out.items, held_out.labels, strict=True):
            content = BytesIO()
            Image.fromarray(ink).save(content, "PNG")
            answer = client.post(f"/predict/{network}?top_k=1", content=content.getvalue()).json()
            right += answer["predictions"][0]["label"] == str(label)
    assert right / len(held_out) == pytest.approx(told["figures"]["accuracy"])
    record_property("row", f"{network:<20} {framework:<6} {right / len(held_out):.4f} of {len(held_out)} served right")
