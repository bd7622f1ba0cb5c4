"""Slots for child processes: as many as memory allows, one for each model, in order."""

import asyncio

import pytest

from service.conversion.slots import Slots
from tests.servers import until

pytestmark = pytest.mark.anyio


class Crowd:
    """Tasks that take slots, and leave when they are told to."""

    def __init__(self, slots):
        self.slots, self.inside, self.left = slots, [], {}

    def come(self, name):
        self.left[name] = asyncio.Event()
        return asyncio.create_task(self._work(name))

    async def _work(self, name):
        async with self.slots.slot(name.rstrip("0123456789")):
            self.inside.append(name)
            await self.left[name].wait()
            self.inside.remove(name)

    async def settle(self):
        for _ in range(20):
            await asyncio.sleep(0)
        return sorted(self.inside)

    async def leave(self, name):
        self.left[name].set()
        return await self.settle()


async def ended(crowd, *tasks):
    for event in crowd.left.values():
        event.set()
    await asyncio.gather(*tasks)


async def test_one_that_never_ends_holds_up_its_own_model_alone():
    crowd = Crowd(Slots(1, max_slots=2, free_bytes=lambda: 2**40))
    tasks = [crowd.come(name) for name in ("endless1", "endless2", "b1", "c1", "b2")]
    assert await crowd.settle() == ["b1", "endless1"]
    assert await crowd.leave("b1") == ["c1", "endless1"]
    assert await crowd.leave("c1") == ["b2", "endless1"]
    await ended(crowd, *tasks)


async def test_a_model_with_many_versions_lets_others_in_between():
    crowd = Crowd(Slots(1, max_slots=1, free_bytes=lambda: 2**40))
    tasks = [crowd.come(name) for name in ("a1", "a2", "a3", "b1", "c1")]
    order = []
    while inside := await crowd.settle():
        order += inside
        await crowd.leave(inside[0])
    assert order == ["a1", "b1", "c1", "a2", "a3"]
    await ended(crowd, *tasks)


async def test_memory_decides_how_many_there_are_and_one_there_always_is():
    free = 0
    crowd = Crowd(Slots(10, max_slots=3, free_bytes=lambda: free))
    tasks = [crowd.come(name) for name in ("a", "b", "c", "d", "e")]
    assert await crowd.settle() == ["a"]
    free = 20
    await asyncio.to_thread(until, lambda: len(crowd.inside) > 1)  # though nobody tells that memory has become free
    assert await crowd.settle() == ["a", "b"]
    free = 1000
    assert await crowd.leave("a") == ["b", "c", "d"]
    await ended(crowd, *tasks)


async def test_who_waits_and_is_cancelled_leaves_no_gap():
    slots = Slots(1, max_slots=1, free_bytes=lambda: 2**40)
    crowd = Crowd(slots)
    tasks = {name: crowd.come(name) for name in ("a1", "b1", "a2", "c1")}
    assert await crowd.settle() == ["a1"]
    for name in ("b1", "a2"):
        tasks[name].cancel()
    assert await crowd.leave("a1") == ["c1"]
    tasks["c1"].cancel()
    assert await crowd.settle() == ["c1"]  # it is told, and lets go
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    async with slots.slot("a"):
        pass
