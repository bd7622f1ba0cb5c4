"""One architecture of the catalog: its paper, what it takes, and how each framework builds it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from models.inputs import Input
from models.outputs import Output, outputs_of

Framework = Literal["torch", "keras"]

Builder = Callable[..., Any]
"""`builder(shape, num_classes, **options)` returns the framework's own network: a torch.nn.Module or a keras.Model.

`shape` is one item's as the server holds it, channels last: (height, width, channels), (features,) or (steps,
features). A PyTorch network takes images channels first.
"""

Builders = Mapping[Framework, Builder]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network as its paper or its seed gives it, unbuilt: reading the catalog imports no framework."""

    name: str
    paper: str
    """Authors, year and where to find it."""
    input: Input
    num_classes: int
    parameters: int
    """Trainable parameters as built by default; the same in every framework."""
    statistics: int = 0
    """Running means and variances of batch normalisation, which Keras counts as parameters too."""
    builders: Builders
    options: Mapping[str, Any] = field(default_factory=dict)
    """The row of the family's table: what its builders are called with, beside shape and classes."""
    output: Output = "logits"

    def build(self, framework: Framework, shape: tuple[int, ...] | None = None, outputs: int | None = None) -> Any:
        """The framework's own network, untrained.

        `shape` is one item's, channels last; `outputs` is how many numbers the network gives for it. The defaults are
        the architecture's own. Raises what the framework raises where the shape is too small for the network.
        """
        if outputs is None:
            outputs = outputs_of(self.output, self.num_classes)
        return self.builders[framework](shape or self.input.shape, outputs, **self.options)
