"""Saved weights -> a built network, for each framework."""

from pathlib import Path
from typing import Any

from models.architecture import Framework
from models.artifact import ArtifactError

_WRONG_NETWORK = "check that architecture and num_classes in model.toml are those the weights were saved from"
_BROKEN_FILE = "copy the file again, or save it again"


def load(network: Any, framework: Framework, path: Path) -> None:
    """Fills the network's parameters from the file, every one of them. Raises ArtifactError."""
    {"torch": _load_torch, "keras": _load_keras}[framework](network, path)


def _load_torch(network: Any, path: Path) -> None:
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
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(getattr(value, "shape", ())) for name, value in saved.items()}
    _compare(expected, found, path)
    network.load_state_dict(saved)
    network.eval()


def _load_keras(network: Any, path: Path) -> None:
    """The weights of a .keras or .h5 file. The architecture is the catalog's: nothing the file describes is built."""
    try:
        network.load_weights(path)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"{path.name} does not fit the network: {reason}", _WRONG_NETWORK) from error
    except Exception as error:  # zipfile, h5py and Keras each have errors of their own for a broken file
        raise ArtifactError(f"{path.name} cannot be read as a Keras file", _BROKEN_FILE) from error


def _compare(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], path: Path) -> None:
    """Raises ArtifactError that names the first three parameters which are missing, unexpected or of another shape."""
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not in the network" for name in found if name not in expected]
    problems += [
        f"{name} is {found[name]} and should be {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""  # noqa: PLR2004
        raise ArtifactError(f"{path.name} does not fit the network: {'; '.join(problems[:3])}{more}", _WRONG_NETWORK)
