"""Every architecture, by name. Importing it imports no framework."""

from difflib import get_close_matches

from models.architecture import Architecture
from models.artifact import ArtifactError
from models.zoo import (
    alexnet,
    convnet,
    densenet,
    efficientnet_lite,
    googlenet,
    lenet,
    mlp,
    nin,
    recurrent,
    resnet,
    vgg,
)

FAMILIES = (lenet, alexnet, vgg, nin, googlenet, resnet, densenet, efficientnet_lite, convnet, mlp, recurrent)

CATALOG: dict[str, Architecture] = {
    architecture.name: architecture for family in FAMILIES for architecture in family.ARCHITECTURES
}


def find(name: str) -> Architecture:
    """The architecture of that name. Raises ArtifactError, naming the nearest."""
    if name in CATALOG:
        return CATALOG[name]
    near = get_close_matches(name, CATALOG, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ArtifactError(f"no architecture {name!r}", f"{hint}The catalog has {', '.join(sorted(CATALOG))}")
