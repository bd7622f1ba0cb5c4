"""Pictures -> the pixels that a network receives. Serving, training and calibration all use this module."""

import math
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from models.inputs import ImageInput

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # those that the server accepts

# EXIF's orientations are 1 to 8. This is how to turn each stored picture upright.
UPRIGHT = 1
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {5, 6, 7, 8}  # the turn swaps width and height
_MIRRORED = {2, 3, 6, 7}  # the upright picture's left is the stored picture's right, or its bottom
_UPSIDE_DOWN = {3, 4, 7, 8}  # the upright picture's top is the stored picture's bottom, or its right
# Radius of Pillow's filters, in pixels.
_SUPPORTS = {Image.Resampling.BILINEAR: 1, Image.Resampling.BICUBIC: 2, Image.Resampling.LANCZOS: 3}

Box = tuple[float, float, float, float]


class Picture(Protocol):
    """The part of Pillow's Image that `fit` uses. The server has a faster implementation for SIMD."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""

    def crop(self, box: tuple[int, int, int, int], /) -> Self:
        """A part of the picture."""

    def transpose(self, method: Image.Transpose, /) -> Self:
        """The picture turned or mirrored."""

    def resize(self, size: tuple[int, int], resample: Image.Resampling, box: Box | None = None, /) -> Self:
        """The picture, or the given box of it, at another size."""


P = TypeVar("P", bound=Picture)


def read(path: Path) -> Image.Image:
    """The first frame of an image file as a viewer shows it, in mode L or RGB: upright, on a white background.

    For files that the user trusts: a hostile file can make Pillow raise nearly anything, or take very long.
    """
    with Image.open(path, formats=FORMATS) as opened:
        return opaque(ImageOps.exif_transpose(opened))


def pixels(picture: Image.Image, spec: ImageInput) -> NDArray[np.uint8]:
    """The pixels of an upright picture as the network receives them: uint8 [height, width, channels]."""
    return np.asarray(fit(picture.convert("L" if spec.channels == 1 else "RGB"), spec)).reshape(spec.shape)


def opaque(image: Image.Image) -> Image.Image:
    """The picture in 8 bits of mode L or RGB, on a white background if it is transparent."""
    if image.mode == "I;16":
        return _eight_bits(image)
    if image.has_transparency_data:
        # Before resizing: resized alone, the colours hidden under transparency would bleed into the rest.
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        canvas = Image.new("RGB", layer.size, "white")
        canvas.paste(layer, mask=layer)
        return canvas
    if image.mode in {"L", "RGB"}:
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit gray divided by 257 and rounded, where Pillow's own conversion clips at 255."""
    values: NDArray[Any] = np.asarray(image)
    scaled = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if transparent is not None:
        scaled[values == transparent] = 255
    return Image.fromarray(scaled)


def fit(
    picture: P,
    spec: ImageInput,
    stored: tuple[int, int] | None = None,
    reduction: int = 1,
    orientation: int = UPRIGHT,
) -> P:
    """The picture turned upright and at the network's size. If it is cropped, only the pixels that stay are computed.

    `stored` is the width and height in the file, of which a JPEG may have been decoded at 1/reduction, rounded up;
    by default the picture's own. `orientation` is EXIF's and is not applied yet.
    """
    resampling = Image.Resampling[spec.interpolation.upper()]
    width, height = _turned(stored or picture.size, orientation)
    # The size of a reduced picture is rounded up: its last row may cover less than a row, and be the first once turned.
    reduced = width / reduction, height / reduction
    turned = _turned(picture.size, orientation)
    x_lead = turned[0] - reduced[0] if orientation in _MIRRORED else 0.0
    y_lead = turned[1] - reduced[1] if orientation in _UPSIDE_DOWN else 0.0
    if spec.resize == "stretch":
        whole = (x_lead, y_lead, x_lead + reduced[0], y_lead + reduced[1])
        return _upright(picture, orientation).resize((spec.width, spec.height), resampling, whole)
    # torchvision's arithmetic: Resize(shorter_side), then CenterCrop.
    short, long = spec.shorter_side, int(spec.shorter_side * max(width, height) / min(width, height))
    new_width, new_height = (short, long) if width <= height else (long, short)
    left, top = round((new_width - spec.width) / 2), round((new_height - spec.height) / 2)
    right, bottom = left + spec.width, top + spec.height
    if (new_width, new_height) == (width, height):
        return _upright(picture, orientation).crop((left, top, right, bottom))
    if resampling == Image.Resampling.NEAREST:  # cheap in full; from a part, rounding would choose other pixels
        resized = _upright(picture, orientation).resize((new_width, new_height), resampling)
        return resized.crop((left, top, right, bottom))

    x0, x1 = left * reduced[0] / new_width, right * reduced[0] / new_width
    y0, y1 = top * reduced[1] / new_height, bottom * reduced[1] / new_height
    if orientation == UPRIGHT:  # the first pass can leave out the rows that the second does not read
        reach = _SUPPORTS[resampling] * max(1.0, (y1 - y0) / spec.height)
        first, last = max(0, math.floor(y0 - reach)), min(picture.size[1], math.ceil(y1 + reach))
        picture = picture.crop((0, first, picture.size[0], last))
        y0, y1 = y0 - first, y1 - first
    # Values are rounded between the two passes, and clipped if a filter overshoots, so that the order of the passes
    # matters: up to 58 of 255 at hard edges. Horizontal first is the order of Pillow up to 12, and of Pillow 13 for
    # most whole pictures, but not for parts of them. The picture is turned between the passes, when it is small.
    if orientation in _MIRRORED:
        x0, x1 = reduced[0] - x1, reduced[0] - x0
    stored_width, stored_height = picture.size
    if orientation in _SIDEWAYS:
        strip = picture.resize((stored_width, spec.width), resampling, (0, x0, stored_width, x1))
    else:
        strip = picture.resize((spec.width, stored_height), resampling, (x0, 0, x1, stored_height))
    box = (0, y0 + y_lead, spec.width, y1 + y_lead)
    return _upright(strip, orientation).resize((spec.width, spec.height), resampling, box)


def _turned(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return size[::-1] if orientation in _SIDEWAYS else size


def _upright(picture: P, orientation: int) -> P:
    return picture.transpose(_TURNS[orientation]) if orientation in _TURNS else picture
