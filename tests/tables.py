"""The tables of the documentation that follow from the code.

    make tables

writes them into their pages (so does python -m tests.tables); tests/test_docs.py fails if one is not up to date.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import typer
from prometheus_client.metrics import MetricWrapperBase
from typer.core import TyperOption

from models import catalog
from models.train.recipe import Recipe
from service import errors, metrics
from service.__main__ import app
from service.settings import Settings

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"

Row = list[str]


def _table(page: str, heading: str) -> str:
    """The first table below a heading, before the next heading of any level."""
    section = page.split(f"\n{heading}\n", 1)[1].split("\n#", 1)[0]
    found = re.search(r"(?:^\|.*(?:\n|$))+", section, re.MULTILINE)
    assert found, f"there is no table below {heading}"
    return found[0]


def rows(page: str, heading: str) -> list[Row]:
    """The rows of that table, each a list of cells."""
    return [line[2:-2].split(" | ") for line in _table(page, heading).splitlines()[2:]]


def architecture_rows() -> list[Row]:
    return [[f"`{name}`", *rest] for name, *rest in catalog.rows()]


def error_rows() -> list[Row]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ServiceError)]
    return [
        [f"`{kind.code}`", str(kind.status), (kind.__doc__ or "").splitlines()[0].rstrip(".")]
        for kind in kinds
        if kind not in {errors.RepositoryError, errors.ConversionError, errors.EngineError}  # the operator's
    ]


def setting_rows() -> list[Row]:
    defaults = {"repository": "models/repository", "cache": "~/.cache/menagerie"}
    return [
        [f"`MENAGERIE_{name.upper()}`", _shown(defaults.get(name, field.default)), field.description or ""]
        for name, field in Settings.model_fields.items()
    ]


def metric_rows() -> list[Row]:
    found = []
    for each in vars(metrics).values():
        if isinstance(each, MetricWrapperBase):
            suffix = "_total" if each._type == "counter" else ""
            found.append([f"`{each._name}{suffix}`", ", ".join(each._labelnames), each._documentation])
    return found


def option_rows(command: str) -> list[Row]:
    """The options of a command; its arguments are in the text."""
    if command == "train":  # which reads its own
        options = {name: field for name, field in Recipe.model_fields.items() if not field.is_required()}
        return [
            [f"`--{name.replace('_', '-')}`", _shown(field.default), field.description or ""]
            for name, field in options.items()
        ]
    parameters = typer.main.get_group(app).commands[command].params
    return [
        [f"`{each.opts[0]}`", "required" if each.required else _shown(each.default), each.help or ""]
        for each in parameters
        if isinstance(each, TyperOption)
    ]


def _shown(value: object) -> str:
    """A default as a person would write it."""
    if value in {None, ""} or value == ():
        return ""
    if isinstance(value, Path):
        value = value.relative_to(ROOT)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


class Table(NamedTuple):
    """One table, and where it is."""

    page: str
    heading: str
    columns: str
    rows: Callable[[], list[Row]]


def commands() -> list[str]:
    """The names of all commands, in the order of --help."""
    return [command.callback.__name__ for command in app.registered_commands if command.callback]


TABLES = [
    Table(
        "reference/architectures.md",
        "## Catalog",
        "architecture | paper | input | parameters | frameworks",
        architecture_rows,
    ),
    Table("reference/errors.md", "## Codes", "code | status | when", error_rows),
    Table("reference/settings.md", "## Variables", "variable | default | what it is", setting_rows),
    Table("reference/metrics.md", "## Names", "metric | labels | what it is", metric_rows),
    *(
        Table(
            "reference/command-line.md",
            f"## menagerie {command}",
            "option | default | what it is",
            partial(option_rows, command),
        )
        for command in commands()
    ),
]


def write(table: Table) -> None:
    """Puts a table in the place of the first one below its heading."""
    path = DOCS / table.page
    page, columns = path.read_text(), table.columns.split(" | ")
    old = _table(page, table.heading)
    new = "".join(f"| {' | '.join(row)} |\n" for row in (columns, ["---"] * len(columns), *table.rows()))
    before, heading, after = page.partition(f"\n{table.heading}\n")
    path.write_text(before + heading + after.replace(old, new, 1))


if __name__ == "__main__":
    for each in TABLES:
        write(each)
