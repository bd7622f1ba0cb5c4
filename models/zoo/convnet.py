"""A small convolutional classifier, in the three forms that a Keras model may have. LeCun et al., 1989.

Backpropagation applied to handwritten zip code recognition: shared kernels, then a dense layer, which here holds nearly
all of the parameters.
"""

from collections import OrderedDict
from typing import Any, Literal

from models.architecture import Architecture
from models.inputs import NORMALIZATIONS, ImageInput
from models.zoo.pieces import count_features, same_conv2d

CHANNELS, KERNEL, STRIDE = 16, 3, 2


def torch_convnet(
    shape: tuple[int, ...], num_classes: int, *, form: Literal["sequential", "functional", "subclassed"]
) -> Any:
    """Takes [N, channels, height, width], returns logits [N, num_classes]. PyTorch has one form for all three."""
    from torch import nn

    net: OrderedDict[str, nn.Module] = OrderedDict(conv1=same_conv2d(shape[-1], CHANNELS, KERNEL, STRIDE))
    if form == "subclassed":  # as its seed has it; the other two are linear
        net["relu"] = nn.ReLU()
    features = count_features(list(net.values()), shape)
    return nn.Sequential(net | OrderedDict(flatten=nn.Flatten(), classifier=nn.Linear(features, num_classes)))


def keras_convnet(
    shape: tuple[int, ...], num_classes: int, *, form: Literal["sequential", "functional", "subclassed"]
) -> Any:
    """Takes [N, height, width, channels], returns logits [N, num_classes]."""
    from keras import Input, Model, Sequential, layers

    activation = "relu" if form == "subclassed" else None
    conv1 = layers.Conv2D(CHANNELS, KERNEL, STRIDE, padding="same", activation=activation, name="conv1")
    flatten, classifier = layers.Flatten(), layers.Dense(num_classes, name="classifier")
    if form == "sequential":
        return Sequential([layers.Input(shape), conv1, flatten, classifier])
    if form == "functional":
        pixels = Input(shape)
        return Model(pixels, classifier(flatten(conv1(pixels))))

    class ConvNet(Model):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.flatten, self.classifier = conv1, flatten, classifier

        def call(self, inputs: Any, training: bool | None = None) -> Any:  # noqa: ARG002, FBT001 - Keras' signature
            return self.classifier(self.flatten(self.conv1(inputs)))

    network = ConvNet()
    network(Input(shape))  # its parameters exist once it has been called
    return network


ARCHITECTURES = tuple(
    Architecture(
        name=f"convnet_{form}",
        paper="LeCun et al., 1989, doi:10.1162/neco.1989.1.4.541",
        input=ImageInput(height=224, width=224, **NORMALIZATIONS["torch"]),
        num_classes=1000,
        parameters=200_705_448,
        builders={"torch": torch_convnet, "keras": keras_convnet},
        options={"form": form},
    )
    for form in ("sequential", "functional", "subclassed")
)
