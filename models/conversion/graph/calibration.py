"""Reads the items that a lower precision is calibrated on, and the held-out items that it is judged on."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models import pictures
from models.artifact.artifact import NUMBERS_FILE
from models.errors import ArtifactError
from models.inputs import ImageInput, Input, NumbersInput

Array = NDArray[Any]

ENOUGH = 50  # so many held-out images are judged on as they are; if there are fewer, each is judged on in VIEWS
VIEWS = 10
SIDE = 0.8  # share of the picture's sides that a view of a corner has
# Share of the items. It is irrational, so that no regular order of the classes puts one of them on one side only.
HELD_OUT = (3 - math.sqrt(5)) / 2


@dataclass(frozen=True)
class Items:
    """Items as the served graph takes them."""

    calibration: Array
    judged: Array
    images: int
    """The number of images, or rows of numbers, behind `judged`."""


def read(paths: Sequence[Path], item: Input) -> Items:
    """Splits the items; duplicates are left out, and the held-out items are evenly spread. Raises ArtifactError."""
    if not isinstance(item, ImageInput):
        rows = np.unique(_numbers(paths, item), axis=0)
        held = held_out(len(rows))
        return Items(rows[~held], rows[held], int(held.sum()))
    unique = list({hashlib.sha256(path.read_bytes()).digest(): path for path in paths}.values())
    held = held_out(len(unique))
    views = VIEWS if held.sum() < ENOUGH else 1
    judged = [view for path, each in zip(unique, held, strict=True) if each for view in _views(path, item, views)]
    others = [_views(path, item, 1)[0] for path, each in zip(unique, held, strict=True) if not each]
    return Items(_stacked(others, item), _stacked(judged, item), int(held.sum()))


def held_out(count: int) -> NDArray[np.bool_]:
    """A mask over `count` items: True for those that are held out."""
    steps: NDArray[np.float64] = np.floor(np.arange(count + 1) * HELD_OUT + 0.3)
    found: NDArray[np.bool_] = steps[1:] > steps[:-1]
    return found


def _stacked(views: Sequence[Array], item: ImageInput) -> Array:
    return np.stack(views) if views else np.zeros((0, *item.shape), np.uint8)


def _views(path: Path, item: ImageInput, count: int) -> list[Array]:
    """The image as the server fits it, its mirror image, its corners and their mirror images: the first `count`."""
    try:
        picture = pictures.read(path)
    except Exception as error:  # broken files make Pillow raise nearly anything
        raise ArtifactError(
            f"calibration image {path.name} cannot be read: {error}", "replace it, or delete it"
        ) from error
    found = []
    for part in _parts(picture):
        found += [part, part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
        if len(found) >= count:
            break
    return [pictures.pixels(part, item) for part in found[:count]]


def _parts(picture: Image.Image) -> Iterator[Image.Image]:
    yield picture
    width, height = (max(1, round(SIDE * side)) for side in picture.size)
    for left in (0, picture.width - width):
        for top in (0, picture.height - height):
            yield picture.crop((left, top, left + width, top + height))


def _numbers(paths: Sequence[Path], item: NumbersInput) -> Array:
    if not paths:
        raise ArtifactError(
            "a model of numbers has no built-in samples to calibrate and to judge on",
            f'put your own rows into calibration/{NUMBERS_FILE}, {{"instances": [[...]]}}, or set precision = "fp32"',
        )
    try:
        return item.read(paths[0].read_bytes())
    except ValueError as error:
        raise ArtifactError(f"calibration/{NUMBERS_FILE} has {error}", 'write {"instances": [[...]]}') from error
