"""What a repository has, sound or not."""

from collections.abc import Iterator

from models.artifact.versions import MAX_VERSION
from service.errors import ModelNotFound, RepositoryError, ServiceError
from service.repository.repository import Repository, Version


def versions(repository: Repository) -> Iterator[tuple[str, int | None, Version | ServiceError]]:
    """Every version that would be loaded, or why it could not be; no number where that is so of the whole model.

    Raises RepositoryError where the repository cannot be read.
    """
    for name in repository.ignored():
        cure = "rename the directory: lower-case letters, digits, '.', '_' and '-', at most 64"
        yield name, None, RepositoryError(f"{name!r} is no name for a model, and is not served", cure=cure)
    for name in repository.names():
        try:
            for directory in repository.ignored_versions(name):
                yield name, None, _misnumbered(name, directory)
            numbers: list[int] = repository.wanted(name)
        except ServiceError as error:
            yield name, None, error
            continue
        for number in numbers:
            try:
                yield name, number, repository.resolve(name, number)
            except ServiceError as error:
                yield name, number, error


def _misnumbered(name: str, directory: str) -> RepositoryError:
    return RepositoryError(
        f"the directory {directory!r} is no version of {name}, and is not served",
        cure=f"a version is a number from 1 to {MAX_VERSION}, without zeros before it",
    )


def known(repository: Repository, names: list[str]) -> list[str]:
    """The names, all of which the repository has. Raises ModelNotFound."""
    present = repository.names()
    for name in names:
        if name not in present:
            raise ModelNotFound(f"there is no model {name}", cure=f"the repository has {', '.join(present) or 'none'}")
    return names
