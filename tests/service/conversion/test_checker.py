"""A published version is tried in a child first: what it would do to the server, it does there."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from models.inputs import ImageInput
from service.conversion.checker import Checker
from service.errors import RepositoryError
from service.settings import Settings
from tests.models.published import SPEC, edited, endless, graph, publish, publish_numbers, softmax_onnx

pytestmark = pytest.mark.anyio

MIB = 2**20


def huge(mebibytes, least_batch=1):
    """So much memory for a moment, where the batch has that many items or more."""
    nodes = [
        helper.make_node("Shape", ["numbers"], ["size"], end=1),
        helper.make_node("Div", ["size", "least"], ["large"]),
        helper.make_node("Min", ["large", "one"], ["is"]),
        helper.make_node("Mul", ["is", "many"], ["wide"]),
        helper.make_node("ConstantOfShape", ["wide"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["nothing"], keepdims=0),
        helper.make_node("Add", ["numbers", "nothing"], ["probabilities"]),
    ]
    sizes = {"least": least_batch, "one": 1, "many": mebibytes * MIB // 4}
    return graph(nodes, {name: np.array([value], np.int64) for name, value in sizes.items()})


@pytest.fixture
def check(tmp_path):
    """Checks a published directory; what it says where it is refused."""

    async def run(directory, batches=(1, 3), **settings):
        checker = Checker(Settings(cache=tmp_path / "cache", **settings))
        return await checker.check("model", directory, batches, lambda _: None)

    return run


async def refusal(check, directory, **settings):
    with pytest.raises(RepositoryError) as caught:
        await check(directory, **settings)
    assert caught.value.cure
    return f"{caught.value.message}; {caught.value.cure}"


async def test_a_sound_version_passes_once_and_is_known_by_its_content_from_then_on(check, tmp_path, monkeypatch):
    directory = publish_numbers(tmp_path / "model")
    passed = await check(directory)
    assert passed.manifest.spec.labels == ("first", "second", "third")
    shutil.copytree(directory, tmp_path / "copy")
    monkeypatch.setattr("service.conversion.checker.Child", None)  # no other one is started
    assert await check(tmp_path / "copy") == passed
    edited(tmp_path / "copy", labels=["one", "two", "three"])
    with pytest.raises(TypeError):
        await check(tmp_path / "copy")
    with pytest.raises(TypeError):
        await check(directory, batches=(1, 3, 16))


async def test_what_opening_takes_is_measured(check, tmp_path):
    passed = await check(publish(tmp_path / "model", SPEC, huge(300)))
    assert 300 * MIB < passed.opened_bytes < 450 * MIB


async def test_an_endless_graph_ends_with_its_time(check, tmp_path):
    words = await refusal(check, publish(tmp_path / "model", SPEC, endless()), check_timeout_seconds=1.5)
    assert "the check was killed after" in words
    assert "MENAGERIE_CHECK_TIMEOUT_SECONDS" in words


@pytest.mark.parametrize("least_batch", [1, 16])
async def test_a_graph_that_needs_too_much_memory_is_refused(check, tmp_path, least_batch):
    directory = publish(tmp_path / "model", SPEC, huge(6000, least_batch))
    words = await refusal(check, directory, batches=(1, 3, 16), check_memory_bytes=500_000_000)
    assert "memory" in words
    assert "MENAGERIE_CHECK_MEMORY_BYTES" in words


async def test_a_cache_that_is_only_read_costs_the_memory_of_it(check, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("not a directory")
    monkeypatch.setattr("service.conversion.checker._is_writable", lambda _: False)
    for _ in range(2):
        assert await check(publish_numbers(tmp_path / "model", 1 + len(list(tmp_path.glob("model/*")))))
    assert (tmp_path / "cache").read_text() == "not a directory"


async def test_pictures_are_tried_as_pictures(check, tmp_path):
    spec = SPEC.model_copy(update={"input": ImageInput(height=16, width=8), "architecture": "lenet5"})
    passed = await check(publish(tmp_path / "model", spec, softmax_onnx(spec)), batches=(1, 3, 32))
    assert passed.manifest.spec.input.shape == (16, 8, 3)


async def test_it_needs_no_onnx_and_no_framework(check, tmp_path, monkeypatch):
    (tmp_path / "lean").mkdir()
    for name in ("onnx", "torch", "tensorflow", "keras"):
        (tmp_path / "lean" / f"{name}.py").write_text(f"raise ModuleNotFoundError('no', name='{name}')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'lean'}:{Path(__file__).parents[3]}")
    assert await check(publish_numbers(tmp_path / "model"))
