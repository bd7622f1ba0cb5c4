"""EfficientNet-Lite. Tan & Le, 2019. arXiv:1905.11946; the Lite variants: Liu, 2020, tensorflow/tpu.

Lite: no squeeze-and-excitation, ReLU6 for swish, and a stem and a head that do not grow with the network.
Module names are those of the published PyTorch checkpoints.
"""

from collections.abc import Iterator
from typing import Any

from models.architecture import Architecture
from models.inputs import NORMALIZATIONS, ImageInput

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


def torch_efficientnet_lite0(num_classes: int = 1000) -> Any:
    """Takes [N, 3, 224, 224], gives logits [N, num_classes]."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    def norm(channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels, eps=EPSILON)

    class SameConv2d(nn.Conv2d):
        """TensorFlow's "same" padding, which puts the odd pixel at the bottom right."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            (kernel, stride), padding = (self.kernel_size[0], self.stride[0]), []
            for size in (x.shape[-1], x.shape[-2]):
                total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
                padding += [total // 2, total - total // 2]
            return F.conv2d(F.pad(x, padding), self.weight, self.bias, self.stride, groups=self.groups)

    class Block(nn.Module):
        """Inverted residual: expand 1x1, depthwise, project 1x1."""

        def __init__(self, channels: int, kernel: int, stride: int, expansion: int, width: int) -> None:
            super().__init__()
            wide = channels * expansion
            if expansion > 1:
                self._expand_conv = nn.Conv2d(channels, wide, 1, bias=False)
                self._bn0 = norm(wide)
            self._depthwise_conv = SameConv2d(wide, wide, kernel, stride, groups=wide, bias=False)
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
            self._conv_stem = SameConv2d(3, STEM, 3, 2, bias=False)
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


ARCHITECTURES = (
    Architecture(
        name="efficientnet_lite0",
        paper="Tan & Le, 2019, arXiv:1905.11946",
        input=ImageInput(height=224, width=224, **NORMALIZATIONS["lite"]),
        num_classes=1000,
        parameters=4_652_008,
        builders={"torch": torch_efficientnet_lite0},
    ),
)
