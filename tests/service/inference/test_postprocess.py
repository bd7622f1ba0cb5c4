"""The best classes of one item."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.inference.postprocess import top_classes

# Few different values, so that many are equal.
PROBABILITIES = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5]), min_size=1, max_size=30)


@settings(deadline=None)
@given(PROBABILITIES, st.integers(1, 1000))
def test_the_best_come_first_and_equals_in_class_order(probabilities, top_k):
    labels = [f"class {index}" for index in range(len(probabilities))]
    found = top_classes(np.array(probabilities, np.float32), labels, top_k)
    wanted = sorted(range(len(labels)), key=lambda index: (-probabilities[index], index))[:top_k]
    assert [each.index for each in found] == wanted
    assert [each.label for each in found] == [labels[index] for index in wanted]
    assert [each.probability for each in found] == pytest.approx([probabilities[index] for index in wanted])
