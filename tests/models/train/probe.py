"""Runs the learner of one framework, for comparison with the other.

    python -m tests.models.train.probe FRAMEWORK DIRECTORY

writes answers.json into the directory. Run in a process of its own: frameworks are slow to import, and warn.
"""

import json
import sys
from pathlib import Path

import numpy as np

from models import catalog
from models.artifact.artifact import Spec
from models.inputs import NumbersInput
from models.train import data
from models.train.__main__ import make_learner
from models.train.checkpoints import Checkpoints, Progress
from models.train.fit import fit
from models.train.recipe import LEARNING_RATES, Recipe, find_input

STEPS = 5


class Silent:
    def step(self, epoch, done, total):
        pass

    def epoch(self, epoch):
        pass


class Interrupting(Silent):
    def step(self, epoch, done, total):
        if (epoch, done) == (2, 1):
            raise KeyboardInterrupt


def untrained(framework, architecture, **options):
    """A learner whose input is four numbers."""
    found = catalog.find(architecture)
    classes = found.num_classes
    spec = Spec(
        architecture=architecture,
        framework=framework,
        num_classes=classes,
        input=NumbersInput(shape=(4,)),
        output=found.output,
        labels=tuple(map(str, range(classes))),
    )
    recipe = Recipe(architecture=architecture, data="digits", framework=framework, batch_size=8, **options)
    return make_learner(recipe, found, spec)


def small(framework, architecture, **options):
    """A learner with the same weights in both frameworks."""
    learner = untrained(framework, architecture, **options)
    random = np.random.default_rng(0)
    if framework == "keras":
        learner.network.set_weights(
            [random.normal(0, 0.5, value.shape).astype(np.float32) for value in learner.network.get_weights()]
        )
    else:
        import torch

        with torch.no_grad():
            for parameter in learner.network.parameters():
                value = random.normal(0, 0.5, tuple(parameter.shape)[::-1]).astype(np.float32)
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(value.T)))
    return learner


def largest(framework, initializer):
    """The largest value of each parameter."""
    network = untrained(framework, "mlp_iris", initializer=initializer).network
    values = network.get_weights() if framework == "keras" else [each.detach().numpy() for each in network.parameters()]
    return [float(np.abs(value).max()) for value in values]


def losses(learner, classes):
    random = np.random.default_rng(1)
    inputs, labels = random.normal(0, 1, (8, 4)).astype(np.float32), random.integers(0, classes, 8)
    return [learner.learn(inputs, labels) for _ in range(STEPS)]


def trained(framework, directory, *, listener=Silent, **options):
    """Trains or resumes. Returns the bytes of the state and the best weights, or None if it was interrupted."""
    recipe = Recipe(architecture="nin_gray", data="digits", framework=framework, size=72, batch_size=2, **options)
    everything = data.load(recipe)
    few = everything.train.at(np.arange(4))
    found = data.Data(everything.classes, few, few, few, everything.digest)
    architecture = catalog.find("nin_gray")
    item = find_input(recipe, architecture)
    spec = Spec(
        architecture="nin_gray",
        framework=framework,
        num_classes=10,
        input=item,
        output="logits",
        labels=everything.classes,
    )
    checkpoints = Checkpoints(directory / "model")
    batches = data.Batches(recipe, item)
    learner = make_learner(recipe, architecture, spec)
    try:
        with checkpoints.held():
            fit(
                learner,
                found,
                batches,
                checkpoints.progress() or Progress(recipe=recipe, digest=""),
                checkpoints,
                listener(),
            )
    except KeyboardInterrupt:
        return None
    finally:
        batches.close()
    return (checkpoints.latest() / learner.state_file).read_bytes(), (
        checkpoints.latest() / learner.weights_file
    ).read_bytes()


def rates(framework):
    """The rates of the dropout layers, if 0.25 is asked for."""
    recipe = Recipe(architecture="nin_gray", data="digits", framework=framework, size=72, dropout=0.25)
    architecture = catalog.find("nin_gray")
    item = find_input(recipe, architecture)
    spec = Spec(
        architecture="nin_gray",
        framework=framework,
        num_classes=10,
        input=item,
        output="logits",
        labels=tuple("0123456789"),
    )
    network = make_learner(recipe, architecture, spec).network
    if framework == "torch":
        return [each.p for each in network.modules() if type(each).__name__ == "Dropout"]
    return [each.rate for each in network.layers if type(each).__name__ == "Dropout"]


def main(framework, directory):
    directory = Path(directory)
    answers = {
        "optimizers": {name: losses(small(framework, "mlp_iris", optimizer=name), 3) for name in LEARNING_RATES},
        "mean_squared_error": losses(small(framework, "mlp_iris", loss="mean_squared_error"), 3),
        "label_smoothing": losses(small(framework, "mlp_iris", label_smoothing=0.2), 3),
        "binary": losses(small(framework, "mlp_binary"), 2),
        "binary mean_squared_error": losses(small(framework, "mlp_binary", loss="mean_squared_error"), 2),
        "binary label_smoothing": losses(small(framework, "mlp_binary", label_smoothing=0.2), 2),
        "penalties": {
            f"{l1} {l2}": float(small(framework, "mlp_iris", l1=l1, l2=l2).penalty())
            for l1, l2 in ((0, 0), (0.1, 0), (0, 0.1), (0.1, 0.2))
        },
        "penalized": losses(small(framework, "mlp_iris", l1=0.01, l2=0.02), 3),
        "rates": rates(framework),
        "largest": {initializer: largest(framework, initializer) for initializer in ("glorot", "he")},
    }
    options = {"shift": 0.1, "epochs": 3, "optimizer": "nadam"}
    whole = trained(framework, directory / "whole", **options)
    again = trained(framework, directory / "again", **options)
    other = trained(framework, directory / "other", seed=1, **options)
    interrupted = trained(framework, directory / "parts", listener=Interrupting, **options)
    resumed = trained(framework, directory / "parts", **options)
    answers |= {
        "interrupted": interrupted is None,
        "same seed": whole == again,
        "other seed": whole[1] == other[1],
        "resumed": whole == resumed,
    }
    (directory / "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
