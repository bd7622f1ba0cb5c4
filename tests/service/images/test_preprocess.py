"""preprocess.py: what comes out of every kind of file, and that nothing but pixels or a ServiceError ever does."""

import math
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
import simplejpeg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from models.inputs import ImageInput
from service.errors import (
    EmptyBody,
    ImageTooLarge,
    ServiceError,
    UndecodableImage,
    UnsupportedAspectRatio,
    UnsupportedImage,
)
from service.images import imagefile, raster
from service.images.preprocess import decode
from service.images.raster import Raster
from service.images.shortcuts import EXACT, Shortcuts
from tests import images
from tests.torchvision_pixels import reference

MAX_PIXELS = 40_000_000
SIMD = Shortcuts(simd=True, margin=0)
SMOOTH = ("bilinear", "bicubic", "lanczos")
FILTERS = ("nearest", *SMOOTH)
# A file that is decoded at its own size: what is decoded is what comes out.
WHOLE = ImageInput(height=64, width=96, resize="stretch")


def outcome(body: bytes, spec: ImageInput, shortcuts: Shortcuts) -> np.ndarray | ServiceError:
    """`decode` as signed numbers, or its error; any other exception fails the test."""
    try:
        return decode(body, spec, max_pixels=MAX_PIXELS, shortcuts=shortcuts).astype(int)
    except ServiceError as error:
        return error


def pixels(body: bytes, spec: ImageInput) -> np.ndarray:
    """What Pillow alone makes of it. Whatever that is, the shortcut with SIMD gives the same, error or pixels."""
    exact, quick = outcome(body, spec, EXACT), outcome(body, spec, SIMD)
    if isinstance(exact, ServiceError):
        assert (type(quick), quick.message) == (type(exact), exact.message)
        raise exact
    # Pillow 13 may go vertically first through a whole picture, and where a filter overshoots that shows.
    if not (spec.resize == "stretch" and spec.interpolation in {"bicubic", "lanczos"}):
        assert worst(quick, exact) <= (0 if spec.interpolation == "nearest" else 2)
    return exact


def at_own_size(body: bytes, size: tuple[int, int] = (96, 64), channels: int = 3) -> np.ndarray:
    return pixels(body, ImageInput(height=size[1], width=size[0], channels=channels, resize="stretch"))


def horizontal_first(image: Image.Image, spec: ImageInput) -> np.ndarray:
    """The same by two resizes of one direction each: Pillow before 13, which never took the vertical one first."""
    resampling = Image.Resampling[spec.interpolation.upper()]
    short, long = spec.shorter_side, int(spec.shorter_side * max(image.size) / min(image.size))
    width, height = (short, long) if image.width <= image.height else (long, short)
    fitted = image.resize((width, image.height), resampling).resize((width, height), resampling)
    cropped = transforms.CenterCrop((spec.height, spec.width))(fitted)
    return np.asarray(cropped).astype(int).reshape(spec.shape)


def worst(ours: np.ndarray, theirs: np.ndarray) -> int:
    assert ours.shape == theirs.shape
    return int(np.abs(ours - theirs).max())


def fits(ours: np.ndarray, theirs: np.ndarray, interpolation: str) -> bool:
    """Whether the two are as near as `decode` promises: the bilinear filter may be 2 off in a value of ten thousand."""
    allowed = {"nearest": 0, "bilinear": 2}.get(interpolation, 1)
    return worst(ours, theirs) <= allowed and (np.abs(ours - theirs) > 1).mean() <= 1e-4


def answer(body: bytes) -> np.ndarray | ServiceError:
    """What comes of a hostile body; any exception but a ServiceError fails the test."""
    try:
        return pixels(body, ImageInput(height=16, width=16))
    except ServiceError as error:
        return error


# Size.


@pytest.mark.parametrize("interpolation", SMOOTH)
@pytest.mark.parametrize("name", images.PHOTOGRAPHS)
def test_photographs_are_fitted_as_torchvision_does(name, interpolation):
    path = images.photograph(name)
    spec = ImageInput(height=224, width=224, interpolation=interpolation)
    assert fits(pixels(path.read_bytes(), spec), reference(Image.open(path), spec), interpolation)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(
    "options",
    [
        {"height": 224, "width": 224, "resize_to": 224},
        {"height": 299, "width": 299, "resize_to": 342},
        {"height": 200, "width": 120},
        {"height": 120, "width": 200, "channels": 1},
        {"height": 224, "width": 224, "resize": "stretch"},
        {"height": 28, "width": 28, "channels": 1},
    ],
)
@pytest.mark.parametrize("turn", [None, Image.Transpose.ROTATE_90])
def test_any_input_is_fitted_as_torchvision_does(options, interpolation, turn):
    photograph = Image.open(images.photograph("chelsea.png")).convert("RGB")
    image = photograph if turn is None else photograph.transpose(turn)
    spec = ImageInput(interpolation=interpolation, **options)
    assert fits(pixels(images.bmp(image), spec), reference(image, spec), interpolation)


def crops() -> st.SearchStrategy[dict[str, int]]:
    return st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(0, 24)).map(
        lambda c: {"height": c[0], "width": c[1], "resize_to": max(c[:2]) + c[2]}
    )


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.integers(1, 100), st.integers(1, 100), crops(), st.sampled_from(["bicubic", "lanczos"]), st.integers(0, 9))
@example(6, 70, {"height": 41, "width": 41, "resize_to": 70}, "lanczos", 0)
def test_a_crop_is_one_of_255_off_at_most(width, height, crop, interpolation, seed):
    image = images.noise(width, height, seed=seed)
    spec = ImageInput(interpolation=interpolation, **crop)
    assert worst(pixels(images.bmp(image), spec), horizontal_first(image, spec)) <= 1


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.integers(1, 100), st.integers(1, 100), crops(), st.integers(0, 9))
def test_a_bilinear_crop_is_two_of_255_off_at_most(width, height, crop, seed):
    # One, but for the order of Pillow's two passes, where noise makes both round the other way.
    image = images.noise(width, height, seed=seed)
    spec = ImageInput(interpolation="bilinear", **crop)
    difference = np.abs(pixels(images.bmp(image), spec) - reference(image, spec))
    assert difference.max() <= 2
    assert (difference > 1).mean() <= 0.01


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.integers(1, 100), st.integers(1, 100), crops())
def test_the_nearest_pixels_are_torchvisions(width, height, crop):
    # No pixel equals another, so that this is the test of the arithmetic: sizes, corners, and how halves are rounded.
    image = Image.fromarray(
        np.arange(width * height * 3, dtype=np.uint32).view(np.uint8).reshape(height, -1, 12)[..., :3]
    )
    spec = ImageInput(interpolation="nearest", **crop)
    assert worst(pixels(images.bmp(image), spec), reference(image, spec)) == 0


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.integers(1, 90), st.integers(1, 90), crops(), st.sampled_from(FILTERS), st.sampled_from([1, 3]))
def test_a_stretched_picture_is_torchvisions(width, height, crop, interpolation, channels):
    image = images.noise(width, height)
    spec = ImageInput(
        height=crop["height"], width=crop["width"], channels=channels, resize="stretch", interpolation=interpolation
    )
    assert worst(pixels(images.bmp(image), spec), reference(image, spec)) == 0


@pytest.mark.parametrize("interpolation", FILTERS)
def test_a_picture_of_the_right_size_is_only_cropped(interpolation):
    image = images.noise(40, 32)
    spec = ImageInput(height=28, width=28, resize_to=32, interpolation=interpolation)
    assert np.array_equal(pixels(images.bmp(image), spec), np.asarray(image)[2:30, 6:34])


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 1), (1, 100), (100, 1)])
@pytest.mark.parametrize("interpolation", FILTERS)
def test_the_smallest_pictures(size, interpolation):
    image = images.noise(*size)
    spec = ImageInput(height=24, width=24, interpolation=interpolation)
    assert worst(pixels(images.bmp(image), spec), reference(image, spec)) <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_what_comes_out_is_what_the_batcher_stacks(kind, channels):
    spec = ImageInput(height=20, width=30, channels=channels)
    ours = decode(memoryview(images.encoded(images.gradient(), kind)), spec, max_pixels=MAX_PIXELS)
    assert ours.shape == spec.shape
    assert ours.dtype == np.uint8
    assert ours.flags.c_contiguous
    assert np.stack([ours, ours]).flags.writeable


def test_threads_may_decode_the_same_bytes():
    body, spec = images.photograph("rocket.jpg").read_bytes(), ImageInput(height=224, width=224)
    alone = pixels(body, spec)
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(pixels, [body] * 12, [spec] * 12))
    assert all(np.array_equal(alone, ours) for ours in together)


# Shortcuts.


def jpegs() -> dict[str, bytes]:
    """A photograph as every kind of JPEG that libjpeg-turbo tells apart, at sizes that fill no block."""
    photograph = Image.open(images.photograph("chelsea.png")).convert("RGB").resize((237, 161))
    gray = photograph.convert("L")
    found = {f"quality {quality}": images.jpeg(photograph, quality=quality) for quality in (1, 30, 75, 100)}
    found |= {f"gray at quality {quality}": images.jpeg(gray, quality=quality) for quality in (30, 95)}
    found |= {f"{n} restarts": images.jpeg(photograph, restart_marker_rows=n) for n in (1, 3)}
    found |= {f"{size}": images.jpeg(images.noise(*size)) for size in ((1, 1), (7, 9), (8, 8), (16, 17), (33, 15))}
    for name in ("4:4:4", "4:2:2", "4:2:0"):
        for progressive in (False, True):
            options = {"subsampling": name, "progressive": progressive}
            found[f"{name}, progressive: {progressive}"] = images.jpeg(photograph, **options)
    for name in ("440", "411"):  # which Pillow does not write
        found[name] = simplejpeg.encode_jpeg(np.asarray(photograph), colorsubsampling=name)
    found |= {"RGB": images.jpeg(photograph, keep_rgb=True), "optimized": images.jpeg(photograph, optimize=True)}
    found |= {path: images.photograph(path).read_bytes() for path in images.PHOTOGRAPHS if path.endswith(".jpg")}
    return found


def decoded(body: bytes, *, simd: bool, least_side: float = math.inf) -> np.ndarray:
    opened = imagefile.open_image(body, MAX_PIXELS, simd=simd, least_side=least_side)
    assert isinstance(opened.picture, Raster) == simd
    return opened.picture.pixels if simd else np.atleast_3d(np.asarray(opened.picture))


@pytest.mark.parametrize("name", jpegs())
def test_libjpeg_turbo_gives_the_bits_that_pillow_gives_in_full_and_reduced(name):
    body = jpegs()[name]
    for least_side in (math.inf, 1, 10, 20, 30, 50):
        quick = decoded(body, simd=True, least_side=least_side)
        assert np.array_equal(quick, decoded(body, simd=False, least_side=least_side))
    with Image.open(BytesIO(body)) as reference:
        assert np.array_equal(decoded(body, simd=True), np.atleast_3d(np.asarray(reference)))


LOSSLESS = """
import sys
from models.inputs import ImageInput
from service.images.preprocess import decode
from service.images.shortcuts import Shortcuts
from tests import images
spec = ImageInput(height=32, width=32, channels=1)
for side in (256, 512, 2048):
    found = decode(images.lossless_jpeg(side), spec, max_pixels=10**8, shortcuts=Shortcuts(simd=sys.argv[1] == "simd"))
    print(found.min(), found.max())
"""


@pytest.mark.parametrize("way", ["simd", "pillow"])
def test_what_libjpeg_turbo_cannot_scale_is_decoded_in_full(way):
    """Asked for a smaller scale, simplejpeg and Pillow wrote all of it into a smaller buffer: the process ended."""
    done = subprocess.run([sys.executable, "-c", LOSSLESS, way], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "128 128\n" * 3), done.stderr


@pytest.mark.parametrize(
    ("frame", "scalable"),
    [
        (b"\xff\xc0\0\x11\x08\0\x20\0\x30\3", ((48, 32), 3)),
        (b"\xff\xc1\0\x0b\x08\0\x20\0\x30\1", ((48, 32), 1)),
        (b"\xff\xc2\0\x11\x08\0\x20\0\x30\3", ((48, 32), 3)),
        *((bytes((0xFF, marker)) + b"\0\x11\x08\0\x20\0\x30\3", None) for marker in (0xC3, 0xC5, 0xC9, 0xCA, 0xCF)),
        (b"\xff\xc0\0\x11\x0c\0\x20\0\x30\3", None),  # 12 bits
        (b"\xff\xc0\0\x14\x08\0\x20\0\x30\4", None),  # CMYK
        (b"\xff\xc0\0\x0e\x08\0\x20\0\x30\2", None),
        (b"\xff\xc0\0\x11\x08\0\0\0\x30\3", None),  # its height comes later
        (b"\xff\xc0\0\x11", None),
        (b"", None),
    ],
)
def test_which_jpegs_libjpeg_turbo_can_scale(frame, scalable):
    assert imagefile._scalable(frame) == scalable


def test_a_jpeg_of_a_subsampling_that_simplejpeg_has_no_name_for_is_decoded():
    body = bytearray(images.jpeg(Image.new("RGB", (64, 32), (20, 200, 40)), subsampling="4:2:0"))
    frame = body.index(b"\xff\xc0")
    struct.pack_into(">HH", body, frame + 5, 64, 32)  # height and width: a unit is 8 wide and 32 high
    body[frame + 11] = 0x14  # 4:4:1: luma 1x4 instead of 2x2
    found = pixels(bytes(body), ImageInput(height=64, width=32, resize="stretch"))
    assert np.abs(found - (20, 200, 40)).max() <= 3


@pytest.mark.parametrize("kind", ["CMYK", "YCCK", "extraneous bytes"])
def test_pillow_judges_what_libjpeg_turbo_complains_of(kind):
    sound = images.jpeg(images.noise(64, 48))
    body = {
        "CMYK": images.jpeg(images.noise(64, 48).convert("CMYK")),
        "YCCK": images.ycck_jpeg(images.noise(64, 48)),
        "extraneous bytes": sound[:-2] + bytes(50) + sound[-2:],
    }[kind]
    stripped = imagefile._read_jpeg(body)
    scalable = imagefile._scalable(stripped.frame)
    assert scalable is None or raster.decode_jpeg(stripped.body, *scalable, 1) is None
    assert decoded(body, simd=True).shape == (48, 64, 3)
    pixels(body, ImageInput(height=20, width=20))


@pytest.mark.parametrize("interpolation", SMOOTH)
@pytest.mark.parametrize("name", images.PHOTOGRAPHS)
def test_on_photographs_simd_is_nearly_never_off(name, interpolation):
    body, spec = images.photograph(name).read_bytes(), ImageInput(height=299, width=299, interpolation=interpolation)
    difference = np.abs(outcome(body, spec, SIMD) - outcome(body, spec, EXACT))
    assert (difference > 0).mean() < 0.03
    assert (difference > 1).mean() < 1e-5


@pytest.mark.parametrize("simd", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_a_reduced_photograph_is_where_the_full_one_is(resize, orientation, simd):
    # A ramp: were the reduced picture anywhere else by a twentieth of a pixel, every value would show it.
    upright = images.gradient(1003, 805)
    body = images.jpeg(images.turned(upright, orientation), quality=100, exif=images.exif(orientation))
    spec = ImageInput(height=40, width=60, resize=resize)
    reduced = Shortcuts(simd=simd, margin=2.0)
    assert imagefile.open_image(body, MAX_PIXELS, least_side=reduced.least_side(spec)).reduction == 4
    difference = outcome(body, spec, reduced) - outcome(body, spec, EXACT)
    assert np.abs(difference.mean(axis=(0, 1))).max() < 0.12
    assert np.abs(difference).max() <= 3


@pytest.mark.parametrize(("side", "reduction"), [(127, 1), (128, 2), (255, 2), (256, 4), (511, 4), (512, 8), (2000, 8)])
def test_only_large_jpegs_are_reduced_and_never_for_nearest(side, reduction):
    spec, body = ImageInput(height=32, width=32, resize_to=32), images.jpeg(Image.new("RGB", (side, side)))
    for shortcuts in (Shortcuts(margin=2), Shortcuts(simd=False, margin=2)):
        least = shortcuts.least_side(spec)
        assert least == 64
        opened = imagefile.open_image(body, MAX_PIXELS, simd=shortcuts.simd, least_side=least)
        assert (opened.size, opened.reduction) == ((side, side), reduction)
        assert opened.picture.size == (-(-side // reduction),) * 2
    assert SIMD.least_side(spec) == math.inf
    assert Shortcuts().least_side(spec.model_copy(update={"interpolation": "nearest"})) == math.inf


def test_other_formats_are_never_reduced():
    body = images.png(Image.new("RGB", (800, 800)))
    assert imagefile.open_image(body, MAX_PIXELS, simd=True, least_side=10).reduction == 1


def test_without_the_libraries_pillow_does_it_all(monkeypatch):
    body, spec = images.photograph("rocket.jpg").read_bytes(), ImageInput(height=64, width=64)
    monkeypatch.setattr(raster, "IS_AVAILABLE", False)
    monkeypatch.delattr(raster, "simplejpeg")
    monkeypatch.delattr(raster, "Resizer")
    assert np.array_equal(outcome(body, spec, SIMD), outcome(body, spec, EXACT))


def test_other_threads_run_while_one_decodes_and_resizes():
    body = images.jpeg(Image.new("RGB", (4000, 4000)))
    spec = ImageInput(height=1500, width=1500, interpolation="lanczos")
    done = threading.Event()

    def work() -> None:
        outcome(body, spec, SIMD)
        done.set()

    thread, ticks = threading.Thread(target=work), 0
    thread.start()
    while not done.wait(0.001):
        ticks += 1
    thread.join()
    assert ticks > 10  # a few dozen; were the interpreter held all the time, two or three


# Orientation.


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", [(61, 47), (47, 61)])
def test_a_turned_picture_is_fitted_as_the_upright_one(orientation, interpolation, size):
    upright = images.noise(*size)
    body = images.png(images.turned(upright, orientation), exif=images.exif(orientation))
    for options in ({"height": 21, "width": 33, "resize_to": 40}, {"height": 21, "width": 33, "resize": "stretch"}):
        spec = ImageInput(interpolation=interpolation, **options)
        off = worst(pixels(body, spec), pixels(images.png(upright), spec))
        assert off <= {"nearest": 0, "bilinear": 2}.get(interpolation, 1)


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_format_with_exif_is_turned(kind, orientation, big_endian):
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    stored = images.turned(images.gradient(), orientation)
    body = images.encoded(stored, kind, exif=images.exif(orientation, big_endian=big_endian), **options)
    assert worst(at_own_size(body), np.asarray(images.gradient()).astype(int)) <= 3


@pytest.mark.parametrize(
    "exif",
    [
        images.exif(0),
        images.exif(9),
        images.exif(65_535),
        images.exif(6)[:-8],
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"Exif\0\0XX*\0" + images.exif(6)[10:],
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 65_535),
        b"Exif\0\0II*\0" + struct.pack("<IHHHII", 8, 1, 0x0112, 2, 6, 6),
    ],
)
def test_an_unreadable_orientation_leaves_the_picture_as_it_is(exif):
    body = images.with_segments(images.jpeg(images.gradient()), b"\xff\xe1" + exif)
    assert np.array_equal(at_own_size(body), at_own_size(images.jpeg(images.gradient())))


def test_an_orientation_among_other_tags_is_found():
    exif = Image.Exif()
    exif.update({0x010F: "Camera", 0x0110: "Model", 0x0112: 3, 0x0132: "2026:01:01 00:00:00"})
    body = images.png(images.turned(images.gradient(), 3), exif=exif)
    assert np.array_equal(at_own_size(body), np.asarray(images.gradient()))


# Colour.


def test_gray_gives_three_equal_channels_or_one():
    gray = images.gradient().convert("L")
    for kind in ("PNG", "JPEG"):
        body = images.encoded(gray, kind)
        one = at_own_size(body, channels=1)
        assert worst(one[..., 0], np.asarray(gray).astype(int)) <= 2
        assert np.array_equal(at_own_size(body), np.repeat(one, 3, axis=-1))


def test_colours_become_luma():
    luma = np.asarray(images.gradient().convert("L"))
    assert np.array_equal(at_own_size(images.png(images.gradient()), channels=1)[..., 0], luma)


@pytest.mark.parametrize("options", [{"progressive": True}, {"optimize": True}, {"subsampling": 0}, {"quality": 100}])
def test_every_jpeg_of_a_picture_looks_like_it(options):
    assert (
        worst(at_own_size(images.jpeg(images.gradient(), **options)), np.asarray(images.gradient()).astype(int)) <= 14
    )


def test_cmyk_is_inverted_as_adobe_stores_it():
    colours = Image.merge("CMYK", [*images.gradient().split(), Image.new("L", (96, 64), 40)])
    expected = np.asarray(colours.convert("RGB")).astype(int)
    assert worst(at_own_size(images.jpeg(colours, quality=100)), expected) <= 4


def test_ycck_is_the_picture_it_was_made_of():
    assert worst(at_own_size(images.ycck_jpeg(images.gradient())), np.asarray(images.gradient()).astype(int)) <= 6


def test_a_palette_is_resized_as_colours():
    image = images.gradient().quantize(16)
    spec = ImageInput(height=16, width=16)
    for kind in ("PNG", "GIF", "BMP"):
        assert worst(pixels(images.encoded(image, kind), spec), reference(image, spec)) <= 1


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_black_and_white_is_resized_as_gray(kind):
    image = images.gradient().convert("1")
    spec = ImageInput(height=16, width=16, channels=1)
    ours = pixels(images.encoded(image, kind), spec)
    assert worst(ours, reference(image, spec)) <= 1
    assert len(np.unique(ours)) > 2


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    alpha = alpha[..., None] / 255
    return np.rint(colours * alpha + 255 * (1 - alpha)).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_shows_white(kind):
    image = images.gradient()
    alpha = images.noise(96, 64, channels=1)
    image.putalpha(alpha)
    body = images.encoded(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    expected = on_white(np.asarray(image)[..., :3], np.asarray(alpha))
    assert worst(at_own_size(body), expected) <= 1


def test_colours_hidden_under_transparency_do_not_bleed_when_resized():
    hidden = np.zeros((64, 64, 4), np.uint8)
    hidden[:, ::2] = (255, 255, 255, 255)
    ours = pixels(images.png(Image.fromarray(hidden)), ImageInput(height=16, width=16, resize_to=16))
    assert ours.min() == 255


def test_gray_with_alpha():
    gray, alpha = images.gradient().convert("L"), images.noise(96, 64, channels=1)
    expected = on_white(np.asarray(gray)[..., None], np.asarray(alpha))
    assert worst(at_own_size(images.png(Image.merge("LA", [gray, alpha])), channels=1), expected) <= 1


@pytest.mark.parametrize("transparency", [3, bytes([255, 0, 128, 64])])
def test_a_palette_with_transparent_entries(transparency):
    indices = np.arange(96 * 64).reshape(64, 96) % 8
    palette = np.arange(24).reshape(8, 3) * 10
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette(palette.astype(np.uint8).tobytes())
    alpha = np.full(8, 255)
    if isinstance(transparency, int):
        alpha[transparency] = 0
    else:
        alpha[:4] = list(transparency)
    expected = on_white(palette[indices], alpha[indices])
    assert worst(at_own_size(images.png(image, transparency=transparency)), expected) <= 1
    if isinstance(transparency, int):
        assert worst(at_own_size(images.gif(image, transparency=transparency)), expected) == 0


@pytest.mark.parametrize(("mode", "key"), [("RGB", (0, 0, 255)), ("L", 29), ("1", 0)])
def test_one_transparent_colour(mode, key):
    image = images.gradient().convert(mode)
    if mode == "L":
        image.paste(key, (0, 0, 20, 20))
    body = images.png(image, transparency=key)
    values = np.asarray(image.convert("L" if mode == "1" else mode)).reshape(64, 96, -1)
    expected = np.where((values == key).all(axis=-1, keepdims=True), 255, values)
    assert (expected != values).any()
    assert np.array_equal(at_own_size(body), np.broadcast_to(expected, (64, 96, 3)))


def test_sixteen_bits_of_gray_are_scaled_and_rounded():
    values = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values / 257).astype(int)
    assert np.array_equal(at_own_size(images.png16(values[..., None]), (256, 256), 1)[..., 0], expected)


def test_sixteen_bits_with_a_transparent_level():
    values = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    body = images.png16(values[..., None], images.png_chunk(b"tRNS", struct.pack(">H", 1000)))
    ours = at_own_size(body, (256, 256), 1)[..., 0]
    assert ours[values == 1000] == 255
    assert ours[values == 1001] == 4


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bits_of_the_other_kinds(channels):
    values = np.random.default_rng(0).integers(0, 65_536, (64, 96, channels), dtype=np.uint16)
    colours = np.broadcast_to(values[..., : channels - (channels != 3)] / 257, (64, 96, 3))
    alpha = values[..., -1] / 257 if channels != 3 else np.full((64, 96), 255)
    assert worst(at_own_size(images.png16(values)), on_white(colours, alpha)) <= 2


def test_sixteen_bit_colours_with_a_transparent_one():
    values = np.random.default_rng(0).integers(0, 65_536, (64, 96, 3), dtype=np.uint16)
    body = images.png16(values, images.png_chunk(b"tRNS", struct.pack(">HHH", 65_535, 65_535, 65_535)))
    assert worst(at_own_size(body), np.rint(values / 257).astype(int)) <= 1


def test_an_interlaced_png():
    gray = images.gradient().convert("L")
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = [row for x, y, dx, dy in passes for row in np.asarray(gray)[y::dy, x::dx]]
    body = images.raw_png((96, 64), 8, 0, b"".join(b"\0" + row.tobytes() for row in rows))
    header = bytearray(body[12:29])
    header[-1] = 1
    body = body[:8] + images.png_chunk(b"IHDR", bytes(header[4:])) + body[33:]
    assert np.array_equal(at_own_size(body, channels=1)[..., 0], np.asarray(gray))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "MPO"])
def test_the_first_frame_is_the_picture(kind):
    first, second = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    ours = at_own_size(images.animation(kind, first, second), (32, 32))
    assert worst(ours, np.asarray(first).astype(int)) <= 3


# What is refused.


@pytest.mark.parametrize("body", [b"", memoryview(b"")])
def test_nothing_is_no_image(body):
    with pytest.raises(EmptyBody, match="no bytes"):
        decode(body, WHOLE, max_pixels=MAX_PIXELS)


@pytest.mark.parametrize("name", images.strangers())
def test_other_formats_are_unsupported(name):
    with pytest.raises(UnsupportedImage):
        pixels(images.strangers()[name], WHOLE)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_the_size_is_limited_to_the_pixel(kind):
    body = images.encoded(images.gradient(96, 64), kind)
    assert decode(body, WHOLE, max_pixels=96 * 64).shape == (64, 96, 3)
    with pytest.raises(ImageTooLarge, match="96x64, 6144 pixels; the limit is 6143"):
        decode(body, WHOLE, max_pixels=96 * 64 - 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("size", [(1, 101), (101, 1), (3, 400)])
def test_strips_are_refused(kind, size):
    with pytest.raises(UnsupportedAspectRatio, match="{}x{}".format(*size)):
        pixels(images.encoded(images.noise(*size), kind), WHOLE)


BOMBS = {
    "pixels in a PNG": images.bomb_png,
    "a PNG's header": images.lying_png,
    "a JPEG's header": images.lying_jpeg,
    "a progressive JPEG's header": lambda: images.lying_jpeg(progressive=True),
    "a GIF's frame": images.giant_gif,
    "a WebP's canvas": images.giant_webp,
    "a lossy WebP": lambda: images.webp(images.gradient())[:26] + b"\xff\x3f\xff\x3f" + bytes(64),
    "a lossless WebP": lambda: images.webp(images.gradient(), lossless=True)[:21] + b"\xff\xff\xff\x0f" + bytes(64),
    "a BMP's header": lambda: images.bmp(images.gradient())[:18] + b"\xff\xff\xff\x7f" * 2 + b"\1\0\x18" + bytes(64),
    "a BMP's run lengths": lambda: images.run_length_bmp(2000, 2000, b"\1\xff\0\0" * 2000),
    "a short BMP's many run lengths": lambda: images.run_length_bmp(10, 10, b"\xff\xff" * 2**20),
    "scans of a large JPEG": lambda: images.many_scans_jpeg(90, (4000, 4000)),
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_too_large(name):
    with pytest.raises(ImageTooLarge):
        pixels(BOMBS[name](), WHOLE)


def test_the_bomb_is_small():
    assert len(images.bomb_png()) < 120_000


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("count", [1, 2000])
def test_metadata_is_never_unpacked(kind, count):
    body = images.metadata_bomb_png(kind, count, unpacked=2**26 if count == 1 else 2**20)
    assert at_own_size(body, (1, 1)).tolist() == [[[255, 255, 255]]]


@pytest.mark.timeout(10)
def test_metadata_after_the_pixels_is_never_unpacked_either():
    body = images.metadata_bomb_png(b"zTXt")
    text = body[33 : body.index(b"IDAT") - 4]
    body = body[:33] + body[33 + len(text) : -12] + text + body[-12:]
    assert at_own_size(body, (1, 1)).tolist() == [[[255, 255, 255]]]


@pytest.mark.timeout(10)
def test_exif_is_never_parsed_as_a_whole():
    assert np.array_equal(at_own_size(images.exif_bomb_jpeg()), at_own_size(images.jpeg(images.gradient())))


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "body",
    [
        images.many_scans_jpeg(101),
        images.many_scans_jpeg(100_000),
        images.with_segments(images.jpeg(images.gradient()), *[b"\xff\xe1Exif\0\0"] * 100_000),
        images.with_segments(images.jpeg(images.gradient()), *[b"\xff\xfe"] * 100_000),
        b"\xff\xd8\xff" + bytes(2**22),
        b"\xff\xd8" + b"\xff" * 2**22,
        images.raw_png((1, 1), 8, 2, b"\0\0\0\0", *[images.png_chunk(b"teXt", b"")] * 100_000),
        b"GIF89a\x08\0\x08\0\0\0\0!\xfe" + b"\1a" * 2**21,
        b"GIF89a\x08\0\x08\0\0\0\0" + b"!" * 2**21,
    ],
    ids=["scans", "more scans", "EXIF", "comments", "zeros", "padding", "chunks", "GIF comments", "GIF extensions"],
)
def test_what_costs_more_than_it_weighs_is_refused(body):
    with pytest.raises(UndecodableImage):
        pixels(body, WHOLE)


@pytest.mark.parametrize("progressive", [False, True])
def test_as_many_scans_as_honest_files_have(progressive):
    body = images.jpeg(images.gradient(), progressive=progressive)
    assert np.array_equal(at_own_size(body + b"\xff\xda\0\x0c\x03" * (0 if progressive else 200)), at_own_size(body))
    assert isinstance(answer(images.many_scans_jpeg(80)), np.ndarray)


def test_a_baseline_jpeg_may_not_repeat_its_scans_either():
    body = images.jpeg(images.gradient(), subsampling=0)
    at = body.index(b"\xff\xda")
    one_component = b"\xff\xda\0\x08\1\1\0\0\x3f\0"
    assert isinstance(answer(body[:at] + one_component * 200 + body[at:]), UndecodableImage)


@pytest.mark.parametrize(
    "disguise", [b"\xff\xd0\0\x80", b"\xff\xd9\0\x80", b"\xff\x01\0\x80", b"\xff\xe0\0\0", b"\xff\xe0\0\1"]
)
def test_metadata_is_not_hidden_behind_a_marker_of_no_length(disguise):
    # Whoever takes the two bytes after a bare marker for a length skips what Pillow then reads.
    body = images.jpeg(images.gradient(), exif=images.exif(6))
    try:
        alone, *_ = imagefile._read_jpeg(body[:2] + disguise + body[2:])
    except ValueError:
        return
    assert b"Exif" not in alone


# What is broken.


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_at_any_marker(progressive):
    body = images.jpeg(images.gradient(), progressive=progressive, exif=images.exif(6))
    last_scan = body.rindex(b"\xff\xda")
    for marker in images.jpeg_markers(body):
        for cut in (marker, marker + 1, marker + 2, marker + 4):
            result = answer(body[:cut])
            if cut <= last_scan:
                assert isinstance(result, UndecodableImage | UnsupportedImage | EmptyBody), cut


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_file_cut_in_half(kind):
    body = images.encoded(images.noise(96, 64), kind)
    with pytest.raises(UndecodableImage, match=f"the {kind} is broken or was cut short"):
        pixels(body[: len(body) // 2], WHOLE)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_file_cut_anywhere(kind):
    body = images.encoded(images.gradient(16, 16), kind)
    whole = answer(body)
    for cut in range(len(body)):
        result = answer(body[:cut])
        assert isinstance(result, ServiceError) or result.shape == whole.shape


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(
        ["JPEG", "progressive", "PNG", "palette", "WEBP", "lossless", "GIF", "BMP", "run lengths", "turned"]
    ),
    st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=12),
)
def test_flipped_bytes_give_pixels_or_an_error(kind, flips):
    body = bytearray(SAMPLES[kind])
    for at, value in flips:
        # Half of the flips go into the first hundred bytes, where the structure is.
        body[(at % 100 if at % 2 else at) % len(body)] = value
    result = answer(bytes(body))
    assert isinstance(result, ServiceError) or result.shape == (16, 16, 3)


SAMPLES = {
    "JPEG": images.jpeg(images.gradient()),
    "progressive": images.jpeg(images.gradient(), progressive=True),
    "PNG": images.png(images.gradient(24, 16)),
    "palette": images.png(images.gradient(24, 16).quantize(8), transparency=bytes([0, 128])),
    "WEBP": images.webp(images.gradient()),
    "lossless": images.webp(images.gradient(24, 16), lossless=True, exif=images.exif(6)),
    "GIF": images.animation("GIF", images.gradient(24, 16), images.noise(24, 16)),
    "BMP": images.bmp(images.gradient(24, 16)),
    "run lengths": images.run_length_bmp(24, 16, b"\x18\x80\0\0" * 16 + b"\0\1"),
    "turned": images.jpeg(images.gradient(), exif=images.exif(6)),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_the_samples_are_sound_before_they_are_broken(kind):
    assert isinstance(answer(SAMPLES[kind]), np.ndarray)


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\1\0\0WEBPVP8 ", b"GIF89a", b"BM" + bytes(16)]),
    st.binary(max_size=400),
)
def test_noise_behind_a_signature_is_broken(signature, noise):
    assert isinstance(answer(signature + noise), ServiceError)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_polyglot_is_its_picture(kind):
    body = images.encoded(images.gradient(), kind)
    for tail in (images.strangers()["zip"], images.strangers()["html"], images.png(images.noise(8, 8))):
        assert np.array_equal(at_own_size(body + tail), at_own_size(body))


def test_an_error_tells_neither_paths_nor_the_librarys_words():
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        error = answer(SAMPLES[name][:60])
        assert isinstance(error, UndecodableImage)
        assert error.message == f"the {name} is broken or was cut short"
        assert error.__cause__ is not None  # for the log


def test_stray_bytes_between_segments_are_skipped_as_viewers_do():
    body, gif = images.jpeg(images.gradient()), images.gif(images.gradient())
    tables = body.index(b"\xff\xdb")
    assert np.array_equal(at_own_size(body[:tables] + b"\0\1stray\xff\xff" + body[tables:]), at_own_size(body))
    at = 13 + 3 * 256
    assert gif[10] & 0x87 == 0x87
    assert np.array_equal(at_own_size(gif[:at] + b"\0\0" + gif[at:]), at_own_size(gif))


def test_pillows_own_limit_is_off_and_broken_files_stay_errors():
    from PIL import ImageFile

    assert Image.MAX_IMAGE_PIXELS is None
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
