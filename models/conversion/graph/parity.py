"""Compares the outputs of ONNX Runtime with the framework's on the same items."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models.artifact.artifact import Spec
from models.artifact.manifest import Parity
from models.conversion.graph import export
from models.conversion.graph.sample_items import sample_items
from models.errors import ArtifactError
from models.outputs import probabilities_of

Array = NDArray[Any]

TOLERANCE = 1e-4  # of the largest output; sound conversions stay below 1e-5
BATCHES = (1, 3)  # an export can freeze the batch at 1


def relative_error(expected: Array, found: Array) -> float:
    """The largest difference between two arrays, relative to the largest expected value. NaN if one of them has NaN."""
    largest = float(np.abs(expected).max()) or math.ulp(0)  # a network may return 0 for every item
    return float(np.abs(found - expected).max()) / largest


def measure(expected: Mapping[str, Array], found: Mapping[str, Array], output: str, batches: tuple[int, ...]) -> Parity:
    """The differences between two sets of outputs, each with the network's own, named `output`, and "probabilities"."""
    probabilities = expected["probabilities"]
    return Parity(
        relative_error=relative_error(expected[output], found[output]),
        probability_error=float(np.abs(found["probabilities"] - probabilities).max()),
        top1_agreement=float((found["probabilities"].argmax(1) == probabilities.argmax(1)).mean()),
        batches=batches,
        items=len(probabilities),
    )


def compare(network: Any, content: bytes, spec: Spec) -> Parity:
    """Runs the framework and ONNX Runtime on the same items. Raises ArtifactError if they disagree."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    items = sample_items(spec.input)
    batches = [items[start : start + size] for size in BATCHES for start in range(0, len(items) - size + 1, size)]
    expected = np.concatenate(
        [export.forward(network, spec.framework, export.network_input(spec, batch)) for batch in batches]
    )
    if expected.shape[1:] != (spec.outputs,):
        raise ArtifactError(
            f"the network returns {expected.shape[1:]} for each item, not ({spec.outputs},)",
            "set num_classes and output in model.toml to what the weights were trained for",
        )
    feeds = [{session.get_inputs()[0].name: batch} for batch in batches]
    try:
        found: dict[str, Array] = {
            name: np.concatenate([session.run([name], feed)[0] for feed in feeds])
            for name in (spec.output, "probabilities")
        }
    except Exception as error:  # an error of ONNX Runtime
        raise ArtifactError(
            f"the network does not run on batches of {' and '.join(map(str, BATCHES))}: {str(error).splitlines()[0]}",
            "export it with a free batch dimension, and with no batch size in its reshapes",
        ) from error
    answers: dict[str, Array] = {spec.output: expected, "probabilities": probabilities_of(expected, spec.output)}
    parity = measure(answers, found, spec.output, BATCHES)
    if not parity.relative_error <= TOLERANCE:  # so that NaN is refused too
        raise ArtifactError(
            f"ONNX Runtime disagrees with {spec.framework}: relative error {parity.relative_error:.2e}, "
            f"allowed {TOLERANCE:.0e}",
            "check the weights for NaN and infinity; if they are sound, report the architecture",
        )
    return parity
