"""Items to try a model with: built-in photographs, or random numbers with a fixed seed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.artifact.artifact import SAMPLES
from models.inputs import ImageInput, Input


def sample_items(item: Input) -> NDArray[Any]:
    """The built-in photographs as the served graph takes them; for numbers, a normal sample with a fixed seed."""
    if not isinstance(item, ImageInput):
        return item.samples()
    mode = "RGB" if item.channels == 3 else "L"  # noqa: PLR2004
    size = (item.width, item.height)
    pictures = []
    for path in sorted(SAMPLES.glob("*.[jp][pn]g")):
        with Image.open(path) as picture:
            pictures.append(np.asarray(picture.convert(mode).resize(size, Image.Resampling.BILINEAR)))
    return np.stack(pictures).reshape(-1, *item.shape)
