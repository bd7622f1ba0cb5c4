"""The child process that downloads official weights into a model repository, with their library's own loader.

    python -P -m models.pull < job.json

It reads a PullJob on standard input and writes one line of JSON to standard output: `{"pulled": DIRECTORY, "weights":
TITLE}` or `{"reason": TEXT, "cure": TEXT}`. The library's progress output goes to standard error.
"""

import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from models import catalog
from models.architecture import Architecture
from models.artifact import staging, toml_file
from models.artifact.artifact import CONFIG_FILE, OVERRIDE_FILE
from models.artifact.resolution import read_labels
from models.artifact.versions import add_version
from models.conversion.sandbox import die_with_parent
from models.errors import ArtifactError
from models.inputs import NORMALIZATIONS, Frozen, ImageInput
from models.zoo import keras_applications, torchvision_models

BUILT_IN_LABELS = "imagenet"


class PullJob(Frozen):
    """The work that the child is asked to do."""

    architecture: str
    weights: str | None = None
    """The library's name for one of several sets of weights. Default: the set that it recommends."""
    output: Path
    """A model repository."""
    name: str
    """The name of the model in the repository."""


@dataclass(frozen=True)
class Fetched:
    """Official weights, and the input and labels that they were trained with."""

    title: str
    """Their name, with the library and its version."""
    file: str
    """The file that `save` writes."""
    save: Callable[[Path], None]
    input: ImageInput
    labels: str | list[str]
    """The value of `labels` in model.toml."""


def pull(job: PullJob) -> tuple[Path, str]:
    """The new version's directory, and the title of its weights. Raises ArtifactError, OSError."""
    model = job.output / job.name
    if model.exists() and not (model / CONFIG_FILE).is_file():
        raise ArtifactError(f"{model} is not a model: it has no {CONFIG_FILE}", "choose another --name")
    architecture = catalog.find(job.architecture)
    if architecture.name not in catalog.LIBRARIES or architecture.name.endswith(keras_applications.SCRATCH):
        raise ArtifactError(f"there are no official weights of {architecture.name}", _near(architecture.name))
    fetched = (_of_torchvision if "torch" in architecture.builders else _of_keras)(architecture, job.weights)
    return place(fetched, architecture, model), fetched.title


def _near(name: str) -> str:
    """The cure: the command that pulls similar weights."""
    plain = name.removesuffix(keras_applications.SCRATCH)
    known = [each for each in catalog.LIBRARIES if each in {plain, torchvision_models.PREFIX + plain}]
    return f"menagerie pull {known[0] if known else 'torchvision:NAME, or keras:NAME'}"


def _of_torchvision(architecture: Architecture, asked: str | None) -> Fetched:
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # the library's loader would run a pickle's code
    import torch  # noqa: PLC0415
    from torchvision import models  # noqa: PLC0415

    name = architecture.options["name"]
    # A set of weights without categories is no classifier: some of its weights are NaN.
    choices = {each.name: each for each in models.get_model_weights(name) if each.meta["categories"]}
    weights = choices[_chosen(asked, models.get_model_weights(name).DEFAULT.name, choices)]
    cached = Path(torch.hub.get_dir(), "checkpoints", weights.url.rsplit("/", 1)[-1])
    with _translate_errors(lambda: (weights.url, cached)):
        network = models.get_model(name, weights=weights)
    transforms, categories = weights.transforms(), weights.meta["categories"]
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    # The network would scale normalised pixels to -1..1 itself: see torchvision_models.
    centred = name in torchvision_models.TRAINING_ONLY or mean == std == (0.5,) * len(mean)
    return Fetched(
        title=f"{weights.name} of torchvision {metadata.version('torchvision')}",
        file="weights.pth",
        save=lambda path: torch.save(network.state_dict(), path),
        input=ImageInput(
            height=transforms.crop_size[0],
            width=transforms.crop_size[0],
            resize_to=transforms.resize_size[0],
            interpolation=transforms.interpolation.value,
            **(NORMALIZATIONS["tf"] if centred else {"scale": 1 / 255, "mean": mean, "std": std, "order": "rgb"}),
        ),
        labels=BUILT_IN_LABELS if tuple(categories) == read_labels(BUILT_IN_LABELS, Path()) else categories,
    )


def _of_keras(architecture: Architecture, asked: str | None) -> Fetched:
    from keras import applications  # noqa: PLC0415

    assert isinstance(architecture.input, ImageInput)
    weights = _chosen(asked, "imagenet", ["imagenet"])
    with _recorded_source() as latest, _translate_errors(lambda: latest[0]):
        network = getattr(applications, architecture.options["name"])(weights=weights, classifier_activation=None)
    return Fetched(
        title=f"{weights} of keras {metadata.version('keras')}",
        file="weights.weights.h5",
        save=network.save_weights,
        input=architecture.input,
        labels=BUILT_IN_LABELS,
    )


def _chosen(asked: str | None, default: str, choices: Mapping[str, Any] | list[str]) -> str:
    if (asked or default) not in choices:
        raise ArtifactError(f"there are no official weights {asked!r}", f"choose one of {', '.join(choices)}")
    return asked or default


@contextmanager
def _recorded_source() -> Iterator[list[tuple[str, Path]]]:
    """Records the URL that a Keras network downloads its weights from, and the file that it keeps them in."""
    from keras.src.utils import file_utils  # noqa: PLC0415

    found: list[tuple[str, Path]] = []
    get_file = file_utils.get_file
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")

    def watched(fname: str, origin: str, **options: Any) -> Any:
        found.append((origin, home / "models" / fname))
        return get_file(fname, origin, **options)

    file_utils.get_file = watched
    try:
        yield found
    finally:
        file_utils.get_file = get_file


@contextmanager
def _translate_errors(source: Callable[[], tuple[str, Path]]) -> Iterator[None]:
    """Translates the errors of a library's loader into an ArtifactError that names the URL, the file and the cure."""
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:  # no network, a wrong checksum, code in a pickle: Keras raises a bare Exception
        url, cached = source()
        reason = textwrap.shorten(str(error), 300)
        raise ArtifactError(
            f"the official weights could not be downloaded from {url}: {reason}",
            f"download that file where there is a network; copy it to {cached}; then run the same command again",
        ) from error


def place(fetched: Fetched, architecture: Architecture, model: Path) -> Path:
    """A new version of the model in its repository, complete or not at all; an older one stays as it is."""
    model.parent.mkdir(parents=True, exist_ok=True)
    with staging.locked(model.parent), staging.staged(model.parent, f".{model.name}.staging") as room:
        fresh = room / model.name
        version = fresh / "1"
        version.mkdir(parents=True)
        fetched.save(version / fetched.file)
        if not model.exists():
            (fresh / CONFIG_FILE).write_text(settings(fetched, architecture, whole=False), encoding="utf-8")
            return staging.rename(fresh, model) / version.name
        # The existing model.toml describes other weights, and belongs to the user.
        (version / OVERRIDE_FILE).write_text(settings(fetched, architecture, whole=True), encoding="utf-8")
        return add_version(version, model)


def settings(fetched: Fetched, architecture: Architecture, *, whole: bool) -> str:
    """The text of a model.toml or artifact.toml. [input] is left out if it is the architecture's, unless `whole`."""
    values: dict[str, Any] = {"architecture": architecture.name, "labels": fetched.labels}
    if whole or fetched.input != architecture.input:
        values["input"] = _described(fetched.input)
    return f"# {fetched.title}, fetched by menagerie pull.\n{toml_file.dumps(values)}"


def _described(image: ImageInput) -> dict[str, Any]:
    """The settings of [input], with the name of its normalisation if it has one."""
    values = image.model_dump(mode="json", exclude={"kind"}, exclude_none=True)
    for mode, fields in NORMALIZATIONS.items():
        if all(getattr(image, name) == value for name, value in fields.items()):
            return {name: value for name, value in values.items() if name not in fields} | {"normalization": mode}
    return values


def main() -> int:
    """Runs the job on standard input. Returns 0 if the version was published."""
    die_with_parent()
    # Frameworks print to standard output: keep it for the outcome, and send their output to standard error.
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = PullJob.model_validate_json(sys.stdin.read())
    try:
        directory, title = pull(job)
        outcome = {"pulled": str(directory), "weights": title}
    except ArtifactError as error:
        outcome = {"reason": str(error), "cure": error.cure}
    except ModuleNotFoundError as error:
        framework = next(iter(catalog.find(job.architecture).builders))
        outcome = {
            "reason": f"{error.name} is not installed, and {job.architecture} needs it",
            "cure": f"pip install 'menagerie[{framework}]'",
        }
    except OSError as error:
        outcome = {
            "reason": f"a file could not be written or read: {error.strerror}",
            "cure": "name a writable directory with room as --output",
        }
    events.write(json.dumps(outcome) + "\n")
    events.flush()
    return 0 if "pulled" in outcome else 1


if __name__ == "__main__":
    sys.exit(main())
