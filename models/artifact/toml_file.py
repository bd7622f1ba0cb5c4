"""Reads untrusted TOML in bounded time, and writes TOML.

tomllib takes quadratic time in the number of a key's parts and recurses for each bracket: a key of 20 KB takes seconds,
and 1,000 brackets raise a RecursionError. So text that no settings file has is refused before it is parsed.
"""

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from models.errors import ArtifactError

MAX_BYTES = 2**20
MAX_CHARACTERS = 2**18  # outside of strings: 21,841 labels need a third of that
MAX_WORD = 128  # in a key or a number
MAX_PARTS = 8  # in a dotted key
MAX_DEPTH = 16  # of brackets

# Strings and comments. Each ends where tomllib ends it; an unterminated one ends with its line or with the text.
# So every character is read once.
_TEXT = re.compile(
    r'"""(?:[^"\\]++|\\.?|"{1,2}(?!"))*+(?:"{3,5}|\Z)'
    r"|'''(?:[^']++|'{1,2}(?!'))*+(?:'{3,5}|\Z)"
    r'|"(?:[^"\\\n]++|\\[^\n]?)*+(?:"|\n|\Z)'
    r"|'[^'\n]*+(?:'|\n|\Z)"
    r"|\#[^\n]*+",
    re.DOTALL,
)
_WORD = re.compile(rf"[\w.+:-]{{{MAX_WORD + 1}}}")
_PARTS = re.compile(rf"(?:[\w-]*\.){{{MAX_PARTS}}}")
_BRACKET = re.compile(r"[\[\]{}]")

_SHORTER = "keep settings short, and put long labels into labels.txt"


def parse(content: bytes, name: str) -> dict[str, Any]:
    """The values in a TOML file's content; `name` is its name in error messages. Raises ArtifactError."""
    if len(content) > MAX_BYTES:
        raise ArtifactError(f"{name} has more than {MAX_BYTES} bytes", _SHORTER)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{name} is not UTF-8", "save it as UTF-8") from error
    _check(text, name)
    try:
        return tomllib.loads(text)
    except ValueError as error:  # also raised for numbers out of Python's range
        raise ArtifactError(
            f"{name} cannot be read: {str(error)[:200]}", "correct it; the README lists what it may say"
        ) from error


def dumps(values: Mapping[str, Any]) -> str:
    """The text of a TOML file. Tables are mappings with strings as keys."""
    return tomli_w.dumps(values)


def _check(text: str, name: str) -> None:
    bare = re.sub(r"[ \t]++", "", _TEXT.sub("_", text))
    if len(bare) > MAX_CHARACTERS:
        raise ArtifactError(f"{name} has more than {MAX_CHARACTERS} characters outside of strings", _SHORTER)
    if found := _WORD.search(bare):
        raise ArtifactError(f"{name} holds a key or a number of more than {MAX_WORD} characters", _SHORTER)
    if found := _PARTS.search(bare):
        raise ArtifactError(f"{name} holds a key of more than {MAX_PARTS} parts: {found[0][:64]}", _SHORTER)
    depth = 0
    for bracket in _BRACKET.findall(bare):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            raise ArtifactError(f"{name} nests brackets more than {MAX_DEPTH} deep", _SHORTER)


def read(path: Path) -> Mapping[str, Any]:
    """The values in a file; empty if there is no such file. Raises ArtifactError, OSError."""
    return parse(read_bytes(path, MAX_BYTES), path.name) if os.path.lexists(path) else {}


def read_bytes(path: Path, most: int, cure: str = _SHORTER) -> bytes:
    """The content of a file of at most `most` bytes. Raises ArtifactError with that cure, OSError.

    Links are followed, because Kubernetes mounts files as links. Pipes and devices are refused without waiting.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - of a descriptor
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ArtifactError(f"{path.name} is not a regular file", "replace it by the file itself")
        if found.st_size > most:
            raise ArtifactError(f"{path.name} has {found.st_size} bytes, and {most} are allowed", cure)
        return file.read(found.st_size)
