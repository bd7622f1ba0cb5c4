"""The input of a model: images or numbers, and how pixels become the numbers that the network receives."""

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

MAX_ITEM_BYTES = 64 * 2**20  # one item as the graph takes it, such as 4,700 x 4,700 pixels; a batch has many
MAX_SIDE = 2**14  # pixels of a picture; a resize also costs time for each row and column
MAX_DIMENSIONS = 8

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


class Frozen(BaseModel):
    """An immutable value that refuses unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# `torch`, `tf` and `caffe` are the modes of keras.applications.imagenet_utils.preprocess_input, and `torch` is
# torchvision's too. `lite` is EfficientNet-Lite's (x - 127) / 128, `unit` is 0..1 and `raw` is 0..255.
NORMALIZATIONS: dict[str, dict[str, Any]] = {
    "torch": {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "order": "rgb"},
    "tf": {"scale": 1 / 127.5, "mean": (1.0,), "std": (1.0,), "order": "rgb"},
    "caffe": {"scale": 1.0, "mean": (103.939, 116.779, 123.68), "std": (1.0,), "order": "bgr"},
    "lite": {"scale": 1 / 255, "mean": (127 / 255,), "std": (128 / 255,), "order": "rgb"},
    "unit": {"scale": 1 / 255, "mean": (0.0,), "std": (1.0,), "order": "rgb"},
    "raw": {"scale": 1.0, "mean": (0.0,), "std": (1.0,), "order": "rgb"},
}


def expand(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces `normalization = "torch"` by that mode's scale, mean, std and order. Raises ValueError."""
    rest = {name: value for name, value in values.items() if name != "normalization"}
    if "normalization" not in values:
        return rest
    mode = values["normalization"]
    if not isinstance(mode, str) or mode not in NORMALIZATIONS:
        raise ValueError(f"normalization {mode!r} is not one of {', '.join(NORMALIZATIONS)}")
    if both := rest.keys() & NORMALIZATIONS[mode].keys():
        raise ValueError(f"normalization {mode!r} already sets {', '.join(sorted(both))}; leave out one or the other")
    return rest | NORMALIZATIONS[mode]


Side = Annotated[int, Field(gt=0, le=MAX_SIDE)]


class ImageInput(Frozen, allow_inf_nan=False):
    """An image of uint8 [height, width, channels], and the preprocessing that the network was trained with.

    The server decodes and resizes. `order`, `scale`, `mean` and `std` become part of the graph: the network receives
    `(pixels * scale - mean) / std`. `mean` and `std` have a value for each channel, or one for all of them.
    """

    kind: Literal["image"] = "image"
    height: Side
    width: Side
    channels: Literal[1, 3] = 3
    resize: Literal["crop", "stretch"] = "crop"
    """`crop`: the shorter side becomes `resize_to`, then the centre is cut out. `stretch`: both sides are resized."""
    resize_to: Side | None = None
    """The shorter side before the crop, in pixels. Default: 256/224 of the crop's longer side."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    """Pillow's filter of that name, with antialiasing, as in torchvision's Resize."""
    order: Literal["rgb", "bgr"] = "rgb"
    scale: PositiveFloat = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[PositiveFloat, ...] = (1.0,)

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, values: Any) -> Any:
        return expand(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ValueError(f"{name} has {len(values)} values; give 1, or {self.channels}: one for each channel")
        if self.resize_to is not None and self.resize_to < max(self.height, self.width):
            raise ValueError(f"resize_to = {self.resize_to} is smaller than the {self.height}x{self.width} crop")
        _check_size(self.shape, 1)
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one item as the served graph takes it: [height, width, channels]."""
        return (self.height, self.width, self.channels)

    def normalized(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, height, width, channels] -> float32 of the same shape, as the network was trained with it."""
        ordered = pixels[..., ::-1] if self.order == "bgr" else pixels
        return ((ordered.astype(np.float64) * self.scale - self.mean) / self.std).astype(np.float32)

    @property
    def shorter_side(self) -> int:
        """The picture's shorter side, in pixels, before the centre is cut out."""
        return self.resize_to or round(max(self.height, self.width) * 256 / 224)


class NumbersInput(Frozen):
    """Numbers: float32 of a fixed shape, which the network receives unchanged."""

    kind: Literal["numbers"] = "numbers"
    shape: tuple[PositiveInt, ...] = Field(min_length=1, max_length=MAX_DIMENSIONS)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_size(self.shape, 4)
        return self

    def samples(self) -> NDArray[np.float32]:
        """Eight items of normally distributed numbers, always the same, for a model without samples of its own."""
        return np.random.default_rng(0).normal(size=(8, *self.shape)).astype(np.float32)

    def read(self, content: bytes) -> NDArray[np.float32]:
        """Reads the items of a file {"instances": [...]}. Raises ValueError."""
        try:
            return np.asarray(json.loads(content)["instances"], np.float32).reshape(-1, *self.shape)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"no instances of the shape {list(self.shape)}") from error


Input = Annotated[ImageInput | NumbersInput, Field(discriminator="kind")]


def _check_size(shape: tuple[int, ...], bytes_each: int) -> None:
    """Raises ValueError if one item is larger than MAX_ITEM_BYTES."""
    if math.prod(shape) * bytes_each > MAX_ITEM_BYTES:
        sizes = "x".join(map(str, shape))
        raise ValueError(f"an item of {sizes} has more than {MAX_ITEM_BYTES // 2**20} MiB")
