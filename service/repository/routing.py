"""Which version answers a request: the live version, labels, canaries and shadows, as `routing.toml` has them."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from models.artifact import toml_file
from models.artifact.artifact import VersionNumber
from models.inputs import Frozen

ROUTING_FILE = "routing.toml"
LABEL = r"[a-z][a-z0-9._-]{0,63}"

SHADOW_PERCENT = 10.0
"""The share of requests for `shadow = true`."""


def _percent(value: Any) -> Any:
    return (SHADOW_PERCENT if value else 0.0) if isinstance(value, bool) else value


Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Label = Annotated[str, Field(pattern=f"^{LABEL}$")]


class Part(Frozen):
    """`[versions.N]`: the settings of one version beside the live one."""

    load: bool | None = None
    """Whether the version is kept loaded. Default: by `versions` in model.toml."""
    canary: Percent = 0.0
    """The percentage of the requests without a version that it answers."""
    shadow: Annotated[Percent, BeforeValidator(_percent)] = 0.0
    """The percentage of those requests that it also gets. Its answers are compared, and not sent to the client."""

    @property
    def is_trial(self) -> bool:
        """Whether it is being tried: then it goes live only when it is told to."""
        return self.canary > 0 or self.shadow > 0


_NO_PART = Part()  # created once, because every request needs it


class Routing(Frozen):
    """The content of routing.toml, which the admin API or a person writes. Without it, the highest version is live."""

    live: VersionNumber | None = None
    """Who answers a request that names no version. Default: the highest that is ready and not on trial."""
    previous: VersionNumber | None = None
    """Who was live before: what a rollback makes live again."""
    labels: Mapping[Label, VersionNumber] = Field(default_factory=dict)
    """Names for versions: `stable = 2` makes `?version=stable` version 2."""
    versions: Mapping[VersionNumber, Part] = Field(default_factory=dict)

    @field_validator("live", "previous", mode="before")
    @classmethod
    def _no_bool(cls, value: Any) -> Any:
        return str(value) if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (percent := sum(part.canary for part in self.versions.values())) > 100:  # noqa: PLR2004
            raise ValueError(f"the canaries take {percent:g} per cent of the requests in total")
        return self

    def part(self, version: int) -> Part:
        """The settings of one version."""
        return self.versions.get(version, _NO_PART)

    def wanted(self, present: Collection[int], versions: Literal["latest", "all"] | tuple[int, ...]) -> set[int]:
        """The present versions that are to be loaded; `versions` is the setting in model.toml.

        Versions that are named here and missing are ignored: they were deleted on purpose.
        """
        parts = {number: self.part(number) for number in present}
        if versions == "latest":
            candidates = [number for number, part in parts.items() if part.load is not False and not part.is_trial]
            asked = {max(candidates, default=max(present))}
        else:
            asked = set(present if versions == "all" else versions)
        if self.live in parts:
            asked = {self.live} if versions == "latest" else asked | {self.live}
        asked |= {number for number, part in parts.items() if part.load or part.is_trial} | set(self.labels.values())
        return {
            number for number in asked if number in parts and (number == self.live or parts[number].load is not False)
        }

    def with_live(self, version: int | None, instead_of: int | None) -> Self:
        """`version` is live, and no longer on trial (None: the highest is); who was live can be rolled back to."""
        previous = self.previous if instead_of in {None, version} else instead_of
        changed = self._changed(live=version, previous=previous)
        return changed if version is None else changed.with_part(version, load=None, canary=0.0, shadow=0.0)

    def with_part(self, version: int, **changes: Any) -> Self:
        """A copy with changed settings of one version."""
        part = Part.model_validate(self.part(version).model_dump() | changes)
        others = {number: each for number, each in self.versions.items() if number != version}
        return self._changed(versions=others if part == Part() else {**others, version: part})

    def with_label(self, label: str, version: int | None) -> Self:
        """A copy with the label on that version; with None, without the label."""
        others = {name: number for name, number in self.labels.items() if name != label}
        return self._changed(labels=others if version is None else {**others, label: version})

    def without(self, version: int) -> Self:
        """A copy with nothing about that version."""
        return self._changed(
            live=None if self.live == version else self.live,
            previous=None if self.previous == version else self.previous,
            labels={label: number for label, number in self.labels.items() if number != version},
            versions={number: part for number, part in self.versions.items() if number != version},
        )

    def _changed(self, **changes: Any) -> Self:
        return type(self).model_validate(self.model_dump() | changes)

    def to_toml(self) -> str:
        """The text of a routing.toml."""
        values = self.model_dump(exclude_defaults=True)
        if parts := values.pop("versions", {}):
            values["versions"] = {str(number): part for number, part in sorted(parts.items())}
        return toml_file.dumps(values)
