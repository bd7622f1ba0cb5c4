"""What the tests of this room share: a reconciler over an empty repository."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.versions.reconciler import Reconciler
from service.versions.registry import Registry
from service.versions.shadow import Mirror
from tests.service.versions.reconciling import reconciling


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty repository."""
    (tmp_path / "repository").mkdir()
    return tmp_path / "repository"


@pytest.fixture
def registry() -> Registry:
    """An empty table."""
    return Registry(Mirror(20))


@pytest.fixture
async def reconciler(
    registry: Registry, root: Path, cache: Path, _decoders_are_threads: None
) -> AsyncIterator[Reconciler]:
    """A reconciler over both, with a cache of its own."""
    async with reconciling(registry, repository=root, cache=cache) as reconciler:
        yield reconciler
