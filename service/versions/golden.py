"""Golden inputs: every version answers them before it is served, and its labels are compared with the live one's."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.artifact.artifact import NUMBERS_FILE, SAMPLES
from models.artifact.formats import is_regular
from models.inputs import PICTURE_SUFFIXES, ImageInput, Input, NumbersInput
from service.errors import GoldenDisagreement, RepositoryError, ServiceError
from service.inference.servable import Item, Servable

GOLDEN_DIRECTORY = "golden"
MAX_INPUTS = 64
MAX_INPUT_BYTES = 32 * 2**20
MAX_BYTES = 128 * 2**20  # of all golden inputs together: they are in memory at once
TIMEOUT_SECONDS = 120.0

Answers = Mapping[tuple[str, str], str]
"""The best label of each input, or the error's code in brackets, by the input's name and its content's SHA-256."""


@dataclass(frozen=True)
class Difference:
    """An input to which two versions give different labels."""

    input: str
    label: str
    live_label: str


@dataclass(frozen=True)
class Report:
    """How a version's labels agree with those of the version that was live when it was loaded."""

    live: int
    inputs: int
    agreement: float
    """The share of the inputs with the same best label, from 0 to 1."""
    differences: tuple[Difference, ...]


def read(model: Path, spec: Input) -> Mapping[str, Item]:
    """The golden inputs of a model, by name. Raises RepositoryError.

    They are the pictures in `<model>/golden`, or the numbers in `inputs.json` there: {"instances": [...]}. A model
    without them gets the sample pictures of this package, or seeded random numbers.
    """
    directory = model / GOLDEN_DIRECTORY
    try:
        if isinstance(spec, ImageInput):
            return _pictures(directory if directory.is_dir() else SAMPLES)
        return _numbers(directory / NUMBERS_FILE, spec)
    except OSError as error:
        raise RepositoryError(
            f"the golden inputs cannot be read: {error.strerror}", cure="check their permissions", detail=str(directory)
        ) from error


def _pictures(directory: Path) -> dict[str, Item]:
    paths = sorted(path for path in directory.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
    for path in paths:
        if not is_regular(path) or path.stat().st_size > MAX_INPUT_BYTES:
            raise RepositoryError(
                f"golden input {path.name} is not a regular file, or is larger than {MAX_INPUT_BYTES} bytes",
                cure="replace it with a smaller picture",
            )
    if not 0 < len(paths) <= MAX_INPUTS:
        raise RepositoryError(
            f"the directory of golden inputs has {len(paths)} pictures", cure=f"put 1 to {MAX_INPUTS} pictures there"
        )
    if sum(path.stat().st_size for path in paths) > MAX_BYTES:
        raise RepositoryError(
            f"the golden inputs have more than {MAX_BYTES} bytes together", cure="use smaller or fewer pictures"
        )
    return {path.name: path.read_bytes() for path in paths}


def _numbers(path: Path, spec: NumbersInput) -> dict[str, Item]:
    if not path.exists():
        rows = spec.samples()
    elif not is_regular(path) or path.stat().st_size > MAX_INPUT_BYTES:
        raise RepositoryError(
            f"golden input {path.name} is not a regular file, or is larger than {MAX_INPUT_BYTES} bytes",
            cure="replace it with a smaller file",
        )
    else:
        try:
            rows = spec.read(path.read_bytes())
        except ValueError as error:
            raise RepositoryError(
                f"golden input {path.name} has {error}", cure='write {"instances": [[...]]}'
            ) from error
    return {f"instance {index}": row for index, row in enumerate(rows[:MAX_INPUTS])}


async def ask(servable: Servable, inputs: Mapping[str, Item]) -> Answers:
    """A version's answer to each input. Raises ServiceError if a request fails as a whole."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    answers = {}
    for name, item in inputs.items():
        (result,) = (await servable.predict([item], 1, deadline)).results
        content = item if isinstance(item, bytes) else item.tobytes()
        key = (name, hashlib.sha256(content).hexdigest())
        answers[key] = f"({result.code})" if isinstance(result, ServiceError) else result[0].label
    return answers


def compare(answers: Answers, live: int, live_answers: Answers) -> Report | None:
    """The agreement of two versions on the inputs that both have answered; None if there are none."""
    common = answers.keys() & live_answers.keys()
    if not common:
        return None
    differences = tuple(
        Difference(name, label, live_answers[name, content])
        for (name, content), label in answers.items()
        if (name, content) in common and label != live_answers[name, content]
    )
    return Report(live, len(common), 1 - len(differences) / len(common), differences)


def check_agreement(version: int, report: Report | None, min_agreement: float) -> None:
    """Raises GoldenDisagreement if the version's labels agree less with the live one's than model.toml demands."""
    if report is None or report.agreement >= min_agreement:
        return
    first = report.differences[0]
    raise GoldenDisagreement(
        f"version {version} gives {report.agreement:.1%} of the {report.inputs} golden inputs the same label as "
        f"version {report.live}, and min_agreement is {min_agreement:.1%}: {first.input} is {first.label!r}, "
        f"and was {first.live_label!r}",
    )
