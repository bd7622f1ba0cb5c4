"""The model repository: what is found, what is refused, and that a refusal names its cure."""

import json
import os
from pathlib import Path

import pytest

from models.artifact.artifact import Artifact
from models.artifact.resolution import MAX_IMAGES
from models.artifact.staging import remove
from models.artifact.versions import MAX_VERSION
from models.inputs import ImageInput, NumbersInput
from service.commands.listing import versions
from service.errors import RepositoryError
from service.repository.repository import Repository, read_converted
from service.settings import DEFAULT_REPOSITORY
from service.versions import golden
from tests.models.published import publish_softmax
from tests.models.saved import keras_bytes, torch_bytes


@pytest.fixture
def iris(tmp_path):
    """A repository with one sound model; its weights are never read here."""
    model = tmp_path / "iris"
    (model / "1").mkdir(parents=True)
    (model / "model.toml").write_text('architecture = "mlp_iris"\n')
    (model / "1" / "weights.pth").write_bytes(torch_bytes())
    return tmp_path


def test_four_lines_are_enough(iris):
    version = Repository(iris).resolve("iris", 1)
    assert isinstance(version.source, Artifact)
    assert version.source.spec.framework == "torch"
    assert version.source.spec.num_classes == 3
    assert version.source.spec.labels == ("0", "1", "2")


def test_the_default_repository_is_sound():
    repository = Repository(DEFAULT_REPOSITORY)
    assert repository.names() == ["digits", "efficientnet_lite0"]
    for name in repository.names():
        for number in repository.wanted(name):
            assert isinstance(repository.resolve(name, number).source, Artifact)


def test_labels_come_from_a_file_a_list_or_a_built_in_name(iris):
    (iris / "iris" / "labels.txt").write_text("setosa\nversicolor\nvirginica\n")
    assert Repository(iris).resolve("iris", 1).source.spec.labels == ("setosa", "versicolor", "virginica")
    (iris / "iris" / "model.toml").write_text('architecture = "mlp_iris"\nlabels = ["a", "b"]\n')
    spec = Repository(iris).resolve("iris", 1).source.spec
    assert (spec.labels, spec.num_classes) == (("a", "b"), 2)
    (iris / "iris" / "model.toml").write_text('architecture = "efficientnet_lite0"\nlabels = "imagenet"\n')
    assert Repository(iris).resolve("iris", 1).source.spec.labels[285] == "Egyptian cat"


def test_an_artifact_toml_overrides_its_version_alone(iris):
    (iris / "iris" / "model.toml").write_text('architecture = "lenet5"\n[input]\nnormalization = "unit"\n')
    (iris / "iris" / "2").mkdir()
    (iris / "iris" / "2" / "weights.keras").write_bytes(keras_bytes())
    (iris / "iris" / "2" / "artifact.toml").write_text('[input]\nnormalization = "tf"\n')
    first, second = (Repository(iris).resolve("iris", number).source.spec for number in (1, 2))
    assert (first.framework, first.input.mean) == ("torch", (0.0,))
    assert (second.framework, second.input.mean) == ("keras", (1.0,))


def test_a_recurrent_network_may_read_an_image_row_by_row(iris):
    (iris / "iris" / "model.toml").write_text(
        'architecture = "lstm"\ninput = { kind = "image", height = 16, width = 12, channels = 1 }\n'
    )
    spec = Repository(iris).resolve("iris", 1).source.spec
    assert (spec.input.kind, spec.input.shape) == ("image", (16, 12, 1))


def test_versions_are_the_latest_all_or_those_named(iris):
    for number in (2, 10):
        (iris / "iris" / str(number)).mkdir()
    (iris / "iris" / "notes").mkdir()
    (iris / "iris" / "007").mkdir()
    assert Repository(iris).wanted("iris") == [10]
    (iris / "iris" / "model.toml").write_text('architecture = "mlp_iris"\nversions = "all"\n')
    assert Repository(iris).wanted("iris") == [1, 2, 10]
    (iris / "iris" / "model.toml").write_text('architecture = "mlp_iris"\nversions = [2, 1]\n')
    assert Repository(iris).wanted("iris") == [1, 2]
    (iris / "iris" / "model.toml").write_text('architecture = "mlp_iris"\nversions = [3]\n')
    with pytest.raises(RepositoryError, match="asks for version 3") as caught:
        Repository(iris).wanted("iris")
    assert "1, 2, 10" in caught.value.cure


@pytest.mark.parametrize(
    ("toml", "problem", "cure"),
    [
        ("architecture = ", "cannot be read", "correct it"),
        ('architecture = "lenet6"', "no architecture 'lenet6'", "did you mean 'lenet5'"),
        ("labels = []", "names no architecture", 'write architecture = "NAME"'),
        ('architecture = "mlp_iris"\ncolour = "red"', "colour: Extra inputs", "README"),
        ('architecture = "mlp_iris"\nlabels = "imagnet"', "no built-in list", "imagenet"),
        ('architecture = "mlp_iris"\nlabels = ["a"]\nnum_classes = 2', "1 labels for 2 classes", "agree"),
        ('architecture = "torchvision:resnet50"\nframework = "keras"', "says framework", "leave framework out"),
        (
            'architecture = "keras:ResNet50"',
            "keras:ResNet50 is built in keras, and weights.pth is a PyTorch",
            "save the",
        ),
        ('architecture = "lenet5"\n[input]\nnormalization = "x"', "normalization 'x' is not one of", "README"),
        ('architecture = "lenet5"\n[input]\nmean = [1.0, 2.0]', "mean has 2 values", "README"),
        ('architecture = "lenet5"\n[input]\nresize_to = 8', "resize_to = 8 is smaller", "README"),
        ('architecture = "lenet5"\n[input]\nnormalization = "tf"\nmean = [0.5]', "stands for mean too", "README"),
        ('architecture = "mlp_iris"\n[batching]\nmax_batch_size = 1025', "batching.max_batch_size", "README"),
        ('architecture = "mlp_iris"\nweights = "other.pth"', "no file 'other.pth'", "correct weights"),
        ('architecture = "mlp_iris"\nweights = "../../etc"', "outside", "inside"),
        (
            'architecture = "mlp_iris"\nweights = "package:no_such_thing/x.pth"',
            "not installed",
            "pip install no-such-thing",
        ),
    ],
)
def test_a_wrong_model_toml_is_told_with_its_cure(iris, toml, problem, cure):
    (iris / "iris" / "model.toml").write_text(toml)
    with pytest.raises(RepositoryError) as caught:
        Repository(iris).resolve("iris", 1)
    assert problem in caught.value.message
    assert cure in caught.value.cure


def test_a_missing_model_toml_version_or_root_is_told(iris, tmp_path):
    (iris / "iris" / "model.toml").unlink()
    with pytest.raises(RepositoryError, match=r"model\.toml names no architecture"):
        Repository(iris).resolve("iris", 1)
    (iris / "nothing").mkdir()
    with pytest.raises(RepositoryError, match=r"nothing has no model\.toml and no version"):
        Repository(iris).wanted("nothing")
    (iris / "empty").mkdir()
    (iris / "empty" / "model.toml").write_text('architecture = "mlp_iris"')
    with pytest.raises(RepositoryError, match="has no version"):
        Repository(iris).wanted("empty")
    with pytest.raises(RepositoryError, match="cannot be read"):
        Repository(tmp_path / "nowhere").names()


@pytest.mark.parametrize("name", ["Iris", "iris model", "-iris", "a" * 65])
def test_a_name_that_is_no_name_is_ignored(iris, name):
    (iris / "iris").rename(iris / name)
    (iris / ".hidden").mkdir()
    (iris / "lost+found").mkdir()
    assert Repository(iris).names() == []
    assert Repository(iris).ignored() == [name]


def test_labels_that_are_not_utf_8_are_told_and_a_byte_order_mark_is_none_of_them(iris):
    labels = iris / "iris" / "labels.txt"
    labels.write_bytes("Schwertlilie\nGänseblümchen\nRose\n".encode("latin-1"))
    with pytest.raises(RepositoryError, match=r"labels\.txt is not UTF-8"):
        Repository(iris).resolve("iris", 1)
    labels.write_bytes(b"\xef\xbb\xbfa\nb\nc\n")
    assert Repository(iris).resolve("iris", 1).source.spec.labels == ("a", "b", "c")


def test_an_artifact_toml_is_laid_over_key_by_key(iris):
    (iris / "iris" / "model.toml").write_text(
        'architecture = "lenet5"\n[input]\nnormalization = "unit"\nresize = "crop"\n[batching]\nmax_batch_size = 4\n'
    )
    override = iris / "iris" / "1" / "artifact.toml"
    override.write_text("[input]\nmean = [0.25]\n[batching]\nmax_queue_delay_seconds = 0.5\n")
    version = Repository(iris).resolve("iris", 1)
    assert (version.source.spec.input.mean, version.source.spec.input.resize) == ((0.25,), "crop")
    batching = version.config.batching
    assert (batching.max_batch_size, batching.max_queue_delay_seconds) == (4, 0.5)
    for wrong in ('versions = "all"', "input = 3", "[batching]\nmax_queue_delay_seconds = inf", "x = 1"):
        override.write_text(wrong)
        with pytest.raises(RepositoryError, match=r"artifact\.toml of iris/1"):
            Repository(iris).resolve("iris", 1)


@pytest.mark.parametrize("file", ["model.toml", "routing.toml", "1/artifact.toml"])
@pytest.mark.parametrize("content", [b"a = " + b"[" * 5000, b"a = " + b"1" * 5000, b"a." * 10_000 + b"a = 1", b"\xff"])
def test_toml_of_any_content_is_one_models_problem(iris, file, content):
    (iris / "iris" / file).write_bytes(content)
    repository = Repository(iris)
    with pytest.raises(RepositoryError, match=Path(file).name) as caught:
        repository.routing("iris") if file == "routing.toml" else repository.resolve("iris", 1)
    assert caught.value.cure


@pytest.mark.parametrize("file", ["model.toml", "labels.txt", "1/artifact.toml"])
def test_a_pipe_or_a_file_without_end_is_not_waited_for(iris, file):
    path = iris / "iris" / file
    path.unlink(missing_ok=True)
    with path.open("wb") as opened:
        opened.truncate(2**40)
    with pytest.raises(RepositoryError, match=r"bytes, and [0-9]+ are allowed"):
        Repository(iris).resolve("iris", 1)
    if file != "labels.txt":  # which is read where it is a file
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(RepositoryError, match="is not a regular file"):
            Repository(iris).resolve("iris", 1)


def test_a_number_that_no_version_has_is_told_by_check(iris):
    for name in ("01", str(MAX_VERSION + 1), "9" * 200, "²"):
        (iris / "iris" / name).mkdir()
    (iris / "iris" / str(MAX_VERSION)).mkdir()
    (iris / "iris" / "notes").mkdir()
    repository = Repository(iris)
    assert repository.present("iris") == [1, MAX_VERSION]
    assert repository.ignored_versions("iris") == ["01", str(MAX_VERSION + 1), "9" * 200, "²"]
    found = [error.message for name, number, error in versions(repository) if number is None]
    assert ["is not a version of iris" in message for message in found] == [True] * 4


def test_files_that_may_not_be_read_are_one_models_problem(iris, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "/secret/path")

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(RepositoryError, match="files of iris cannot be read: Permission denied") as caught:
        Repository(iris).wanted("iris")
    assert "/secret/path" not in caught.value.message


def test_links_and_strange_files_are_not_weights(iris):
    weights = iris / "iris" / "1" / "weights.pth"
    weights.rename(iris / "elsewhere.pth")
    weights.symlink_to(iris / "elsewhere.pth")
    with pytest.raises(RepositoryError, match="not a regular file"):
        Repository(iris).resolve("iris", 1)
    weights.unlink()
    (iris / "iris" / "1" / "real.pth").write_bytes(torch_bytes())
    weights.symlink_to(iris / "iris" / "1" / "real.pth")
    with pytest.raises(RepositoryError, match="not a regular file"):
        Repository(iris).resolve("iris", 1)
    weights.unlink()
    (iris / "iris" / "1" / "weights.txt").write_bytes(b"weights")
    with pytest.raises(RepositoryError, match="no known format: it begins with b'weights'"):
        Repository(iris).resolve("iris", 1)
    (iris / "iris" / "1" / "weights.pth").write_bytes(torch_bytes())
    with pytest.raises(RepositoryError, match="2 files called weights"):
        Repository(iris).resolve("iris", 1)


def test_the_fingerprint_follows_what_decides_the_answer(iris):
    def fingerprint():
        return Repository(iris).resolve("iris", 1).source.fingerprint

    first = fingerprint()
    assert fingerprint() == first
    (iris / "iris" / "1" / "weights.pth").write_bytes(torch_bytes(b"other"))
    second = fingerprint()
    (iris / "iris" / "labels.txt").write_text("a\nb\nc\n")
    assert len({first, second, fingerprint()}) == 3


def test_a_signature_changes_with_the_files_and_settles_with_time(iris):
    repository = Repository(iris)
    before = repository.inventory("iris").wanted
    assert list(before) == [1]
    assert repository.inventory("iris").wanted == before
    assert before[1].is_settled(0)
    assert not before[1].is_settled(3600)
    (iris / "iris" / "1" / "weights.pth").write_bytes(torch_bytes(b"again"))
    assert repository.inventory("iris").wanted != before


def test_a_published_version_needs_no_architecture(tmp_path):
    publish_softmax(tmp_path / "softmax")
    version = Repository(tmp_path).resolve("softmax", 1)
    assert version.source == tmp_path / "softmax" / "1"
    manifest, content = read_converted(version.source)
    assert len(content) == manifest.onnx_bytes


def test_a_published_file_that_was_changed_is_refused(tmp_path):
    publish_softmax(tmp_path / "softmax")
    onnx = tmp_path / "softmax" / "1" / "model.onnx"
    onnx.write_bytes(onnx.read_bytes()[:-1])
    with pytest.raises(RepositoryError, match="is not the file"):
        read_converted(tmp_path / "softmax" / "1")
    onnx.unlink()
    with pytest.raises(RepositoryError, match="cannot be read"):
        read_converted(tmp_path / "softmax" / "1")


def test_a_link_is_not_published(tmp_path):
    publish_softmax(tmp_path / "softmax")
    onnx = tmp_path / "softmax" / "1" / "model.onnx"
    onnx.rename(tmp_path / "elsewhere.onnx")
    onnx.symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(RepositoryError, match="not a regular file"):
        read_converted(tmp_path / "softmax" / "1")


def test_a_manifest_of_another_release_is_refused(tmp_path):
    publish_softmax(tmp_path / "softmax")
    manifest = tmp_path / "softmax" / "1" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema_version": 2}))
    with pytest.raises(RepositoryError, match="schema_version"):
        read_converted(tmp_path / "softmax" / "1")


def calibrated(root, precision, **images):
    """The one version of a model in that precision, with these calibration images."""
    model = root / "lenet"
    (model / "1").mkdir(parents=True, exist_ok=True)
    (model / "calibration").mkdir(exist_ok=True)
    (model / "model.toml").write_text(f'architecture = "lenet5"\nprecision = "{precision}"\n')
    (model / "1" / "weights.pth").write_bytes(torch_bytes())
    for name, content in images.items():
        (model / "calibration" / f"{name}.png").write_bytes(content)
    return Repository(root).resolve("lenet", 1).source


def test_precision_and_calibration_images_make_another_artifact(tmp_path):
    fp32 = calibrated(tmp_path, "fp32", a=b"a")
    assert (fp32.spec.precision, fp32.calibration) == ("fp32", ())
    found = [fp32] + [calibrated(tmp_path, precision) for precision in ("fp16", "int8", "auto")]
    assert [path.name for path in found[-1].calibration] == ["a.png"]
    found.append(calibrated(tmp_path, "int8", a=b"b"))
    found.append(calibrated(tmp_path, "int8", b=b"b"))
    assert len({each.fingerprint for each in found}) == 6
    assert calibrated(tmp_path, "fp32", c=b"c").fingerprint == fp32.fingerprint


def test_another_processor_makes_another_int8_and_the_same_fp32(tmp_path, monkeypatch):
    found = []
    for saturates in (False, True):
        monkeypatch.setattr("models.hardware.int8_saturates", lambda saturates=saturates: saturates)
        found.append([calibrated(tmp_path, precision, a=b"a").fingerprint for precision in ("fp32", "int8")])
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


def test_one_version_may_have_another_precision(tmp_path):
    calibrated(tmp_path, "fp32")
    (tmp_path / "lenet" / "1" / "artifact.toml").write_text('precision = "int8"\nprecision_agreement = 0.9\n')
    spec = Repository(tmp_path).resolve("lenet", 1).source.spec
    assert (spec.precision, spec.precision_agreement) == ("int8", 0.9)


@pytest.mark.parametrize("value", ['"int4"', "16"])
def test_a_precision_that_there_is_not_is_told(tmp_path, value):
    calibrated(tmp_path, "fp32")
    (tmp_path / "lenet" / "model.toml").write_text(f'architecture = "lenet5"\nprecision = {value}\n')
    with pytest.raises(RepositoryError, match="precision"):
        Repository(tmp_path).resolve("lenet", 1)


def test_without_images_of_its_own_a_model_is_calibrated_on_ours(tmp_path):
    calibrated(tmp_path, "int8")
    (tmp_path / "lenet" / "calibration").rmdir()
    names = {path.name for path in Repository(tmp_path).resolve("lenet", 1).source.calibration}
    assert {"coffee.jpg", "rocket.jpg", "digit-3.png"} <= names


def test_calibration_images_are_files_and_not_too_many(tmp_path):
    calibrated(tmp_path, "int8", a=b"a")
    (tmp_path / "lenet" / "calibration" / "link.png").symlink_to(tmp_path / "lenet" / "1" / "weights.pth")
    with pytest.raises(RepositoryError, match=r"calibration/link\.png is not a regular file"):
        Repository(tmp_path).resolve("lenet", 1)
    (tmp_path / "lenet" / "calibration" / "link.png").unlink()
    many = {f"image{index}": b"" for index in range(MAX_IMAGES)}
    with pytest.raises(RepositoryError, match=f"{MAX_IMAGES + 1} images"):
        calibrated(tmp_path, "int8", **many)


def test_new_calibration_images_are_a_change_of_the_version(tmp_path):
    calibrated(tmp_path, "int8", a=b"a")
    before = Repository(tmp_path).signature("lenet", 1)
    (tmp_path / "lenet" / "calibration" / "cat").mkdir()
    (tmp_path / "lenet" / "calibration" / "cat" / "b.png").write_bytes(b"b")
    assert Repository(tmp_path).signature("lenet", 1) != before


def nested(directory, depth):
    """So many directories, one in the other, however long their path becomes."""
    directory.mkdir(parents=True)
    room = os.open(directory, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=room)
        inner = os.open("d", os.O_RDONLY, dir_fd=room)
        os.close(room)
        room = inner
    os.close(room)


def test_directories_without_end_and_files_without_number_cost_a_version_nothing_but_itself(tmp_path, monkeypatch):
    calibrated(tmp_path, "fp32")
    nested(tmp_path / "lenet" / "2" / "weights", 2500)
    (tmp_path / "lenet" / "2" / "weights" / "saved_model.pb").write_bytes(b"")
    monkeypatch.setattr("models.artifact.formats.MAX_ENTRIES", 20)
    calibrated(tmp_path, "fp32", **{f"image{index}": b"" for index in range(30)})
    repository = Repository(tmp_path)
    assert list(repository.inventory("lenet").wanted) == [2]
    assert repository.resolve("lenet", 1)
    with pytest.raises(RepositoryError, match="deep") as caught:
        repository.resolve("lenet", 2)
    assert caught.value.cure
    remove(tmp_path / "lenet")  # pytest could not


def test_labels_and_golden_inputs_have_a_bound(iris, monkeypatch):
    (iris / "iris" / "labels.txt").write_bytes(b"\n" * (8 * 2**20 + 1))
    with pytest.raises(RepositoryError, match="labels"):
        Repository(iris).resolve("iris", 1)
    monkeypatch.setattr("service.versions.golden.MAX_BYTES", 100)
    (iris / "iris" / "golden").mkdir()
    for name in ("a.png", "b.png"):
        (iris / "iris" / "golden" / name).write_bytes(bytes(60))
    with pytest.raises(RepositoryError, match="more than 100 bytes"):
        golden.read(iris / "iris", ImageInput(height=8, width=8))
    for content in (
        b"[" * 10**5,
        b'{"instances": [[0, 0, 0, 1%s]]}' % (b"0" * 400),
        b'{"instances": [[9' + b"9" * 5000,
    ):
        (iris / "iris" / "golden" / "inputs.json").write_bytes(content)
        with pytest.raises(RepositoryError, match="no instances"):
            golden.read(iris / "iris", NumbersInput(shape=(4,)))
