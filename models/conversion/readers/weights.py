"""Loads saved weights of every framework and format into a network. Files are read as data; no code is run."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.architecture import Framework
from models.artifact import bounds, formats
from models.artifact.formats import BROKEN_FILE, Format
from models.conversion.readers import checkpoint, keras_weights, recognition
from models.conversion.readers.keras_weights import differences
from models.errors import ArtifactError, translate_errors
from models.zoo import keras_applications

_WRONG_NETWORK = "check that architecture and num_classes in model.toml are those the weights were saved from"
_SAVE_WEIGHTS = "save the weights alone: torch.save(model.state_dict(), 'weights.pth')"

# Where training scripts put a state_dict beside an epoch and an optimizer's state.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
# Prefixes that DataParallel, Lightning and torch.compile put before every key.
_PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "network.")


def load(network: Any, framework: Framework, path: Path, architecture: str = "") -> None:
    """Loads every parameter of the network from the file.

    If the weights belong to another architecture than `architecture`, raises ArtifactError with its name.
    """
    found = formats.detect(path)
    if found.framework != framework:
        raise ArtifactError(f"{path.name} is {found.title}, and the network is built in {framework}", _WRONG_NETWORK)
    with translate_errors(f"{path.name} cannot be read as {found.title}", BROKEN_FILE):
        (_load_torch if framework == "torch" else _load_keras)(network, path, found, architecture)


def _load_torch(network: Any, path: Path, found: Format, architecture: str) -> None:
    """Loads the tensors of a PyTorch file. Half precision becomes float32."""
    wanted = network.state_dict()
    saved = _unwrapped(_read_torch(path, found), path.name, wanted)
    for name in [name for name in saved if str(name).startswith(recognition.training_only(network))]:
        del saved[name]
    for name, value in wanted.items():
        if recognition.is_counter(name):
            saved.setdefault(name, value)
    shapes = {str(name): tuple(getattr(value, "shape", ())) for name, value in saved.items()}
    if problems := differences({name: tuple(value.shape) for name, value in wanted.items()}, shapes):
        raise ArtifactError(
            f"{path.name} does not fit the network: {problems}",
            _named(recognition.of_state_dict(shapes, architecture), architecture),
        )
    if strange := [name for name, value in wanted.items() if not _is_plain(saved[name], like=value)]:
        raise ArtifactError(
            f"{path.name} holds quantized, sparse or integer tensors where the network has floating point: "
            f"{', '.join(strange[:3])}",
            "save the weights as they were trained, in float32, float16 or bfloat16",
        )
    network.load_state_dict(saved)
    network.eval()


def _read_torch(path: Path, found: Format) -> Any:
    """The content of the file: tensors in plain containers. A pickle that names anything else is refused."""
    if found is formats.SAFETENSORS:
        bounds.check_safetensors(path)
        from safetensors.torch import load_file  # noqa: PLC0415

        return load_file(path)
    import pickle  # noqa: PLC0415 - for its exception

    import torch  # noqa: PLC0415

    if found is formats.STATE_DICT:
        bounds.check_zip(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"{path.name} is not a plain state_dict: it is damaged, or it carries Python code, which is never run",
            _SAVE_WEIGHTS,
        ) from error
    except Exception as error:  # an unpickler raises many kinds of errors on a broken file
        raise ArtifactError(f"{path.name} cannot be read as a PyTorch file", BROKEN_FILE) from error


def _unwrapped(saved: Any, name: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The state_dict itself, without the dictionary of a training script around it and without prefixes of its keys."""
    while isinstance(saved, Mapping) and (inner := [key for key in _WRAPPERS if isinstance(saved.get(key), Mapping)]):
        saved = saved[inner[0]]
    if not isinstance(saved, Mapping):
        raise ArtifactError(f"{name} holds a {type(saved).__name__}, not a state_dict", _SAVE_WEIGHTS)
    found = OrderedDict(saved)
    versions = getattr(saved, "_metadata", None)  # versions of the modules' formats, by which some read older files
    while found:
        common = [each for each in _PREFIXES if all(str(key).startswith(each) for key in found)]
        if not common or all(key.startswith(common[0]) for key in wanted):
            break
        found = OrderedDict((str(key).removeprefix(common[0]), value) for key, value in found.items())
        versions = versions and {
            f"{key}.".removeprefix(common[0]).removesuffix("."): value for key, value in versions.items()
        }
    found._metadata = versions or getattr(wanted, "_metadata", None)  # type: ignore[attr-defined]  # noqa: SLF001
    return found


def _is_plain(value: Any, like: Any) -> bool:
    """Whether a tensor is dense and not quantized, and in floating point if the network's own is."""
    import torch  # noqa: PLC0415

    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and not value.is_meta
        and not value.is_quantized
        and value.is_floating_point() == like.is_floating_point()
    )


def _load_keras(network: Any, path: Path, found: Format, architecture: str) -> None:
    """Loads the arrays of a Keras file. The network is the catalog's: nothing that the file describes is built."""
    written = recognition.of_keras_file(path) if found is formats.KERAS else None

    def cure() -> str:
        return _named(written, architecture)

    if found in {formats.CHECKPOINT, formats.SAVED_MODEL}:
        layers = checkpoint.layers_of(network)
        keras_weights.fill(network, *keras_weights.pair(layers, checkpoint.groups(path, layers)), path.name, cure)
    else:
        with keras_weights.hdf5_of(path, found) as file:
            keras_weights.fill(network, *keras_weights.fit(network, file), path.name, cure)
    if written is not None and written == keras_applications.twin(
        architecture
    ):  # the same weights would give other outputs
        raise ArtifactError(f"{path.name} was not saved from {architecture}", _named(written, architecture))


def _named(fitting: str | None, architecture: str) -> str:
    """The cure for weights of another network: it names the architecture that they fit, if there is one."""
    if fitting in {None, architecture}:
        return _WRONG_NETWORK
    return f'these are the weights of {fitting}: set architecture = "{fitting}"'
