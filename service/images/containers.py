"""Image files as bytes: their format, their size and their orientation, and the picture without its metadata.

Pillow parses all metadata in Python: tens of thousands of EXIF tags with a warning for each, text that unpacks to a
thousand times its length, segments that are joined again and again. So metadata is removed before Pillow sees a file.
"""

import re
import struct
from collections.abc import Callable
from typing import NamedTuple

from models.pictures import UPRIGHT
from service.errors import ImageTooLarge, UndecodableImage

# Each of these costs Pillow more than its bytes suggest. No honest file comes near these bounds.
MAX_JPEG_SEGMENTS = 1000
MAX_JPEG_SCANS = 100  # a progressive file has about 10
MAX_JPEG_SCANNED_PIXELS = 10**9  # each scan visits every pixel: about 2 s in all
MAX_PNG_CHUNKS = 2**16
MAX_GIF_HEADER_BYTES = 2**20

JPEG_BARE = bytes((0x00, 0x01, *range(0xD0, 0xDA), 0xFF))  # markers without a length, and bytes that are no marker
JPEG_FRAMES = bytes({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
JPEG_SCALABLE = bytes((0xC0, 0xC1, 0xC2))  # baseline, extended and progressive, in Huffman's code
# JFIF's and Adobe's segments (0xE0, 0xEE) are kept: they give the colour space.
JPEG_METADATA = bytes((*range(0xE1, 0xEE), 0xEF, 0xFE))

JPEG_FRAME_BYTES = 10  # marker, length, precision, height, width, number of components

# The third field of a BMP's header is its own length, of one byte: text that begins with "BM" does not match.
_MAGIC = re.compile(
    rb"(?P<JPEG>\xff\xd8\xff)|(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<WEBP>RIFF....WEBP)|(?P<GIF>GIF8[79]a)|(?P<BMP>BM.{13}\0\0\0)",
    re.DOTALL,
)


class Stripped(NamedTuple):
    """A file without its metadata."""

    body: bytes
    exif: bytes = b""
    frame: bytes = b""
    """For a JPEG: its frame header, from the marker on."""


def detect_format(body: bytes | memoryview) -> str | None:
    """JPEG, PNG, WEBP, GIF or BMP, from the first bytes; None for anything else."""
    magic = _MAGIC.match(body)
    return magic.lastgroup if magic else None


def strip(body: bytes, kind: str) -> Stripped:
    """Removes the metadata of a file of this format.

    Raises ImageTooLarge, UndecodableImage, and for a broken file whatever slices and `struct` raise.
    """
    return _STRIPPERS[kind](body)


def strip_jpeg(body: bytes) -> Stripped:
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
        if length in (0, 1):  # Pillow would continue at another offset, and find metadata that was hidden from here
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
    """Refuses a JPEG that visits its pixels too often. Its frame and its first scan begin at these offsets."""
    if body[frame + 1] in (0xC0, 0xC1) and body[frame + 9] == body[scan + 4]:
        return  # sequential, and all components in the first scan: it is the only one
    height, width = struct.unpack_from(">HH", body, frame + 5)
    # A scan's header: its marker, its length, its number of components.
    scans = sum(body.count(b"\xff\xda\0" + bytes((6 + 2 * n, n)), scan) for n in (1, 2, 3, 4))
    message = f"the JPEG has {scans} scans of {width}x{height} pixels"
    if scans > MAX_JPEG_SCANS:
        raise UndecodableImage(message, cure="save it as a baseline JPEG", met_codec=False)
    if scans * width * height > MAX_JPEG_SCANNED_PIXELS:
        raise ImageTooLarge(message)


def strip_png(body: bytes) -> Stripped:
    """The PNG without metadata and without animation, and its EXIF."""
    parts, exif, at = [memoryview(body)[:8]], b"", 8
    for _ in range(MAX_PNG_CHUNKS):
        if at + 8 > len(body):  # Pillow decides whether a missing end matters
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


def strip_gif(body: bytes) -> Stripped:
    """The GIF without its extensions, except for the first frame's transparent colour."""
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


_STRIPPERS: dict[str, Callable[[bytes], Stripped]] = {
    "JPEG": strip_jpeg,
    "PNG": strip_png,
    "GIF": strip_gif,
    "WEBP": Stripped,
    "BMP": Stripped,
}


def scalable(frame: bytes) -> tuple[tuple[int, int], int] | None:
    """Width and height, and the channels, of a JPEG that libjpeg-turbo can decode at a smaller scale; else None.

    Asked for a smaller scale of any other, such as a lossless one, it writes the whole picture into a buffer that
    Pillow and simplejpeg have made for the smaller one. Pillow decodes those in full, or refuses them.
    """
    if frame[1:2] not in JPEG_SCALABLE or len(frame) < JPEG_FRAME_BYTES:
        return None
    precision, height, width, components = struct.unpack_from(">BHHB", frame, 4)
    is_plain = precision == 8 and components in (1, 3) and width and height  # noqa: PLR2004
    return ((width, height), components) if is_plain else None


def webp_size(body: bytes) -> tuple[int, int]:
    """Width and height in pixels, from the header of any of WebP's three kinds."""
    if body[12:16] == b"VP8X":
        return int.from_bytes(body[24:27], "little") + 1, int.from_bytes(body[27:30], "little") + 1
    if body[12:16] == b"VP8L":
        bits = int.from_bytes(body[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", body, 26)
    return width & 0x3FFF, height & 0x3FFF


def orientation(exif: bytes) -> int:
    """The orientation, 1 to 8, in the first directory of an EXIF block; 1 if it is missing or unreadable."""
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
