"""LeNet-5. LeCun, Bottou, Bengio & Haffner, 1998. Gradient-based learning applied to document recognition.

The subsampling layers are plain averages, the activations ReLU and the output a dense layer of logits: what "LeNet"
has come to mean. The paper's were averages with a trained scale, tanh, and radial basis functions.
"""

from typing import Any

from models.architecture import Architecture
from models.inputs import ImageInput
from models.zoo.pieces import count_features

# Section II.B: channels of C1 and C3 (5x5 each), then the widths of C5 and F6.
CONVOLUTIONS = (6, 16)
DENSE = (120, 84)


def torch_lenet5(shape: tuple[int, ...], num_classes: int) -> Any:
    """Takes [N, channels, height, width], returns logits [N, num_classes]."""
    from torch import nn

    net: list[nn.Module] = []
    channels = shape[-1]
    for width in CONVOLUTIONS:
        net += [nn.Conv2d(channels, width, kernel_size=5), nn.ReLU(), nn.AvgPool2d(2)]
        channels = width
    channels = count_features(net, shape)
    net.append(nn.Flatten())
    for width in DENSE:
        net += [nn.Linear(channels, width), nn.ReLU()]
        channels = width
    net.append(nn.Linear(channels, num_classes))
    return nn.Sequential(*net)


def keras_lenet5(shape: tuple[int, ...], num_classes: int) -> Any:
    """Takes [N, height, width, channels], returns logits [N, num_classes]."""
    from keras import Sequential, layers

    net: list[layers.Layer] = [layers.Input(shape)]
    for width in CONVOLUTIONS:
        net += [layers.Conv2D(width, 5, activation="relu"), layers.AveragePooling2D(2)]
    net.append(layers.Flatten())
    net += [layers.Dense(width, activation="relu") for width in DENSE]
    net.append(layers.Dense(num_classes))
    return Sequential(net)


ARCHITECTURES = (
    Architecture(
        name="lenet5",
        paper="LeCun et al., 1998, doi:10.1109/5.726791",
        input=ImageInput(height=32, width=32, channels=1, resize="stretch"),
        num_classes=10,
        parameters=61_706,
        builders={"torch": torch_lenet5, "keras": keras_lenet5},
    ),
)
