"""The child process that writes a version's weights for the other framework's network of the same architecture.

    python -P -m models.transplant < job.json

The command runs it in the sandbox. It reads a TransplantJob on standard input and writes lines of JSON to standard
output: `{"step": NAME}` as each step begins, then `{"result": ERROR}`, the relative difference between the outputs of
the two networks, or `{"failed": STEP, "reason": TEXT, "cure": TEXT}`. It ends with code 0 when the file is written.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from models import catalog, twins
from models.architecture import Framework
from models.artifact.artifact import Artifact, Spec
from models.conversion.convert import build
from models.conversion.events import Events
from models.conversion.graph.sample_items import sample_items
from models.conversion.readers import weights
from models.errors import ArtifactError
from models.inputs import Frozen

STEPS = ("build", "load", "transplant", "compare", "save")
_ITEMS = 4  # that the networks are compared on


class TransplantJob(Frozen):
    """The work that the child is asked to do."""

    artifact: Artifact
    framework: Framework
    """The framework to write the weights for."""
    file: Path
    """The file to write, in a directory that does not exist yet."""


def transplant(job: TransplantJob, step: Callable[[str], AbstractContextManager[None]]) -> float:
    """Writes the weights, and returns the relative difference between the outputs of the two networks.

    Raises ArtifactError if the weights cannot be read or the networks disagree, and whatever the file makes a library
    raise.
    """
    source = job.artifact.spec
    assert isinstance(source, Spec)
    assert source.framework != "onnx"
    target = source.model_copy(update={"framework": job.framework})
    with step("build"):
        import keras  # noqa: F401, PLC0415 - before PyTorch, the order that the tests of the catalog use

        architecture = catalog.find(source.architecture)
        network, twin = (build(architecture, spec) for spec in (source, target))
    with step("load"):
        weights.load(network, source.framework, job.artifact.weights, source.architecture)
    with step("transplant"):
        try:
            (twins.to_keras if job.framework == "keras" else twins.to_torch)(network, twin)
        except (ValueError, TypeError) as error:
            raise ArtifactError(f"the two networks of {architecture.name} differ: {error}", "report it") from error
    with step("compare"):
        difference = _difference(network, source, twin, target)
    with step("save"):
        job.file.parent.mkdir()
        _save(twin, job.framework, job.file)
    return difference


def _difference(network: Any, source: Spec, twin: Any, target: Spec) -> float:
    """The largest difference between their outputs, relative to the largest output. Raises ArtifactError."""
    from models.conversion.graph import parity  # noqa: PLC0415 - it needs onnx
    from models.conversion.graph.export import forward, network_input  # noqa: PLC0415 - so does this

    if target.framework == "torch":
        twin.eval()
    items = sample_items(source.input)[:_ITEMS]
    expected = forward(network, source.framework, network_input(source, items))
    found = forward(twin, target.framework, network_input(target, items))
    difference = parity.relative_error(expected, found)
    if not difference <= parity.TOLERANCE:  # NaN is refused too
        raise ArtifactError(
            f"the two networks disagree: relative difference {difference:.2e}, allowed {parity.TOLERANCE:.0e}",
            "check the weights for NaN and infinity; if they are sound, report the architecture",
        )
    return difference


def _save(network: Any, framework: Framework, path: Path) -> None:
    if framework == "keras":
        network.save_weights(path)
        return
    import torch  # noqa: PLC0415

    torch.save(network.state_dict(), path)


def main() -> int:
    """Runs the job on standard input. Returns 0 when the file is written."""
    events = Events("MENAGERIE_CONVERSION_MEMORY_BYTES")

    def run() -> None:
        job = TransplantJob.model_validate_json(sys.stdin.read())
        events.tell(result=f"{transplant(job, events.step):.1e}")

    return events.run(run, framework=lambda: "torch,keras")


if __name__ == "__main__":
    sys.exit(main())
