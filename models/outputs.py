"""The outputs of a network, and the probabilities computed from them."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Output = Literal["logits", "probabilities", "logit", "probability"]
"""The meaning of the outputs: a number for each class, or one number for the second of two classes."""


def outputs_of(output: Output, num_classes: int) -> int:
    """How many numbers a network returns for an item."""
    return 1 if output in {"logit", "probability"} else num_classes


def probabilities_of(given: NDArray[Any], output: Output) -> NDArray[Any]:
    """Probabilities, [N, classes], computed from the outputs of the network, [N, outputs]."""
    if output == "probabilities":
        return given
    if output == "probability":
        return np.concatenate([1 - given, given], axis=-1)
    logits = given if output == "logits" else np.concatenate([np.zeros_like(given), given], axis=-1)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: NDArray[Any] = powers / powers.sum(axis=-1, keepdims=True)
    return shares
