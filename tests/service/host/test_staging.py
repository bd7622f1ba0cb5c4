"""Staging directories on the event loop: one caller at a time for a key, and nothing left however it ends."""

import asyncio

import pytest

from models.artifact.staging import locked
from service.host.staging import exclusive, staged

pytestmark = pytest.mark.anyio


def names(directory):
    return sorted(path.name for path in directory.iterdir())


async def test_work_of_one_key_is_done_by_one_at_a_time_and_that_of_others_beside_it(tmp_path):
    inside, most = {"a": 0, "b": 0}, {"a": 0, "b": 0}
    both = asyncio.Event()

    async def work(key):
        async with exclusive(tmp_path / "staging", key) as directory:
            (directory / "file").write_text("mine")
            inside[key] += 1
            most[key] = max(most[key], inside[key])
            if all(inside.values()):
                both.set()
            await both.wait()
            inside[key] -= 1
            assert names(directory) == ["file"]

    await asyncio.gather(*(work(key) for key in "aabab"))
    assert most == {"a": 1, "b": 1}
    assert names(tmp_path / "staging") == ["a.lock", "b.lock"]


async def test_a_waiting_caller_that_is_cancelled_leaves_the_lock_to_others(tmp_path):
    async def work():
        async with exclusive(tmp_path, "key"):
            raise AssertionError("it has the lock")

    (tmp_path / "key.lock").touch()
    with locked(tmp_path / "key.lock"):
        waiting = asyncio.create_task(work())
        await asyncio.sleep(0.2)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert waiting.cancelled()
    async with exclusive(tmp_path, "key"):
        pass


@pytest.mark.parametrize("steps", range(12))
async def test_a_caller_that_is_cancelled_at_any_step_leaves_no_directory(tmp_path, steps):
    async def work():
        async with staged(tmp_path, "name") as directory:
            (directory / "file").write_text("half")
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    for _ in range(steps):
        await asyncio.sleep(0.0005 * steps)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert names(tmp_path) == []
