"""What an image model takes: defaults, modes, and what is refused."""

import numpy as np
import pytest
from pydantic import ValidationError

from models.inputs import NORMALIZATIONS, ImageInput


def test_the_modes_are_those_of_keras_and_torchvision():
    """White and black, as each library's own preprocessing scales them."""
    white, black = {}, {}
    for mode in NORMALIZATIONS:
        spec = ImageInput(height=8, width=8, normalization=mode)
        mean, std = np.array(spec.mean), np.array(spec.std)
        white[mode], black[mode] = ((np.float64([value] * 3) * spec.scale - mean) / std for value in (255, 0))
    assert black["tf"] == pytest.approx([-1] * 3)
    assert white["tf"] == pytest.approx([1] * 3)
    assert black["caffe"] == pytest.approx([-103.939, -116.779, -123.68])
    assert white["torch"] == pytest.approx([2.2489, 2.4286, 2.64], abs=1e-4)
    assert black["lite"] == pytest.approx([-127 / 128] * 3)
    assert white["lite"] == pytest.approx([1] * 3)
    assert white["unit"] == pytest.approx([1] * 3)
    assert white["raw"] == pytest.approx([255] * 3)


def test_caffe_is_the_one_mode_in_bgr():
    orders = {mode: ImageInput(height=8, width=8, normalization=mode).order for mode in NORMALIZATIONS}
    assert [mode for mode, order in orders.items() if order == "bgr"] == ["caffe"]


@pytest.mark.parametrize(("size", "shorter_side"), [(224, 256), (299, 342), (32, 37)])
def test_the_crop_keeps_the_proportion_of_256_to_224(size, shorter_side):
    assert ImageInput(height=size, width=size).shorter_side == shorter_side


def test_a_given_shorter_side_is_kept():
    assert ImageInput(height=224, width=224, resize_to=232).shorter_side == 232


@pytest.mark.parametrize(
    "wrong",
    [
        {"height": 0},
        {"channels": 2},
        {"std": [0.0]},
        {"mean": [1.0, 2.0]},
        {"resize_to": 7},
        {"normalization": "imagenet"},
        {"resize": "pad"},
        {"colour": "red"},
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValidationError):
        ImageInput(**({"height": 8, "width": 8} | wrong))
