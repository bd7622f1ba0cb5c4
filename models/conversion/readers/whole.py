"""Opens files that contain their own network, and reads from them the settings that model.toml leaves out.

No file says how pictures were scaled before they reached the network. Unless the network scales them itself, model.toml
must say it.
"""

import math
import zipfile
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from models.artifact import bounds, formats
from models.artifact.artifact import Artifact, Draft, Spec
from models.artifact.formats import BROKEN_FILE, Format
from models.conversion.graph.sample_items import sample_items
from models.conversion.readers import keras_config, keras_weights
from models.errors import ArtifactError, translate_errors
from models.inputs import NORMALIZATIONS, ImageInput, Input, NumbersInput
from models.outputs import Output

CONFIG_FILE = "config.json"

_RAW_SCALE = 0.05  # a smaller factor is for pixels of 0..255
_CHANNELS = (1, 3)
_ANOTHER_WAY = "save it with a newer Keras, beginning with an Input; or name an architecture of the catalog"
# Layers of Keras that do not change the range of the numbers.
_SAME_RANGE = ("InputLayer", "Identity", "Resizing", "CenterCrop", "ZeroPadding2D", "Cropping2D", "Permute", "Random")


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A network, and the properties that its file gives."""

    network: Any
    sizes: tuple[int | None, ...] | None
    """Sizes of its input, without the batch; None if the file does not say."""
    dtype: str
    scales_itself: bool
    last: str | None
    """The function that computes its output, such as `softmax` or `sigmoid`; None if the file does not say."""


def open_whole(artifact: Artifact, *, allow_code: bool) -> tuple[Any, Spec]:
    """The network with its weights, and the complete spec. Raises ArtifactError."""
    assert isinstance(artifact.spec, Draft)
    path, found = artifact.weights, formats.detect(artifact.weights)
    if found.code and not allow_code:
        data = " Or name an architecture: of a SavedModel the weights alone are then read."
        raise ArtifactError(
            f"{path.name} is {found.title}: to convert it, code in the file has to be run",
            "if you trust the file, set MENAGERIE_ALLOW_CODE=true; else save the weights alone, or export to ONNX."
            + (data if found is formats.SAVED_MODEL else ""),
        )
    whole = (_keras if found in {formats.KERAS, formats.HDF5} else _program)(path, found)
    try:
        return whole.network, _complete(artifact.spec, whole, path.name)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ArtifactError(f"{where}: {problem['msg']}".removeprefix(": "), "correct [input] in model.toml") from error


def _program(path: Path, found: Format) -> Whole:
    """Opens a network that is run as it was saved."""
    from models.conversion.graph import onnx_file  # noqa: PLC0415 - onnx may be missing
    from models.conversion.graph.programs import OnnxProgram, SavedModelProgram, TorchProgram  # noqa: PLC0415

    last = None
    with translate_errors(f"{path.name} cannot be opened as {found.title}", BROKEN_FILE):
        if found is formats.ONNX:
            model = onnx_file.read(path)
            network: Any = OnnxProgram(model)
            last = onnx_file.last_operator(model.graph).lower()
        elif found is formats.SAVED_MODEL:
            network = SavedModelProgram(path)
        else:
            bounds.check_zip(path)
            network = TorchProgram(path, exported=found is formats.PT2)
    sizes = None if network.sizes is None else network.sizes[1:]
    return Whole(network=network, sizes=sizes, dtype=network.dtype, scales_itself=network.dtype == "uint8", last=last)


def _keras(path: Path, found: Format) -> Whole:
    """Rebuilds a network of Keras' own layers from its description in the file, and loads its weights."""
    with (
        translate_errors(f"{path.name} cannot be read as {found.title}", BROKEN_FILE),
        keras_weights.hdf5_of(path, found) as file,
    ):
        content = _config_in_zip(path) if found is formats.KERAS else file.attrs.get("model_config")
        if content is None:
            raise ArtifactError(
                f"{path.name} holds only weights, and model.toml names no architecture",
                'write architecture = "NAME" into model.toml, or save the whole model: model.save("weights.keras")',
            )
        content = content.encode() if isinstance(content, str) else content
        if len(content) > bounds.MAX_CONFIG_BYTES:
            raise ArtifactError(f"{path.name} describes its network in {len(content):,} bytes", "save a smaller one")
        config = keras_config.plain(bounds.json_object(content, path.name), path.name)
        network = _rebuilt(config, file, path.name)
        keras_weights.fill(network, *keras_weights.fit(network, file), path.name, cure=lambda: BROKEN_FILE)
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        raise ArtifactError(
            f"{path.name} has {len(network.inputs)} inputs and {len(network.outputs)} outputs",
            "serve a network with one of each: the picture, and its classes",
        )
    (source,) = network.inputs
    return Whole(
        network=network,
        sizes=tuple(source.shape)[1:],
        dtype=str(source.dtype),
        scales_itself=str(source.dtype) == "uint8" or _scales_itself(network),
        last=_last_activation(network),
    )


def _config_in_zip(path: Path) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(CONFIG_FILE) as file:
            return file.read(bounds.MAX_CONFIG_BYTES + 1)
    except Exception as error:  # zipfile and zlib raise errors of their own for a broken entry
        raise ArtifactError(f"{path.name} cannot be read as a Keras file", BROKEN_FILE) from error


def _rebuilt(config: Mapping[str, Any], file: Any, name: str) -> Any:
    """The network with memory for its weights, built once it is known that the file holds exactly these weights."""
    import keras  # noqa: PLC0415

    def build() -> Any:
        with translate_errors(f"{name} describes a network that Keras cannot build", _ANOTHER_WAY):
            # Keras changes the configuration that it is given.
            network = keras.saving.deserialize_keras_object(deepcopy(config), safe_mode=True)
            if not network.built or not network.inputs:
                raise ArtifactError(f"{name} does not say what its network takes", _ANOTHER_WAY)
        return network

    with keras.StatelessScope(initialize_variables=False):  # shapes without memory
        network = build()
        _check_sizes(network, name)
        expected, found = keras_weights.fit(network, file)
        keras_weights.check(expected, found, name, cure=lambda: BROKEN_FILE)
    keras.utils.clear_session()  # it remembers the variables that were never created
    return build()


def _check_sizes(network: Any, name: str) -> None:
    """Raises ArtifactError if a layer's output for one item is larger than any classifier's."""
    for layer in network._flatten_layers():  # noqa: SLF001 - no public way to a layer inside of a layer
        for node in layer._inbound_nodes:  # noqa: SLF001
            for tensor in node.output_tensors:
                if math.prod(size or 1 for size in tensor.shape) > bounds.MAX_VALUES:
                    raise ArtifactError(
                        f"{name} would make {_shown(tensor.shape[1:])} numbers in the layer {layer.name}", _ANOTHER_WAY
                    )


def _scales_itself(network: Any) -> bool:
    """Whether a Keras network first rescales pixels of 0..255 to its own range."""
    for layer in network.layers:
        kind = type(layer).__name__
        if kind == "Rescaling":
            return bool(np.max(np.abs(layer.scale)) < _RAW_SCALE)
        if kind == "Normalization":
            return bool(np.max(np.asarray(layer.mean)) > 1)
        if hasattr(layer, "layers"):
            return _scales_itself(layer)
        if not kind.startswith(_SAME_RANGE):
            return False
    return False


def _last_activation(network: Any) -> str:
    """The last activation of a Keras network. Layers that only rearrange numbers are skipped."""
    for layer in reversed(network.layers):
        if hasattr(layer, "layers"):
            return _last_activation(layer)
        kind = type(layer).__name__
        if kind == "Softmax":
            return "softmax"
        if hasattr(layer, "activation"):
            return str(getattr(layer.activation, "__name__", type(layer.activation).__name__)).lower()
        if kind not in {"Flatten", "Reshape", "Dropout", "Identity"}:
            break
    return ""


def _complete(draft: Draft, whole: Whole, name: str) -> Spec:
    """The draft, completed with the network's input, number of classes and kind of output."""
    from models.conversion.graph import export  # noqa: PLC0415 - onnx may be missing

    item, layout = _input(draft, whole, name)
    probe = Draft(
        architecture=draft.architecture, framework=draft.framework, num_classes=None, input={}, output=None, labels=()
    ).complete(2, item, "logits", **layout)
    with translate_errors(f"{name} does not run on an input of {_shown(item.shape)}", "correct [input] in model.toml"):
        answers = export.forward(whole.network, draft.framework, export.network_input(probe, sample_items(item)))
    if answers.ndim != 2:  # noqa: PLR2004
        raise ArtifactError(
            f"{name} returns {answers.shape[1:]} for each item, and not one number for each class", "serve a classifier"
        )
    width = answers.shape[1]
    output = draft.output or _output(whole.last, answers, name)
    classes = width if output in {"logits", "probabilities"} else 2
    if (said := draft.num_classes or len(draft.labels) or classes) != classes:
        raise ArtifactError(
            f"{name} has {classes} classes, and model.toml and the labels say {said}",
            "make num_classes and the labels those that the network was trained for",
        )
    return draft.complete(classes, item, output, **layout)


def _output(last: str | None, answers: Any, name: str) -> Output:
    """The meaning of the network's outputs."""
    if answers.shape[1] == 1:
        if last is None:
            raise ArtifactError(
                f"{name} returns one number for each item, and does not say what it means",
                'set output in model.toml: "logit", or "probability" of the second class',
            )
        return "probability" if last == "sigmoid" else "logit"
    if last == "softmax" or (answers.min() >= 0 and np.allclose(answers.sum(axis=1), 1, atol=1e-4)):
        return "probabilities"
    if last == "sigmoid":
        raise ArtifactError(
            f"{name} ends with a sigmoid for each class, as for several labels at once",
            'serve a network of one label; or, if one is right, set output = "probabilities" or "logits"',
        )
    return "logits"


def _input(draft: Draft, whole: Whole, name: str) -> tuple[Input, dict[str, Any]]:
    """The input of the network, with its layout and the type of its numbers."""
    if whole.dtype not in {"float32", "uint8"}:
        raise ArtifactError(f"{name} takes {whole.dtype}", "save it with an input of float32")
    asked, sizes = draft.input, whole.sizes
    kind = asked.get("kind") or ("image" if sizes is None or len(sizes) == 3 else "numbers")  # noqa: PLR2004
    if kind == "numbers":
        shape = asked.get("shape") or sizes
        if not shape or None in shape:
            raise ArtifactError(
                f"{name} takes numbers of any shape", 'set [input] in model.toml: kind = "numbers" and shape = [4]'
            )
        return NumbersInput(shape=shape), {"dtype": whole.dtype}
    if sizes is not None and len(sizes) != 3:  # noqa: PLR2004
        raise ArtifactError(f"{name} takes {_shown(sizes)}, which is not a picture", 'set kind = "numbers" in [input]')
    first = _is_channels_first(sizes, keras=draft.framework == "keras")
    fixed = _image_sizes(sizes, asked, first=first, name=name)
    if not whole.scales_itself and not asked.keys() & {"scale", "mean", "std"}:
        known = ", ".join(f'"{mode}"' for mode in NORMALIZATIONS)
        raise ArtifactError(
            f"{name} does not say how pictures were scaled before they reached the network",
            f'set [input] normalization in model.toml, "unit" for 0..1 or "raw" for 0..255 (known: {known})',
        )
    item = ImageInput(
        **fixed,
        resize="stretch" if draft.framework == "keras" else "crop",  # as each framework's tools do
        **NORMALIZATIONS["raw"],
    )
    changed = ImageInput.model_validate({**item.model_dump(), **asked})
    if whole.dtype == "uint8" and (changed.scale, changed.mean, changed.std) != (item.scale, item.mean, item.std):
        raise ArtifactError(f"{name} takes whole numbers from 0 to 255", "leave normalization out of [input]")
    return changed, {"layout": "NCHW" if first else "NHWC", "dtype": whole.dtype}


def _shown(sizes: tuple[int | None, ...]) -> str:
    return "x".join("?" if size is None else str(size) for size in sizes)


def _is_channels_first(sizes: tuple[int | None, ...] | None, *, keras: bool) -> bool:
    """Whether the network takes [channels, height, width]: the end of size 1 or 3 is the channels."""
    if keras:
        return False
    return sizes is None or sizes[0] in _CHANNELS or sizes[-1] not in _CHANNELS


def _image_sizes(
    sizes: tuple[int | None, ...] | None, asked: Mapping[str, Any], *, first: bool, name: str
) -> dict[str, Any]:
    """Height, width and channels: the network's own, or model.toml's if the network leaves them free."""
    own = sizes or (None, None, None)
    channels, height, width = own if first else (own[2], own[0], own[1])
    sizes_of: dict[str, Any] = {}
    for key, size in (("height", height), ("width", width), ("channels", channels)):
        said = asked.get(key)
        if size is None and said is None and key != "channels":
            raise ArtifactError(
                f"{name} takes pictures of any size", "set [input] in model.toml: height = 224 and width = 224"
            )
        if size is not None and said not in {None, size}:
            raise ArtifactError(
                f"{name} takes a {key} of {size}, and [input] in model.toml says {said}", f"leave {key} out of [input]"
            )
        sizes_of[key] = size or said or 3
    if sizes_of["channels"] not in _CHANNELS:
        raise ArtifactError(f"{name} takes pictures of {sizes_of['channels']} channels", "serve a network of 1 or 3")
    return sizes_of
