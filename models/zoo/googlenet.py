"""GoogLeNet (Inception v1). Szegedy et al., 2014. Going deeper with convolutions.

Without the paper's auxiliary classifiers (for training alone) and its local response normalisation.
"""

from typing import Any

from models.architecture import Architecture, Builders
from models.inputs import NORMALIZATIONS, ImageInput
from models.zoo.pieces import count_features, same_conv2d

# Table 1: channels of the four paths (1x1; 1x1 to 3x3; 1x1 to 5x5; pooling to 1x1) of the Inception blocks. There is
# pooling between the stages.
STAGES = (
    ((64, (96, 128), (16, 32), 32), (128, (128, 192), (32, 96), 64)),
    (
        (192, (96, 208), (16, 48), 64),
        (160, (112, 224), (24, 64), 64),
        (128, (128, 256), (24, 64), 64),
        (112, (144, 288), (32, 64), 64),
        (256, (160, 320), (32, 128), 128),
    ),
    ((256, (160, 320), (32, 128), 128), (384, (192, 384), (48, 128), 128)),
)
Paths = tuple[int, tuple[int, int], tuple[int, int], int]


def torch_googlenet(shape: tuple[int, ...], num_classes: int) -> Any:
    """Takes [N, channels, height, width], returns logits [N, num_classes]."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Inception(nn.Module):
        def __init__(self, channels: int, c1: int, c2: tuple[int, int], c3: tuple[int, int], c4: int) -> None:
            super().__init__()
            self.p1_1 = nn.Conv2d(channels, c1, kernel_size=1)
            self.p2_1 = nn.Conv2d(channels, c2[0], kernel_size=1)
            self.p2_2 = nn.Conv2d(c2[0], c2[1], kernel_size=3, padding=1)
            self.p3_1 = nn.Conv2d(channels, c3[0], kernel_size=1)
            self.p3_2 = nn.Conv2d(c3[0], c3[1], kernel_size=5, padding=2)
            self.p4_1 = nn.MaxPool2d(3, stride=1, padding=1)
            self.p4_2 = nn.Conv2d(channels, c4, kernel_size=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            p1 = F.relu(self.p1_1(x))
            p2 = F.relu(self.p2_2(F.relu(self.p2_1(x))))
            p3 = F.relu(self.p3_2(F.relu(self.p3_1(x))))
            p4 = F.relu(self.p4_2(self.p4_1(x)))
            return torch.cat((p1, p2, p3, p4), dim=1)

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, stride=2, padding=1)

    def stage(channels: int, blocks: tuple[Paths, ...]) -> tuple[list[nn.Module], int]:
        made: list[nn.Module] = []
        for block in blocks:
            made.append(Inception(channels, *block))
            channels = width_of(block)
        return made, channels

    stem = nn.Sequential(nn.Conv2d(shape[-1], 64, kernel_size=7, stride=2, padding=3), nn.ReLU(), pool())
    convolutions = [
        nn.Conv2d(64, 64, kernel_size=1),
        nn.ReLU(),
        nn.Conv2d(64, 192, kernel_size=3, padding=1),
        nn.ReLU(),
    ]
    b3, channels = stage(192, STAGES[0])
    b4, channels = stage(channels, STAGES[1])
    b5, channels = stage(channels, STAGES[2])
    return nn.Sequential(
        stem,
        nn.Sequential(*convolutions, pool()),
        nn.Sequential(*b3, pool()),
        nn.Sequential(*b4, pool()),
        nn.Sequential(*b5, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(channels, num_classes),
    )


def keras_googlenet(shape: tuple[int, ...], num_classes: int) -> Any:
    """Takes [N, height, width, channels], returns logits [N, num_classes]."""
    from keras import Model, layers

    def convolution(x: Any, width: int, kernel: int, name: str) -> Any:
        return layers.Conv2D(width, kernel, padding="same", activation="relu", name=name)(x)

    def inception(x: Any, name: str, c1: int, c2: tuple[int, int], c3: tuple[int, int], c4: int) -> Any:
        p1 = convolution(x, c1, 1, f"{name}.p1_1")
        p2 = convolution(convolution(x, c2[0], 1, f"{name}.p2_1"), c2[1], 3, f"{name}.p2_2")
        p3 = convolution(convolution(x, c3[0], 1, f"{name}.p3_1"), c3[1], 5, f"{name}.p3_2")
        p4 = convolution(layers.MaxPooling2D(3, strides=1, padding="same")(x), c4, 1, f"{name}.p4_2")
        return layers.Concatenate()([p1, p2, p3, p4])

    def pool(x: Any) -> Any:
        # Nothing before it is below zero, so zeros at the border never are the maximum.
        return layers.MaxPooling2D(3, strides=2)(layers.ZeroPadding2D(1)(x))

    def stage(x: Any, name: str, blocks: tuple[Paths, ...]) -> Any:
        for index, block in enumerate(blocks):
            x = inception(x, f"{name}.{index}", *block)
        return x

    pixels = layers.Input(shape)
    x = layers.Conv2D(64, 7, strides=2, activation="relu", name="0.0")(layers.ZeroPadding2D(3)(pixels))
    x = convolution(pool(x), 64, 1, "1.0")
    x = convolution(x, 192, 3, "1.2")
    x = stage(pool(x), "2", STAGES[0])
    x = stage(pool(x), "3", STAGES[1])
    x = stage(pool(x), "4", STAGES[2])
    x = layers.GlobalAveragePooling2D()(x)
    return Model(pixels, layers.Dense(num_classes, name="5")(x))


def width_of(block: Paths) -> int:
    """Channels of an Inception block: those of its four paths together."""
    c1, c2, c3, c4 = block
    return c1 + c2[1] + c3[1] + c4


# "Inception as a plain stack" of one path: channels, kernel and stride of each convolution, or 3x3 pooling and stride.
STACK: tuple[tuple[Any, ...], ...] = (
    (64, 7, 2),
    ("max", 2),
    (192, 3, 1),
    ("max", 2),
    (128, 1, 1),
    (256, 3, 1),
    (256, 3, 1),
    ("average", 1),
    (128, 1, 1),
    (256, 3, 1),
    ("average", 1),
)
STACK_DENSE = 1024


def torch_inception_stack(shape: tuple[int, ...], num_classes: int) -> Any:
    """Takes [N, channels, height, width], returns logits [N, num_classes]."""
    from torch import nn

    pooling = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}
    net: list[nn.Module] = []
    channels = shape[-1]
    for row in STACK:
        match row:
            case (width, kernel, stride):
                net += [same_conv2d(channels, width, kernel, stride), nn.ReLU()]
                channels = width
            case (kind, stride):
                net.append(pooling[kind](3, stride=stride))
    channels = count_features(net, shape)
    net += [nn.Flatten(), nn.Linear(channels, STACK_DENSE), nn.ReLU(), nn.Linear(STACK_DENSE, num_classes)]
    return nn.Sequential(*net)


def keras_inception_stack(shape: tuple[int, ...], num_classes: int) -> Any:
    """Takes [N, height, width, channels], returns logits [N, num_classes]."""
    from keras import Sequential, layers

    pooling = {"max": layers.MaxPooling2D, "average": layers.AveragePooling2D}
    net: list[layers.Layer] = [layers.Input(shape)]
    for row in STACK:
        match row:
            case (width, kernel, stride):
                net.append(layers.Conv2D(width, kernel, stride, padding="same", activation="relu"))
            case (kind, stride):
                net.append(pooling[kind](3, strides=stride))
    net += [layers.Flatten(), layers.Dense(STACK_DENSE, activation="relu"), layers.Dense(num_classes)]
    return Sequential(net)


BUILDERS: Builders = {"torch": torch_googlenet, "keras": keras_googlenet}
PAPER = "Szegedy et al., 2014, arXiv:1409.4842"

ARCHITECTURES = (
    Architecture(
        name="googlenet",
        paper=PAPER,
        input=ImageInput(height=224, width=224, **NORMALIZATIONS["torch"]),
        num_classes=1000,
        parameters=6_998_552,
        builders=BUILDERS,
    ),
    # One channel, ten classes and a smaller picture, as for Fashion-MNIST in "Dive into Deep Learning".
    Architecture(
        name="googlenet_gray",
        paper=PAPER,
        input=ImageInput(height=96, width=96, channels=1),
        num_classes=10,
        parameters=5_977_530,
        builders=BUILDERS,
    ),
    # A tutorial's idea of Inception: one path, no concatenation, and nearly all of its parameters in a dense layer.
    Architecture(
        name="inception_stack",
        paper=PAPER,
        input=ImageInput(height=224, width=224, **NORMALIZATIONS["torch"]),
        num_classes=1000,
        parameters=141_058_472,
        builders={"torch": torch_inception_stack, "keras": keras_inception_stack},
    ),
)
