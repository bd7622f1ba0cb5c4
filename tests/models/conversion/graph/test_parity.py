"""How far two sets of answers are apart."""

import math

import numpy as np
import pytest

from models.conversion.graph.parity import measure


def answers(*logits):
    logits = np.array(logits, np.float32)
    raised = np.exp(logits)
    return {"logits": logits, "probabilities": raised / raised.sum(1, keepdims=True)}


def test_differences_are_relative_to_the_largest_output():
    parity = measure(answers([1, -4], [0, 1]), answers([1, -4], [1, 0]), "logits", (2,))
    assert (parity.relative_error, parity.top1_agreement) == (0.25, 0.5)
    assert parity.probability_error == pytest.approx(math.tanh(0.5))
    assert (parity.items, parity.batches) == (2, (2,))


@pytest.mark.parametrize(
    ("expected", "found", "error"), [(0, 0, 0), (0, 1e-9, math.inf), (1, math.nan, math.nan), (math.nan, 1, math.nan)]
)
def test_what_is_not_relative_to_anything(expected, found, error):
    parity = measure(answers([expected, expected]), answers([found, found]), "logits", (1,))
    assert parity.relative_error == pytest.approx(error, nan_ok=True)
