"""The child process that converts one artifact to ONNX: build, load, export, join, compare, publish.

    python -P -m models.conversion.convert < job.json

The server runs it in the sandbox. It reads a ConversionJob on standard input and writes lines of JSON to standard
output: `{"step": NAME}` as each step begins, and `{"failed": STEP, "reason": TEXT, "cure": TEXT}` if one fails. The
step "quantize" follows "compare" only if another precision than fp32 was asked for. It ends with code 0 when the files
are written.
"""

import gc
import hashlib
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from models import catalog
from models.architecture import Architecture
from models.artifact import formats
from models.artifact.artifact import Artifact, Draft, Spec
from models.artifact.manifest import MANIFEST_FILE, ONNX_FILE, Manifest
from models.artifact.resolution import converter_sources, fingerprint
from models.artifact.staging import sync
from models.conversion.events import Events
from models.conversion.readers import weights, whole
from models.errors import ArtifactError
from models.inputs import Frozen
from models.process import peak_resident_bytes

STEPS = ("build", "load", "export", "join", "compare", "publish")
PRODUCERS = {
    "torch": ("torch", "onnxscript", "onnx"),
    "keras": ("tensorflow", "keras", "tf2onnx", "onnx"),
    "onnx": ("onnx",),
}


class ConversionJob(Frozen):
    """The work that the child is asked to do."""

    artifact: Artifact
    directory: Path
    """The directory to write the files into. It does not exist yet."""
    allow_code: bool = False
    """Whether to convert formats that contain code, which is run then."""


class Conversion:
    """The steps of one job."""

    def __init__(self, job: ConversionJob, events: Events) -> None:
        self.artifact = job.artifact
        self.directory = job.directory
        self.allow_code = job.allow_code
        self.step, self.seconds = events.step, events.seconds

    def run(self) -> None:
        """Runs every step, in order. Raises whatever a library raises about the file."""
        from models.conversion.graph import export, parity, precision  # noqa: PLC0415 - onnx may be missing: main() says what to install

        with self.step("build"):
            network, spec = self._build()
        with self.step("load"):
            if not isinstance(self.artifact.spec, Draft) and spec.framework != "onnx":
                weights.load(network, spec.framework, self.artifact.weights, spec.architecture)
            self._check_unchanged()
        with self.step("export"):
            graph = export.export(network, spec)
        with self.step("join"):
            graph = export.join(graph, spec)
            opset = next(opset.version for opset in graph.opset_import if not opset.domain)
            content = graph.SerializeToString()
        del graph  # a copy of the weights; ONNX Runtime makes two more
        gc.collect()
        with self.step("compare"):
            agreement = parity.compare(network, content, spec)
        found = precision.Chosen(content, opset, agreement)
        if spec.precision != "fp32":
            del network, content  # large networks would take twice the memory
            gc.collect()
            with self.step("quantize"):
                found = precision.choose(found, spec, self.artifact.calibration)
        with self.step("publish"):
            manifest = Manifest(
                fingerprint=self.artifact.fingerprint,
                spec=spec,
                parity=found.parity,
                precision=found.precision,
                choice=found.choice,
                onnx_sha256=hashlib.sha256(found.content).hexdigest(),
                onnx_bytes=len(found.content),
                opset=found.opset,
                producers={name: metadata.version(name) for name in PRODUCERS[spec.framework]},
                seconds=self.seconds,
                peak_memory_bytes=peak_resident_bytes(),
            )
            self.directory.mkdir()
            (self.directory / ONNX_FILE).write_bytes(found.content)
            (self.directory / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
            for path in self.directory.iterdir():  # here, so that the server waits less when it renames the directory
                sync(path)

    def _build(self) -> tuple[Any, Spec]:
        """The architecture's network, untrained; or the file's own network with its weights and its spec."""
        if isinstance(self.artifact.spec, Draft):
            return whole.open_whole(self.artifact, allow_code=self.allow_code)
        return build(catalog.find(self.artifact.spec.architecture), self.artifact.spec), self.artifact.spec

    def _check_unchanged(self) -> None:
        """Raises ArtifactError if the files have changed since the artifact was resolved."""
        spec, path = self.artifact.spec, self.artifact.weights
        architecture = None if isinstance(spec, Draft) else catalog.find(spec.architecture)
        sources = [*converter_sources(architecture, formats.detect(path)), *self.artifact.calibration]
        if fingerprint(spec, path, sources) != self.artifact.fingerprint:
            raise ArtifactError("the weights changed while they were read", "write them once, then load them again")


def build(architecture: Architecture, spec: Spec) -> Any:
    """The network, untrained. Raises ArtifactError if it cannot be built for this input."""
    try:
        assert spec.framework != "onnx"
        return architecture.build(spec.framework, spec.input.shape, spec.outputs)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(
            f"{architecture.name} cannot be built for an input of {spec.input.shape}: {reason}",
            f"correct [input] in model.toml; by default the network takes {architecture.input.shape}",
        ) from error


def main() -> int:
    """Runs the job on standard input. Returns 0 when its files are written."""
    events = Events("MENAGERIE_CONVERSION_MEMORY_BYTES")
    conversion = Conversion(ConversionJob.model_validate_json(sys.stdin.read()), events)
    return events.run(conversion.run, framework=lambda: conversion.artifact.spec.framework)


if __name__ == "__main__":
    sys.exit(main())
