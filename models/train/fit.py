"""The training loop: learn for an epoch, validate, keep the best weights, and stop when nothing improves."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from models.errors import ArtifactError
from models.outputs import probabilities_of
from models.train.checkpoints import Checkpoints, Epoch, Progress
from models.train.data import Array, Batches, Data, Examples
from models.train.recipe import Recipe


class Learner(Protocol):
    """A network of either framework, with its optimizer. Inputs are channels last; labels are class numbers.

    Only one thread may use it, and a process can use only one framework.
    """

    weights_file: str
    """The file name by which the service finds the weights."""
    state_file: str

    def start_epoch(self, epoch: int) -> None:
        """Sets the random state to that of this epoch, the same in every training with this seed."""

    def set_learning_rate(self, rate: float) -> None:
        """Sets the learning rate of the following steps."""

    def learn(self, inputs: Array, labels: Array) -> float:
        """Takes one step. Returns the loss before it, including penalties."""

    def predict(self, inputs: Array) -> Array:
        """The network's output for each item."""

    def save_weights(self, path: Path) -> None:
        """Writes the weights as a file that the service can load."""

    def load_weights(self, path: Path) -> None:
        """Loads a file that `save_weights` wrote."""

    def save_state(self, path: Path) -> None:
        """Writes the state from which the next epoch continues."""

    def load_state(self, path: Path) -> None:
        """Loads a file that `save_state` wrote."""


class Listener(Protocol):
    """Receives the progress of a training."""

    def step(self, epoch: int, done: int, total: int) -> None:
        """Called after each step."""

    def epoch(self, epoch: Epoch) -> None:
        """Called after each epoch, once its checkpoint is on disk."""


def fit(
    learner: Learner, data: Data, batches: Batches, progress: Progress, checkpoints: Checkpoints, listener: Listener
) -> Progress:
    """Continues from `progress` until the recipe's end, and saves a checkpoint after each epoch.

    A training that was interrupted and resumed ends with the same weights as one that was not. Raises ArtifactError if
    the loss is not a finite number.
    """
    recipe = progress.recipe
    if latest := checkpoints.latest():
        learner.load_state(latest / learner.state_file)
    while not is_finished(progress.epochs, recipe):
        epoch = _epoch(learner, data, batches, progress, listener)
        progress = progress.model_copy(update={"epochs": (*progress.epochs, epoch)})
        is_best = best(progress.epochs, recipe) == epoch

        def write(directory: Path, *, is_best: bool = is_best) -> None:
            learner.save_state(directory / learner.state_file)
            if is_best:
                learner.save_weights(directory / learner.weights_file)

        checkpoints.save(progress, write, kept=None if is_best else learner.weights_file)
        listener.epoch(epoch)
    return progress


def _epoch(learner: Learner, data: Data, batches: Batches, progress: Progress, listener: Listener) -> Epoch:
    recipe, number, started = progress.recipe, len(progress.epochs) + 1, time.monotonic()
    rate = next_learning_rate(progress.epochs, recipe)
    learner.set_learning_rate(rate)
    learner.start_epoch(number)
    losses: list[float] = []
    total = max(1, len(data.train) // recipe.batch_size)
    for inputs, labels in batches.shuffled(data.train, number):
        losses.append(learner.learn(inputs, labels))
        listener.step(number, len(losses), total)
    outputs = predict(learner, batches, data.validation)
    epoch = Epoch(
        number=number,
        loss=float(np.mean(losses)),
        validation_loss=cross_entropy(probabilities(outputs), data.validation.labels),
        validation_accuracy=float(np.mean(probabilities(outputs).argmax(axis=1) == data.validation.labels)),
        learning_rate=rate,
        seconds=round(time.monotonic() - started, 2),
    )
    if not math.isfinite(epoch.loss + epoch.validation_loss):
        raise ArtifactError(
            f"the loss is not a finite number in epoch {number}", "lower --learning-rate, or change --normalization"
        )
    return epoch


def predict(learner: Learner, batches: Batches, examples: Examples) -> Array:
    """The network's output for each of the examples."""
    return np.concatenate([learner.predict(inputs) for inputs, _ in batches.in_order(examples)])


def probabilities(outputs: Array) -> Array:
    """A probability for each class, from logits, or from the single logit of the second of two classes."""
    return probabilities_of(outputs.astype(np.float64), "logit" if outputs.shape[1] == 1 else "logits")


def cross_entropy(shares: Array, labels: Array) -> float:
    """Mean over the examples, in nats."""
    given = shares[np.arange(len(labels)), labels]
    return float(-np.log(given.clip(np.finfo(np.float64).tiny)).mean())


# These decisions depend only on the epochs so far, so that a resumed training makes the same ones.


def best(epochs: Sequence[Epoch], recipe: Recipe) -> Epoch:
    """The best epoch; the first of several."""
    if recipe.watch == "accuracy":
        return min(epochs, key=lambda epoch: (-epoch.validation_accuracy, epoch.validation_loss))
    return min(epochs, key=lambda epoch: epoch.validation_loss)


def next_learning_rate(epochs: Sequence[Epoch], recipe: Recipe) -> float:
    """The last learning rate, or a lower one if there was no better epoch for `plateau_epochs`."""
    if not epochs:
        return recipe.first_learning_rate
    rate = epochs[-1].learning_rate
    with_this_rate = sum(epoch.learning_rate == rate for epoch in epochs)
    since_best = len(epochs) - best(epochs, recipe).number
    waited = min(with_this_rate, since_best)
    return rate * recipe.plateau_factor if recipe.plateau_epochs and waited >= recipe.plateau_epochs else rate


def is_finished(epochs: Sequence[Epoch], recipe: Recipe) -> bool:
    """Whether all epochs are done, or there was no better epoch for `patience_epochs`."""
    if not epochs:
        return False
    waited = len(epochs) - best(epochs, recipe).number
    return len(epochs) >= recipe.epochs or bool(recipe.patience_epochs and waited >= recipe.patience_epochs)
