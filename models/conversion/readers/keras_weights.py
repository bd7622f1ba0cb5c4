"""Loads Keras' files of weights into a network: all arrays are assigned, or none.

A file is read as data, by its own names and shapes; nothing that it describes is built. Three conventions are known:
`.weights.h5` of Keras 3 (and inside of .keras), the .h5 of Keras 2 and before, and TensorFlow's checkpoints.
"""

import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.artifact import bounds, formats
from models.artifact.formats import BROKEN_FILE, Format
from models.errors import ArtifactError

WEIGHTS_FILE = "model.weights.h5"


@dataclass(frozen=True)
class Stored:
    """One array of a file, not read yet."""

    shape: tuple[int, ...]
    read: Callable[[], Any]


Groups = Sequence[tuple[str, Sequence[tuple[str, Stored]]]]
"""The arrays of a file by layer, in the network's order."""


def differences(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    """Names the first three parameters that are missing, unexpected or of another shape. Empty if all are right."""
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not in the network" for name in found if name not in expected]
    problems += [
        f"{name} is {found[name]} and should be {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""  # noqa: PLR2004
    return "; ".join(problems[:3]) + more


@contextmanager
def hdf5_of(path: Path, found: Format) -> Iterator[Any]:
    """Opens the HDF5 file at `path`, or the one inside a .keras file, after checking it. Raises ArtifactError."""
    import h5py  # noqa: PLC0415

    if found is formats.KERAS:
        bounds.check_zip(path)
    with tempfile.TemporaryDirectory() as directory:
        if found is formats.KERAS:
            file = Path(directory, WEIGHTS_FILE)
            try:
                with zipfile.ZipFile(path) as archive, archive.open(WEIGHTS_FILE) as source, file.open("wb") as target:
                    shutil.copyfileobj(source, target)
            except KeyError as error:
                raise ArtifactError(
                    f"{path.name} holds no {WEIGHTS_FILE}", "save it with Keras: model.save('weights.keras')"
                ) from error
            except Exception as error:  # zipfile and zlib have errors of their own for a broken entry
                raise ArtifactError(f"{path.name} cannot be read as a Keras file", BROKEN_FILE) from error
        else:
            file = path
        bounds.check_hdf5(file, path.name)
        with h5py.File(file, "r") as opened:
            yield opened


def fit(network: Any, file: Any) -> tuple[dict[str, Any], dict[str, Stored]]:
    """The network's variables, and the arrays of an HDF5 file for them, under the same names."""
    group = file.get("model_weights", file)
    if _names(group, "layer_names"):
        layers = [(layer.name, [*layer.trainable_weights, *layer.non_trainable_weights]) for layer in network.layers]
        return pair(layers, _by_layer(group))
    return _variables(network), _arrays(file)


def pair(layers: Sequence[tuple[str, Sequence[Any]]], groups: Groups) -> tuple[dict[str, Any], dict[str, Stored]]:
    """The same for a file with other names of layers than the network: they are paired by their order."""
    layers, groups = [each for each in layers if each[1]], [each for each in groups if each[1]]
    expected: dict[str, Any] = {}
    found: dict[str, Stored] = {}
    for index in range(max(len(layers), len(groups))):
        layer, variables = layers[index] if index < len(layers) else ("", ())
        group, arrays = groups[index] if index < len(groups) else ("", ())
        names = [f"{layer}/{variable.name}" for variable in variables]
        if len(set(names)) < len(names):  # a wrapper around two layers has each name twice
            names = [f"{layer}/{number}/{variable.name}" for number, variable in enumerate(variables)]
        expected |= dict(zip(names, variables, strict=True))
        names += [f"{group}/{name}" for name, _ in arrays[len(names) :]]
        found |= {name: stored for name, (_, stored) in zip(names, arrays, strict=False)}
    return expected, found


def fill(
    network: Any, expected: Mapping[str, Any], found: Mapping[str, Stored], name: str, cure: Callable[[], str]
) -> None:
    """Assigns every variable its array. Raises ArtifactError if one is missing, left over or of another shape."""
    check(expected, found, name, cure)
    for key, variable in expected.items():
        variable.assign(found[key].read())
    for layer in network._flatten_layers():  # noqa: SLF001 - nothing public reaches a layer inside a layer
        if hasattr(layer, "finalize_state"):  # Normalization derives its tensors from mean and variance
            layer.finalize_state()


def check(expected: Mapping[str, Any], found: Mapping[str, Stored], name: str, cure: Callable[[], str]) -> None:
    """Raises ArtifactError if the arrays of a file are not those of the network's variables."""
    shapes = {key: tuple(variable.shape) for key, variable in expected.items()}
    if problems := differences(shapes, {key: stored.shape for key, stored in found.items()}):
        raise ArtifactError(f"{name} does not fit the network: {problems}", cure())


def _by_layer(group: Any) -> Groups:
    """The convention of Keras 2: attributes hold the names of the layers, and of each layer's weights."""
    found = []
    for layer in _names(group, "layer_names"):
        names = _names(group[layer], "weight_names")
        found.append((layer, [(name.rpartition("/")[2], _stored(group[layer][name])) for name in names]))
    top = group.get("top_level_model_weights")
    if top is not None and (names := _names(top, "weight_names")):
        found.append(("top_level_model_weights", [(name, _stored(top[name])) for name in names]))
    return found


def _names(group: Any, attribute: str) -> list[str]:
    """A list of names, which may be split over several attributes."""
    parts = [attribute] if attribute in group.attrs else []
    while f"{attribute}{len(parts)}" in group.attrs and attribute not in parts:
        parts.append(f"{attribute}{len(parts)}")
    names = [name for part in parts for name in group.attrs[part]]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _arrays(file: Any) -> dict[str, Stored]:
    """The convention of Keras 3: a tree of layers, each with its numbered `vars`."""
    import h5py  # noqa: PLC0415

    found = {}

    def visit(where: str, entry: Any) -> None:
        if isinstance(entry, h5py.Dataset) and not _is_for_training(where):
            found[where.replace("_layer_checkpoint_dependencies", "layers").replace("/vars/", "/")] = _stored(entry)

    file.visititems(visit)
    return found


def _is_for_training(where: str) -> bool:
    """Whether a path in a file belongs to the optimizer, a metric or a random number generator."""
    first = where.partition("/")[0]
    private = first.startswith("_") and first != "_layer_checkpoint_dependencies"
    return private or first in {"optimizer", "metrics"} or "seed_generator" in where


def _stored(dataset: Any) -> Stored:
    def read() -> Any:
        if dataset.attrs.get("dtype") == "bfloat16":
            return (np.asarray(dataset[()]).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return dataset[()]

    return Stored(tuple(dataset.shape), read)


def _variables(network: Any) -> dict[str, Any]:
    """The network's variables by the paths under which Keras 3 saves them."""
    from keras.src.saving.saving_lib import H5IOStore, _save_state  # noqa: PLC0415

    found = {}

    class Names(H5IOStore):  # type: ignore[misc]
        """Records what Keras would save, and writes nothing."""

        def __init__(self) -> None:
            self.where = ""

        def __bool__(self) -> bool:
            return True

        def make(self, path: str, metadata: Any = None) -> "Names":  # noqa: ARG002
            self.where = path
            return self

        def __setitem__(self, key: str, value: Any) -> None:
            where = f"{self.where}/{key}".lstrip("/")
            if not _is_for_training(where):
                found[where] = value

    _save_state(network, weights_store=Names(), assets_store=None, inner_path="", visited_saveables=set())
    return found
