"""Pictures for the tests: photographs that packages bring along, files of every kind, and hostile files."""

import functools
import importlib.util
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

PHOTOGRAPHS = {
    "chelsea.png": "skimage/data",
    "coffee.png": "skimage/data",
    "rocket.jpg": "skimage/data",
    "motorcycle_left.png": "skimage/data",
    "astronaut.png": "skimage/data",
    "camera.png": "skimage/data",
    "hubble_deep_field.jpg": "skimage/data",
    "retina.jpg": "skimage/data",
    "china.jpg": "sklearn/datasets/images",
    "flower.jpg": "sklearn/datasets/images",
}


def photograph(name: str) -> Path:
    """One of PHOTOGRAPHS, in its installed package: scikit-image or scikit-learn, not imported for it."""
    package, _, folder = PHOTOGRAPHS[name].partition("/")
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / folder / name


# Pictures made here.


def gradient(width: int = 96, height: int = 64) -> Image.Image:
    """A smooth RGB picture without symmetry: JPEG keeps it, and a wrong turn shows."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - (x + y) / 2], axis=-1).astype(np.uint8))


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> Image.Image:
    """The hardest picture for a resize: independent pixels, half of them black or white."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
    pixels[random.random((height, width)) < 0.25] = 0
    pixels[random.random((height, width)) < 0.25] = 255
    return Image.fromarray(pixels if channels > 1 else pixels[..., 0])


# Pictures -> bytes.


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The picture as Pillow writes it; `options` are those of Image.save."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


jpeg = functools.partial(encoded, kind="JPEG")
png = functools.partial(encoded, kind="PNG")
webp = functools.partial(encoded, kind="WEBP")
gif = functools.partial(encoded, kind="GIF")
bmp = functools.partial(encoded, kind="BMP")


def exif(orientation: int, *, big_endian: bool = False) -> bytes:
    """An EXIF block that says nothing but how the picture is turned; what Pillow's `exif=` option takes."""
    order, mark = (">", b"MM\0*") if big_endian else ("<", b"II*\0")
    return b"Exif\0\0" + mark + struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """The picture as a camera stores it that notes this orientation: a viewer's turn makes it upright again."""
    transpose = Image.Transpose
    back = {
        1: None,
        2: transpose.FLIP_LEFT_RIGHT,
        3: transpose.ROTATE_180,
        4: transpose.FLIP_TOP_BOTTOM,
        5: transpose.TRANSPOSE,
        6: transpose.ROTATE_90,
        7: transpose.TRANSVERSE,
        8: transpose.ROTATE_270,
    }[orientation]
    return image if back is None else image.transpose(back)


def animation(kind: str, first: Image.Image, second: Image.Image) -> bytes:
    """Two frames, as GIF, WEBP, PNG (APNG) or MPO."""
    lossless = {"lossless": True} if kind == "WEBP" else {}
    return encoded(first, kind, save_all=True, append_images=[second], **lossless)


def ycck_jpeg(image: Image.Image) -> bytes:
    """A CMYK JPEG as Adobe writes it: inverted, without black, its colours stored as luma and chroma."""
    # Pillow inverts on saving, and notes colour transform 0, none, in Adobe's segment; YCCK is 2.
    bands = [ImageOps.invert(band) for band in ImageOps.invert(image).convert("YCbCr").split()]
    body = bytearray(jpeg(Image.merge("CMYK", [*bands, Image.new("L", image.size, 0)]), quality=95))
    body[body.index(b"Adobe") + 11] = 2
    return bytes(body)


def lossless_jpeg(side: int) -> bytes:
    """A gray square of 128 as a lossless JPEG (SOF3): legal, and nothing that libjpeg-turbo can scale."""
    parts = {
        0xC3: struct.pack(">BHHB", 8, side, side, 1) + bytes((1, 0x11, 0)),
        0xC4: bytes((0, 1, *[0] * 15, 0)),  # one code, of one bit: a difference of 0
        0xDA: bytes((1, 1, 0, 1, 0, 0)),  # each pixel is predicted by its left neighbour
    }
    segments = b"".join(bytes((0xFF, kind)) + struct.pack(">H", len(part) + 2) + part for kind, part in parts.items())
    return b"\xff\xd8" + segments + bytes(side * side // 8 + 8) + b"\xff\xd9"


# PNG by hand: what Pillow does not write.


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(size: tuple[int, int], depth: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG of these scan lines, each led by its filter's byte; `chunks` come before the pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + png_chunk(b"IEND", b"")


def png16(values: np.ndarray, *chunks: bytes) -> bytes:
    """A 16-bit PNG of uint16 [height, width, channels]: gray, gray and alpha, RGB or RGBA."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return raw_png((width, height), 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], rows, *chunks)


# Hostile files.


@functools.cache
def bomb_png(side: int = 30_000) -> bytes:
    """Some 100 KB that unpack to 900 million black pixels."""
    return raw_png((side, side), 1, 0, bytes((1 + (side + 7) // 8) * side))


def lying_png() -> bytes:
    """A header that claims the largest size there is, and one pixel."""
    return raw_png((2**31 - 1, 2**31 - 1), 8, 2, b"\0\0\0\0")


@functools.cache
def metadata_bomb_png(kind: bytes, count: int = 1, unpacked: int = 64 << 20) -> bytes:
    """One white pixel with `count` zTXt, iTXt or iCCP chunks, each of which unpacks to `unpacked` bytes."""
    packed = zlib.compress(bytes(unpacked), 9)
    head = {b"zTXt": b"Comment\0\0", b"iTXt": b"Comment\0\1\0\0\0", b"iCCP": b"profile\0\0"}[kind]
    return raw_png((1, 1), 8, 2, b"\0\xff\xff\xff", *[png_chunk(kind, head + packed)] * count)


def jpeg_markers(body: bytes) -> list[int]:
    """Where the markers of a JPEG begin, those within its segments included."""
    return [at for at in range(len(body) - 1) if body[at] == 0xFF and body[at + 1] not in (0x00, 0xFF)]


def resized_header(body: bytes, width: int, height: int) -> bytes:
    """The JPEG, with another size in its frame header."""
    frame = max(body.find(b"\xff\xc0"), body.find(b"\xff\xc2"))
    return body[: frame + 5] + struct.pack(">HH", height, width) + body[frame + 9 :]


def lying_jpeg(side: int = 65_500, **options: Any) -> bytes:
    """About 1 KB that claim to be 65500x65500 pixels."""
    return resized_header(jpeg(gradient(16, 16), **options), side, side)


def many_scans_jpeg(scans: int, size: tuple[int, int] = (64, 64)) -> bytes:
    """A progressive JPEG whose last scan is repeated until it has about this many."""
    body = jpeg(Image.new("RGB", size), progressive=True)
    start = body.rindex(b"\xff\xda")
    return body[:start] + body[start:-2] * scans + b"\xff\xd9"


def with_segments(body: bytes, *segments: bytes) -> bytes:
    """The JPEG with these segments, each led by its marker, right after its start."""
    inserted = b"".join(s[:2] + struct.pack(">H", len(s)) + s[2:] for s in segments)
    return body[:2] + inserted + body[2:]


def exif_bomb_jpeg() -> bytes:
    """EXIF split over 16 segments: 40,000 tags, each of which points at the same half million bytes."""
    tags = 40_000
    directory = b"".join(struct.pack("<HHII", tag, 7, 500_000, 8) for tag in range(tags))
    tiff = b"II*\0" + struct.pack("<IH", 8, tags) + directory
    tiff += bytes(1_000_000 - len(tiff))
    parts = [tiff[at : at + 65_000] for at in range(0, len(tiff), 65_000)]
    return with_segments(jpeg(gradient()), *[b"\xff\xe1Exif\0\0" + part for part in parts])


def giant_gif(width: int = 65_535, height: int = 65_535) -> bytes:
    """A small GIF whose first frame claims this size, to be cleared to the background afterwards."""
    body = bytearray(gif(Image.new("P", (8, 8))))
    frame = body.index(b",\0\0\0\0\x08\0\x08\0")
    struct.pack_into("<HH", body, frame + 5, width, height)
    return bytes(body[:frame]) + b"!\xf9\x04\x08\0\0\0\0" + bytes(body[frame:])


def giant_webp(width: int = 16_777_215, height: int = 255) -> bytes:
    """A small WebP whose canvas claims this size."""
    canvas = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = b"VP8X" + struct.pack("<I", 10) + canvas + webp(gradient(16, 16))[12:]
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def run_length_bmp(width: int, height: int, body: bytes) -> bytes:
    """A BMP of 8 bits, gray and run-length encoded."""
    palette = b"".join(bytes((level, level, level, 0)) for level in range(256))
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    offset = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + header + palette + body


def strangers() -> dict[str, bytes]:
    """What comes as an image and is none that is served."""
    picture = gradient(8, 8)
    return {
        "text": b"an image, I promise",
        "text that begins as a BMP does": b"BMW, BMI and BMX, and more words until the header would end",
        "html": b"<!doctype html><html><body>404</body></html>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>',
        "json": b'{"image": "aGVsbG8="}',
        "zip": b"PK\x03\x04" + bytes(64),
        "pdf": b"%PDF-1.7\n" + bytes(64),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
        "psd": b"8BPS\0\1" + bytes(64),
        "wav": b"RIFF" + struct.pack("<I", 40) + b"WAVEfmt " + bytes(32),
        "tiff": encoded(picture, "TIFF"),
        "ico": encoded(picture, "ICO"),
        "ppm": encoded(picture, "PPM"),
        "jpeg 2000": encoded(picture, "JPEG2000"),
        "avif": encoded(picture, "AVIF"),
        "half a signature": b"\xff\xd8",
        "base64": b"data:image/png;base64,iVBORw0KGgo=",
    }
