"""Saved weights -> a built network, for each framework."""

from pathlib import Path
from typing import Any

from models import recognition
from models.architecture import Framework
from models.artifact import ArtifactError
from models.zoo import keras_applications

_WRONG_NETWORK = "check that architecture and num_classes in model.toml are those the weights were saved from"
_BROKEN_FILE = "copy the file again, or save it again"


def load(network: Any, framework: Framework, path: Path, architecture: str = "") -> None:
    """Fills the network's parameters from the file, every one of them.

    Raises ArtifactError, naming the architecture that the file would fit, unless that is `architecture` itself.
    """
    {"torch": _load_torch, "keras": _load_keras}[framework](network, path, architecture)


def _load_torch(network: Any, path: Path, architecture: str) -> None:
    """A state_dict, read as data alone: a pickle that carries code is refused."""
    import pickle  # noqa: PLC0415 - for its exception

    import torch  # noqa: PLC0415

    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"{path.name} is not a plain state_dict: it is damaged, or it carries Python code, which is never run",
            "save the weights alone: torch.save(model.state_dict(), 'weights.pth')",
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise ArtifactError(f"{path.name} cannot be read as a PyTorch file", _BROKEN_FILE) from error
    if not isinstance(saved, dict):
        raise ArtifactError(
            f"{path.name} holds a {type(saved).__name__}, not a state_dict",
            "save the weights alone: torch.save(model.state_dict(), 'weights.pth')",
        )
    for name in [name for name in saved if str(name).startswith(recognition.training_only(network))]:
        del saved[name]
    expected = {}
    for name, value in network.state_dict().items():
        if recognition.is_counter(name):
            saved.setdefault(name, value)
        expected[name] = tuple(value.shape)
    found = {str(name): tuple(getattr(value, "shape", ())) for name, value in saved.items()}
    if problems := _differences(expected, found):
        raise ArtifactError(
            f"{path.name} does not fit the network: {problems}",
            _named(recognition.of_state_dict(found, architecture), architecture),
        )
    network.load_state_dict(saved)
    network.eval()


def _load_keras(network: Any, path: Path, architecture: str) -> None:
    """The weights of a .keras or .h5 file. The architecture is the catalog's: nothing the file describes is built."""
    written = recognition.of_keras_file(path)
    try:
        network.load_weights(path)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"{path.name} does not fit the network: {reason}", _named(written, architecture)) from error
    except Exception as error:  # zipfile, h5py and Keras each have errors of their own for a broken file
        raise ArtifactError(f"{path.name} cannot be read as a Keras file", _BROKEN_FILE) from error
    if written is not None and written == keras_applications.twin(architecture):  # the same weights, and other answers
        raise ArtifactError(f"{path.name} was not saved from {architecture}", _named(written, architecture))


def _named(fitting: str | None, architecture: str) -> str:
    """The cure for weights of another network: the architecture they fit, where there is one."""
    if fitting in {None, architecture}:
        return _WRONG_NETWORK
    return f'these are the weights of {fitting}: set architecture = "{fitting}"'


def _differences(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> str:
    """The first three parameters which are missing, unexpected or of another shape; nothing where all are right."""
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not in the network" for name in found if name not in expected]
    problems += [
        f"{name} is {found[name]} and should be {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""  # noqa: PLR2004
    return "; ".join(problems[:3]) + more
