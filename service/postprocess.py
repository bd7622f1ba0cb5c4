"""Probabilities -> the best labels."""

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
    """The `top_k` most probable classes of one item, [classes], best first; equals in class order."""
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return [Prediction(labels[index], int(index), round(float(probabilities[index]), 6)) for index in order]
