"""LeNet-5. LeCun, Bottou, Bengio & Haffner, 1998. Gradient-based learning applied to document recognition.

The subsampling layers are plain averages, the activations ReLU and the output a dense layer of logits: what "LeNet"
has come to mean. The paper's were averages with a trained scale, tanh, and radial basis functions.
"""

from typing import Any

from models.architecture import Architecture
from models.inputs import ImageInput

# Section II.B: channels of C1 and C3 (5x5 each), then the widths of C5 and F6.
CONVOLUTIONS = (6, 16)
DENSE = (120, 84)
SIZE = 32


def torch_lenet5(num_classes: int = 10) -> Any:
    """Takes [N, 1, 32, 32], gives logits [N, num_classes]."""
    from torch import nn

    net: list[nn.Module] = []
    channels, size = 1, SIZE
    for width in CONVOLUTIONS:
        net += [nn.Conv2d(channels, width, kernel_size=5), nn.ReLU(), nn.AvgPool2d(2)]
        channels, size = width, (size - 4) // 2
    net.append(nn.Flatten())
    features = channels * size * size
    for width in DENSE:
        net += [nn.Linear(features, width), nn.ReLU()]
        features = width
    net.append(nn.Linear(features, num_classes))
    return nn.Sequential(*net)


def keras_lenet5(num_classes: int = 10) -> Any:
    """Takes [N, 32, 32, 1], gives logits [N, num_classes]."""
    from keras import Sequential, layers

    net: list[layers.Layer] = [layers.Input((SIZE, SIZE, 1))]
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
        input=ImageInput(height=SIZE, width=SIZE, channels=1, resize="stretch"),
        num_classes=10,
        parameters=61_706,
        builders={"torch": torch_lenet5, "keras": keras_lenet5},
    ),
)
