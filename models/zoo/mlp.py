"""Multilayer perceptrons. Rumelhart, Hinton & Williams, 1986. Learning representations by back-propagating errors."""

from collections import OrderedDict
from math import prod
from typing import Any

from models.architecture import Architecture, Builders
from models.inputs import ImageInput, NumbersInput


def torch_mlp(shape: tuple[int, ...], num_classes: int, *, hidden: tuple[int, ...]) -> Any:
    """Takes numbers, [N, ...], or images, [N, channels, height, width]; returns logits [N, num_classes]."""
    import torch
    from torch import nn

    class Flatten(nn.Module):
        """Reads an image pixel by pixel, as Keras does, not channel by channel."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.permute(0, 2, 3, 1) if len(shape) == 3 else x).flatten(1)  # noqa: PLR2004

    net: OrderedDict[str, nn.Module] = OrderedDict(flatten=Flatten())
    features = prod(shape)
    for index, width in enumerate(hidden, 1):
        net[f"fc{index}"] = nn.Linear(features, width)
        net[f"relu{index}"] = nn.ReLU()
        features = width
    net[f"fc{len(hidden) + 1}"] = nn.Linear(features, num_classes)
    return nn.Sequential(net)


def keras_mlp(shape: tuple[int, ...], num_classes: int, *, hidden: tuple[int, ...]) -> Any:
    """Takes numbers, [N, ...], or images, [N, height, width, channels]; returns logits [N, num_classes]."""
    from keras import Sequential, layers

    net: list[layers.Layer] = [layers.Input(shape), layers.Flatten()]
    net += [layers.Dense(width, activation="relu") for width in hidden]
    net.append(layers.Dense(num_classes))
    return Sequential(net)


BUILDERS: Builders = {"torch": torch_mlp, "keras": keras_mlp}
PAPER = "Rumelhart, Hinton & Williams, 1986, doi:10.1038/323533a0"

ARCHITECTURES = (
    # The four measures of Fisher's irises, and three kinds of them.
    Architecture(
        name="mlp_iris",
        paper=PAPER,
        input=NumbersInput(shape=(4,)),
        num_classes=3,
        parameters=131,
        builders=BUILDERS,
        options={"hidden": (16,)},
    ),
    # One output for two classes.
    Architecture(
        name="mlp_binary",
        paper=PAPER,
        input=NumbersInput(shape=(10,)),
        num_classes=2,
        parameters=769,
        builders=BUILDERS,
        options={"hidden": (64,)},
        output="logit",
    ),
    # An image, pixel by pixel.
    Architecture(
        name="mlp_image",
        paper=PAPER,
        input=ImageInput(height=28, width=28, channels=1, resize="stretch"),
        num_classes=10,
        parameters=203_530,
        builders=BUILDERS,
        options={"hidden": (256,)},
    ),
)
