"""The options of a training, with their units and defaults."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, TypeAdapter, ValidationError, model_validator

from models import catalog
from models.architecture import Architecture, Framework
from models.errors import ArtifactError
from models.inputs import NORMALIZATIONS, Frozen, ImageInput, Input, NumbersInput

DIGITS = "digits"
DIGIT_SHAPE = (8, 8)  # pixels of a built-in digit

Optimizer = Literal["sgd", "adagrad", "rmsprop", "adam", "adamw", "nadam", "adadelta"]

# Default learning rates, the same in both frameworks.
LEARNING_RATES: Mapping[Optimizer, float] = {
    "sgd": 0.01,
    "adagrad": 0.01,
    "rmsprop": 0.001,
    "adam": 0.001,
    "adamw": 0.001,
    "nadam": 0.001,
    "adadelta": 1.0,
}
EPSILON = 1e-8  # of every optimizer except SGD, which has none


class Recipe(Frozen):
    """Everything that decides the weights: the same recipe, data and machine give the same weights."""

    architecture: str = Field(description="Name of an architecture in the catalog, such as resnet18")
    data: str = Field(
        description="A folder with a subfolder of images for each class, or 'digits' for those of scikit-learn"
    )
    framework: Framework = Field("torch", description="Framework that trains and writes the weights")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the weights, the order, dropout and augmentation")
    device: Literal["auto", "cpu"] = Field("auto", description="auto uses a GPU if there is one")

    size: PositiveInt | None = Field(None, description="Height and width of the network's input, in pixels")
    channels: Literal["1", "3"] | None = Field(None, description="1 is gray, 3 is colour")
    resize: Literal["crop", "stretch"] | None = Field(None, description="How a picture is fitted to the input")
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = Field(
        None, description="Filter of the resize"
    )
    normalization: str | None = Field(None, description=f"One of {', '.join(NORMALIZATIONS)}")

    validation_split: float = Field(0.15, gt=0, lt=1, description="Share of the examples that chooses the best epoch")
    test_split: float = Field(
        0, ge=0, lt=1, description="Share of the examples kept for the final figures; the digits always keep 20 %"
    )

    epochs: PositiveInt = Field(20, description="Maximum number of passes over the training examples")
    batch_size: PositiveInt = Field(64, description="Examples in one step")
    loss: Literal["cross_entropy", "mean_squared_error"] = Field(
        "cross_entropy", description="Cross-entropy of the logits, or mean squared error of the probabilities"
    )
    label_smoothing: float = Field(0, ge=0, lt=1, description="Share of a label that is spread over all classes")
    optimizer: Optimizer = Field("adam", description="Optimizer")
    learning_rate: float | None = Field(
        None, gt=0, description="Initial learning rate; by default the usual one of the optimizer"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of adamw")
    l1: float = Field(0, ge=0, description="Penalty on the absolute values of the kernels")
    l2: float = Field(0, ge=0, description="Penalty on the squares of the kernels")
    initializer: Literal["default", "glorot", "he"] = Field(
        "default",
        description="Initializer of the kernels, with zero biases; default: the framework's own. Deep networks need he",
    )
    dropout: float | None = Field(None, ge=0, lt=1, description="Rate of the network's dropout layers")

    shift: float = Field(0, ge=0, le=0.5, description="Shifts pictures by up to this share of their sides")
    rotate: float = Field(0, ge=0, le=180, description="Rotates pictures by up to this many degrees")
    zoom: float = Field(0, ge=0, le=0.5, description="Enlarges or shrinks pictures by up to this share")
    brightness: float = Field(0, ge=0, lt=1, description="Lightens or darkens pictures by up to this share")
    flip: bool = Field(default=False, description="Mirrors half of the pictures, left to right")

    watch: Literal["loss", "accuracy"] = Field(
        "loss", description="Figure on the validation examples that chooses the best epoch"
    )
    plateau_epochs: int = Field(
        5, ge=0, description="Epochs without a better one until the learning rate is reduced; 0: never"
    )
    plateau_factor: float = Field(0.5, gt=0, lt=1, description="Factor by which it is then multiplied")
    patience_epochs: int = Field(12, ge=0, description="Epochs without a better one until the training stops; 0: never")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.normalization not in {None, *NORMALIZATIONS}:
            raise ValueError(f"normalization {self.normalization!r} is not one of {', '.join(NORMALIZATIONS)}")
        if self.validation_split + self.test_split >= 1:
            raise ValueError("validation_split and test_split leave no examples to train on")
        return self

    @property
    def first_learning_rate(self) -> float:
        """The learning rate of the first epoch."""
        return self.learning_rate or LEARNING_RATES[self.optimizer]

    @property
    def augments(self) -> bool:
        """Whether training pictures are augmented."""
        return any((self.shift, self.rotate, self.zoom, self.brightness, self.flip))


def find_architecture(recipe: Recipe) -> Architecture:
    """The architecture that the recipe names. Raises ArtifactError."""
    architecture = catalog.find(recipe.architecture)
    if recipe.framework not in architecture.builders:
        built = " and ".join(architecture.builders)
        raise ArtifactError(
            f"{architecture.name} is not built in {recipe.framework}", f"give --framework: it is built in {built}"
        )
    if architecture.output not in {"logits", "logit"}:
        raise ArtifactError(
            f"{architecture.name} outputs {architecture.output}, but training needs logits",
            "name another architecture",
        )
    return architecture


def find_input(recipe: Recipe, architecture: Architecture) -> Input:
    """The network's input, in training and when it is served. Raises ArtifactError."""
    default = architecture.input
    changes = _image_changes(recipe)
    if isinstance(default, NumbersInput):
        if recipe.data != DIGITS:
            raise ArtifactError(
                f"{architecture.name} takes numbers, and {recipe.data} is a folder of images",
                "name an architecture that takes images, or train it on the digits",
            )
        if changes or recipe.augments:
            raise ArtifactError(
                f"{architecture.name} takes numbers: there is no picture to resize or to augment",
                "leave out the options of size and augmentation",
            )
        # 64 numbers, or the sequence of a digit's rows.
        return NumbersInput(shape=(math.prod(DIGIT_SHAPE),) if len(default.shape) == 1 else DIGIT_SHAPE)
    if recipe.data == DIGITS:  # the whole digit, enlarged as smoothly as possible
        changes = {"resize": "stretch", "interpolation": "bicubic", "resize_to": None} | changes
    if "height" in changes:
        changes.setdefault("resize_to", None)
    kept = default.model_dump()
    if "normalization" in changes:
        kept = {name: value for name, value in kept.items() if name not in NORMALIZATIONS["raw"]}
    try:
        found: ImageInput = TypeAdapter(ImageInput).validate_python(kept | changes)
    except ValidationError as error:
        raise ArtifactError(
            f"the settings of the input contradict each other: {reason(error)}", "give --normalization, such as unit"
        ) from error
    return found


def reason(error: ValidationError) -> str:
    """The message of the first validation error."""
    return error.errors()[0]["msg"].removeprefix("Value error, ")


def _image_changes(recipe: Recipe) -> dict[str, Any]:
    changes: dict[str, Any] = {
        "height": recipe.size,
        "width": recipe.size,
        "channels": int(recipe.channels) if recipe.channels else None,
        "resize": recipe.resize,
        "interpolation": recipe.interpolation,
        "normalization": recipe.normalization,
    }
    return {name: value for name, value in changes.items() if value is not None}
