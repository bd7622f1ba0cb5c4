"""Response bodies, as OpenAPI shows them."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import to_json

from models.artifact.manifest import Choice, Manifest, Parity
from models.inputs import Input
from service.errors import ServiceError
from service.inference.postprocess import Prediction
from service.inference.servable import Outcome, Servable
from service.repository.routing import Part
from service.versions.golden import Report
from service.versions.model import Model, Record, VersionState


class Body(BaseModel):
    """Base of every answer."""

    model_config = ConfigDict(frozen=True)


class ErrorBody(Body):
    """What went wrong: a stable code, the server's words, and what to do."""

    code: str
    message: str
    cure: str

    @classmethod
    def of(cls, error: ServiceError) -> "ErrorBody":
        """What is told of an error."""
        return cls(code=error.code, message=error.message, cure=error.cure)


class ErrorAnswer(Body):
    """The one shape of every error."""

    error: ErrorBody


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, as OpenAPI shows them."""
    return {status: {"model": ErrorAnswer} for status in statuses}


class ClassProbability(Body):
    """One class of an answer, with its probability between 0 and 1."""

    label: str
    index: int
    probability: float


class Result(Body):
    """The answer to one item of several: its best classes, or its own error."""

    predictions: Sequence[ClassProbability] | None = None
    error: ErrorBody | None = None


class PredictAnswer(Body):
    """`predictions` for one item, best first; `results` for several, in the order in which they were sent."""

    model: str
    version: int
    predictions: Sequence[ClassProbability] | None = None
    results: Sequence[Result] | None = None

    @staticmethod
    def encoded(servable: Servable, outcome: Outcome) -> bytes:
        """The answer as JSON. Raises the error of a single item, which is the error of its request.

        Of plain dictionaries, which takes a tenth of the time of building these models first.
        """
        answer: dict[str, Any] = {"model": servable.name, "version": servable.version}
        results = [_result(result) for result in outcome.results]
        if len(results) > 1:
            return to_json(answer | {"results": results})
        if isinstance(outcome.results[0], ServiceError):
            raise outcome.results[0]
        return to_json(answer | results[0])


def _result(result: Sequence[Prediction] | ServiceError) -> dict[str, Any]:
    """A Result; a Prediction has the fields of a ClassProbability."""
    if isinstance(result, ServiceError):
        return {"error": ErrorBody.of(result).model_dump()}
    return {"predictions": result}


class EngineBody(Body):
    """How a version is run, and with `tune` what was measured for that."""

    optimization: str
    intra_op_threads: int
    instances: int
    max_batch_size: int
    images_per_second: Mapping[str, float] | None = None

    @classmethod
    def of(cls, servable: Servable) -> "EngineBody":
        """What is told of a servable's engine."""
        plan, tuning = servable.plan, servable.tuning
        return cls(
            optimization=plan.optimization,
            intra_op_threads=plan.intra_op_threads,
            instances=plan.instances,
            max_batch_size=plan.buckets[-1],
            images_per_second=tuning.images_per_second if tuning else None,
        )


class VersionBody(Body):
    """One version: its state, and what is known of it once it is loaded."""

    version: int
    state: VersionState
    reason: str
    since: float
    """Seconds since 1970."""
    architecture: str | None = None
    framework: str | None = None
    classes: int | None = None
    input: Input | None = None
    parity: Parity | None = None
    provider: str | None = None
    precision: str | None = None
    choice: Choice | None = None
    """How that precision was chosen; not told where fp32 was asked for."""
    producers: Mapping[str, str] | None = None
    fingerprint: str | None = None
    engine: EngineBody | None = None
    memory_bytes: int | None = None
    """By how much the process grew as the version was opened."""
    canary: float | None = None
    """Per cent of the requests that name no version which it answers, while it is on trial."""
    shadow: float | None = None
    """Per cent of those requests which it is shown as well."""
    golden: Report | None = None
    """How its labels agreed with the live version's when it was loaded or made live."""

    @classmethod
    def of(cls, record: Record, part: Part | None = None) -> "VersionBody":
        """What is told of a version."""
        trial = {"canary": part.canary or None, "shadow": part.shadow or None} if part else {}
        known = _known(record.manifest) if record.manifest else {}
        return cls(
            version=record.version,
            state=record.state,
            reason=record.reason,
            since=round(record.changed, 3),
            provider=record.provider,
            engine=EngineBody.of(record.servable) if record.servable else None,
            memory_bytes=record.servable.memory_bytes if record.servable else None,
            golden=record.report,
            **known,
            **trial,
        )


def _known(manifest: Manifest) -> dict[str, Any]:
    return {
        "architecture": manifest.spec.architecture,
        "framework": manifest.spec.framework,
        "classes": manifest.spec.num_classes,
        "input": manifest.spec.input,
        "parity": manifest.parity,
        "precision": manifest.precision,
        "choice": manifest.choice,
        "producers": manifest.producers,
        "fingerprint": manifest.fingerprint,
    }


class ModelBody(Body):
    """One model: who answers (`live`), and every version that is loaded or was tried."""

    name: str
    ready: bool
    live: int | None
    labels: Mapping[str, int]
    stored: Sequence[int]
    """The versions in the repository, loaded or not."""
    problem: str
    versions: Sequence[VersionBody]

    @classmethod
    def of(cls, model: Model) -> "ModelBody":
        """What is told of a model."""
        return cls(
            name=model.name,
            ready=model.is_ready,
            live=model.live.version if model.live else None,
            labels=model.routing.labels,
            stored=model.stored,
            problem=model.problem,
            versions=[
                VersionBody.of(record, model.routing.part(number)) for number, record in sorted(model.records.items())
            ],
        )


class ModelsAnswer(Body):
    """Every model."""

    models: Sequence[ModelBody]


class UploadAnswer(Body):
    """A version that was received and published."""

    model: str
    version: int
    bytes: int
    sha256: str


class LabelsAnswer(Body):
    """The labels of the live version, in class order."""

    model: str
    version: int
    labels: Sequence[str]


class ReadyAnswer(Body):
    """Whether requests would be answered, and why not."""

    ready: bool
    reasons: Mapping[str, str] = {}


class LiveAnswer(Body):
    """Whether the process is up and no engine call is stuck."""

    live: bool
