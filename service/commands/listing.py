"""The versions of a repository, valid or not."""

from collections.abc import Iterator

from models.artifact.versions import MAX_VERSION
from service.errors import ModelNotFound, RepositoryError, ServiceError
from service.repository.repository import Repository, Version


def versions(repository: Repository) -> Iterator[tuple[str, int | None, Version | ServiceError]]:
    """Every version to load, or the error that prevents it. The number is None if the error concerns the whole model.

    Raises RepositoryError if the repository cannot be read.
    """
    for name in repository.ignored():
        cure = "rename the directory: lower-case letters, digits, '.', '_' and '-', at most 64"
        yield name, None, RepositoryError(f"{name!r} is not a valid name of a model, and is not served", cure=cure)
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
        f"the directory {directory!r} is not a version of {name}, and is not served",
        cure=f"a version is a number from 1 to {MAX_VERSION}, without leading zeros",
    )


def known(repository: Repository, names: list[str]) -> list[str]:
    """The names, if the repository has all of them. Raises ModelNotFound."""
    present = repository.names()
    for name in names:
        if name not in present:
            raise ModelNotFound(f"there is no model {name}", cure=f"the repository has {', '.join(present) or 'none'}")
    return names
