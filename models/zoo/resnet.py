"""ResNet. He, Zhang, Ren & Sun, 2015. Deep residual learning for image recognition.

Layers are named as in torchvision, so that its checkpoints fit. For the same reason a bottleneck has its stride in the
3x3 convolution ("v1.5"); in the paper it is in the first 1x1.
"""

from dataclasses import dataclass
from typing import Any, Literal

from models.architecture import Architecture, Builders
from models.inputs import NORMALIZATIONS, ImageInput
from models.zoo.pieces import pad_same, same_conv2d

# Table 1: kind of block, and how many there are in each stage.
STAGES = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
}
WIDTHS = (64, 128, 256, 512)

# Figure 5: kernels of a block's convolutions, which of them has its stride, and how much wider its output is.
KERNELS = {"basic": (3, 3), "bottleneck": (1, 3, 1)}
STRIDED = {"basic": 1, "bottleneck": 2}
EXPANSION = {"basic": 1, "bottleneck": 4}

# Trainable parameters, and the running statistics beside them.
PARAMETERS = {
    "resnet18": (11_689_512, 9_600),
    "resnet34": (21_797_672, 17_024),
    "resnet50": (25_557_032, 53_120),
    "resnet101": (44_549_160, 105_344),
    "resnet152": (60_192_808, 151_424),
}

Border = Literal["symmetric", "same", "valid"]
"""Padding of the first pooling and of strided convolutions: "symmetric" as in PyTorch, or one of Keras' words."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How one network of the family differs from the others."""

    kind: str
    """Kind of its blocks, a name in KERNELS."""
    depths: tuple[int, ...]
    """Number of blocks in each stage."""
    strides: tuple[int, ...] = (1, 2, 2, 2)
    """Stride of each stage's first block."""
    strided: int | None = None
    """Which of a block's convolutions has the stride, counted from 1. Default: STRIDED's."""
    projection: int = 1
    """Kernel of a shortcut that changes the shape."""
    relu_first: bool = False
    """ReLU before batch normalisation, and none after the sum."""
    border: Border = "symmetric"
    bias: bool = False
    epsilon: float = 1e-5
    """Epsilon of batch normalisation."""

    def stride_of(self, convolution: int, stride: int) -> int:
        """The stride of one of a block's convolutions, counted from 1, where the block has `stride`."""
        return stride if convolution == (self.strided or STRIDED[self.kind]) else 1


def torch_resnet(shape: tuple[int, ...], num_classes: int, *, variant: Variant) -> Any:
    """Takes [N, channels, height, width], returns logits [N, num_classes]."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    def convolution(channels: int, width: int, kernel: int, stride: int = 1) -> nn.Module:
        if variant.border == "same":
            return same_conv2d(channels, width, kernel, stride, bias=variant.bias)
        return nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=variant.bias)

    def norm(width: int) -> nn.Module:
        return nn.BatchNorm2d(width, eps=variant.epsilon)

    def convolved(x: torch.Tensor, conv: nn.Module, bn: nn.Module, *, active: bool = True) -> torch.Tensor:
        if variant.relu_first:
            return bn(F.relu(conv(x)))
        return F.relu(bn(conv(x))) if active else bn(conv(x))

    def pooled(x: torch.Tensor) -> torch.Tensor:
        if variant.border == "same":
            return F.max_pool2d(pad_same(x, 3, 2, value=float("-inf")), 3, 2)
        return F.max_pool2d(x, 3, 2, padding=1 if variant.border == "symmetric" else 0)

    class Block(nn.Module):
        def __init__(self, channels: int, width: int, stride: int) -> None:
            super().__init__()
            out = width * EXPANSION[variant.kind]
            last = len(KERNELS[variant.kind])
            self.downsample = None
            if stride != 1 or channels != out:
                self.downsample = nn.Sequential(convolution(channels, out, variant.projection, stride), norm(out))
            for index, kernel in enumerate(KERNELS[variant.kind], 1):
                wide = out if index == last else width
                step = variant.stride_of(index, stride)
                self.add_module(f"conv{index}", convolution(channels, wide, kernel, step))
                self.add_module(f"bn{index}", norm(wide))
                channels = wide

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, last = x, len(KERNELS[variant.kind])
            for index in range(1, last + 1):
                conv, bn = self.get_submodule(f"conv{index}"), self.get_submodule(f"bn{index}")
                y = convolved(y, conv, bn, active=index < last)
            if self.downsample is not None:
                x = convolved(x, *self.downsample, active=False)
            return x + y if variant.relu_first else F.relu(x + y)

    class ResNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(shape[-1], 64, kernel_size=7, stride=2, padding=3, bias=variant.bias)
            self.bn1 = norm(64)
            channels = 64
            for stage, (width, depth, stride) in enumerate(
                zip(WIDTHS, variant.depths, variant.strides, strict=True), 1
            ):
                blocks = nn.Sequential()
                for index in range(depth):
                    blocks.append(Block(channels, width, 1 if index else stride))
                    channels = width * EXPANSION[variant.kind]
                self.add_module(f"layer{stage}", blocks)
            self.fc = nn.Linear(channels, num_classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = pooled(convolved(x, self.conv1, self.bn1))
            for stage in range(1, len(variant.depths) + 1):
                x = self.get_submodule(f"layer{stage}")(x)
            return self.fc(x.mean((2, 3)))

    return ResNet()


def keras_resnet(shape: tuple[int, ...], num_classes: int, *, variant: Variant) -> Any:
    """Takes [N, height, width, channels], returns logits [N, num_classes]."""
    from keras import Model, layers

    def convolution(x: Any, width: int, kernel: int, stride: int, name: str) -> Any:
        padding = "same"
        if variant.border != "same" and stride > 1 and kernel > 1:
            x, padding = layers.ZeroPadding2D(kernel // 2)(x), "valid"
        return layers.Conv2D(width, kernel, stride, padding, use_bias=variant.bias, name=name)(x)

    def norm(x: Any, name: str) -> Any:
        return layers.BatchNormalization(epsilon=variant.epsilon, name=name)(x)

    def relu(x: Any) -> Any:
        return layers.Activation("relu")(x)

    def activated(x: Any, bn: str, *, active: bool = True) -> Any:
        if variant.relu_first:
            return norm(relu(x), bn)
        return relu(norm(x, bn)) if active else norm(x, bn)

    def pooled(x: Any) -> Any:
        if variant.border == "symmetric":
            # ReLU comes before it, so zeros at the border never are the maximum.
            return layers.MaxPooling2D(3, strides=2)(layers.ZeroPadding2D(1)(x))
        return layers.MaxPooling2D(3, strides=2, padding=variant.border)(x)

    def block(x: Any, width: int, stride: int, name: str) -> Any:
        out, last = width * EXPANSION[variant.kind], len(KERNELS[variant.kind])
        y, shortcut = x, x
        for index, kernel in enumerate(KERNELS[variant.kind], 1):
            step = variant.stride_of(index, stride)
            y = convolution(y, out if index == last else width, kernel, step, f"{name}.conv{index}")
            y = activated(y, f"{name}.bn{index}", active=index < last)
        if stride != 1 or x.shape[-1] != out:
            shortcut = convolution(x, out, variant.projection, stride, f"{name}.downsample.0")
            shortcut = activated(shortcut, f"{name}.downsample.1", active=False)
        total = layers.Add()([y, shortcut])
        return total if variant.relu_first else relu(total)

    pixels = layers.Input(shape)
    x = layers.Conv2D(64, 7, strides=2, use_bias=variant.bias, name="conv1")(layers.ZeroPadding2D(3)(pixels))
    x = pooled(activated(x, "bn1"))
    for stage, (width, depth, stride) in enumerate(zip(WIDTHS, variant.depths, variant.strides, strict=True), 1):
        for index in range(depth):
            x = block(x, width, 1 if index else stride, f"layer{stage}.{index}")
    x = layers.GlobalAveragePooling2D()(x)
    return Model(pixels, layers.Dense(num_classes, name="fc")(x))


BUILDERS: Builders = {"torch": torch_resnet, "keras": keras_resnet}
PAPER = "He et al., 2015, arXiv:1512.03385"
KERAS: dict[str, Any] = {"bias": True, "epsilon": 1e-3}  # the defaults of Keras' layers

# ReLU inside the convolution, before batch normalisation, and none after the sum, as in a Keras tutorial. The
# stride is in a block's first convolution, and the border is Keras' own.
RELU_FIRST: dict[str, Any] = {**KERAS, "relu_first": True, "strided": 1, "border": "same"}

ARCHITECTURES = (
    *(
        Architecture(
            name=name,
            paper=PAPER,
            input=ImageInput(height=224, width=224, **NORMALIZATIONS["torch"]),
            num_classes=1000,
            parameters=PARAMETERS[name][0],
            statistics=PARAMETERS[name][1],
            builders=BUILDERS,
            options={"variant": Variant(kind=kind, depths=depths)},
        )
        for name, (kind, depths) in STAGES.items()
    ),
    Architecture(
        name="resnet34_relu_bn",
        paper=PAPER,
        input=ImageInput(height=224, width=224, **NORMALIZATIONS["torch"]),
        num_classes=1000,
        parameters=23_182_440,
        statistics=17_024,
        builders=BUILDERS,
        options={"variant": Variant(kind="basic", depths=(3, 4, 6, 3), projection=3, **RELU_FIRST)},
    ),
    Architecture(
        name="resnet50_relu_bn",
        paper=PAPER,
        input=ImageInput(height=224, width=224, **NORMALIZATIONS["torch"]),
        num_classes=1000,
        parameters=25_583_592,
        statistics=53_120,
        builders=BUILDERS,
        options={"variant": Variant(kind="bottleneck", depths=(3, 4, 6, 3), **RELU_FIRST)},
    ),
    # No stride between the stages and one block more in each, as in another tutorial: 16 times the work.
    Architecture(
        name="resnet50_unstrided",
        paper=PAPER,
        input=ImageInput(height=224, width=224, **NORMALIZATIONS["torch"]),
        num_classes=1000,
        parameters=31_519_592,
        statistics=64_640,
        builders=BUILDERS,
        options={
            "variant": Variant(kind="bottleneck", depths=(4, 5, 7, 4), strides=(1, 1, 1, 1), border="valid", **KERAS)
        },
    ),
)
