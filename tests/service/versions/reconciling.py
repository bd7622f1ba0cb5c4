"""A reconciler over an empty repository, and what tests ask of it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from service.images.decode_pool import DecodePool
from service.lifecycle import Lifecycle
from service.settings import Settings
from service.versions.loader import Loader
from service.versions.reconciler import Reconciler
from service.versions.registry import Registry
from tests.servers import until

NUMBERS = np.array([0, 1, 0], np.float32)


@contextlib.asynccontextmanager
async def reconciling(registry: Registry, **settings: Any) -> AsyncIterator[Reconciler]:
    """A reconciler with these settings, and all that it needs."""
    chosen = Settings(provider="cpu", **settings)
    decoders = DecodePool.of(chosen)
    decoders.start()
    reconciler = Reconciler(chosen, registry, Loader(chosen, decoders, Lifecycle()))
    yield reconciler
    await reconciler.close()
    await decoders.close()


async def ask(
    registry: Registry, name: str = "model", version: int | None = None, item: np.ndarray = NUMBERS
) -> tuple[int, str]:
    """The version that answers, and its best label."""
    with registry.lease(name, version) as servable:
        outcome = await servable.predict([item], 1, time.monotonic() + 20)
        (result,) = outcome.results
        assert isinstance(result, list)
        return servable.version, result[0].label


async def gone(reconciler: Reconciler) -> None:
    """Waits until every servable that is being drained is closed."""
    await asyncio.to_thread(until, lambda: not reconciler._transitions._drains)
