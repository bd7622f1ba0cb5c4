"""Pictures -> pixels: training and calibration see what the server serves, to the bit."""

import itertools
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.inputs import ImageInput
from models.pictures import pixels, read
from service.images.preprocess import decode
from tests import images

RANDOM = np.random.default_rng(0)


def noise(*shape):
    return Image.fromarray(RANDOM.integers(0, 256, shape, dtype=np.uint8))


def deep(channels):
    """16 bits of each channel; the first pixel is the one that a tRNS chunk names."""
    values = RANDOM.integers(0, 2**16, (40, 50, channels), dtype=np.uint16)
    values[::3, ::2] = values[0, 0]
    return values


def transparent(values):
    return images.png_chunk(b"tRNS", struct.pack(f">{values.shape[2]}H", *values[0, 0]))


GRAY, COLOUR = deep(1), deep(3)
BODIES = {
    "rgb.png": images.png(noise(40, 50, 3)),
    "gray.png": images.png(noise(50, 40)),
    "photo.jpg": images.jpeg(noise(33, 57, 3), quality=80),
    "transparent.png": images.png(noise(40, 50, 4)),
    "gray and alpha.png": images.png(noise(40, 50, 2)),
    "palette.gif": images.gif(noise(40, 50, 3).quantize(16)),
    "two.bmp": images.bmp(noise(40, 50).convert("1")),
    "picture.webp": images.webp(noise(40, 50, 3), lossless=True),
    "deep gray.png": images.png16(GRAY),
    "deep gray with a transparent level.png": images.png16(GRAY, transparent(GRAY)),
    "deep gray and alpha.png": images.png16(deep(2)),
    "deep colours.png": images.png16(COLOUR),
    "deep colours with a transparent one.png": images.png16(COLOUR, transparent(COLOUR)),
    "deep colours and alpha.png": images.png16(deep(4)),
}

SPECS = [
    ImageInput(height=24, width=24, channels=channels, resize=resize, interpolation=interpolation)
    for channels, resize, interpolation in itertools.product(
        (1, 3), ("crop", "stretch"), ("nearest", "bilinear", "bicubic", "lanczos")
    )
]


@pytest.mark.parametrize("name", BODIES)
def test_pixels_are_the_servers(tmp_path, name):
    (tmp_path / name).write_bytes(BODIES[name])
    for spec in SPECS:
        np.testing.assert_array_equal(pixels(read(tmp_path / name), spec), decode(BODIES[name], spec, max_pixels=10**6))


def test_a_transparent_level_of_16_bits_is_white(tmp_path):
    (tmp_path / "deep.png").write_bytes(images.png16(GRAY, transparent(GRAY)))
    found = np.asarray(read(tmp_path / "deep.png"))
    assert (found[GRAY[..., 0] == GRAY[0, 0, 0]] == 255).all()


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    st.tuples(st.integers(1, 100), st.integers(1, 100)),
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(0, 24)),
    st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
    st.integers(0, 9),
)
def test_every_crop_is_the_servers(size, crop, interpolation, seed):
    height, width, margin = crop
    spec = ImageInput(height=height, width=width, resize_to=max(height, width) + margin, interpolation=interpolation)
    image = images.noise(*size, seed=seed)
    np.testing.assert_array_equal(pixels(image, spec), decode(images.bmp(image), spec, max_pixels=10**6))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_the_servers_to_one_step(tmp_path, orientation):
    """The server turns it when it is small already: what is rounded, is rounded in another order."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.linspace(0, 255, 40 * 50 * 3).reshape(40, 50, 3).astype(np.uint8))
    image.save(tmp_path / "turned.png", exif=exif)
    content = (tmp_path / "turned.png").read_bytes()
    for spec in SPECS:
        here = pixels(read(tmp_path / "turned.png"), spec).astype(int)
        assert np.abs(here - decode(content, spec, max_pixels=10**6)).max() <= 1
