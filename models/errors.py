"""Errors in artifacts, each with its cure."""

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

_MOST_CHARACTERS = 300  # of a library's message


class ArtifactError(ValueError):
    """An artifact that cannot be used. The text says why, and `cure` says what to do."""

    def __init__(self, message: str, cure: str) -> None:
        super().__init__(message)
        self.cure = cure


def first_line(error: BaseException) -> str:
    """The first line of a library's error message, shortened."""
    if isinstance(error, ValidationError):
        problem = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"[:_MOST_CHARACTERS]
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:_MOST_CHARACTERS]


@contextmanager
def translate_errors(message: str, cure: str) -> Iterator[None]:
    """Translates whatever a library raises about a file or a network into an ArtifactError.

    ArtifactError, ModuleNotFoundError and MemoryError pass unchanged.
    """
    try:
        yield
    except (ArtifactError, ModuleNotFoundError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).rpartition("Exception encountered: ")[2].split())[:200]
        raise ArtifactError(f"{message}: {reason}", cure) from error
