"""AlexNet. Krizhevsky, Sutskever & Hinton, 2012. ImageNet classification with deep convolutional neural networks.

Without the paper's two groups (its two GPUs) and its local response normalisation.
"""

from collections import OrderedDict
from typing import Any

from models.architecture import Architecture, Builders
from models.inputs import NORMALIZATIONS, ImageInput
from models.zoo.pieces import count_features

# Figure 2: channels, kernel, stride, and whether 3x3 pooling of stride 2 follows.
CONVOLUTIONS = ((96, 11, 4, True), (256, 5, 1, True), (384, 3, 1, False), (384, 3, 1, False), (256, 3, 1, True))
DENSE = (4096, 4096)
DROPOUT = 0.5
EPSILON = 1e-3
NORMALIZED = 2  # number of pooling layers that batch normalisation follows, in the variants that use it


def torch_alexnet(
    shape: tuple[int, ...], num_classes: int, *, padding: int, normalized: bool = False, flat: bool = False
) -> Any:
    """`padding` is the first convolution's. `flat` names the layers 0, 1, 2.., else as `features` and `classifier`."""
    from torch import nn

    features: list[nn.Module] = []
    pools, channels = 0, shape[-1]
    for index, (width, kernel, stride, pooled) in enumerate(CONVOLUTIONS):
        features += [nn.Conv2d(channels, width, kernel, stride, kernel // 2 if index else padding), nn.ReLU()]
        if pooled:
            features.append(nn.MaxPool2d(3, stride=2))
            pools += 1
            if normalized and pools <= NORMALIZED:
                features.append(nn.BatchNorm2d(width, eps=EPSILON))
        channels = width
    classifier: list[nn.Module] = []
    channels = count_features(features, shape)
    for width in DENSE:
        dense = [nn.Linear(channels, width), nn.ReLU()]
        classifier += [*dense, nn.Dropout(DROPOUT)] if flat else [nn.Dropout(DROPOUT), *dense]
        channels = width
    classifier.append(nn.Linear(channels, num_classes))
    if flat:
        return nn.Sequential(*features, nn.Flatten(), *classifier)
    return nn.Sequential(
        OrderedDict(features=nn.Sequential(*features), flatten=nn.Flatten(), classifier=nn.Sequential(*classifier))
    )


def keras_alexnet(
    shape: tuple[int, ...], num_classes: int, *, padding: int, normalized: bool = False, flat: bool = False
) -> Any:
    """As `torch_alexnet`; the names of a Sequential's layers are their order, so `flat` is about dropout alone."""
    from keras import Sequential, layers

    net: list[layers.Layer] = [layers.Input(shape), layers.ZeroPadding2D(padding)]
    pools = 0
    for index, (width, kernel, stride, pooled) in enumerate(CONVOLUTIONS):
        net.append(layers.Conv2D(width, kernel, stride, "same" if index else "valid", activation="relu"))
        if pooled:
            net.append(layers.MaxPooling2D(3, strides=2))
            pools += 1
            if normalized and pools <= NORMALIZED:
                net.append(layers.BatchNormalization(epsilon=EPSILON))
    net.append(layers.Flatten())
    for width in DENSE:
        dense, dropout = layers.Dense(width, activation="relu"), layers.Dropout(DROPOUT)
        net += [dense, dropout] if flat else [dropout, dense]
    net.append(layers.Dense(num_classes))
    return Sequential(net)


BUILDERS: Builders = {"torch": torch_alexnet, "keras": keras_alexnet}
PAPER = "Krizhevsky et al., 2012, doi:10.1145/3065386"

ARCHITECTURES = (
    Architecture(
        name="alexnet",
        paper=PAPER,
        input=ImageInput(height=224, width=224, **NORMALIZATIONS["torch"]),
        num_classes=1000,
        parameters=62_378_344,
        builders=BUILDERS,
        options={"padding": 2},
    ),
    # Batch normalisation after the first two pooling layers, instead of the paper's local response normalisation.
    Architecture(
        name="alexnet_bn",
        paper=PAPER,
        input=ImageInput(height=227, width=227, **NORMALIZATIONS["torch"]),
        num_classes=1000,
        parameters=62_379_048,
        statistics=704,
        builders=BUILDERS,
        options={"padding": 0, "normalized": True, "flat": True},
    ),
    # One channel, ten classes, and one pixel of padding, as for Fashion-MNIST in "Dive into Deep Learning".
    Architecture(
        name="alexnet_gray",
        paper=PAPER,
        input=ImageInput(height=224, width=224, channels=1),
        num_classes=10,
        parameters=46_764_746,
        builders=BUILDERS,
        options={"padding": 1, "flat": True},
    ),
)
