"""Random operations at the same time: a version always answers, and in the end the table matches the repository."""

import asyncio
import random
import shutil

import pytest

from service.errors import ServiceError
from service.repository.publisher import Publisher
from service.repository.repository import Repository
from service.versions.operations import Operations
from tests.models.published import publish_numbers
from tests.service.versions.reconciling import ask, gone

pytestmark = pytest.mark.anyio

REFUSALS = {"conflict", "load_failed", "model_not_found"}


class Operator:
    """Performs random operations on the model `model`, as operators and people with access to its files do."""

    def __init__(self, seed, reconciler, root, spare):
        self.draw = random.Random(seed)
        self.reconciler, self.root, self.spare = reconciler, root, spare
        self.operations = Operations(reconciler._registry, reconciler, Repository(root), Publisher(root, 2**30, 5))
        self.highest, self.broken = 1, set()
        self.done, self.refused = 0, 0

    async def work(self, steps):
        for _ in range(steps):
            try:
                await self.draw.choice(self.changes)(self)
                self.done += 1
            except ServiceError as error:
                if error.code not in REFUSALS:
                    raise
                self.refused += 1
            await asyncio.sleep(self.draw.random() * 0.01)

    def some(self):
        return self.draw.randint(1, self.highest)

    async def drop(self):
        self.highest += 1
        number, staging = self.highest, self.root / f".{self.highest}"
        shutil.copytree(self.spare, staging)
        if self.draw.random() < 0.3:
            self.broken.add(number)
            (staging / "model.onnx").write_bytes(b"broken")
        staging.rename(self.root / "model" / str(number))
        await self.reconciler.scan()

    async def touch(self):
        (self.root / "model" / "model.toml").touch()  # every version is loaded again
        await self.reconciler.scan()

    async def load(self):
        await self.operations.load("model", self.some())

    async def unload(self):
        await self.operations.unload("model", self.some())

    async def cancel(self):
        await self.operations.cancel("model", self.some())

    async def activate(self):
        await self.operations.activate("model", self.some())

    async def roll_back(self):
        await self.operations.roll_back("model")

    async def delete(self):
        if (number := self.some()) > 1:  # one valid version stays
            await self.operations.delete("model", number)

    async def label(self):
        await self.operations.label(
            "model", self.draw.choice(["stable", "next"]), self.draw.choice([None, self.some()])
        )

    async def set_shares(self):
        canary, shadow = self.draw.choices([0, 0, 5, 30], k=2)
        await self.operations.set_shares("model", self.some(), canary=canary, shadow=shadow)

    async def pin(self):
        await self.operations.pin("model")

    async def unpin(self):
        await self.operations.unpin("model")

    changes = (drop, touch, load, unload, cancel, activate, roll_back, delete, label, set_shares, pin, unpin)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))])
async def test_a_version_answers_during_random_operations(reconciler, registry, root, tmp_path, seed):
    publish_numbers(root / "model", 1)
    await reconciler.refresh()
    operator = Operator(seed, reconciler, root, publish_numbers(tmp_path / "spare"))
    working = asyncio.gather(*(operator.work(25) for _ in range(3)))
    answered = 0
    while not working.done():
        version, label = await ask(registry)
        assert label == "second"
        assert version not in operator.broken
        answered += 1
        await asyncio.sleep(0)
    await working
    assert answered > 50
    assert min(operator.done, operator.refused) > 5

    await reconciler.refresh()
    await gone(reconciler)
    records = registry.model("model").records
    for number in Repository(root).wanted("model"):
        if records[number].reason != "its load was cancelled":  # by an operator, who would have to load it again
            assert (records[number].state == "READY") is (number not in operator.broken), records[number]
    assert registry.model("model").unwanted() == []
