"""The training loop, with a scripted learner: the weights that are kept, the end of a training, and resuming."""

import json

import numpy as np
import pytest

from models.errors import ArtifactError
from models.train.checkpoints import Checkpoints, Epoch, Progress
from models.train.data import Data, Examples
from models.train.fit import best, cross_entropy, fit, is_finished, next_learning_rate, probabilities
from models.train.recipe import Recipe


def recipe(**options):
    return Recipe(architecture="lenet5", data="digits", **options)


def epochs(losses, rates=None, accuracies=None):
    rates = rates or [0.1] * len(losses)
    accuracies = accuracies or [0.5] * len(losses)
    return [
        Epoch(
            number=number,
            loss=loss,
            validation_loss=loss,
            validation_accuracy=accuracy,
            learning_rate=rate,
            seconds=1,
        )
        for number, (loss, rate, accuracy) in enumerate(zip(losses, rates, accuracies, strict=True), 1)
    ]


def test_the_best_epoch_is_the_first_of_the_best():
    assert best(epochs([3, 1, 2, 1]), recipe()).number == 2
    found = epochs([3, 2, 1, 4], accuracies=[0.5, 0.9, 0.9, 0.8])
    assert best(found, recipe(watch="accuracy")).number == 3
    assert best(found, recipe(watch="loss")).number == 3


def test_the_rate_falls_on_a_plateau_and_then_waits_again():
    rates = []
    for count in range(9):
        rates.append(next_learning_rate(epochs([1] * count, rates), recipe(learning_rate=0.8, plateau_epochs=3)))
    assert rates == [0.8, 0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2, 0.2]
    assert next_learning_rate(epochs([1] * 50), recipe(plateau_epochs=0)) == 0.1


def test_it_ends_early_only_where_nothing_improves():
    patient = recipe(epochs=10, patience_epochs=3)
    assert not is_finished([], patient)
    assert not is_finished(epochs([5, 4, 3, 2, 1]), patient)
    assert not is_finished(epochs([1, 2, 2]), patient)
    assert is_finished(epochs([1, 2, 2, 2]), patient)
    assert is_finished(epochs([1] * 10), recipe(epochs=10, patience_epochs=0))
    assert not is_finished(epochs([1] * 9), recipe(epochs=10, patience_epochs=0))


def test_probabilities_of_one_and_of_many_outputs():
    np.testing.assert_allclose(probabilities(np.array([[0.0], [np.log(3)]])), [[0.5, 0.5], [0.25, 0.75]])
    np.testing.assert_allclose(probabilities(np.array([[1e4, 1e4], [0, -1e4]], np.float32)), [[0.5, 0.5], [1, 0]])
    assert cross_entropy(np.array([[0.5, 0.5], [1, 0]]), np.array([0, 0])) == pytest.approx(np.log(2) / 2)
    assert np.isfinite(cross_entropy(np.array([[0.0, 1.0]]), np.array([0])))


class ScriptedLearner:
    """Its outputs on the validation examples come from the script, epoch by epoch; its weights are the epoch number."""

    weights_file, state_file = "weights.json", "state.json"

    def __init__(self, script, loss=1.0):
        self._script, self._loss = script, loss
        self.at, self.rates, self.interrupt_in = 0, [], None

    def start_epoch(self, epoch):
        self.at += 1
        assert epoch == self.at

    def set_learning_rate(self, rate):
        self.rates.append(rate)

    def learn(self, inputs, labels):
        if self.at == self.interrupt_in:
            raise KeyboardInterrupt
        return self._loss

    def predict(self, inputs):
        return np.array([[0.0, self._script[self.at - 1]]])

    def save_weights(self, path):
        path.write_text(json.dumps(self.at))

    def load_weights(self, path):
        self.at = json.loads(path.read_text())

    save_state, load_state = save_weights, load_weights


class OneBatch:
    def shuffled(self, examples, epoch):
        return self.in_order(examples)

    def in_order(self, examples):
        yield np.zeros((len(examples), 1)), examples.labels


class Silent:
    def step(self, epoch, done, total):
        pass

    epoch = print


ONE = Examples([None], np.array([1]))
DATA = Data(("no", "yes"), ONE, ONE, ONE, "digest")


def run(learner, checkpoints, **options):
    done = checkpoints.progress() or Progress(recipe=recipe(**options), digest="digest")
    return fit(learner, DATA, OneBatch(), done, checkpoints, Silent())


def test_the_best_weights_are_kept_beside_the_last_state(tmp_path):
    checkpoints = Checkpoints(tmp_path / "model")
    with checkpoints.held():
        run(ScriptedLearner([1, 3, 2, 1]), checkpoints, epochs=4)
        latest = checkpoints.latest()
        assert (latest / "weights.json").read_text() == "2"
        assert (latest / "state.json").read_text() == "4"
        assert [path.name for path in checkpoints.directory.iterdir() if path.is_dir()] == ["epoch-4"]


def test_what_was_interrupted_goes_on_after_its_last_whole_epoch(tmp_path):
    script, options = [1, 3, 2, 1, 2, 5, 4], {"epochs": 7, "plateau_epochs": 2, "learning_rate": 1.0}
    whole, parts = Checkpoints(tmp_path / "whole"), Checkpoints(tmp_path / "parts")
    with whole.held(), parts.held():
        learner = ScriptedLearner(script)
        expected = run(learner, whole, **options)
        first, second = ScriptedLearner(script), ScriptedLearner(script)
        first.interrupt_in = 5
        with pytest.raises(KeyboardInterrupt):
            run(first, parts, **options)
        assert len(parts.progress().epochs) == 4
        found = run(second, parts, **options)
        assert learner.rates == [*first.rates[:4], *second.rates] == [1, 1, 1, 1, 0.5, 0.5, 0.5]
        times = {"epochs": {"__all__": {"seconds"}}}
        assert found.model_dump(exclude=times) == expected.model_dump(exclude=times)
        assert (parts.latest() / "weights.json").read_text() == (whole.latest() / "weights.json").read_text() == "6"


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_loss_that_is_no_number_ends_it(tmp_path, loss):
    checkpoints = Checkpoints(tmp_path / "model")
    with checkpoints.held(), pytest.raises(ArtifactError, match="not a finite number in epoch 1") as caught:
        run(ScriptedLearner([1], loss), checkpoints)
    assert "--learning-rate" in caught.value.cure
    assert list(tmp_path.iterdir()) == []
