"""Files -> a version in its place, whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def publish(staging: Path, target: Path) -> Path:
    """Renames a finished directory: a reader, or the next process, sees all of its files or none. Returns `target`.

    Raises OSError where the target is there already, unless as an empty directory.
    """
    for path in (*staging.rglob("*"), staging):
        sync(path)
    staging.rename(target)
    sync(target.parent)
    return target


def sync(path: Path) -> None:
    """What is there survives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def next_version(model: Path) -> int:
    """The number after the highest in a model's directory."""
    taken = [int(path.name) for path in model.iterdir() if path.name.isascii() and path.name.isdigit()]
    return max(taken, default=0) + 1


def toml(values: Mapping[str, Any]) -> str:
    """Settings as a model.toml has them: mappings become tables. Strings, numbers and lists are written as in JSON."""
    tables = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    lines = [_pair(name, value) for name, value in values.items() if name not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(_pair(*pair) for pair in table.items())]
    return "\n".join(lines) + "\n"


def _pair(name: str, value: Any) -> str:
    return f"{name} = {json.dumps(value, ensure_ascii=False)}"
