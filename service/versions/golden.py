"""Golden inputs: what every version is asked before it goes live, and how its labels agree with the live one's."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.artifact.artifact import NUMBERS_FILE, SAMPLES
from models.artifact.formats import is_regular
from models.inputs import PICTURE_SUFFIXES, ImageInput, Input, NumbersInput
from service.errors import RepositoryError, ServiceError
from service.inference.servable import Item, Servable

GOLDEN_DIRECTORY = "golden"
MAX_INPUTS = 64
MAX_INPUT_BYTES = 32 * 2**20
MAX_BYTES = 128 * 2**20  # of all of them, which are in memory at once
TIMEOUT_SECONDS = 120.0

Answers = Mapping[tuple[str, str], str]
"""The best label for each input, by the input's name and its content's SHA-256; else the error's code in brackets."""


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
    """Share of the inputs with the same best label."""
    differences: tuple[Difference, ...]


def read(model: Path, spec: Input) -> Mapping[str, Item]:
    """The golden inputs of a model by name: those in `<model>/golden`, else pictures of ours, or seeded numbers.

    Pictures are files there; numbers are `inputs.json`, {"instances": [...]}. Raises RepositoryError.
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
            raise RepositoryError(f"golden input {path.name} is no file, or too large", cure="replace it by a picture")
    if not 0 < len(paths) <= MAX_INPUTS:
        raise RepositoryError(f"there are {len(paths)} golden inputs", cure=f"put 1 to {MAX_INPUTS} pictures there")
    if sum(path.stat().st_size for path in paths) > MAX_BYTES:
        raise RepositoryError(f"the golden inputs have more than {MAX_BYTES} bytes", cure="put smaller pictures there")
    return {path.name: path.read_bytes() for path in paths}


def _numbers(path: Path, spec: NumbersInput) -> dict[str, Item]:
    if not path.exists():
        rows = spec.samples()
    elif not is_regular(path) or path.stat().st_size > MAX_INPUT_BYTES:
        raise RepositoryError(f"golden {path.name} is no file, or too large", cure="replace it by a smaller file")
    else:
        try:
            rows = spec.read(path.read_bytes())
        except ValueError as error:
            raise RepositoryError(f"golden {path.name} has {error}", cure='write {"instances": [[...]]}') from error
    return {f"instance {index}": row for index, row in enumerate(rows[:MAX_INPUTS])}


async def ask(servable: Servable, inputs: Mapping[str, Item]) -> Answers:
    """What a version that nobody else asks yet says of each input. Raises ServiceError where it says nothing."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    answers = {}
    for name, item in inputs.items():
        (result,) = (await servable.predict([item], 1, deadline)).results
        content = item if isinstance(item, bytes) else item.tobytes()
        key = (name, hashlib.sha256(content).hexdigest())
        answers[key] = f"({result.code})" if isinstance(result, ServiceError) else result[0].label
    return answers


def compare(answers: Answers, live: int, live_answers: Answers) -> Report | None:
    """How two versions agree on what both were asked; None where that is nothing."""
    common = answers.keys() & live_answers.keys()
    if not common:
        return None
    differences = tuple(
        Difference(name, label, live_answers[name, content])
        for (name, content), label in answers.items()
        if (name, content) in common and label != live_answers[name, content]
    )
    return Report(live, len(common), 1 - len(differences) / len(common), differences)
