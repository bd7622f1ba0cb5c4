"""DenseNet. Huang, Liu, van der Maaten & Weinberger, 2016. Densely connected convolutional networks.

Layers are named as torchvision's are, so its checkpoints fit.
"""

from collections import OrderedDict
from typing import Any

from models.architecture import Architecture
from models.inputs import NORMALIZATIONS, ImageInput

# Table 1: growth rate k, and how many layers there are in each dense block. The stem has 2k channels.
BLOCKS = {
    "densenet121": (32, (6, 12, 24, 16)),
    "densenet161": (48, (6, 12, 36, 24)),
    "densenet169": (32, (6, 12, 32, 32)),
    "densenet201": (32, (6, 12, 48, 32)),
}
BOTTLENECK = 4  # channels of a layer's 1x1 convolution, as a multiple of the growth rate
COMPRESSION = 2  # a transition divides the number of channels by it

# Trainable parameters, and the running statistics beside them.
PARAMETERS = {
    "densenet121": (7_978_856, 83_648),
    "densenet161": (28_681_000, 219_936),
    "densenet169": (14_149_480, 158_400),
    "densenet201": (20_013_928, 229_056),
}


def torch_densenet(shape: tuple[int, ...], num_classes: int, *, growth: int, blocks: tuple[int, ...]) -> Any:
    """Takes [N, channels, height, width], returns logits [N, num_classes]."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    def convolution(channels: int, width: int, kernel: int) -> nn.Module:
        return nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)

    class DenseLayer(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.norm1 = nn.BatchNorm2d(channels)
            self.conv1 = convolution(channels, BOTTLENECK * growth, 1)
            self.norm2 = nn.BatchNorm2d(BOTTLENECK * growth)
            self.conv2 = convolution(BOTTLENECK * growth, growth, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv1(F.relu(self.norm1(x)))
            y = self.conv2(F.relu(self.norm2(y)))
            return torch.cat((x, y), dim=1)

    def transition(channels: int) -> nn.Module:
        norm, conv = nn.BatchNorm2d(channels), convolution(channels, channels // COMPRESSION, 1)
        return nn.Sequential(OrderedDict(norm=norm, relu=nn.ReLU(), conv=conv, pool=nn.AvgPool2d(2)))

    channels = 2 * growth
    features = nn.Sequential()
    features.add_module("conv0", nn.Conv2d(shape[-1], channels, kernel_size=7, stride=2, padding=3, bias=False))
    features.add_module("norm0", nn.BatchNorm2d(channels))
    features.add_module("relu0", nn.ReLU())
    features.add_module("pool0", nn.MaxPool2d(3, stride=2, padding=1))
    for number, count in enumerate(blocks, 1):
        block = nn.Sequential()
        for index in range(1, count + 1):
            block.add_module(f"denselayer{index}", DenseLayer(channels))
            channels += growth
        features.add_module(f"denseblock{number}", block)
        if number < len(blocks):
            features.add_module(f"transition{number}", transition(channels))
            channels //= COMPRESSION
    features.add_module("norm5", nn.BatchNorm2d(channels))
    net = nn.Sequential(OrderedDict(features=features, relu=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1)))
    net.add_module("flatten", nn.Flatten())
    net.add_module("classifier", nn.Linear(channels, num_classes))
    return net


def keras_densenet(shape: tuple[int, ...], num_classes: int, *, growth: int, blocks: tuple[int, ...]) -> Any:
    """Takes [N, height, width, channels], returns logits [N, num_classes]."""
    from keras import Model, layers

    def convolution(x: Any, width: int, kernel: int, name: str) -> Any:
        return layers.Conv2D(width, kernel, padding="same", use_bias=False, name=name)(x)

    def activated(x: Any, name: str) -> Any:
        return layers.Activation("relu")(layers.BatchNormalization(epsilon=1e-5, name=name)(x))

    def dense_layer(x: Any, name: str) -> Any:
        y = convolution(activated(x, f"{name}.norm1"), BOTTLENECK * growth, 1, f"{name}.conv1")
        y = convolution(activated(y, f"{name}.norm2"), growth, 3, f"{name}.conv2")
        return layers.Concatenate()([x, y])

    def transition(x: Any, name: str) -> Any:
        x = convolution(activated(x, f"{name}.norm"), x.shape[-1] // COMPRESSION, 1, f"{name}.conv")
        return layers.AveragePooling2D(2)(x)

    pixels = layers.Input(shape)
    x = layers.ZeroPadding2D(3)(pixels)
    x = layers.Conv2D(2 * growth, 7, strides=2, use_bias=False, name="features.conv0")(x)
    x = activated(x, "features.norm0")
    # ReLU comes before it, so zeros at the border never are the maximum.
    x = layers.MaxPooling2D(3, strides=2)(layers.ZeroPadding2D(1)(x))
    for number, count in enumerate(blocks, 1):
        for index in range(1, count + 1):
            x = dense_layer(x, f"features.denseblock{number}.denselayer{index}")
        if number < len(blocks):
            x = transition(x, f"features.transition{number}")
    x = layers.GlobalAveragePooling2D()(activated(x, "features.norm5"))
    return Model(pixels, layers.Dense(num_classes, name="classifier")(x))


ARCHITECTURES = tuple(
    Architecture(
        name=name,
        paper="Huang et al., 2016, arXiv:1608.06993",
        input=ImageInput(height=224, width=224, **NORMALIZATIONS["torch"]),
        num_classes=1000,
        parameters=PARAMETERS[name][0],
        statistics=PARAMETERS[name][1],
        builders={"torch": torch_densenet, "keras": keras_densenet},
        options={"growth": growth, "blocks": blocks},
    )
    for name, (growth, blocks) in BLOCKS.items()
)
