"""Image bytes -> uint8 pixels, as the artifact's `input` describes them."""

import numpy as np

from models.inputs import ImageInput
from models.pictures import fit
from service.images import raster
from service.images.imagefile import open_image
from service.images.raster import Raster
from service.images.shortcuts import EXACT, Shortcuts


def decode(data: bytes | memoryview, spec: ImageInput, *, max_pixels: int, shortcuts: Shortcuts = EXACT) -> np.ndarray:
    """Returns read-only, C-contiguous uint8 pixels [spec.height, spec.width, spec.channels], RGB or luma.

    The picture is decoded as a viewer shows it: the first frame, turned as EXIF says, on white if it is transparent.
    It is fitted like Pillow's resize ("stretch") or torchvision's Resize and CenterCrop ("crop"). A crop is at most 1
    of 255 off, or 2 in one value of ten million; with `shortcuts.simd`, this applies to every resize. Any number of
    threads may call this.

    Raises the errors of `open_image`.
    """
    simd = shortcuts.simd and raster.IS_AVAILABLE and spec.interpolation != "nearest"
    opened = open_image(bytes(data), max_pixels, simd=simd, least_side=shortcuts.least_side(spec))
    picture = opened.picture
    mode = "L" if spec.channels == 1 else "RGB"
    if mode == "L" and picture.mode != mode:
        picture = picture.convert(mode)
    picture = fit(picture, spec, opened.size, opened.reduction, opened.orientation)
    if picture.mode != mode:
        picture = picture.convert(mode)  # gray, which is resized as one channel
    pixels = picture.pixels if isinstance(picture, Raster) else np.asarray(picture)
    return np.ascontiguousarray(pixels).reshape(spec.shape)
