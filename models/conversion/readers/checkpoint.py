"""Reads TensorFlow checkpoints, and the variables of a SavedModel, as data, layer by layer.

A checkpoint contains the object graph of the program that wrote it. The graph is walked from the root, in the order in
which the layers were created; objects that only training needs are left out.
"""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from models.artifact import bounds, formats
from models.artifact.formats import BROKEN_FILE
from models.conversion.readers.keras_weights import Groups, Stored
from models.errors import ArtifactError

_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"

# Children of the root or of a layer that are not weights. `_all_variables` repeats the weights in no order.
_ASIDE = re.compile(
    r"optimizer|save_counter|signatures|keras_api|(keras_)?metrics|_loss_tracker|_all_variables|_random_generator"
)


def index_of(path: Path) -> Path:
    """The index file of a checkpoint, or of the one inside a SavedModel. Raises ArtifactError."""
    index = path / "variables" / "variables.index" if path.is_dir() else path
    if not index.is_file():
        raise ArtifactError(f"the SavedModel {path.name} holds no variables", "save it again, with its variables")
    return index


def groups(path: Path, layers: Sequence[tuple[str, Sequence[Any]]]) -> Groups:
    """The arrays of the checkpoint by layer, in the order of the network's layers. Raises ArtifactError."""
    from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph  # noqa: PLC0415
    from tensorflow.train import load_checkpoint  # noqa: PLC0415

    index = index_of(path)
    shards = formats.parts(index)[1:]
    if not shards:
        raise ArtifactError(
            f"{index.name} is the index of a checkpoint, and the file with its values is missing",
            f"put {index.stem}.data-00000-of-00001 beside it",
        )
    try:
        reader = load_checkpoint(str(index.with_suffix("")))
        shapes, types = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
        claimed = sum(math.prod(shape) * types[name].size for name, shape in shapes.items())
        bounds.check_claim(index.name, claimed, sum(shard.stat().st_size for shard in shards), expansion=1)
        graph = TrackableObjectGraph.FromString(reader.get_tensor(_GRAPH)) if _GRAPH in shapes else None
    except ArtifactError:
        raise
    except Exception as error:  # errors of TensorFlow and of protocol buffers
        raise ArtifactError(f"{index.name} cannot be read as a checkpoint", BROKEN_FILE) from error
    if graph is None:
        raise ArtifactError(
            f"{index.name} is a checkpoint of TensorFlow 1, which does not say how its variables belong together",
            "load it in Keras, and save it again: model.save_weights('weights.h5')",
        )
    found: list[tuple[str, dict[str, Stored]]] = []
    for full_name, key in _variables(graph):
        layer, _, leaf = full_name.rpartition("/")
        if key not in shapes or "seed_generator" in full_name:
            continue
        if not found or found[-1][0] != layer:
            found.append((layer, {}))
        found[-1][1][leaf] = Stored(tuple(shapes[key]), lambda key=key: reader.get_tensor(key))  # type: ignore[misc]
    ordered = []
    for place, (layer, arrays) in enumerate(found):
        wanted = [variable.name for variable in layers[place][1]] if place < len(layers) else []
        same = sorted(wanted) == sorted(arrays)
        ordered.append((layer, [(leaf, arrays[leaf]) for leaf in (wanted if same else arrays)]))
    return ordered


def _variables(graph: Any) -> Iterator[tuple[str, str]]:
    """The full name and the key of each variable, layer by layer in the order of creation."""
    pending, seen = [0], set[int]()
    while pending:
        if (number := pending.pop()) in seen or number >= len(graph.nodes):
            continue
        seen.add(number)
        node = graph.nodes[number]
        for attribute in node.attributes:
            if attribute.name == "VARIABLE_VALUE":
                yield attribute.full_name, attribute.checkpoint_key
        pending += [child.node_id for child in reversed(node.children) if not _ASIDE.fullmatch(child.local_name)]


def layers_of(network: Any) -> list[tuple[str, list[Any]]]:
    """The network's variables by their layer, nested layers too, in the order of creation."""
    found: list[tuple[str, list[Any]]] = []
    for variable in network.weights:
        layer = variable.path.rpartition("/")[0]
        if not found or found[-1][0] != layer:
            found.append((layer, []))
        found[-1][1].append(variable)
    return found
