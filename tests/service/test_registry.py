"""Loading, swapping and unloading: whatever the repository does, somebody answers."""

import asyncio
import shutil
import time

import numpy as np
import pytest

from service.errors import ConversionError, ModelNotFound, ModelNotReady
from service.lifecycle import Lifecycle
from service.machine import usable_cores
from service.metrics import generate_latest
from service.preprocess import DecodePool
from service.registry import Registry
from service.settings import Settings
from tests.models.published import publish_numbers, publish_softmax
from tests.models.saved import torch_bytes
from tests.servers import until
from tests.service.test_routes import picture

pytestmark = pytest.mark.anyio

NUMBERS = np.array([0, 1, 0], np.float32)


@pytest.fixture
async def registry(tmp_path):
    """A registry of an empty repository."""
    (tmp_path / "repository").mkdir()
    settings = Settings(repository=tmp_path / "repository", cache=tmp_path / "cache", provider="cpu")
    decoders = DecodePool(usable_cores(), settings.max_decode_images, settings.max_image_pixels)
    decoders.start()
    registry = Registry(settings, decoders, Lifecycle())
    registry.root = settings.repository
    yield registry
    await registry.close()
    decoders.close()


async def ask(registry, name="model", version=None, item=NUMBERS):
    """The version that answers, and its best label."""
    with registry.lease(name, version) as servable:
        outcome = await servable.predict([item], 1, time.monotonic() + 20)
        return servable.version, outcome.results[0][0].label


def states(registry, name="model"):
    return {number: str(record.state) for number, record in registry.model(name).records.items()}


def value(metric):
    lines = generate_latest().decode().splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(metric)), None)


async def test_an_empty_repository_is_unready_with_a_reason(registry):
    assert "not been read" in registry.unready()["repository"]
    await registry.refresh()
    assert "holds no model" in registry.unready()["repository"]
    with pytest.raises(ModelNotFound):
        registry.servable("model")


async def test_a_new_version_replaces_the_old_one_which_answers_until_then(registry):
    publish_numbers(registry.root / "model", 1)
    await registry.refresh()
    assert await ask(registry) == (1, "second")
    swaps = value('serving_swaps_total{model="model",outcome="ok"}') or 0
    shutil.copytree(registry.root / "model" / "1", registry.root / "model" / "2")
    with registry.lease("model") as old:
        await registry.refresh()
        assert await ask(registry) == (2, "second")
        assert states(registry) == {1: "UNLOADING", 2: "READY"}
        outcome = await old.predict([NUMBERS], 1, time.monotonic() + 20)  # who holds a lease is still answered
        assert outcome.results[0][0].label == "second"
    await asyncio.to_thread(until, lambda: 1 not in registry.model("model").records)
    assert states(registry) == {2: "READY"}
    assert value('serving_swaps_total{model="model",outcome="ok"}') == swaps + 1
    assert value('serving_queue_depth{model="model",version="1"}') is None
    assert value('serving_model_state{model="model",state="READY",version="2"}') == 1


async def test_a_broken_new_version_leaves_the_old_one_live_with_the_reason(registry):
    publish_numbers(registry.root / "model", 1)
    await registry.refresh()
    swaps = value('serving_swaps_total{model="model",outcome="failed"}') or 0
    shutil.copytree(registry.root / "model" / "1", registry.root / "model" / "2")
    (registry.root / "model" / "2" / "model.onnx").write_bytes(b"broken")
    await registry.refresh()
    assert await ask(registry) == (1, "second")
    assert states(registry) == {1: "READY", 2: "UNAVAILABLE"}
    assert "is not the file" in registry.model("model").records[2].reason
    assert registry.unready() == {}
    assert value('serving_swaps_total{model="model",outcome="failed"}') == swaps + 1
    with pytest.raises(ModelNotReady, match="UNAVAILABLE"):
        registry.servable("model", 2)
    shutil.rmtree(registry.root / "model" / "2")
    await registry.refresh()
    assert states(registry) == {1: "READY"}


async def test_a_version_that_was_deleted_gives_way_to_the_one_before(registry):
    publish_numbers(registry.root / "model", 1)
    shutil.copytree(registry.root / "model" / "1", registry.root / "model" / "2")
    await registry.refresh()
    assert (await ask(registry))[0] == 2
    shutil.rmtree(registry.root / "model" / "2")
    await registry.refresh()
    assert (await ask(registry))[0] == 1


async def test_all_versions_can_be_live_at_once(registry):
    publish_numbers(registry.root / "model", 1)
    shutil.copytree(registry.root / "model" / "1", registry.root / "model" / "3")
    toml = registry.root / "model" / "model.toml"
    toml.write_text(toml.read_text() + 'versions = "all"\n')
    await registry.refresh()
    assert [await ask(registry, version=number) for number in (1, 3, None)] == [
        (1, "second"),
        (3, "second"),
        (3, "second"),
    ]
    with pytest.raises(ModelNotFound, match="no version 2"):
        registry.servable("model", 2)
    shutil.rmtree(registry.root / "model" / "3")
    await registry.refresh()
    assert (await ask(registry))[0] == 1


async def test_a_version_whose_files_change_is_loaded_again(registry):
    directory = publish_softmax(registry.root / "model")
    await registry.refresh()
    assert await ask(registry, item=picture("red")) == (1, "red")
    shutil.rmtree(directory.parent)
    publish_softmax(registry.root / "model", labels=("rot", "gruen", "blau"))
    await registry.refresh()
    assert await ask(registry, item=picture("red")) == (1, "rot")
    (directory / "model.onnx").write_bytes(b"broken")
    await registry.refresh()
    assert await ask(registry, item=picture("red")) == (1, "rot")
    assert states(registry) == {1: "READY"}
    assert "is not the file" in registry.model("model").records[1].reason


async def test_a_copy_under_way_is_left_for_the_next_time(registry):
    publish_numbers(registry.root / "model")
    await registry.refresh(settled_seconds=3600)
    assert registry.model("model").records == {}
    with pytest.raises(ModelNotReady):
        registry.servable("model")
    await registry.refresh()
    assert await ask(registry) == (1, "second")


async def test_a_model_that_was_removed_is_unknown_and_its_last_caller_answered(registry):
    publish_numbers(registry.root / "model")
    publish_numbers(registry.root / "other")
    await registry.refresh()
    with registry.lease("model") as servable:
        shutil.rmtree(registry.root / "model")
        await registry.refresh()
        with pytest.raises(ModelNotFound):
            registry.servable("model")
        assert (await servable.predict([NUMBERS], 1, time.monotonic() + 20)).results
    assert (await ask(registry, "other"))[0] == 1


async def gone(registry, name="model"):
    """Waits until nothing drains any more."""
    await asyncio.to_thread(until, lambda: not registry._retirements)


async def test_looking_again_while_a_version_drains_disturbs_nothing(registry):
    publish_numbers(registry.root / "model", 1)
    await registry.refresh()
    shutil.copytree(registry.root / "model" / "1", registry.root / "model" / "2")
    with registry.lease("model") as old:
        await registry.refresh()
        await registry.refresh()
        assert states(registry) == {1: "UNLOADING", 2: "READY"}
        assert (await old.predict([NUMBERS], 1, time.monotonic() + 20)).results
    await gone(registry)
    assert states(registry) == {2: "READY"}


async def test_a_version_that_comes_back_while_it_drains_is_a_new_one(registry):
    publish_numbers(registry.root / "model", 1)
    shutil.copytree(registry.root / "model" / "1", registry.root / "copy")
    shutil.copytree(registry.root / "copy", registry.root / "model" / "2")
    shutil.rmtree(registry.root / "copy")
    await registry.refresh()
    with registry.lease("model", 2):
        (registry.root / "model" / "2").rename(registry.root / ".aside")
        await registry.refresh()
        assert (await ask(registry))[0] == 1
        (registry.root / ".aside").rename(registry.root / "model" / "2")
        await registry.refresh()
        assert (await ask(registry))[0] == 2
    await gone(registry)
    assert states(registry) == {2: "READY"}
    assert (await ask(registry))[0] == 2
    assert value('serving_queue_depth{model="model",version="2"}') == 0
    assert value('serving_model_state{model="model",state="READY",version="2"}') == 1


async def test_a_model_that_comes_back_while_it_drains_keeps_its_metrics(registry):
    publish_numbers(registry.root / "model")
    publish_numbers(registry.root / "other")
    await registry.refresh()
    with registry.lease("model"):
        (registry.root / "model").rename(registry.root / ".aside")
        await registry.refresh()
        (registry.root / ".aside").rename(registry.root / "model")
        await registry.refresh()
    await gone(registry)
    assert value('serving_queue_depth{model="model",version="1"}') == 0
    assert (await ask(registry))[0] == 1


async def test_a_broken_model_that_is_removed_leaves_no_state_behind(registry):
    publish_numbers(registry.root / "other")
    (publish_numbers(registry.root / "model") / "model.onnx").write_bytes(b"broken")
    await registry.refresh()
    assert value('serving_model_state{model="model",state="UNAVAILABLE",version="1"}') == 1
    shutil.rmtree(registry.root / "model")
    await registry.refresh()
    assert value('serving_model_state{model="model",state="UNAVAILABLE",version="1"}') is None


async def test_a_model_that_is_added_later_does_not_make_the_server_unready(registry):
    publish_numbers(registry.root / "model")
    await registry.refresh()
    (registry.root / "new").mkdir()
    (registry.root / "Not A Model").mkdir()
    await registry.refresh()
    assert registry.unready() == {}
    assert "model.toml" in registry.model("new").why_unready
    with pytest.raises(ModelNotReady, match=r"model\.toml"):
        registry.servable("new")


async def test_a_version_that_was_deleted_goes_though_a_sibling_is_broken(registry):
    publish_numbers(registry.root / "model", 1)
    for number in (2, 3):
        shutil.copytree(registry.root / "model" / "1", registry.root / "model" / str(number))
    (registry.root / "model" / "2" / "model.onnx").write_bytes(b"broken")
    toml = registry.root / "model" / "model.toml"
    toml.write_text(toml.read_text() + 'versions = "all"\n')
    await registry.refresh()
    assert (await ask(registry))[0] == 3
    shutil.rmtree(registry.root / "model" / "3")
    await registry.refresh()
    assert (await ask(registry))[0] == 1


async def test_what_is_published_answers_before_what_has_to_be_converted(registry, monkeypatch):
    model = registry.root / "a_first"
    (model / "1").mkdir(parents=True)
    (model / "model.toml").write_text('architecture = "mlp_iris"\n')
    (model / "1" / "weights.pth").write_bytes(torch_bytes())
    publish_numbers(registry.root / "z_last")

    async def convert(*_):
        assert (await ask(registry, "z_last"))[0] == 1
        raise ConversionError("tried")

    monkeypatch.setattr("service.conversion.Converter.convert", convert)
    await registry.refresh()
    assert "tried" in registry.model("a_first").records[1].reason


async def test_a_repository_that_vanishes_leaves_what_is_loaded(registry):
    publish_numbers(registry.root / "model")
    await registry.refresh()
    shutil.rmtree(registry.root)
    await registry.refresh()
    assert await ask(registry) == (1, "second")


async def test_a_server_that_polls_swaps_under_load_without_an_error(application, repository):
    with application(poll_seconds=0.05, models="largest") as client:
        seen = set()
        for number in range(2, 6):
            staging = repository / ".staging"
            shutil.copytree(repository / "largest" / "1", staging)
            staging.rename(repository / "largest" / str(number))
            while number not in seen:
                answer = client.post("/predict/largest", json={"instances": [[0, 1, 0]]})
                assert answer.status_code == 200
                seen.add(answer.json()["version"])
        assert seen == {1, 2, 3, 4, 5}
