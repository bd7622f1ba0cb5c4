"""Compares the shortcuts of preprocessing with the library that trained the network, by pixels and by answers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from models.inputs import ImageInput
from service.errors import ServiceError
from service.images import raster
from service.images.preprocess import decode
from service.images.shortcuts import EXACT, Shortcuts
from service.inference.engine import Engine

Array = np.ndarray[Any, Any]

AS_SERVED = "as served"
_JPEG = b"\xff\xd8\xff"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How one shortcut compares, over some pictures."""

    pictures: int
    same_top1: int
    """Pictures with the same best class."""
    largest_difference: int
    """The largest of any value of any picture, out of 255."""
    mean_difference: float
    """The mean over all pictures, out of 255."""
    probability_difference: float
    """The largest of any class of any picture."""


def whole(body: bytes, spec: ImageInput) -> Array:
    """The reference, uint8 [height, width, channels]: Pillow decodes and resizes the whole picture, and then crops it.

    This is torchvision's arithmetic: Resize, then CenterCrop; or a single resize if the artifact stretches. It is
    written out here, and does not use models/pictures.py, because it is what that module is compared with.
    """
    with Image.open(BytesIO(body)) as image:
        picture = ImageOps.exif_transpose(image).convert("L" if spec.channels == 1 else "RGB")
    resampling = Image.Resampling[spec.interpolation.upper()]
    size = spec.width, spec.height
    if spec.resize == "stretch":
        return np.asarray(picture.resize(size, resampling)).reshape(spec.shape)
    short, long = spec.shorter_side, int(spec.shorter_side * max(picture.size) / min(picture.size))
    picture = picture.resize((short, long) if picture.width <= picture.height else (long, short), resampling)
    left, top = (round((old - new) / 2) for old, new in zip(picture.size, size, strict=True))
    return np.asarray(picture.crop((left, top, left + spec.width, top + spec.height))).reshape(spec.shape)


def measure(bodies: Iterable[bytes], spec: ImageInput, engine: Engine, shortcuts: Shortcuts) -> Mapping[str, Agreement]:
    """Compares each shortcut alone, and all together as they are served.

    Bodies that are not a JPEG, or that the server refuses, are left out.
    """
    variants = {"only what is cropped": EXACT}
    if shortcuts.simd and raster.IS_AVAILABLE:
        variants["SIMD"] = Shortcuts(simd=True, margin=0)
    if shortcuts.margin:
        variants[f"JPEG margin {shortcuts.margin:g}"] = Shortcuts(simd=False, margin=shortcuts.margin)
    variants[AS_SERVED] = shortcuts
    rows_of: dict[str, list[tuple[bool, int, float, float]]] = {name: [] for name in variants}
    for body in bodies:
        if not body.startswith(
            _JPEG
        ):  # for other formats only SIMD applies, and the reference does not handle transparency
            continue
        try:
            size = pixels_of(body)
            decoded = {name: decode(body, spec, max_pixels=size, shortcuts=each) for name, each in variants.items()}
            reference = whole(body, spec)
        except (ServiceError, OSError):
            continue
        wanted = engine.run(reference[np.newaxis])[0]
        for name, pixels in decoded.items():
            found = engine.run(pixels[np.newaxis])[0]
            difference = np.abs(reference.astype(int) - pixels)
            same = bool(found.argmax() == wanted.argmax())
            rows_of[name].append(
                (same, int(difference.max()), float(difference.mean()), float(np.abs(found - wanted).max()))
            )
    return {name: _summarize(rows) for name, rows in rows_of.items() if rows}


def _summarize(rows: list[tuple[bool, int, float, float]]) -> Agreement:
    same, largest, mean, probability = zip(*rows, strict=True)
    return Agreement(
        pictures=len(rows),
        same_top1=sum(same),
        largest_difference=max(largest),
        mean_difference=sum(mean) / len(rows),
        probability_difference=max(probability),
    )


def pixels_of(body: bytes) -> int:
    """The number of pixels of the picture."""
    with Image.open(BytesIO(body)) as image:
        return image.width * image.height
