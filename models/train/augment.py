"""Random augmentations of a training picture."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.train.recipe import Recipe

DICE = 6  # random numbers that one augmentation takes


def augmented(pixels: NDArray[np.uint8], recipe: Recipe, dice: NDArray[Any]) -> NDArray[np.uint8]:
    """The picture rotated, zoomed, shifted, mirrored and brightened within the limits of the recipe.

    `dice` are DICE numbers from 0 to 1 that choose the amount of each; 0.5 changes nothing. Beyond its edges, a picture
    is continued with its edge pixels.
    """
    turn, scale, right, down, light, side = 2 * dice - 1
    height, width, channels = pixels.shape
    if recipe.rotate or recipe.zoom or recipe.shift:
        moved = (right * recipe.shift * width, down * recipe.shift * height)
        pixels = _moved(pixels, math.radians(turn * recipe.rotate), 1 + scale * recipe.zoom, moved)
    if recipe.flip and side > 0:
        pixels = pixels[:, ::-1]
    if recipe.brightness:
        pixels = np.rint(pixels * (1 + light * recipe.brightness)).clip(0, 255).astype(np.uint8)
    return pixels.reshape(height, width, channels)


def _moved(pixels: NDArray[np.uint8], angle: float, scale: float, moved: tuple[float, float]) -> NDArray[np.uint8]:
    """The picture rotated around its centre, then enlarged, then moved right and down by that many pixels."""
    height, width, channels = pixels.shape
    edge = max(height, width)
    wide = np.pad(pixels, ((edge, edge), (edge, edge), (0, 0)), mode="edge")
    source = Image.fromarray(wide[..., 0] if channels == 1 else wide)
    # Pillow takes the inverse: the place in the source of each pixel of the result.
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    x, y = width / 2 + moved[0], height / 2 + moved[1]
    places = (
        cos,
        sin,
        width / 2 + edge - cos * x - sin * y,
        -sin,
        cos,
        height / 2 + edge + sin * x - cos * y,
    )
    found = source.transform((width, height), Image.Transform.AFFINE, places, Image.Resampling.BILINEAR)
    return np.asarray(found).reshape(pixels.shape)
