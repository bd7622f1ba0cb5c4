"""Examples: how they are found, checked, split and batched."""

import numpy as np
import pytest
from PIL import Image

from models import pictures
from models.errors import ArtifactError
from models.inputs import ImageInput, NumbersInput
from models.train import data
from models.train.recipe import Recipe

RANDOM = np.random.default_rng(0)


def noise(*shape):
    return Image.fromarray(RANDOM.integers(0, 256, shape, dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    """Ten pictures of each of three classes."""
    for name in ("ant", "bee", "cat"):
        (tmp_path / name).mkdir()
        for index in range(10):
            noise(12, 16, 3).save(tmp_path / name / f"{index}.png")
    return tmp_path


def recipe(source, **options):
    return Recipe(architecture="lenet5", data=str(source), **options)


# Finding and splitting.


def test_a_class_is_a_subfolder(folder):
    (folder / ".hidden").mkdir()
    (folder / "ant" / "notes.txt").write_text("not an image")
    (folder / "ant" / ".DS_Store.png").write_text("not an image")
    found = data.load(recipe(folder, validation_split=0.2, test_split=0.3))
    assert found.classes == ("ant", "bee", "cat")
    assert [np.bincount(part.labels).tolist() for part in (found.train, found.validation, found.test)] == [
        [5, 5, 5],
        [2, 2, 2],
        [3, 3, 3],
    ]
    everything = {path for part in (found.train, found.validation, found.test) for path in part.items}
    assert len(everything) == 30
    for part in (found.train, found.validation, found.test):
        assert [path.parent.name for path in part.items] == [found.classes[label] for label in part.labels]


def test_a_split_is_the_seeds(folder):
    first, again, other = (data.load(recipe(folder, seed=seed)).validation.items for seed in (0, 0, 1))
    assert first == again != other


def test_digits_keep_their_own_held_out_share():
    found = data.load(recipe("digits"))
    assert (len(found.train), len(found.validation), len(found.test)) == (1221, 216, 360)
    assert found.classes == tuple("0123456789")
    other = data.load(recipe("digits", seed=1))
    np.testing.assert_array_equal(found.test.items, other.test.items)


def test_other_files_are_other_data(folder):
    before = data.load(recipe(folder)).digest
    noise(9, 9).save(folder / "ant" / "10.png")
    assert data.load(recipe(folder)).digest != before


def empty(folder):
    for path in (folder / "bee").iterdir():
        path.unlink()


def truncate(folder):
    path = folder / "bee" / "3.png"
    path.write_bytes(path.read_bytes()[:200])


def rename(folder):
    (folder / "bee" / "3.png").write_text("<html>")


def lonely(folder):
    for path in sorted((folder / "bee").iterdir())[1:]:
        path.unlink()


@pytest.mark.parametrize(
    ("harm", "message", "cure"),
    [
        (empty, "bee contains no image", "put images there"),
        (truncate, r"bee/3\.png cannot be read as an image", "replace it"),
        (rename, r"bee/3\.png cannot be read as an image", "replace it"),
        (lonely, "cannot be split", "add images"),
    ],
)
def test_what_is_wrong_is_told_at_the_start(folder, harm, message, cure):
    harm(folder)
    with pytest.raises(ArtifactError, match=message) as caught:
        data.load(recipe(folder))
    assert cure in caught.value.cure


def test_one_class_is_none(tmp_path):
    (tmp_path / "only").mkdir()
    for path in (tmp_path, tmp_path / "only"):
        with pytest.raises(ArtifactError, match=r"has (1|no) class"):
            data.load(recipe(path))
    with pytest.raises(ArtifactError, match="there is no folder"):
        data.load(recipe(tmp_path / "absent"))


# Batches.


@pytest.fixture
def batches():
    made = []

    def make(source, spec=None, **options):
        made.append(data.Batches(recipe(source, **options), spec or ImageInput(height=8, width=8, channels=1)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_an_epoch_shows_each_example_once_in_full_batches(folder, batches):
    examples = data.load(recipe(folder)).train
    shown = list(batches(folder, batch_size=4).shuffled(examples, epoch=1))
    assert [inputs.shape for inputs, _ in shown] == [(4, 8, 8, 1)] * (len(examples) // 4)
    assert {inputs.dtype for inputs, _ in shown} == {np.dtype(np.float32)}
    pictures = np.concatenate([inputs for inputs, _ in shown])
    assert len(np.unique(pictures, axis=0)) == len(pictures)


def test_fewer_examples_than_a_batch_are_one_batch(folder, batches):
    examples = data.load(recipe(folder)).train
    ((inputs, labels),) = batches(folder, batch_size=1000).shuffled(examples, epoch=1)
    assert len(inputs) == len(labels) == len(examples)


@pytest.mark.parametrize("shift", [0, 0.2])
def test_the_order_is_the_seeds_and_the_epochs(folder, batches, shift):
    examples = data.load(recipe(folder)).train

    def epoch(seed, number):
        return next(batches(folder, seed=seed, batch_size=20, shift=shift).shuffled(examples, number))[0]

    np.testing.assert_array_equal(epoch(0, 1), epoch(0, 1))
    assert not np.array_equal(epoch(0, 1), epoch(0, 2))
    assert not np.array_equal(epoch(0, 1), epoch(1, 1))


def test_what_is_judged_is_shown_in_order_and_unchanged(folder, batches):
    examples = data.load(recipe(folder)).validation
    spec = ImageInput(height=8, width=8, channels=1, normalization="tf")
    shown = list(batches(folder, spec, batch_size=2, shift=0.5, flip=True).in_order(examples))
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in shown]), examples.labels)
    expected = spec.normalized(np.stack([pictures.pixels(pictures.read(path), spec) for path in examples.items]))
    np.testing.assert_array_equal(np.concatenate([inputs for inputs, _ in shown]), expected)


def test_digits_become_numbers(batches):
    examples = data.load(recipe("digits")).validation
    inputs, _ = next(batches("digits", NumbersInput(shape=(64,))).in_order(examples))
    assert inputs.shape == (64, 64)
    assert (inputs.min(), inputs.max()) == (0, 1)
