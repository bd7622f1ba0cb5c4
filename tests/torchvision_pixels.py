"""Pictures as torchvision fits them: the pixels that ours are compared with."""

import numpy as np
from PIL import Image
from torchvision import transforms

from models.inputs import ImageInput


def reference(image: Image.Image, spec: ImageInput) -> np.ndarray:
    """The picture as torchvision fits it."""
    mode = transforms.InterpolationMode(spec.interpolation)
    steps = [transforms.Resize(spec.shorter_side, mode), transforms.CenterCrop((spec.height, spec.width))]
    if spec.resize == "stretch":
        steps = [transforms.Resize((spec.height, spec.width), mode)]
    fitted = transforms.Compose(steps)(image.convert("L" if spec.channels == 1 else "RGB"))
    return np.asarray(fitted).astype(int).reshape(spec.shape)
