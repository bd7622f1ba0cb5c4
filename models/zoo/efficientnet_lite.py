"""EfficientNet-Lite. Tan & Le, 2019. arXiv:1905.11946; the Lite variants: Liu, 2020, tensorflow/tpu.

Lite: no squeeze-and-excitation, ReLU6 for swish, and a stem and a head that do not grow with the network.
Module names are those of the published PyTorch checkpoints.
"""

from collections.abc import Iterator
from typing import Any

from models.architecture import Architecture
from models.inputs import NORMALIZATIONS, ImageInput
from models.zoo.pieces import same_conv2d

# Table 1 of the paper: blocks, kernel, stride of the first block, expansion, channels out.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD = 32, 1280
DROPOUT = 0.2
EPSILON = 1e-3


def blocks() -> Iterator[tuple[int, int, int, int, int]]:
    """Each block in turn: channels in, kernel, stride, expansion, channels out."""
    channels = STEM
    for count, kernel, first_stride, expansion, width in STAGES:
        for index in range(count):
            yield channels, kernel, first_stride if index == 0 else 1, expansion, width
            channels = width


def torch_efficientnet_lite0(shape: tuple[int, ...], num_classes: int) -> Any:
    """Takes [N, channels, height, width], returns logits [N, num_classes]."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    def norm(channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels, eps=EPSILON)

    class Block(nn.Module):
        """Inverted residual: expand 1x1, depthwise, project 1x1."""

        def __init__(self, channels: int, kernel: int, stride: int, expansion: int, width: int) -> None:
            super().__init__()
            wide = channels * expansion
            if expansion > 1:
                self._expand_conv = nn.Conv2d(channels, wide, 1, bias=False)
                self._bn0 = norm(wide)
            self._depthwise_conv = same_conv2d(wide, wide, kernel, stride, groups=wide, bias=False)
            self._bn1 = norm(wide)
            self._project_conv = nn.Conv2d(wide, width, 1, bias=False)
            self._bn2 = norm(width)
            self.expands, self.residual = expansion > 1, stride == 1 and channels == width

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
            y = F.relu6(self._bn1(self._depthwise_conv(y)))
            y = self._bn2(self._project_conv(y))
            return x + y if self.residual else y

    class EfficientNetLite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._conv_stem = same_conv2d(shape[-1], STEM, 3, 2, bias=False)
            self._bn0 = norm(STEM)
            self._blocks = nn.ModuleList(Block(*block) for block in blocks())
            self._conv_head = nn.Conv2d(STAGES[-1][-1], HEAD, 1, bias=False)
            self._bn1 = norm(HEAD)
            self._dropout = nn.Dropout(DROPOUT)
            self._fc = nn.Linear(HEAD, num_classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu6(self._bn0(self._conv_stem(x)))
            for block in self._blocks:
                x = block(x)
            x = F.relu6(self._bn1(self._conv_head(x)))
            return self._fc(self._dropout(x.mean((2, 3))))

    return EfficientNetLite()


def keras_efficientnet_lite0(shape: tuple[int, ...], num_classes: int) -> Any:
    """Takes [N, height, width, channels], returns logits [N, num_classes]."""
    from keras import Model, layers

    def convolution(x: Any, width: int, name: str, kernel: int = 1, stride: int = 1) -> Any:
        return layers.Conv2D(width, kernel, stride, padding="same", use_bias=False, name=name)(x)

    def depthwise(x: Any, name: str, kernel: int, stride: int) -> Any:
        return layers.DepthwiseConv2D(kernel, stride, padding="same", use_bias=False, name=name)(x)

    def norm(x: Any, name: str) -> Any:
        return layers.BatchNormalization(epsilon=EPSILON, name=name)(x)

    def relu6(x: Any) -> Any:
        return layers.ReLU(max_value=6)(x)

    def block(x: Any, name: str, channels: int, kernel: int, stride: int, expansion: int, width: int) -> Any:
        """Inverted residual: expand 1x1, depthwise, project 1x1."""
        y = x
        if expansion > 1:
            y = relu6(norm(convolution(y, channels * expansion, f"{name}._expand_conv"), f"{name}._bn0"))
        y = relu6(norm(depthwise(y, f"{name}._depthwise_conv", kernel, stride), f"{name}._bn1"))
        y = norm(convolution(y, width, f"{name}._project_conv"), f"{name}._bn2")
        return layers.Add()([x, y]) if stride == 1 and channels == width else y

    pixels = layers.Input(shape)
    x = relu6(norm(convolution(pixels, STEM, "_conv_stem", 3, 2), "_bn0"))
    for index, each in enumerate(blocks()):
        x = block(x, f"_blocks.{index}", *each)
    x = relu6(norm(convolution(x, HEAD, "_conv_head"), "_bn1"))
    x = layers.Dropout(DROPOUT)(layers.GlobalAveragePooling2D()(x))
    return Model(pixels, layers.Dense(num_classes, name="_fc")(x))


ARCHITECTURES = (
    Architecture(
        name="efficientnet_lite0",
        paper="Tan & Le, 2019, arXiv:1905.11946",
        input=ImageInput(height=224, width=224, **NORMALIZATIONS["lite"]),
        num_classes=1000,
        parameters=4_652_008,
        statistics=42_016,
        builders={"torch": torch_efficientnet_lite0, "keras": keras_efficientnet_lite0},
    ),
)
