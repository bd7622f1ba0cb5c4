"""Augmented pictures."""

import numpy as np
import pytest

from models.train.augment import DICE, augmented
from models.train.recipe import Recipe

MIDDLE = np.full(DICE, 0.5)
ORDER = ("turn", "scale", "right", "down", "light", "side")


def dice(**given):
    return np.array([given.get(name, 0.5) for name in ORDER])


def change(pixels, numbers, **options):
    return augmented(pixels, Recipe(architecture="lenet5", data="digits", **options), numbers)


@pytest.fixture(params=[1, 3])
def pixels(request):
    return np.random.default_rng(0).integers(0, 256, (8, 10, request.param), dtype=np.uint8)


EVERYTHING = {"shift": 0.2, "rotate": 30, "zoom": 0.2, "brightness": 0.2, "flip": True}


def test_the_middle_of_every_range_changes_nothing(pixels):
    np.testing.assert_array_equal(change(pixels, MIDDLE, **EVERYTHING), pixels)


def test_what_is_not_asked_for_does_not_happen(pixels):
    np.testing.assert_array_equal(change(pixels, np.ones(DICE)), pixels)


def test_a_shift_brings_in_the_edge(pixels):
    found = change(pixels, dice(right=1), shift=0.2)
    np.testing.assert_array_equal(found[:, 2:], pixels[:, :-2])
    np.testing.assert_array_equal(found[:, 0], pixels[:, 0])
    found = change(pixels, dice(down=0), shift=0.25)
    np.testing.assert_array_equal(found[:-2], pixels[2:])


def test_a_flip_mirrors(pixels):
    np.testing.assert_array_equal(change(pixels, dice(side=0.9), flip=True), pixels[:, ::-1])


def test_half_a_turn(pixels):
    """To one step of 255: the sine of half a turn is not quite 0, and Pillow cuts fractions off."""
    found = change(pixels, dice(turn=1), rotate=180).astype(int)
    assert np.abs(found - pixels[::-1, ::-1]).max() <= 1


def test_a_zoom_enlarges_the_middle():
    pixels = np.zeros((16, 16, 1), np.uint8)
    pixels[4:12, 4:12] = 255
    larger, smaller = (change(pixels, dice(scale=scale), zoom=0.5) for scale in (1, 0))
    assert np.count_nonzero(larger > 127) == 12**2
    assert np.count_nonzero(smaller > 127) == 4**2


def test_brightness_scales_and_stays_in_range(pixels):
    found = change(pixels, dice(light=1), brightness=0.5)
    np.testing.assert_array_equal(found, np.rint(pixels * 1.5).clip(0, 255).astype(np.uint8))


def test_all_at_once_keeps_the_shape(pixels):
    found = change(pixels, np.array([0.9, 0.1, 0.2, 0.8, 0.3, 0.7]), **EVERYTHING)
    assert (found.shape, found.dtype) == (pixels.shape, np.uint8)
