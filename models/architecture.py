"""One architecture of the catalog: its paper, what it takes, and how each framework builds it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from models.inputs import Input

Framework = Literal["torch", "keras"]

Builder = Callable[..., Any]
"""`builder(num_classes=...)` returns the framework's own network: a torch.nn.Module or a keras.Model."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network as its paper gives it, unbuilt: reading the catalog imports no framework."""

    name: str
    paper: str
    """Authors, year and where to find it."""
    input: Input
    num_classes: int
    parameters: int
    """Trainable parameters at `num_classes`; the same in every framework."""
    builders: Mapping[Framework, Builder]
    output: Literal["logits", "probabilities"] = "logits"
    """What the built network gives for each class."""
