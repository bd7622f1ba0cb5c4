"""What is wrong with an artifact, and its cure."""

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

_MOST_CHARACTERS = 300  # of somebody else's message


class ArtifactError(ValueError):
    """An artifact that cannot be used; the text says what is wrong, `cure` what to do."""

    def __init__(self, message: str, cure: str) -> None:
        super().__init__(message)
        self.cure = cure


def first_line(error: BaseException) -> str:
    """What a library says of its failure, in one line that is not long."""
    if isinstance(error, ValidationError):
        problem = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"[:_MOST_CHARACTERS]
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:_MOST_CHARACTERS]


@contextmanager
def told(message: str, cure: str) -> Iterator[None]:
    """What a library says of a file or a network becomes an ArtifactError.

    Unless it is one, a library is missing, or memory ran out.
    """
    try:
        yield
    except (ArtifactError, ModuleNotFoundError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).rpartition("Exception encountered: ")[2].split())[:200]
        raise ArtifactError(f"{message}: {reason}", cure) from error
