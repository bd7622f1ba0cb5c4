"""Recognises the architecture of saved weights by their names and shapes."""

import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models import catalog
from models.architecture import Architecture
from models.artifact.bounds import MAX_CONFIG_BYTES
from models.zoo import keras_applications

Shapes = Mapping[str, tuple[int, ...]]


def of_state_dict(found: Shapes, architecture: str = "") -> str | None:
    """The architecture whose PyTorch network has exactly these keys and most of these shapes, or None.

    If there are several, it is the one with the fewest differing shapes, not counting those that depend on the number
    of classes; then `architecture`, then one of the catalog. Networks are built without memory, the likeliest first.
    """
    size = max(sum(math.prod(shape) for shape in found.values()), 1)

    def unlikelihood(each: Architecture) -> tuple[bool, float]:
        return each.name != architecture, abs(math.log((each.parameters + each.statistics) / size))

    best, fewest = None, math.inf
    for each in sorted((catalog.CATALOG | catalog.LIBRARIES).values(), key=unlikelihood):
        others = _other_shapes(each, found) if "torch" in each.builders else None
        if others is not None and others < min(fewest, len(found) / 2):
            best, fewest = each.name, others
        if others == 0:
            break
    return best


def _other_shapes(architecture: Architecture, found: Shapes) -> int | None:
    """How many of these shapes differ from the network's, for any number of classes; None if the keys differ."""
    with without_memory():
        network = architecture.build("torch")
        shapes = _shapes(network)
        kept = {
            name: shape
            for name, shape in found.items()
            if not name.startswith(training_only(network)) and not is_counter(name)
        }
        if kept.keys() != shapes.keys():
            return None
        more_classes = _shapes(architecture.build("torch", outputs=architecture.num_classes + 1))
    return sum(kept[name] != shape for name, shape in shapes.items() if more_classes[name] == shape)


def _shapes(network: Any) -> Shapes:
    return {name: tuple(value.shape) for name, value in network.state_dict().items() if not is_counter(name)}


def is_counter(name: str) -> bool:
    """Whether it counts training batches. Checkpoints from before PyTorch 0.4.1 have none, some official ones too."""
    return name.endswith(".num_batches_tracked")


def training_only(network: Any) -> tuple[str, ...]:
    """Prefixes of keys that a checkpoint of this PyTorch network may have, and that inference does not need."""
    prefixes: tuple[str, ...] = getattr(network, "training_only", ())
    return prefixes


@contextmanager
def without_memory() -> Iterator[None]:
    """New parameters get a shape and no memory. Other tensors stay real: RegNet computes its widths with some."""
    import torch  # noqa: PLC0415
    from torch.overrides import TorchFunctionMode  # noqa: PLC0415

    class Shapeless(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            meta = {"device": "meta"} if function in {torch.empty, torch.zeros, torch.ones} else {}
            return function(*args, **{**(kwargs or {}), **meta})

    with Shapeless():
        yield


def of_keras_file(path: Path) -> str | None:
    """The architecture of keras.applications that a .keras file was saved from, by the name in it, or None.

    The description is read as data of bounded size, and never built.
    """
    try:
        with zipfile.ZipFile(path) as file, file.open("config.json") as config:
            content = config.read(MAX_CONFIG_BYTES + 1)
        network = json.loads(content)["config"] if len(content) <= MAX_CONFIG_BYTES else {}
        name, layers = _plain(str(network["name"])), [layer["class_name"] for layer in network["layers"]]
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError):
        return None
    for known in keras_applications.ROWS:
        if _plain(known) == name:
            scratch = known in keras_applications.TWICE_SCALED and layers.count("Rescaling") == 1
            return f"{keras_applications.PREFIX}{known}{keras_applications.SCRATCH if scratch else ''}"
    return None


def _plain(name: str) -> str:
    """A name without the additions of the library, as in `mobilenetv2_1.00_224` or `efficientnetv2-b0`."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"_1\.00_\d+$", "", name.lower()))
