"""Multilayer perceptrons. Rumelhart, Hinton & Williams, 1986. Learning representations by back-propagating errors."""

from typing import Any

from models.architecture import Architecture
from models.inputs import NumbersInput

# Inputs, then the width of each hidden layer; the iris network of the Keras tutorials: 4-16-3.
LAYERS = {"mlp_iris": (4, 16)}


def torch_mlp_iris(num_classes: int = 3) -> Any:
    """Takes [N, 4], gives logits [N, num_classes]."""
    from torch import nn

    features, *widths = LAYERS["mlp_iris"]
    net: list[nn.Module] = []
    for width in widths:
        net += [nn.Linear(features, width), nn.ReLU()]
        features = width
    net.append(nn.Linear(features, num_classes))
    return nn.Sequential(*net)


def keras_mlp_iris(num_classes: int = 3) -> Any:
    """Takes [N, 4], gives logits [N, num_classes]."""
    from keras import Sequential, layers

    features, *widths = LAYERS["mlp_iris"]
    net: list[layers.Layer] = [layers.Input((features,))]
    net += [layers.Dense(width, activation="relu") for width in widths]
    net.append(layers.Dense(num_classes))
    return Sequential(net)


ARCHITECTURES = (
    Architecture(
        name="mlp_iris",
        paper="Rumelhart, Hinton & Williams, 1986, doi:10.1038/323533a0",
        input=NumbersInput(shape=(4,)),
        num_classes=3,
        parameters=131,
        builders={"torch": torch_mlp_iris, "keras": keras_mlp_iris},
    ),
)
