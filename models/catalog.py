"""Every architecture, by name. Importing this module imports no framework."""

from difflib import get_close_matches

from models.architecture import Architecture
from models.errors import ArtifactError
from models.zoo import (
    alexnet,
    convnet,
    densenet,
    efficientnet_lite,
    googlenet,
    keras_applications,
    lenet,
    mlp,
    nin,
    recurrent,
    resnet,
    torchvision_models,
    vgg,
)

FAMILIES = (lenet, alexnet, vgg, nin, googlenet, resnet, densenet, efficientnet_lite, convnet, mlp, recurrent)

CATALOG: dict[str, Architecture] = {
    architecture.name: architecture for family in FAMILIES for architecture in family.ARCHITECTURES
}

# The frameworks' own networks, under their own names after `torchvision:` or `keras:`.
LIBRARIES: dict[str, Architecture] = {
    architecture.name: architecture
    for library in (torchvision_models, keras_applications)
    for architecture in library.ARCHITECTURES
}


def find(name: str) -> Architecture:
    """The architecture of that name. Raises ArtifactError with the nearest known name."""
    known = CATALOG | LIBRARIES
    if name in known:
        return known[name]
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    own = ", ".join(sorted(CATALOG))
    raise ArtifactError(f"no architecture {name!r}", f"{hint}The catalog has {own}, torchvision:NAME and keras:NAME")


def rows() -> list[tuple[str, str, str, str, str]]:
    """The catalog as a table: name, paper, input, trainable parameters, frameworks."""
    titles = {"torch": "PyTorch", "keras": "Keras"}
    return [
        (
            each.name,
            each.paper,
            "x".join(map(str, each.input.shape)),
            f"{each.parameters:,}",
            ", ".join(titles[framework] for framework in each.builders),
        )
        for each in CATALOG.values()
    ]
