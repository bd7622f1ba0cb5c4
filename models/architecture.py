"""One architecture of the catalog: its paper, its input, and its builder in each framework."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from models.inputs import Input
from models.outputs import Output, outputs_of

Framework = Literal["torch", "keras"]

Builder = Callable[..., Any]
"""`builder(shape, num_classes, **options)` returns the framework's own network: a torch.nn.Module or a keras.Model.

`shape` is the shape of one item, channels last: (height, width, channels), (features,) or (steps, features). PyTorch
networks take images channels first.
"""

Builders = Mapping[Framework, Builder]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network as its paper or its seed describes it, not built yet: reading the catalog imports no framework."""

    name: str
    paper: str
    """Authors, year and where to find it."""
    input: Input
    num_classes: int
    parameters: int
    """Trainable parameters of the default network; the same in every framework."""
    statistics: int = 0
    """Running means and variances of batch normalisation. Keras counts them as parameters too."""
    builders: Builders
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the builders beside shape and classes: the network's row in the table of its family."""
    output: Output = "logits"

    def build(self, framework: Framework, shape: tuple[int, ...] | None = None, outputs: int | None = None) -> Any:
        """The framework's own network, untrained.

        `shape` is the shape of one item, channels last, and `outputs` the number of outputs for it. The defaults are
        the architecture's own. If the shape is too small for the network, raises the framework's own error.
        """
        if outputs is None:
            outputs = outputs_of(self.output, self.num_classes)
        return self.builders[framework](shape or self.input.shape, outputs, **self.options)
