"""Image files -> pictures: decodes a JPEG, PNG, WebP, BMP or GIF as a viewer shows it, at a bounded cost."""

import math
from io import BytesIO
from typing import NamedTuple

import PIL.WebPImagePlugin  # noqa: F401 - registers itself; Pillow would import all its plugins to find it
from PIL import Image

from models.pictures import opaque
from service.errors import (
    EmptyBody,
    ImageTooLarge,
    ServiceError,
    UndecodableImage,
    UnsupportedAspectRatio,
    UnsupportedImage,
)
from service.images import raster
from service.images.containers import detect_format, orientation, scalable, strip, webp_size
from service.images.raster import Raster

# The limit here is an argument. Pillow's is global, and warns before it refuses.
Image.MAX_IMAGE_PIXELS = None

MAX_ASPECT = 100
BMP_RUN_LENGTHS = {1, 2}
MAX_RLE_SIZE = 2**20  # in bytes and in pixels: Pillow decodes run lengths in Python

REDUCTIONS = (8, 4, 2)  # those that libjpeg-turbo has SIMD for


class Opened(NamedTuple):
    """A decoded picture, as it is stored."""

    picture: Image.Image | Raster
    """Of mode L or RGB."""
    size: tuple[int, int]
    """Width and height in the file."""
    reduction: int
    """The picture is 1/reduction of that, rounded up."""
    orientation: int
    """EXIF's, 1 to 8, not yet applied."""


def open_image(body: bytes, max_pixels: int, *, simd: bool = False, least_side: float = math.inf) -> Opened:
    """The decoded picture; of a JPEG whose sides are twice `least_side` or more, at 1/2, 1/4 or 1/8 of its size.

    With `simd` it is a Raster, with the same pixels.

    Raises EmptyBody, UnsupportedImage, ImageTooLarge (more than `max_pixels` by the header: nothing is decoded),
    UnsupportedAspectRatio or UndecodableImage, and nothing else for any bytes.
    """
    if not body:
        raise EmptyBody("the body has no bytes")
    kind = detect_format(body)
    if kind is None:
        raise UnsupportedImage("the bytes are not a JPEG, PNG, WebP, BMP or GIF")
    met_codec = False
    try:
        body, exif, frame = strip(body, kind)
        if kind == "WEBP":  # its canvas is allocated on opening
            _check_size(webp_size(body), max_pixels)
        scale = scalable(frame)
        met_codec = True
        if simd and scale is not None:
            size, channels = scale
            _check_size(size, max_pixels)
            reduction = _reduction(size, least_side)
            picture = raster.decode_jpeg(body, size, channels, reduction)
            if picture is not None:
                return Opened(picture, size, reduction, orientation(exif))
        image: Image.Image = Image.open(BytesIO(body), formats=(kind,))
        size = image.size
        _check_size(size, max_pixels)
        _check_run_lengths(image, body)
        reduction = 1 if scale is None else _reduction(size, least_side)
        if reduction > 1:
            image.draft(None, (size[0] // reduction, size[1] // reduction))
        image.load()
        image = opaque(image)
        turn = orientation(exif or image.info.get("exif", b""))
        return Opened(Raster.of(image) if simd else image, size, reduction, turn)
    except ServiceError:
        raise
    except Exception as error:  # hostile bytes make Pillow raise nearly anything, AssertionError included
        raise UndecodableImage(f"the {kind} is broken or was cut short", met_codec=met_codec) from error


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        message = f"the image is {width}x{height}, {width * height} pixels; the limit is {max_pixels}"
        raise ImageTooLarge(message, pixels=width * height)
    if max(size) > MAX_ASPECT * min(size):
        raise UnsupportedAspectRatio(f"the image is {width}x{height}; the limit is {MAX_ASPECT}:1")


def _reduction(size: tuple[int, int], least_side: float) -> int:
    return next((each for each in REDUCTIONS if min(size) >= each * least_side), 1)


def _check_run_lengths(image: Image.Image, body: bytes) -> None:
    if image.info.get("compression") in BMP_RUN_LENGTHS and max(len(body), image.width * image.height) > MAX_RLE_SIZE:
        message = f"the BMP is run-length encoded, and has over {MAX_RLE_SIZE} pixels or bytes"
        raise ImageTooLarge(message, cure="save it as PNG")
