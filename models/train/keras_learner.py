"""A Keras network that learns. It behaves as the network of models/train/torch_learner.py does."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from models.architecture import Architecture
from models.artifact.artifact import Spec
from models.conversion.readers import weights
from models.errors import ArtifactError
from models.train.data import Array
from models.train.recipe import EPSILON, Recipe

WEIGHTS_FILE = "weights.weights.h5"


@contextmanager
def _silenced() -> Iterator[None]:
    """Silences standard error: on import, TensorFlow prints which GPU libraries it lacks, whatever its log level."""
    saved = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


class KerasLearner:
    """A models.train.fit.Learner."""

    weights_file = WEIGHTS_FILE
    state_file = "state.npz"

    def __init__(self, architecture: Architecture, spec: Spec, recipe: Recipe) -> None:
        os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
        if recipe.device == "cpu":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        with _silenced():
            import keras  # noqa: PLC0415
            import tensorflow as tf  # noqa: PLC0415

        self._keras, self._tf, self._recipe = keras, tf, recipe
        keras.utils.clear_session()  # layers are numbered, and files contain their names
        keras.utils.set_random_seed(recipe.seed)
        tf.config.experimental.enable_op_determinism()
        self.network = architecture.build("keras", spec.input.shape, spec.outputs)
        if recipe.dropout is not None:
            dropouts = [each for each in self.network._flatten_layers() if isinstance(each, keras.layers.Dropout)]  # noqa: SLF001
            if not dropouts:
                raise ArtifactError(f"{architecture.name} has no dropout layer", "leave out --dropout")
            for each in dropouts:
                each.rate = recipe.dropout
        for variable in self.network.trainable_variables:
            if recipe.initializer != "default":
                self._initialize(variable, recipe.initializer)
            if variable.name.endswith("kernel") and (recipe.l1 or recipe.l2):
                variable.regularizer = keras.regularizers.L1L2(recipe.l1, recipe.l2)
        self._optimizer = self._make_optimizer(recipe)
        self._optimizer.build(self.network.trainable_variables)
        self._step = tf.function(self._learn, reduce_retracing=True)
        self._forward = tf.function(lambda inputs: self.network(inputs, training=False), reduce_retracing=True)

    def _initialize(self, variable: Any, initializer: str) -> None:
        made = {"glorot": "GlorotUniform", "he": "HeUniform"}[initializer]
        if variable.name.endswith("kernel"):
            variable.assign(getattr(self._keras.initializers, made)()(variable.shape))
        elif variable.name.endswith("bias"):
            variable.assign(np.zeros(variable.shape))

    def _make_optimizer(self, recipe: Recipe) -> Any:
        optim, rate = self._keras.optimizers, recipe.first_learning_rate
        makers = {
            "sgd": lambda: optim.SGD(rate, momentum=recipe.momentum),
            "adagrad": lambda: optim.Adagrad(rate, initial_accumulator_value=0.1, epsilon=EPSILON),
            "rmsprop": lambda: optim.RMSprop(rate, rho=0.9, epsilon=EPSILON),
            "adam": lambda: optim.Adam(rate, epsilon=EPSILON),
            "adamw": lambda: optim.AdamW(rate, epsilon=EPSILON, weight_decay=recipe.weight_decay),
            "nadam": lambda: optim.Nadam(rate, epsilon=EPSILON),
            "adadelta": lambda: optim.Adadelta(rate, rho=0.95, epsilon=EPSILON),
        }
        return makers[recipe.optimizer]()

    def start_epoch(self, epoch: int) -> None:
        """Does nothing: the random state is a variable of the network, and is saved with it."""

    def set_learning_rate(self, rate: float) -> None:
        """Sets the learning rate of the following steps."""
        self._optimizer.learning_rate = rate

    def learn(self, inputs: Array, labels: Array) -> float:
        """Takes one step. Returns the loss before it, including penalties."""
        return float(self._step(self._tf.constant(inputs), self._tf.constant(labels)))

    def _learn(self, inputs: Any, labels: Any) -> Any:
        with self._tf.GradientTape() as tape:
            loss = self._loss(self.network(inputs, training=True), labels) + self.penalty()
        trainable = self.network.trainable_variables
        self._optimizer.apply(tape.gradient(loss, trainable), trainable)
        return loss

    def _loss(self, outputs: Any, labels: Any) -> Any:
        tf, smoothing = self._tf, self._recipe.label_smoothing
        classes = max(outputs.shape[1], 2)
        wanted = tf.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
        if outputs.shape[1] == 1:  # the second of two classes
            wanted = wanted[:, 1:]
        if self._recipe.loss == "mean_squared_error":
            given = tf.sigmoid(outputs) if outputs.shape[1] == 1 else tf.nn.softmax(outputs)
            return tf.reduce_mean(tf.square(given - wanted))
        if outputs.shape[1] == 1:
            return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(wanted, outputs))
        return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(wanted, outputs))

    def penalty(self) -> Any:
        """The L1 and L2 penalties of the kernels."""
        return sum(self.network.losses)

    def predict(self, inputs: Array) -> Array:
        """The network's output for each item."""
        size = self._recipe.batch_size
        # A batch of another size would be traced again.
        whole = np.concatenate([inputs, np.zeros((size - len(inputs), *inputs.shape[1:]), inputs.dtype)])
        return np.asarray(self._forward(self._tf.constant(whole)))[: len(inputs)]

    def save_weights(self, path: Path) -> None:
        """Writes the weights as a file that the service can load."""
        self.network.save_weights(path)

    def load_weights(self, path: Path) -> None:
        """Loads a file that `save_weights` wrote."""
        weights.load(self.network, "keras", path)

    def _variables(self) -> list[Any]:
        return [*self.network.variables, *self._optimizer.variables]

    def save_state(self, path: Path) -> None:
        """Writes the state from which the next epoch continues."""
        np.savez(path, *[np.asarray(variable) for variable in self._variables()])

    def load_state(self, path: Path) -> None:
        """Loads a file that `save_state` wrote."""
        with np.load(path) as state:
            for variable, value in zip(self._variables(), state.values(), strict=True):
                variable.assign(value)
