"""What preprocessing does faster than the library that trained the network does it."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from models.inputs import ImageInput

if TYPE_CHECKING:  # a decoder has no settings, and need not load what reads them
    from service.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Shortcuts:
    """Each is on by default where it changed no answer; the README shows what was measured."""

    simd: bool = True
    """Decode and resize by `service/images/raster.py`, where its libraries are installed."""
    margin: float = 4.0
    """Decode a JPEG at 1/2, 1/4 or 1/8 where so many times the artifact's pixels are left of each side; 0: never."""

    @classmethod
    def of(cls, settings: "Settings") -> Self:
        """What the settings allow."""
        return cls(simd=settings.simd, margin=settings.jpeg_margin)

    def least_side(self, spec: ImageInput) -> float:
        """What must be left of a picture's shorter side, in pixels."""
        if self.margin == 0 or spec.interpolation == "nearest":  # nearest is some pixel itself, and no mean
            return math.inf
        return self.margin * (spec.shorter_side if spec.resize == "crop" else max(spec.height, spec.width))


EXACT = Shortcuts(simd=False, margin=0)
"""Pillow alone, every pixel decoded."""
