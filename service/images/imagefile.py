"""Image files -> pictures: what a viewer would show of a JPEG, PNG, WebP, BMP or GIF, at a bounded cost."""

import math
import struct
from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple

import numpy as np
import PIL.WebPImagePlugin  # noqa: F401 - registers itself; Pillow would import all its plugins to find it
from PIL import Image

from service.errors import (
    EmptyBody,
    ImageTooLarge,
    ServiceError,
    UndecodableImage,
    UnsupportedAspectRatio,
    UnsupportedImage,
)
from service.images import raster
from service.images.imageformat import image_format
from service.images.raster import Raster

# The limit here is an argument. Pillow's is global, and warns before it refuses.
Image.MAX_IMAGE_PIXELS = None

MAX_ASPECT = 100
# What costs Pillow more than it weighs, and bounds that no honest file comes near.
MAX_JPEG_SEGMENTS = 1000
MAX_JPEG_SCANS = 100  # a progressive file has about 10
MAX_JPEG_SCANNED_PIXELS = 10**9  # each scan visits every pixel: about 2 s in all
MAX_PNG_CHUNKS = 2**16
MAX_GIF_HEADER_BYTES = 2**20
BMP_RUN_LENGTHS = {1, 2}
MAX_RLE_SIZE = 2**20  # in bytes and in pixels: Pillow decodes run lengths in Python

JPEG_BARE = bytes((0x00, 0x01, *range(0xD0, 0xDA), 0xFF))  # markers without a length, and what is no marker
JPEG_FRAMES = bytes({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
JPEG_SCALABLE = bytes((0xC0, 0xC1, 0xC2))  # baseline, extended and progressive, in Huffman's code
JPEG_METADATA = bytes((*range(0xE1, 0xEE), 0xEF, 0xFE))  # JFIF's and Adobe's segments tell the colour space

JPEG_FRAME_BYTES = 10  # marker, length, precision, height, width, number of components

UPRIGHT = 1  # EXIF's orientations are 1 to 8
REDUCTIONS = (8, 4, 2)  # those that libjpeg-turbo has SIMD for


class Stripped(NamedTuple):
    """A file without what is not its picture."""

    body: bytes
    exif: bytes = b""
    frame: bytes = b""
    """Of a JPEG, the frame header from its marker on."""


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
    kind = image_format(body)
    if kind is None:
        raise UnsupportedImage("the bytes are not a JPEG, PNG, WebP, BMP or GIF")
    met_codec = False
    try:
        body, exif, frame = _READERS[kind](body)
        if kind == "WEBP":  # its canvas is allocated on opening
            _check_size(_webp_size(body), max_pixels)
        scalable = _scalable(frame)
        met_codec = True
        if simd and scalable is not None:
            size, channels = scalable
            _check_size(size, max_pixels)
            reduction = _reduction(size, least_side)
            picture = raster.decode_jpeg(body, size, channels, reduction)
            if picture is not None:
                return Opened(picture, size, reduction, _orientation(exif))
        image: Image.Image = Image.open(BytesIO(body), formats=(kind,))
        size = image.size
        _check_size(size, max_pixels)
        _check_run_lengths(image, body)
        reduction = 1 if scalable is None else _reduction(size, least_side)
        if reduction > 1:
            image.draft(None, (size[0] // reduction, size[1] // reduction))
        image.load()
        image = _opaque(image)
        orientation = _orientation(exif or image.info.get("exif", b""))
        return Opened(Raster.of(image) if simd else image, size, reduction, orientation)
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


def _scalable(frame: bytes) -> tuple[tuple[int, int], int] | None:
    """Width and height, and the channels, of a JPEG that libjpeg-turbo can decode at a smaller scale; else None.

    Asked for a smaller scale of any other, a lossless one say, it writes all of the picture into a buffer that Pillow
    and simplejpeg have made for the smaller one. Pillow decodes those in full, or refuses them.
    """
    if frame[1:2] not in JPEG_SCALABLE or len(frame) < JPEG_FRAME_BYTES:
        return None
    precision, height, width, components = struct.unpack_from(">BHHB", frame, 4)
    is_plain = precision == 8 and components in (1, 3) and width and height  # noqa: PLR2004
    return ((width, height), components) if is_plain else None


def _reduction(size: tuple[int, int], least_side: float) -> int:
    return next((each for each in REDUCTIONS if min(size) >= each * least_side), 1)


def _check_run_lengths(image: Image.Image, body: bytes) -> None:
    if image.info.get("compression") in BMP_RUN_LENGTHS and max(len(body), image.width * image.height) > MAX_RLE_SIZE:
        message = f"the BMP is run-length encoded, and has over {MAX_RLE_SIZE} pixels or bytes"
        raise ImageTooLarge(message, cure="save it as PNG")


def _opaque(image: Image.Image) -> Image.Image:
    """The picture in 8 bits of L or RGB, on white."""
    if image.mode == "I;16":
        return _eight_bits(image)
    if image.has_transparency_data:
        # Before resizing: resized alone, the colours hidden under transparency would bleed into the rest.
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        canvas = Image.new("RGB", layer.size, "white")
        canvas.paste(layer, mask=layer)
        return canvas
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit gray divided by 257 and rounded, where Pillow's own conversion clips at 255."""
    values = np.asarray(image)
    pixels = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if transparent is not None:
        pixels[values == transparent] = 255
    return Image.fromarray(pixels)


# A file's own structure. Pillow parses metadata in Python, before anybody can stop it: EXIF tags by the ten thousand
# and a warning for each, text that unpacks to a thousand times its length, segments joined again and again. So it is
# given the picture alone. These raise what slices and `struct` raise; `open_image` catches it.


def _read_jpeg(body: bytes) -> Stripped:
    """The JPEG without metadata, its EXIF and its frame header."""
    parts: list[bytes | memoryview] = [b"\xff\xd8"]
    exif, frame, at = b"", 0, 2
    for _ in range(MAX_JPEG_SEGMENTS):
        at = body.index(b"\xff", at)
        marker = body[at + 1 : at + 2]
        if marker == b"\xda":  # the first scan, and all that follows
            _check_scans(body, frame, at)
            return Stripped(b"".join((*parts, memoryview(body)[at:])), exif, body[frame : frame + JPEG_FRAME_BYTES])
        if marker in JPEG_BARE:
            at += 1
            continue
        length = int.from_bytes(body[at + 2 : at + 4], "big")
        if length in (0, 1):  # Pillow would go on elsewhere, and find what was hidden from here
            raise ValueError
        end = at + 2 + length
        if marker in JPEG_FRAMES:
            frame = at
        if marker not in JPEG_METADATA:
            parts.append(body[at:end])
        elif marker == b"\xe1" and not exif and body.startswith(b"Exif\0\0", at + 4):
            exif = body[at + 4 : end]
        at = end
    raise ValueError


def _check_scans(body: bytes, frame: int, scan: int) -> None:
    """Refuses a JPEG that would visit its pixels too often. Its frame and its first scan begin at these offsets."""
    if body[frame + 1] in (0xC0, 0xC1) and body[frame + 9] == body[scan + 4]:
        return  # sequential, and all components in the first scan: there is one
    height, width = struct.unpack_from(">HH", body, frame + 5)
    # A scan's header: its marker, its length, its number of components.
    scans = sum(body.count(b"\xff\xda\0" + bytes((6 + 2 * n, n)), scan) for n in (1, 2, 3, 4))
    message = f"the JPEG has {scans} scans of {width}x{height} pixels"
    if scans > MAX_JPEG_SCANS:
        raise UndecodableImage(message, cure="save it as a baseline JPEG", met_codec=False)
    if scans * width * height > MAX_JPEG_SCANNED_PIXELS:
        raise ImageTooLarge(message)


def _read_png(body: bytes) -> Stripped:
    """The PNG without metadata and without animation, and its EXIF."""
    parts, exif, at = [memoryview(body)[:8]], b"", 8
    for _ in range(MAX_PNG_CHUNKS):
        if at + 8 > len(body):  # a missing end is Pillow's to judge
            break
        length, kind = struct.unpack_from(">I4s", body, at)
        end = at + 12 + length
        if kind == b"eXIf":
            exif = body[at + 8 : end - 4]
        elif kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            parts.append(memoryview(body)[at:end])
        at = end
    else:
        raise ValueError
    return Stripped(b"".join(parts), exif)


def _read_gif(body: bytes) -> Stripped:
    """The GIF with no more of its extensions than the first frame's transparent colour."""
    head = body[:MAX_GIF_HEADER_BYTES]
    start = at = 13 + (6 << (head[10] & 7) if head[10] & 0x80 else 0)
    control = b""
    while head[at] != ord(","):
        if head[at] != ord("!"):  # a stray byte
            at += 1
            continue
        if head[at + 1 : at + 3] == b"\xf9\x04":
            control = b"!\xf9\x04" + bytes((head[at + 3] & 1, 0, 0, head[at + 6], 0))
        at += 2
        while head[at]:
            at += 1 + head[at]
        at += 1
    return Stripped(b"".join((head[:start], control, memoryview(body)[at:])))


_READERS: dict[str, Callable[[bytes], Stripped]] = {
    "JPEG": _read_jpeg,
    "PNG": _read_png,
    "GIF": _read_gif,
    "WEBP": Stripped,
    "BMP": Stripped,
}


def _webp_size(body: bytes) -> tuple[int, int]:
    """Width and height in pixels, from the header of any of WebP's three kinds."""
    if body[12:16] == b"VP8X":
        return int.from_bytes(body[24:27], "little") + 1, int.from_bytes(body[27:30], "little") + 1
    if body[12:16] == b"VP8L":
        bits = int.from_bytes(body[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", body, 26)
    return width & 0x3FFF, height & 0x3FFF


def _orientation(exif: bytes) -> int:
    """The orientation, 1 to 8, in an EXIF block's first directory; 1 where it is missing or unreadable."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return UPRIGHT
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, at)
            if (tag, kind) == (0x0112, 3):
                return value if 1 <= value <= 8 else UPRIGHT  # noqa: PLR2004
    except struct.error:
        pass
    return UPRIGHT
