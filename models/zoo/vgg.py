"""VGG. Simonyan & Zisserman, 2014. Very deep convolutional networks for large-scale image recognition."""

from typing import Any

from models.architecture import Architecture, Builders
from models.inputs import NORMALIZATIONS, ImageInput
from models.zoo.pieces import count_features

# Table 1: convolutions of each block (3x3, then 2x2 pooling) and their channels.
BLOCKS = {
    "vgg11": ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512)),
    "vgg13": ((2, 64), (2, 128), (2, 256), (2, 512), (2, 512)),
    "vgg16": ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)),
    "vgg19": ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512)),
}
DENSE = (4096, 4096)
DROPOUT = 0.5

# Table 2 counts them in millions, 133 to 144; the second column is for one channel and ten classes.
PARAMETERS = {
    "vgg11": (132_863_336, 128_806_154),
    "vgg13": (133_047_848, 128_990_666),
    "vgg16": (138_357_544, 134_300_362),
    "vgg19": (143_667_240, 139_610_058),
}


def torch_vgg(shape: tuple[int, ...], num_classes: int, *, blocks: tuple[tuple[int, int], ...]) -> Any:
    """Takes [N, channels, height, width], returns logits [N, num_classes]."""
    from torch import nn

    net: list[nn.Module] = []
    channels = shape[-1]
    for convolutions, width in blocks:
        block: list[nn.Module] = []
        for _ in range(convolutions):
            block += [nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.ReLU()]
            channels = width
        net.append(nn.Sequential(*block, nn.MaxPool2d(2)))
    channels = count_features(net, shape)
    net.append(nn.Flatten())
    for width in DENSE:
        net += [nn.Linear(channels, width), nn.ReLU(), nn.Dropout(DROPOUT)]
        channels = width
    net.append(nn.Linear(channels, num_classes))
    return nn.Sequential(*net)


def keras_vgg(shape: tuple[int, ...], num_classes: int, *, blocks: tuple[tuple[int, int], ...]) -> Any:
    """Takes [N, height, width, channels], returns logits [N, num_classes]."""
    from keras import Sequential, layers

    net: list[layers.Layer] = [layers.Input(shape)]
    for convolutions, width in blocks:
        net += [layers.Conv2D(width, 3, padding="same", activation="relu") for _ in range(convolutions)]
        net.append(layers.MaxPooling2D(2))
    net.append(layers.Flatten())
    for width in DENSE:
        net += [layers.Dense(width, activation="relu"), layers.Dropout(DROPOUT)]
    net.append(layers.Dense(num_classes))
    return Sequential(net)


BUILDERS: Builders = {"torch": torch_vgg, "keras": keras_vgg}
PAPER = "Simonyan & Zisserman, 2014, arXiv:1409.1556"

ARCHITECTURES = (
    *(
        Architecture(
            name=name,
            paper=PAPER,
            input=ImageInput(height=224, width=224, **NORMALIZATIONS["torch"]),
            num_classes=1000,
            parameters=PARAMETERS[name][0],
            builders=BUILDERS,
            options={"blocks": blocks},
        )
        for name, blocks in BLOCKS.items()
    ),
    # One channel and ten classes, as for Fashion-MNIST in "Dive into Deep Learning".
    *(
        Architecture(
            name=f"{name}_gray",
            paper=PAPER,
            input=ImageInput(height=224, width=224, channels=1),
            num_classes=10,
            parameters=PARAMETERS[name][1],
            builders=BUILDERS,
            options={"blocks": blocks},
        )
        for name, blocks in BLOCKS.items()
    ),
)
