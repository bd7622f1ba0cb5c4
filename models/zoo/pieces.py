"""Layers and helpers that PyTorch lacks and several families need."""

from typing import Any


def pad_same(x: Any, kernel: int, stride: int, value: float = 0.0) -> Any:
    """Pads [N, C, height, width] as Keras' `padding="same"` does: an odd pixel goes to the bottom or right."""
    from torch.nn import functional as F

    padding = []
    for size in (x.shape[-1], x.shape[-2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding, value=value)


def same_conv2d(channels: int, width: int, kernel: int, stride: int, **options: Any) -> Any:
    """A Conv2d that pads as Keras' `padding="same"` does."""
    from torch import nn

    class SameConv2d(nn.Conv2d):
        def forward(self, x: Any) -> Any:
            return super().forward(pad_same(x, kernel, stride))

    return SameConv2d(channels, width, kernel, stride, **options)


def count_features(layers: list[Any], shape: tuple[int, ...]) -> int:
    """How many numbers these layers compute for one image of (height, width, channels)."""
    import torch

    height, width, channels = shape
    with torch.inference_mode():
        return int(torch.nn.Sequential(*layers).eval()(torch.zeros(1, channels, height, width)).numel())
