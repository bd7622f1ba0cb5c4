"""The child process that tries a published version before the server opens it: read, open, run.

    python -P -m models.conversion.check < job.json

The server runs it in the sandbox. It needs no framework and no onnx. It reads a Job on standard input and writes
lines of JSON to standard output: `{"step": NAME}` as each step begins, then `{"result": FOUND}`, a Found as JSON, or
`{"failed": STEP, "reason": TEXT, "cure": TEXT}`. It ends with code 0 where the version is what its manifest says.
"""

import resource
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
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
from models.errors import ArtifactError, first_line
from models.inputs import Frozen, ImageInput
from models.machine import resident_bytes

STEPS = ("read", "open", "run")
_ANSWER = "probabilities"  # the output that is served
_PUBLISH = "publish what menagerie convert writes, manifest.json and model.onnx as they are"
_SPARE_BYTES = 2**30  # of addresses: every thread reserves some, and uses few


class Job(Frozen):
    """What the child is asked for."""

    directory: Path
    batches: tuple[PositiveInt, ...]
    """How many items it is to be run on, at once each."""
    threads: PositiveInt
    memory_bytes: PositiveInt
    """What opening and running it may take."""


class Found(Frozen):
    """What the child found."""

    opened_bytes: NonNegativeInt
    """By how much the process had grown at most."""


def check(job: Job, step: Callable[[str], AbstractContextManager[None]]) -> Found:
    """Opens and runs the version as the server does. Raises ArtifactError, MemoryError, OSError, ValidationError."""
    before, _ = resident_bytes()
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
    _, most = resident_bytes()
    return Found(opened_bytes=max(0, most - before))


def _limit_memory(more: int) -> None:
    """No more addresses than these: an allocation beyond them fails at once, before it takes the machine's memory."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:  # not Linux: the parent watches too
        return
    most, hard = pages * resource.getpagesize() + more + _SPARE_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _check_ends(session: Any, spec: Spec) -> None:
    """Raises ArtifactError where the graph does not take and give what the manifest says."""
    kind = "uint8" if isinstance(spec.input, ImageInput) else "float"
    wanted = (f"tensor({kind})", [*spec.input.shape])
    sources, results = session.get_inputs(), {each.name: each for each in session.get_outputs()}
    if len(sources) != 1 or _ANSWER not in results:
        raise ArtifactError(f"the graph has {len(sources)} inputs and the outputs {', '.join(results)}", _PUBLISH)
    (source,) = sources
    if not source.shape or isinstance(source.shape[0], int):
        raise ArtifactError(f"the graph takes batches of one size alone: {source.shape}", _PUBLISH)
    if (source.type, source.shape[1:]) != wanted:
        raise ArtifactError(
            f"the graph takes {source.type} of {source.shape[1:]}, and manifest.json says {wanted[0]} of {wanted[1]}",
            _PUBLISH,
        )
    if results[_ANSWER].type != "tensor(float)":
        raise ArtifactError(f"the graph gives {results[_ANSWER].type}", _PUBLISH)


def _check_answers(session: Any, batch: np.ndarray[Any, Any], spec: Spec) -> None:
    """Raises ArtifactError where a batch has not one finite number for each class of each item."""
    try:
        (answers,) = session.run([_ANSWER], {session.get_inputs()[0].name: batch})
    except Exception as error:  # ONNX Runtime's own
        raise _refused(f"the model does not run at batch {len(batch)}", error) from error
    if answers.shape != (len(batch), spec.num_classes):
        raise ArtifactError(
            f"the graph gives {list(answers.shape)} for {len(batch)} items of {spec.num_classes} classes", _PUBLISH
        )
    if not np.isfinite(answers).all():
        raise ArtifactError("the graph gives numbers that are infinite or none", "check the weights, and convert again")


def _refused(message: str, error: Exception) -> Exception:
    """ONNX Runtime's error, which has no kind, as one of ours."""
    reason = first_line(error)
    if isinstance(error, MemoryError) or "bad_alloc" in reason or "allocate memory" in reason:
        return MemoryError(message)
    return ArtifactError(f"{message}: {reason}", _PUBLISH)


def main() -> int:
    """Runs the job on standard input; 0 when the version has passed."""
    events = Events("MENAGERIE_CHECK_MEMORY_BYTES")

    def run() -> None:
        job = Job.model_validate_json(sys.stdin.read())
        _limit_memory(job.memory_bytes)
        events.tell(result=check(job, events.step).model_dump_json())

    return events.run(run, framework=lambda: "published")


if __name__ == "__main__":
    sys.exit(main())
