"""NiN. Lin, Chen & Yan, 2013. Network in network."""

from typing import Any

from models.architecture import Architecture, Builders
from models.inputs import NORMALIZATIONS, ImageInput

# AlexNet's convolutions, each with two of 1x1 after it: channels, kernel, stride, padding. 3x3 pooling follows each.
BLOCKS = ((96, 11, 4, 0), (256, 5, 1, 2), (384, 3, 1, 1))
LAST = (3, 1, 1)  # kernel, stride and padding of the block that has a channel for each class
DROPOUT = 0.5


def torch_nin(shape: tuple[int, ...], num_classes: int) -> Any:
    """Takes [N, channels, height, width], returns logits [N, num_classes]."""
    from torch import nn

    def block(channels: int, width: int, kernel: int, stride: int, padding: int) -> nn.Module:
        pointwise = [each for _ in range(2) for each in (nn.Conv2d(width, width, kernel_size=1), nn.ReLU())]
        return nn.Sequential(nn.Conv2d(channels, width, kernel, stride, padding), nn.ReLU(), *pointwise)

    net: list[nn.Module] = []
    channels = shape[-1]
    for width, kernel, stride, padding in BLOCKS:
        net += [block(channels, width, kernel, stride, padding), nn.MaxPool2d(3, stride=2)]
        channels = width
    net += [nn.Dropout(DROPOUT), block(channels, num_classes, *LAST), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*net)


def keras_nin(shape: tuple[int, ...], num_classes: int) -> Any:
    """Takes [N, height, width, channels], returns logits [N, num_classes]."""
    from keras import Sequential, layers

    def block(width: int, kernel: int, stride: int, padding: int) -> list[layers.Layer]:
        pointwise = [layers.Conv2D(width, 1, activation="relu") for _ in range(2)]
        first = layers.Conv2D(width, kernel, stride, "same" if padding else "valid", activation="relu")
        return [first, *pointwise]

    net: list[layers.Layer] = [layers.Input(shape)]
    for width, kernel, stride, padding in BLOCKS:
        net += [*block(width, kernel, stride, padding), layers.MaxPooling2D(3, strides=2)]
    net += [layers.Dropout(DROPOUT), *block(num_classes, *LAST), layers.GlobalAveragePooling2D()]
    return Sequential(net)


BUILDERS: Builders = {"torch": torch_nin, "keras": keras_nin}
PAPER = "Lin, Chen & Yan, 2013, arXiv:1312.4400"

ARCHITECTURES = (
    Architecture(
        name="nin",
        paper=PAPER,
        input=ImageInput(height=224, width=224, **NORMALIZATIONS["torch"]),
        num_classes=1000,
        parameters=7_439_608,
        builders=BUILDERS,
    ),
    # One channel and ten classes, as for Fashion-MNIST in "Dive into Deep Learning".
    Architecture(
        name="nin_gray",
        paper=PAPER,
        input=ImageInput(height=224, width=224, channels=1),
        num_classes=10,
        parameters=1_992_166,
        builders=BUILDERS,
    ),
)
