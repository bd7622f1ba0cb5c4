"""Response bodies, as the OpenAPI document shows them."""

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
    """Base class of every response body."""

    model_config = ConfigDict(frozen=True)


class ErrorBody(Body):
    """An error: a stable code, a message, and what to do about it."""

    code: str
    message: str
    cure: str

    @classmethod
    def of(cls, error: ServiceError) -> "ErrorBody":
        """The body for an error."""
        return cls(code=error.code, message=error.message, cure=error.cure)


class ErrorAnswer(Body):
    """The response body of every error."""

    error: ErrorBody


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route, for the OpenAPI document."""
    return {status: {"model": ErrorAnswer} for status in statuses}


class ClassProbability(Body):
    """A class with its probability, from 0 to 1."""

    label: str
    index: int
    probability: float


class Result(Body):
    """The result for one of several items: its most probable classes, or its error."""

    predictions: Sequence[ClassProbability] | None = None
    error: ErrorBody | None = None


class PredictAnswer(Body):
    """`predictions` for a single item, most probable first; `results` for several, in the order of the request."""

    model: str
    version: int
    predictions: Sequence[ClassProbability] | None = None
    results: Sequence[Result] | None = None

    @staticmethod
    def encoded(servable: Servable, outcome: Outcome) -> bytes:
        """The answer as JSON. If a single item failed, raises its error.

        It is made from plain dictionaries, in a tenth of the time that building these models first would take.
        """
        answer: dict[str, Any] = {"model": servable.name, "version": servable.version}
        results = [_result(result) for result in outcome.results]
        if len(results) > 1:
            return to_json(answer | {"results": results})
        if isinstance(outcome.results[0], ServiceError):
            raise outcome.results[0]
        return to_json(answer | results[0])


def _result(result: Sequence[Prediction] | ServiceError) -> dict[str, Any]:
    """A Result. A Prediction has the same fields as a ClassProbability."""
    if isinstance(result, ServiceError):
        return {"error": ErrorBody.of(result).model_dump()}
    return {"predictions": result}


class EngineBody(Body):
    """How the engine runs a version; with `tune`, also the measured images per second."""

    optimization: str
    intra_op_threads: int
    instances: int
    max_batch_size: int
    images_per_second: Mapping[str, float] | None = None

    @classmethod
    def of(cls, servable: Servable) -> "EngineBody":
        """The body for a servable's engine."""
        plan, tuning = servable.plan, servable.tuning
        return cls(
            optimization=plan.optimization,
            intra_op_threads=plan.intra_op_threads,
            instances=plan.instances,
            max_batch_size=plan.buckets[-1],
            images_per_second=tuning.images_per_second if tuning else None,
        )


class VersionBody(Body):
    """A version: its state, and its details once it has been loaded."""

    version: int
    state: VersionState
    reason: str
    since: float
    """When the state last changed, in seconds since 1970."""
    architecture: str | None = None
    framework: str | None = None
    classes: int | None = None
    input: Input | None = None
    parity: Parity | None = None
    provider: str | None = None
    precision: str | None = None
    choice: Choice | None = None
    """How the precision was chosen; absent if fp32 was requested."""
    producers: Mapping[str, str] | None = None
    fingerprint: str | None = None
    engine: EngineBody | None = None
    memory_bytes: int | None = None
    """Growth of the process's memory when the version was opened."""
    canary: float | None = None
    """Per cent of the requests without a version that it answers, if it is a canary."""
    shadow: float | None = None
    """Per cent of those requests that are mirrored to it, if it is a shadow."""
    golden: Report | None = None
    """How its labels agreed with the live version's labels when it was loaded or made live."""

    @classmethod
    def of(cls, record: Record, part: Part | None = None) -> "VersionBody":
        """The body for a version."""
        shares = {"canary": part.canary or None, "shadow": part.shadow or None} if part else {}
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
            **shares,
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
    """A model: its live version, and every version that has been loaded or has failed to load."""

    name: str
    ready: bool
    live: int | None
    labels: Mapping[str, int]
    stored: Sequence[int]
    """Every version in the repository, loaded or not."""
    problem: str
    versions: Sequence[VersionBody]

    @classmethod
    def of(cls, model: Model) -> "ModelBody":
        """The body for a model."""
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
    """All models."""

    models: Sequence[ModelBody]


class UploadAnswer(Body):
    """An uploaded version that has been published."""

    model: str
    version: int
    bytes: int
    sha256: str


class LabelsAnswer(Body):
    """The labels of a version, in class order."""

    model: str
    version: int
    labels: Sequence[str]


class ReadyAnswer(Body):
    """Whether requests can be answered, and the reasons if not."""

    ready: bool
    reasons: Mapping[str, str] = {}


class LiveAnswer(Body):
    """Whether the event loop responds and no engine call is stuck."""

    live: bool
