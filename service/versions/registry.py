"""Finds the servable that answers a request, by the model's name and the version."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

from service.errors import ModelNotFound, ModelNotReady, ServiceError
from service.inference.servable import Item, Outcome, Servable
from service.versions.model import Model, Record
from service.versions.shadow import Mirror


class Registry:
    """The table of models, for requests to read. It is used on the event loop alone."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self.table: dict[str, Model] = {}
        """The models by name; the reconciler alone changes it."""
        self.problem = "the model repository has not been read yet"
        """Why the table is empty, if it is."""

    def models(self) -> Sequence[Model]:
        """Every model, in alphabetical order."""
        return [self.table[name] for name in sorted(self.table)]

    def records(self) -> list[Record]:
        """Every version of every model."""
        return [record for model in self.table.values() for record in model.records.values()]

    def model(self, name: str) -> Model:
        """One model. Raises ModelNotFound, which suggests the most similar name."""
        if name in self.table:
            return self.table[name]
        near = get_close_matches(name[:64], self.table, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ModelNotFound(f"there is no model {name[:64]!r}", cure=f"{hint}GET /models lists all")

    def record(self, name: str, version: int | str) -> Record:
        """One version of a model, by number or label. Raises ModelNotFound."""
        model = self.model(name)
        number = version if isinstance(version, int) else model.routing.labels.get(version)
        if number is None:
            labels = ", ".join(sorted(model.routing.labels)) or "none"
            raise ModelNotFound(f"{name} has no label {version!r}", cure=f"its labels: {labels}")
        if number not in model.records:
            loaded = ", ".join(str(number) for number in sorted(model.records)) or "none"
            raise ModelNotFound(f"{name} has no version {number} loaded", cure=f"loaded versions: {loaded}")
        return model.records[number]

    def servable(self, name: str, version: int | str | None = None) -> Servable:
        """The live version of a model, or the given one. Canaries are ignored. Raises ModelNotFound, ModelNotReady."""
        model = self.model(name)
        if version is None:
            return self._ready(model, model.live)
        record = self.record(name, version)
        if record.servable is None:
            raise ModelNotReady(f"{name} version {record.version} is {record.state}: {record.reason}")
        return record.servable

    @staticmethod
    def _ready(model: Model, servable: Servable | None) -> Servable:
        if servable is None:
            raise ModelNotReady(f"{model.name} is not ready: {model.why_unready}")
        return servable

    @contextmanager
    def lease(self, name: str, version: int | str | None = None) -> Iterator[Servable]:
        """The servable for one request, kept open until the caller is done. Without a version, it may be a canary.

        Raises ModelNotFound, ModelNotReady.
        """
        if version is None:
            model = self.model(name)
            chosen = self._ready(model, model.draw(random.uniform(0, 100)))  # noqa: S311 - a share of the requests is no secret
        else:
            chosen = self.servable(name, version)
        with chosen.lease() as servable:
            yield servable

    def mirror(self, answered: Servable, items: Sequence[Item | ServiceError], outcome: Outcome) -> None:
        """Sends a copy of a request that named no version to the model's shadows. Returns at once."""
        if (model := self.table.get(answered.name)) is None:
            return
        for servable in model.shadows(random.uniform(0, 100)):  # noqa: S311
            if servable is not answered:
                self._mirror.send(servable, items, outcome.results)

    def unready(self) -> dict[str, str]:
        """Why the server is not ready, by model or for the `repository`; empty if it is ready.

        If MENAGERIE_MODELS names models, the server is ready when all of them answer. Else it is ready when one model
        answers and every version that was in the repository at the start has been loaded or refused.
        """
        if not self.table:
            return {"repository": self.problem}
        nobody_answers = not any(model.is_ready for model in self.table.values())
        return {
            model.name: model.why_unready
            for model in self.models()
            if not model.is_ready and (model.is_required or model.is_awaited or nobody_answers)
        }

    def stuck_seconds(self) -> float:
        """For how long the oldest of the running engine calls has been running; 0 if none is."""
        return max((each.servable.batcher.stuck_seconds() for each in self.records() if each.servable), default=0.0)
