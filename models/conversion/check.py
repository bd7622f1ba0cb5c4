"""The child process that checks a converted version before the server opens it: it reads, opens and runs it.

    python -P -m models.conversion.check < job.json

The server runs it in the sandbox. It needs no framework and no onnx. It reads a CheckJob on standard input
and writes lines of JSON to standard output: `{"step": NAME}` as each step begins, then `{"result": FOUND}`, a Found
as JSON, or `{"failed": STEP, "reason": TEXT, "cure": TEXT}`. It ends with code 0 if the version is as its manifest
says.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from pydantic import NonNegativeInt, PositiveInt

from models.artifact.artifact import Spec
from models.artifact.manifest import CONVERT_AGAIN, read_converted
from models.conversion.events import Events
from models.conversion.graph.runtime import session_options
from models.conversion.graph.sample_items import sample_items
from models.conversion.sandbox import limit_memory
from models.errors import ArtifactError, first_line
from models.inputs import Frozen, ImageInput
from models.process import peak_resident_bytes, resident_bytes

STEPS = ("read", "open", "run")
_ANSWER = "probabilities"  # the output that is served
_PUBLISH = "publish what menagerie convert writes, manifest.json and model.onnx as they are"
_SPARE_BYTES = 2**30  # of address space: every thread reserves some and uses little of it


class CheckJob(Frozen):
    """The work that the child is asked to do."""

    directory: Path
    batches: tuple[PositiveInt, ...]
    """The batch sizes to run it with."""
    threads: PositiveInt
    memory_bytes: PositiveInt
    """Memory that opening and running it may take."""


class Found(Frozen):
    """The result of a check."""

    opened_bytes: NonNegativeInt
    """The most memory by which the process had grown."""


def check(job: CheckJob, step: Callable[[str], AbstractContextManager[None]]) -> Found:
    """Opens and runs the version as the server does. Raises ArtifactError, MemoryError, OSError, ValidationError."""
    before = resident_bytes()
    with step("read"):
        try:
            manifest, content = read_converted(job.directory)
        except OSError as error:
            raise ArtifactError(f"a published file cannot be read: {error.strerror}", CONVERT_AGAIN) from error
    with step("open"):
        try:
            session = onnxruntime.InferenceSession(
                content, sess_options=session_options(job.threads), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's own
            raise _refused("ONNX Runtime cannot open the model", error) from error
        del content
        session._model_bytes = None  # noqa: SLF001 - as the server does: the session has a copy
        _check_ends(session, manifest.spec)
    with step("run"):
        items = sample_items(manifest.spec.input)
        for size in job.batches:
            _check_answers(session, items.take(range(size), axis=0, mode="wrap"), manifest.spec)
    return Found(opened_bytes=max(0, peak_resident_bytes() - before))


def _check_ends(session: Any, spec: Spec) -> None:
    """Raises ArtifactError if the inputs and outputs of the graph are not those of the manifest."""
    kind = "uint8" if isinstance(spec.input, ImageInput) else "float"
    wanted = (f"tensor({kind})", [*spec.input.shape])
    sources, results = session.get_inputs(), {each.name: each for each in session.get_outputs()}
    if len(sources) != 1 or _ANSWER not in results:
        raise ArtifactError(f"the graph has {len(sources)} inputs and the outputs {', '.join(results)}", _PUBLISH)
    (source,) = sources
    if not source.shape or isinstance(source.shape[0], int):
        raise ArtifactError(f"the graph takes batches of one size only: {source.shape}", _PUBLISH)
    if (source.type, source.shape[1:]) != wanted:
        raise ArtifactError(
            f"the graph takes {source.type} of {source.shape[1:]}, and manifest.json says {wanted[0]} of {wanted[1]}",
            _PUBLISH,
        )
    if results[_ANSWER].type != "tensor(float)":
        raise ArtifactError(f"the graph returns {results[_ANSWER].type}", _PUBLISH)


def _check_answers(session: Any, batch: np.ndarray[Any, Any], spec: Spec) -> None:
    """Raises ArtifactError unless a batch gives a finite number for each class of each item."""
    try:
        (answers,) = session.run([_ANSWER], {session.get_inputs()[0].name: batch})
    except Exception as error:  # ONNX Runtime's own
        raise _refused(f"the model does not run at batch {len(batch)}", error) from error
    if answers.shape != (len(batch), spec.num_classes):
        raise ArtifactError(
            f"the graph returns {list(answers.shape)} for {len(batch)} items of {spec.num_classes} classes", _PUBLISH
        )
    if not np.isfinite(answers).all():
        raise ArtifactError(
            "the graph returns numbers that are infinite or NaN", "check the weights, and convert again"
        )


def _refused(message: str, error: Exception) -> Exception:
    """An error of ONNX Runtime, whose type says nothing, as a MemoryError or an ArtifactError."""
    reason = first_line(error)
    if isinstance(error, MemoryError) or "bad_alloc" in reason or "allocate memory" in reason:
        return MemoryError(message)
    return ArtifactError(f"{message}: {reason}", _PUBLISH)


def main() -> int:
    """Runs the job on standard input. Returns 0 if the version has passed."""
    events = Events("MENAGERIE_CHECK_MEMORY_BYTES")

    def run() -> None:
        job = CheckJob.model_validate_json(sys.stdin.read())
        # An allocation beyond the limit fails at once, before it takes the machine's memory.
        with suppress(OSError):  # not Linux: the parent process watches too
            limit_memory(job.memory_bytes + _SPARE_BYTES)
        events.tell(result=check(job, events.step).model_dump_json())

    return events.run(run, framework=lambda: "published")


if __name__ == "__main__":
    sys.exit(main())
