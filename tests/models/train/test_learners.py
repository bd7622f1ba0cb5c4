"""Both learners compute the same, and their results are reproducible."""

import json
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow

FRAMEWORKS = ("torch", "keras")


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The results of each framework's learner; see probe.py."""
    found = {}
    for framework in FRAMEWORKS:
        directory = tmp_path_factory.mktemp(framework)
        command = [sys.executable, "-m", "tests.models.train.probe", framework, str(directory)]
        subprocess.run(command, check=True, capture_output=True)
        found[framework] = json.loads((directory / "answers.json").read_text())
    return found


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rmsprop", "adam", "adamw", "nadam", "adadelta"])
def test_an_optimizer_is_the_same_in_both(answers, optimizer):
    torch, keras = (answers[framework]["optimizers"][optimizer] for framework in FRAMEWORKS)
    np.testing.assert_allclose(torch, keras, rtol=1e-4)
    assert torch[-1] < torch[0]


@pytest.mark.parametrize(
    "case",
    [
        "mean_squared_error",
        "label_smoothing",
        "binary",
        "binary mean_squared_error",
        "binary label_smoothing",
        "penalized",
    ],
)
def test_a_loss_is_the_same_in_both(answers, case):
    torch, keras = (answers[framework][case] for framework in FRAMEWORKS)
    np.testing.assert_allclose(torch, keras, rtol=1e-4)
    assert torch[-1] < torch[0]


def test_penalties_are_of_the_kernels_alone(answers):
    """In the order of the parameters: a kernel of 4x16, a bias, a kernel of 16x3, a bias."""
    random = np.random.default_rng(0)
    drawn = [random.normal(0, 0.5, shape) for shape in ((4, 16), 16, (16, 3), 3)]
    kernels = np.concatenate([drawn[0].ravel(), drawn[2].ravel()])
    l1, l2 = np.abs(kernels).sum(), np.square(kernels).sum()
    expected = {"0 0": 0, "0.1 0": 0.1 * l1, "0 0.1": 0.1 * l2, "0.1 0.2": 0.1 * l1 + 0.2 * l2}
    for framework in FRAMEWORKS:
        assert answers[framework]["penalties"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_dropout_is_the_networks(answers, framework):
    assert answers[framework]["rates"] == [0.25]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_kernels_begin_as_the_initializer_says_and_biases_at_zero(answers, framework):
    bounds = {"glorot": [(6 / 20) ** 0.5, 0, (6 / 19) ** 0.5, 0], "he": [(6 / 4) ** 0.5, 0, (6 / 16) ** 0.5, 0]}
    for initializer, found in answers[framework]["largest"].items():
        np.testing.assert_allclose(found, bounds[initializer], rtol=0.15)
        assert (np.array(found) <= bounds[initializer]).all()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_same_seed_gives_the_same_bytes(answers, framework):
    assert answers[framework]["same seed"]
    assert not answers[framework]["other seed"]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_goes_on_ends_as_if_it_had_not_been_interrupted(answers, framework):
    assert answers[framework]["interrupted"]
    assert answers[framework]["resumed"]
