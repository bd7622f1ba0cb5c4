"""Image bytes -> uint8 pixels, as the artifact asks."""

import math

import numpy as np
from PIL import Image

from models.inputs import ImageInput
from service.images import raster
from service.images.imagefile import UPRIGHT, Opened, open_image
from service.images.raster import Raster
from service.images.shortcuts import EXACT, Shortcuts

Picture = Image.Image | Raster

# EXIF's orientations: what turns the stored picture upright, whether that swaps width and height, whether the upright
# picture's left is the stored picture's right (or bottom), and whether its top is the stored bottom (or right).
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow's, in pixels.
_SUPPORTS = {Image.Resampling.BILINEAR: 1, Image.Resampling.BICUBIC: 2, Image.Resampling.LANCZOS: 3}
SIDEWAYS = {5, 6, 7, 8}
MIRRORED = {2, 3, 6, 7}
UPSIDE_DOWN = {3, 4, 7, 8}


def decode(data: bytes | memoryview, spec: ImageInput, *, max_pixels: int, shortcuts: Shortcuts = EXACT) -> np.ndarray:
    """Gives read-only, C-contiguous uint8 pixels [spec.height, spec.width, spec.channels], RGB or luma.

    The picture is decoded as a viewer shows it: the first frame, turned as EXIF says, on white where it is transparent.
    It is fitted as Pillow's resize ("stretch") or torchvision's Resize and CenterCrop ("crop") do it; a crop is at most
    1 of 255 off, or 2 in one value of ten million; with `shortcuts.simd`, so is everything that is resized. Any number
    of threads may call this.

    Raises what `open_image` raises.
    """
    simd = shortcuts.simd and raster.IS_AVAILABLE and spec.interpolation != "nearest"
    opened = open_image(bytes(data), max_pixels, simd=simd, least_side=shortcuts.least_side(spec))
    mode = "L" if spec.channels == 1 else "RGB"
    if mode == "L" and opened.picture.mode != mode:
        opened = opened._replace(picture=opened.picture.convert(mode))
    picture = _fitted(opened, spec)
    if picture.mode != mode:
        picture = picture.convert(mode)  # gray, which is resized as one channel
    pixels = picture.pixels if isinstance(picture, Raster) else np.asarray(picture)
    return np.ascontiguousarray(pixels).reshape(spec.shape)


# A picture -> the artifact's size.


def _upright(picture: Picture, orientation: int) -> Picture:
    return picture.transpose(TURNS[orientation]) if orientation in TURNS else picture


def _fitted(opened: Opened, spec: ImageInput) -> Picture:
    """Upright, and of the artifact's size. Of a picture that is cropped, only the pixels that stay are computed."""
    picture, stored, reduction, orientation = opened
    resampling = Image.Resampling[spec.interpolation.upper()]
    width, height = stored[::-1] if orientation in SIDEWAYS else stored
    # A reduced picture is rounded up: its last row may stand for less than a row, and once turned be the first.
    reduced = width / reduction, height / reduction
    turned = picture.size[::-1] if orientation in SIDEWAYS else picture.size
    x_lead = turned[0] - reduced[0] if orientation in MIRRORED else 0.0
    y_lead = turned[1] - reduced[1] if orientation in UPSIDE_DOWN else 0.0
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
        return (
            _upright(picture, orientation).resize((new_width, new_height), resampling).crop((left, top, right, bottom))
        )

    x0, x1 = left * reduced[0] / new_width, right * reduced[0] / new_width
    y0, y1 = top * reduced[1] / new_height, bottom * reduced[1] / new_height
    if orientation == UPRIGHT:  # rows that the second pass would not look at need no first
        reach = _SUPPORTS[resampling] * max(1.0, (y1 - y0) / spec.height)
        first, last = max(0, math.floor(y0 - reach)), min(picture.height, math.ceil(y1 + reach))
        picture = picture.crop((0, first, picture.width, last))
        y0, y1 = y0 - first, y1 - first
    # Values are rounded between the two passes, and clipped where a filter overshoots, so their order shows: up to 58
    # of 255 at hard edges. Horizontal first is what Pillow did up to 12, and what 13 does with most whole pictures, but
    # not with parts of them. The picture is turned in between, where it is small.
    if orientation in MIRRORED:
        x0, x1 = reduced[0] - x1, reduced[0] - x0
    if orientation in SIDEWAYS:
        strip = picture.resize((picture.width, spec.width), resampling, (0, x0, picture.width, x1))
    else:
        strip = picture.resize((spec.width, picture.height), resampling, (x0, 0, x1, picture.height))
    box = (0, y0 + y_lead, spec.width, y1 + y_lead)
    return _upright(strip, orientation).resize((spec.width, spec.height), resampling, box)
