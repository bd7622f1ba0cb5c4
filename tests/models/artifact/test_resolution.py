"""What a version's directory resolves to."""

import ast
from pathlib import Path

from models.artifact import formats, resolution

ROOT = Path(resolution.__file__).parents[2]

# What models/conversion/convert.py imports and what yet decides nothing of the files that it publishes.
OTHERS = {
    "catalog.py",
    "conversion/events.py",
}


def imported(module, seen):
    """The files under models/ that a module imports, at once or later, itself among them."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    if module in seen or not path.exists():
        return
    seen.add(module)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("models"):
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                imported(name, seen)


def test_a_change_of_any_code_that_converts_changes_the_fingerprint():
    seen = set()
    imported("models.conversion.convert", seen)
    files = {f"{module.removeprefix('models.').replace('.', '/')}.py" for module in seen}
    rows = {name for name in files if name.startswith("zoo/")}  # the row's own file is added to it
    named = {str(path.relative_to(ROOT / "models")) for path in resolution.converter_sources(None, formats.ONNX)}
    assert files - rows - OTHERS <= named
    assert files >= OTHERS
    assert not OTHERS & named
