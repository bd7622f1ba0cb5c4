"""The command line, run as a user runs it."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models.artifact.manifest import read_converted
from models.catalog import CATALOG
from service.settings import DEFAULT_REPOSITORY
from tests.client import picture
from tests.command_line import menagerie
from tests.models.make_weights import make_weights
from tests.models.published import publish_ballast


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(picture("red"))
    return path


def test_every_command_explains_itself():
    assert menagerie("--help").exit_code == 0
    for command in ("serve", "convert", "pull", "models", "predict", "check"):
        assert command in menagerie("--help").output
        assert menagerie(command, "--help").exit_code == 0


def test_train_becomes_the_trainer_with_the_same_words(monkeypatch):
    became = []
    monkeypatch.setattr("os.execv", lambda path, words: became.append((path, words)))
    for words in (["lenet5", "digits", "--output", "a b", "--epochs", "3"], ["--help"]):
        assert menagerie("train", *words).exit_code == 0
        assert became.pop() == (sys.executable, [sys.executable, "-P", "-m", "models.train", *words])
    assert "train" in menagerie("--help").output


def test_predict_needs_no_server(photo, repository, tmp_path):
    result = menagerie(
        "predict", photo, "--model", "colour", "--top-k", 2, "--repository", repository, "--cache", tmp_path
    )
    assert result.exit_code == 0, result.output
    assert [line.split()[1] for line in result.output.splitlines()] == ["red", "green"]


@pytest.mark.slow
def test_predict_asks_a_server(photo, repository, serve):
    server = serve(repository=repository).wait_ready()
    result = menagerie("predict", photo, "--model", "colour", "--url", server.url)
    assert [line.split()[1] for line in result.output.splitlines()] == ["red", "green", "blue"]
    result = menagerie("predict", photo, "--model", "color", "--url", server.url)
    assert result.exit_code == 1
    assert "did you mean 'colour'" in result.stderr


def test_models_lists_the_catalog():
    result = menagerie("models", "--catalog", COLUMNS="120")
    first, *rows, last = result.output.splitlines()
    assert first.split() == ["architecture", "paper", "input", "parameters", "frameworks"]
    assert [row.split()[0] for row in rows if not row.startswith(" ")] == list(CATALOG)
    assert [word for word in rows[0].split() if word not in CATALOG["lenet5"].paper.split()] == [
        "lenet5",
        "32x32x1",
        "61,706",
        "PyTorch,",
        "Keras",
    ]
    assert "torchvision:NAME" in last
    assert "keras:NAME" in last


@pytest.mark.slow
def test_pull_without_a_network_says_where_to_put_the_file_and_takes_it_from_there(tmp_path, monkeypatch, capfd):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody answers
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    command = ["pull", "torchvision:squeezenet1_1", "--output", tmp_path / "models"]
    result = menagerie(*command, "--name", "tiny")
    assert result.exit_code == 1
    assert re.search(r"could not be downloaded from https://\S+: .*refused", result.stderr)
    assert "Traceback" not in capfd.readouterr().err
    file = Path(re.search(r"copy it to (\S+);", result.stderr)[1])
    assert not (tmp_path / "models").exists()
    script = "import sys, torch, torchvision; torch.save(torchvision.models.squeezenet1_1().state_dict(), sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, file], check=True, capture_output=True)
    result = menagerie(*command, "--name", "tiny")
    assert result.exit_code == 0, result.stderr
    assert f"pulled {tmp_path / 'models' / 'tiny' / '1'}: IMAGENET1K_V1 of torchvision" in result.output
    result = menagerie("check", "--repository", tmp_path / "models")
    assert result.output.splitlines() == ["tiny version 1: sound"]
    result = menagerie("pull", "keras:NASNetMobile", "--output", tmp_path / "models")
    assert result.exit_code == 1
    assert f"copy it to {tmp_path / 'keras' / 'models' / 'nasnet_mobile.h5'};" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["predict", "photo.png", "--model", "color"], "there is no model color"),
        (["predict", "nothing.png", "--model", "colour"], "nothing.png cannot be read"),
        (["predict", "photo.png", "--model", "largest"], "takes numbers"),
        (["predict", "photo.png", "--model", "colour", "--url", "http://127.0.0.1:9"], "no Menagerie answers"),
        (["convert", "color"], "there is no model color"),
        (["convert", "color", "--repository", "."], "there is no model color"),
        (["check", "--repository", "nowhere"], "cannot be read: No such file"),
        (["pull", "torchvision:resnet5", "--output", "models"], "no architecture 'torchvision:resnet5'"),
        (["pull", "resnet18", "--output", "models"], "no official weights of resnet18"),
    ],
)
def test_a_mistake_is_told_in_two_lines(photo, repository, monkeypatch, arguments, problem):
    monkeypatch.chdir(photo.parent)
    result = menagerie(*arguments, MENAGERIE_REPOSITORY=str(repository), MENAGERIE_CACHE=str(photo.parent))
    assert result.exit_code == 1
    assert problem in result.stderr
    assert 2 <= len(result.stderr.splitlines()) <= 3


def test_a_bad_option_is_a_usage_error():
    result = menagerie("pull", "keras:VGG16", "--output", "models", "--name", "VGG16", COLUMNS="200")
    assert result.exit_code == 2
    assert "'VGG16' is not a valid name of a model" in result.stderr
    assert "--name" in result.stderr


def test_a_wrong_setting_is_told_by_its_name(repository):
    result = menagerie("check", MENAGERIE_MAX_BATCH_SIZE="many", MENAGERIE_PROVIDER="tpu")
    assert result.exit_code == 2
    assert "MENAGERIE_MAX_BATCH_SIZE: " in result.stderr
    assert "MENAGERIE_PROVIDER: " in result.stderr


def test_check_finds_the_default_repository_sound():
    result = menagerie("check", "--repository", DEFAULT_REPOSITORY)
    assert result.exit_code == 0
    assert result.output.splitlines() == ["digits version 1: sound", "efficientnet_lite0 version 1: sound"]


def test_check_names_every_problem(repository, tmp_path):
    for name, toml in (("broken", 'architecture = "lenet6"'), ("empty", 'architecture = "lenet5"')):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "model.toml").write_text(toml)
    result = menagerie("check", "--repository", repository)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == ["colour version 1: sound", "largest version 1: sound"]
    assert "broken version 1: " in result.stderr
    assert "did you mean 'lenet5'" in result.stderr
    assert "empty version 1: version 1 holds no files called weights.*" in result.stderr
    (tmp_path / "bare").mkdir()
    assert "empty" in menagerie("check", "--repository", tmp_path / "bare").stderr


@pytest.mark.slow
def test_models_lists_states_of_a_repository_and_of_a_server(repository, serve, tmp_path):
    result = menagerie("models", "--repository", repository, "--cache", tmp_path)
    assert [line.split()[:3] for line in result.output.splitlines()[1:]] == [
        ["colour", "1", "PUBLISHED"],
        ["largest", "1", "PUBLISHED"],
    ]
    assert "TO CONVERT" in menagerie("models", "--repository", DEFAULT_REPOSITORY, "--cache", tmp_path).output
    server = serve(repository=repository).wait_ready()
    result = menagerie("models", "--url", server.url)
    assert [line.split()[:3] for line in result.output.splitlines()[1:]] == [
        ["colour", "1", "READY"],
        ["largest", "1", "READY"],
    ]


def test_check_reads_what_is_published(repository):
    onnx = repository / "colour" / "1" / "model.onnx"
    onnx.write_bytes(onnx.read_bytes()[:-1])
    result = menagerie("check", "--repository", repository)
    assert result.exit_code == 1
    assert "colour version 1: model.onnx is not the file" in result.stderr


def test_convert_publishes_over_nothing_that_it_did_not_make(repository, tmp_path):
    weights = tmp_path / "output" / "colour" / "1" / "weights.pth"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"precious")
    options = ("--repository", repository, "--cache", tmp_path / "cache")
    result = menagerie("convert", *options, "--output", tmp_path / "output")
    assert result.exit_code == 1
    assert "holds something else" in result.stderr
    assert weights.read_bytes() == b"precious"
    assert "published" in result.stdout  # the other model was
    result = menagerie("convert", *options, "--output", repository)
    assert result.exit_code == 1
    assert "is the repository itself" in result.stderr
    assert menagerie("check", "--repository", repository).exit_code == 0


def test_convert_replaces_a_version_and_its_settings_and_leaves_nothing_else(repository, tmp_path):
    output = tmp_path / "output"
    options = ("--repository", repository, "--cache", tmp_path / "cache", "--output", output)
    for labels in (["red", "green", "blue"], ["rot", "grün", "blau"]):
        manifest = repository / "colour" / "1" / "manifest.json"
        values = json.loads(manifest.read_text())
        values["spec"]["labels"] = labels
        manifest.write_text(json.dumps(values))
        (repository / "colour" / "model.toml").write_text(f"min_agreement = 0.5 # {labels}")
        (repository / "colour" / "1" / "artifact.toml").write_text(f"# {labels}")
        assert menagerie("convert", *options).exit_code == 0
        assert list(read_converted(output / "colour" / "1")[0].spec.labels) == labels
        assert (output / "colour" / "model.toml").read_text() == f"min_agreement = 0.5 # {labels}"
        assert (output / "colour" / "1" / "artifact.toml").read_text() == f"# {labels}"
        assert sorted(path.name for path in output.iterdir()) == ["colour", "largest"]
        assert sorted(path.name for path in (output / "colour").iterdir()) == ["1", "model.toml"]
    output.joinpath("colour", "1").rename(tmp_path / "moved")
    output.joinpath("colour", "1").symlink_to(tmp_path / "missing" / "deep")
    result = menagerie("convert", *options)
    assert result.exit_code == 1
    assert f"{output / 'colour' / '1'} could not be written" in result.stderr


@pytest.mark.slow
def test_kill_9_in_the_middle_of_convert_leaves_the_old_or_the_new_version_whole(tmp_path, record_property):
    output, contents, found = tmp_path / "output", {}, {"old": 0, "new": 0}
    target = output / "colour" / "1"
    for number, name in enumerate("ab", 1):
        directory = publish_ballast(tmp_path / name / "colour", 32 * 2**20, number)
        contents[name] = read_converted(directory.rename(directory.with_name("1")))

    def convert(name):
        command = [sys.executable, "-m", "service", "convert", "--cache", tmp_path / "cache", "--output", output]
        return subprocess.Popen([*command, "--repository", tmp_path / name], stdout=subprocess.DEVNULL)

    def staged():
        return set(output.glob(".*"))

    def begin(process, left):
        while not staged() - left:
            assert process.poll() is None
            time.sleep(0.001)

    assert convert("a").wait() == 0
    with convert("a") as process:
        begin(process, staged())
        started, before = time.monotonic(), target.stat().st_ino
        while target.stat().st_ino == before:
            time.sleep(0.001)
        seconds = time.monotonic() - started
    old = "a"
    for attempt in range(12):
        new = "b" if old == "a" else "a"
        left = staged()
        with convert(new) as process:
            begin(process, left)
            time.sleep(seconds * attempt / 8)
            process.kill()
        there = read_converted(target)
        assert there in (contents[old], contents[new])
        found["new" if there == contents[new] else "old"] += 1
        old = new if there == contents[new] else old
    record_property("row", f"12 times SIGKILL within {seconds:.2f} s of convert: {found}")
    assert convert("a").wait() == 0
    assert read_converted(target) == contents["a"]
    assert sorted(path.name for path in output.iterdir()) == ["colour"]
    assert sorted(path.name for path in (output / "colour").iterdir()) == ["1", "model.toml"]


@pytest.mark.slow
def test_convert_publishes_a_repository_that_serves_without_a_framework(tmp_path, serve):
    model = tmp_path / "repository" / "iris"
    (model / "1").mkdir(parents=True)
    (model / "model.toml").write_text('architecture = "mlp_iris"\nlabels = ["setosa", "versicolor", "virginica"]\n')
    make_weights("torch", "mlp_iris", model / "1" / "weights.pth")
    command = [sys.executable, "-m", "service", "convert", "--repository", model.parent, "--cache", tmp_path / "cache"]
    first = subprocess.run([*command, "--output", tmp_path / "published"], check=True, capture_output=True, text=True)
    assert "iris version 1 (1 of 1):" in first.stdout
    assert "compare" in first.stdout
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert again.stdout.splitlines() == ["iris version 1 (1 of 1): converted already"]
    assert sorted(path.name for path in (tmp_path / "published" / "iris" / "1").iterdir()) == [
        "manifest.json",
        "model.onnx",
    ]
    server = serve(repository=tmp_path / "published", cache=tmp_path / "other", convert="false").wait_ready()
    assert server.get("/models/iris/labels").json()["labels"] == ["setosa", "versicolor", "virginica"]


@pytest.mark.slow
def test_a_server_that_does_not_convert_says_where_to(serve, tmp_path):
    server = serve(repository=DEFAULT_REPOSITORY, convert="false")
    from tests.servers import until

    until(lambda: "run menagerie convert on a machine with PyTorch or Keras" in server.log())
    assert server.get("/health/ready").status_code == 503
