"""Options that make preprocessing faster than that of the library that trained the network."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from models.inputs import ImageInput

if TYPE_CHECKING:  # a decoder has no settings, and need not import the module
    from service.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Shortcuts:
    """A shortcut is on by default if it changed no answer in the measurements of docs/explanation/fidelity.md."""

    simd: bool = True
    """Decode and resize with `service/images/raster.py`, if its libraries are installed."""
    margin: float = 4.0
    """Decode a JPEG at 1/2, 1/4 or 1/8, if each side then still has this many times the artifact's pixels; 0: never."""

    @classmethod
    def of(cls, settings: "Settings") -> Self:
        """The shortcuts that the settings allow."""
        return cls(simd=settings.simd, margin=settings.jpeg_margin)

    def least_side(self, spec: ImageInput) -> float:
        """The least length of a reduced picture's shorter side, in pixels."""
        if self.margin == 0 or spec.interpolation == "nearest":  # nearest picks single pixels, and takes no mean
            return math.inf
        return self.margin * (spec.shorter_side if spec.resize == "crop" else max(spec.height, spec.width))


EXACT = Shortcuts(simd=False, margin=0)
"""Pillow alone, every pixel decoded."""
