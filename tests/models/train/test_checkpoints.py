"""Checkpoints are complete, belong to one training at a time, and leave nothing if there is nothing to resume."""

import pytest

from models.errors import ArtifactError
from models.train.checkpoints import Checkpoints, Epoch, Progress
from models.train.recipe import Recipe
from service.repository.repository import Repository

RECIPE = Recipe(architecture="lenet5", data="digits")


def progress(count):
    epoch = {"loss": 1, "validation_loss": 1, "validation_accuracy": 1, "learning_rate": 1, "seconds": 1}
    epochs = tuple(Epoch(number=number, **epoch) for number in range(1, count + 1))
    return Progress(recipe=RECIPE, digest="digest", epochs=epochs)


@pytest.fixture
def checkpoints(tmp_path):
    found = Checkpoints(tmp_path / "repository" / "model")
    with found.held():
        yield found


def save(checkpoints, count, text="weights", **options):
    checkpoints.save(progress(count), lambda directory: (directory / "weights").write_text(text), **options)


def test_the_last_one_is_the_only_one(checkpoints):
    assert checkpoints.progress() is None
    for count in (9, 10):
        save(checkpoints, count)
        assert checkpoints.progress() == progress(count)
    assert [path.name for path in checkpoints.directory.glob("epoch-*")] == ["epoch-10"]


def test_what_is_kept_is_taken_over(checkpoints):
    save(checkpoints, 1, "best")
    checkpoints.save(progress(2), lambda _: None, kept="weights")
    assert (checkpoints.latest() / "weights").read_text() == "best"


def test_what_is_interrupted_while_it_is_written_is_no_checkpoint(checkpoints):
    save(checkpoints, 1, "first")

    def interrupt(directory):
        (directory / "weights").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(progress(2), interrupt)
    assert checkpoints.progress() == progress(1)
    assert (checkpoints.latest() / "weights").read_text() == "first"
    save(checkpoints, 2, "second")
    assert (checkpoints.latest() / "weights").read_text() == "second"


def test_two_do_not_train_the_same_model(checkpoints):
    model = checkpoints.directory.with_name("model")
    with pytest.raises(ArtifactError, match="another process trains") as caught, Checkpoints(model).held():
        pass
    assert "--output" in caught.value.cure


def test_the_service_does_not_look_at_them(checkpoints):
    save(checkpoints, 1)
    repository = Repository(checkpoints.directory.parent)
    assert repository.names() == repository.ignored() == []


def test_a_damaged_one_is_told(checkpoints):
    save(checkpoints, 1)
    (checkpoints.latest() / "progress.json").write_text("{}")
    with pytest.raises(ArtifactError, match="damaged") as caught:
        checkpoints.progress()
    assert "delete" in caught.value.cure


def test_nothing_is_left_where_no_epoch_was_finished(tmp_path):
    checkpoints = Checkpoints(tmp_path / "model")
    with checkpoints.held():
        pass
    assert list(tmp_path.iterdir()) == []
    with checkpoints.held():
        save(checkpoints, 1)
    assert checkpoints.progress() == progress(1)
