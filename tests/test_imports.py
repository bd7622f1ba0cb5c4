"""The rooms of the house: no import leads upwards (`[tool.importlinter]`), and each says what it is for."""

import ast
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parent.parent
ROOMS = sorted(path for package in ("service", "models") for path in (ROOT / package).rglob("__init__.py"))


def test_no_import_leads_upwards(capsys):
    code = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert code == 0, capsys.readouterr().out


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_a_room_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text()))
