"""Loading, swapping and unloading, while a version goes on answering."""

import asyncio
import shutil
import threading
import time
from pathlib import Path

import pytest

from service.conversion.checker import Checker
from service.conversion.conversion import Converter
from service.errors import ConversionError, ModelNotFound, ModelNotReady
from service.inference.engine import Engine
from service.metrics import generate_latest
from service.repository.repository import Repository
from service.versions.loader import Loader
from tests.client import picture
from tests.models.published import SPEC, edited, endless, publish, publish_numbers, publish_softmax
from tests.models.saved import torch_bytes
from tests.processes import converting
from tests.servers import until
from tests.service.versions.reconciling import NUMBERS, ask, gone, reconciling

pytestmark = pytest.mark.anyio


def states(registry, name="model"):
    return {number: str(record.state) for number, record in registry.model(name).records.items()}


def value(metric):
    lines = generate_latest().decode().splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(metric)), None)


async def test_an_empty_repository_is_unready_with_a_reason(reconciler, registry):
    assert "not been read" in registry.unready()["repository"]
    await reconciler.refresh()
    assert "holds no model" in registry.unready()["repository"]
    with pytest.raises(ModelNotFound):
        registry.servable("model")


async def test_a_new_version_replaces_the_old_one_which_answers_until_then(reconciler, registry, root):
    publish_numbers(root / "model", 1)
    await reconciler.refresh()
    assert await ask(registry) == (1, "second")
    swaps = value('serving_swaps_total{model="model",outcome="ok"}') or 0
    shutil.copytree(root / "model" / "1", root / "model" / "2")
    with registry.lease("model") as old:
        await reconciler.refresh()
        assert await ask(registry) == (2, "second")
        assert states(registry) == {1: "UNLOADING", 2: "READY"}
        outcome = await old.predict([NUMBERS], 1, time.monotonic() + 20)  # a request with a lease is still answered
        assert outcome.results[0][0].label == "second"
    await asyncio.to_thread(until, lambda: 1 not in registry.model("model").records)
    assert states(registry) == {2: "READY"}
    assert value('serving_swaps_total{model="model",outcome="ok"}') == swaps + 1
    assert value('serving_queue_depth{model="model",version="1"}') is None
    assert value('serving_model_state{model="model",state="READY",version="2"}') == 1


async def test_a_broken_new_version_leaves_the_old_one_live_with_the_reason(reconciler, registry, root):
    publish_numbers(root / "model", 1)
    await reconciler.refresh()
    swaps = value('serving_swaps_total{model="model",outcome="failed"}') or 0
    shutil.copytree(root / "model" / "1", root / "model" / "2")
    (root / "model" / "2" / "model.onnx").write_bytes(b"broken")
    await reconciler.refresh()
    assert await ask(registry) == (1, "second")
    assert states(registry) == {1: "READY", 2: "UNAVAILABLE"}
    assert "is not the file" in registry.model("model").records[2].reason
    assert registry.unready() == {}
    assert value('serving_swaps_total{model="model",outcome="failed"}') == swaps + 1
    with pytest.raises(ModelNotReady, match="UNAVAILABLE"):
        registry.servable("model", 2)
    shutil.rmtree(root / "model" / "2")
    await reconciler.refresh()
    assert states(registry) == {1: "READY"}


async def test_a_version_that_was_deleted_gives_way_to_the_one_before(reconciler, registry, root):
    publish_numbers(root / "model", 1)
    shutil.copytree(root / "model" / "1", root / "model" / "2")
    await reconciler.refresh()
    assert (await ask(registry))[0] == 2
    shutil.rmtree(root / "model" / "2")
    await reconciler.refresh()
    assert (await ask(registry))[0] == 1


async def test_all_versions_can_be_live_at_once(reconciler, registry, root):
    publish_numbers(root / "model", 1)
    shutil.copytree(root / "model" / "1", root / "model" / "3")
    toml = root / "model" / "model.toml"
    toml.write_text(toml.read_text() + 'versions = "all"\n')
    await reconciler.refresh()
    assert [await ask(registry, version=number) for number in (1, 3, None)] == [
        (1, "second"),
        (3, "second"),
        (3, "second"),
    ]
    with pytest.raises(ModelNotFound, match="no version 2"):
        registry.servable("model", 2)
    shutil.rmtree(root / "model" / "3")
    await reconciler.refresh()
    assert (await ask(registry))[0] == 1


async def test_a_version_whose_files_change_is_loaded_again(reconciler, registry, root):
    directory = publish_softmax(root / "model")
    await reconciler.refresh()
    assert await ask(registry, item=picture("red")) == (1, "red")
    shutil.rmtree(directory.parent)
    publish_softmax(root / "model", labels=("rot", "gruen", "blau"))
    await reconciler.refresh()
    assert await ask(registry, item=picture("red")) == (1, "rot")
    (directory / "model.onnx").write_bytes(b"broken")
    await reconciler.refresh()
    assert await ask(registry, item=picture("red")) == (1, "rot")
    assert states(registry) == {1: "READY"}
    assert "is not the file" in registry.model("model").records[1].reason


async def test_a_version_that_is_still_being_copied_is_left_for_a_later_scan(reconciler, registry, root):
    publish_numbers(root / "model")
    await reconciler.scan(settled_seconds=3600)
    assert registry.model("model").records == {}
    with pytest.raises(ModelNotReady):
        registry.servable("model")
    await reconciler.refresh()
    assert await ask(registry) == (1, "second")


async def test_a_model_that_was_removed_is_unknown_and_its_last_request_is_answered(reconciler, registry, root):
    publish_numbers(root / "model")
    publish_numbers(root / "other")
    await reconciler.refresh()
    with registry.lease("model") as servable:
        shutil.rmtree(root / "model")
        await reconciler.refresh()
        with pytest.raises(ModelNotFound):
            registry.servable("model")
        assert (await servable.predict([NUMBERS], 1, time.monotonic() + 20)).results
    assert (await ask(registry, "other"))[0] == 1


async def test_looking_again_while_a_version_drains_disturbs_nothing(reconciler, registry, root):
    publish_numbers(root / "model", 1)
    await reconciler.refresh()
    shutil.copytree(root / "model" / "1", root / "model" / "2")
    with registry.lease("model") as old:
        await reconciler.refresh()
        await reconciler.refresh()
        assert states(registry) == {1: "UNLOADING", 2: "READY"}
        assert (await old.predict([NUMBERS], 1, time.monotonic() + 20)).results
    await gone(reconciler)
    assert states(registry) == {2: "READY"}


async def test_a_version_that_comes_back_while_it_drains_is_a_new_one(reconciler, registry, root):
    publish_numbers(root / "model", 1)
    shutil.copytree(root / "model" / "1", root / "copy")
    shutil.copytree(root / "copy", root / "model" / "2")
    shutil.rmtree(root / "copy")
    await reconciler.refresh()
    with registry.lease("model", 2):
        (root / "model" / "2").rename(root / ".aside")
        await reconciler.refresh()
        assert (await ask(registry))[0] == 1
        (root / ".aside").rename(root / "model" / "2")
        await reconciler.refresh()
        assert (await ask(registry))[0] == 2
    await gone(reconciler)
    assert states(registry) == {2: "READY"}
    assert (await ask(registry))[0] == 2
    assert value('serving_queue_depth{model="model",version="2"}') == 0
    assert value('serving_model_state{model="model",state="READY",version="2"}') == 1


async def test_a_model_that_comes_back_while_it_drains_keeps_its_metrics(reconciler, registry, root):
    publish_numbers(root / "model")
    publish_numbers(root / "other")
    await reconciler.refresh()
    with registry.lease("model"):
        (root / "model").rename(root / ".aside")
        await reconciler.refresh()
        (root / ".aside").rename(root / "model")
        await reconciler.refresh()
    await gone(reconciler)
    assert value('serving_queue_depth{model="model",version="1"}') == 0
    assert (await ask(registry))[0] == 1


async def test_a_broken_model_that_is_removed_leaves_no_state_behind(reconciler, root):
    publish_numbers(root / "other")
    (publish_numbers(root / "model") / "model.onnx").write_bytes(b"broken")
    await reconciler.refresh()
    assert value('serving_model_state{model="model",state="UNAVAILABLE",version="1"}') == 1
    shutil.rmtree(root / "model")
    await reconciler.refresh()
    assert value('serving_model_state{model="model",state="UNAVAILABLE",version="1"}') is None


async def test_a_model_that_is_added_later_does_not_make_the_server_unready(reconciler, registry, root):
    publish_numbers(root / "model")
    await reconciler.refresh()
    (root / "new").mkdir()
    (root / "Not A Model").mkdir()
    await reconciler.refresh()
    assert registry.unready() == {}
    assert "model.toml" in registry.model("new").why_unready
    with pytest.raises(ModelNotReady, match=r"model\.toml"):
        registry.servable("new")


async def test_a_version_that_was_deleted_goes_though_a_sibling_is_broken(reconciler, registry, root):
    publish_numbers(root / "model", 1)
    for number in (2, 3):
        shutil.copytree(root / "model" / "1", root / "model" / str(number))
    (root / "model" / "2" / "model.onnx").write_bytes(b"broken")
    toml = root / "model" / "model.toml"
    toml.write_text(toml.read_text() + 'versions = "all"\n')
    await reconciler.refresh()
    assert (await ask(registry))[0] == 3
    shutil.rmtree(root / "model" / "3")
    await reconciler.refresh()
    assert (await ask(registry))[0] == 1


async def test_a_published_version_answers_while_another_is_converted(reconciler, registry, root, monkeypatch):
    model = root / "a_first"
    (model / "1").mkdir(parents=True)
    (model / "model.toml").write_text('architecture = "mlp_iris"\n')
    (model / "1" / "weights.pth").write_bytes(torch_bytes())
    publish_numbers(root / "z_last")

    async def convert(*_):
        await asyncio.to_thread(until, lambda: registry.model("z_last").is_ready)
        raise ConversionError("tried")

    monkeypatch.setattr("service.conversion.conversion.Converter.convert", convert)
    await reconciler.refresh()
    assert "tried" in registry.model("a_first").records[1].reason


async def test_a_version_that_is_being_loaded_again_answers_until_its_successor_does(
    reconciler, registry, root, monkeypatch
):
    publish_numbers(root / "model", 1)
    await reconciler.refresh()
    go, begun = asyncio.Event(), asyncio.Event()
    really = Loader.load

    async def load(self, version, *arguments, **options):
        begun.set()
        if version.number == 1:
            await go.wait()
        return await really(self, version, *arguments, **options)

    monkeypatch.setattr(Loader, "load", load)
    toml = root / "model" / "model.toml"
    toml.write_text(toml.read_text() + "min_agreement = 0.5\n")
    await reconciler.scan()
    await begun.wait()
    shutil.copytree(root / "model" / "1", root / "model" / "2")
    await reconciler.scan()  # version 1 need not be loaded again: it is cancelled
    assert await ask(registry) == (1, "second")
    while registry.model("model").live.version == 1:
        assert await ask(registry) == (1, "second")
        await asyncio.sleep(0)
    assert registry.model("model").records[2].report.agreement == 1
    await gone(reconciler)
    assert states(registry) == {2: "READY"}


async def test_a_live_version_that_made_room_comes_back_if_its_successor_is_cancelled(
    reconciler, registry, root, monkeypatch
):
    """The cancellation comes while the live version waits for its last requests."""
    free = iter([0])  # the second version does not fit beside the first
    publish_numbers(root / "model", 1)
    with (root / "model" / "model.toml").open("a") as file:
        file.write("unload_first = true\n")
    await reconciler.refresh()
    monkeypatch.setattr("service.versions.loader.available_memory_bytes", lambda: next(free, 2**40))
    shutil.copytree(root / "model" / "1", root / "model" / "2")
    with registry.lease("model") as old:
        await reconciler.scan()
        await asyncio.to_thread(until, lambda: states(registry) == {1: "UNLOADING", 2: "LOADING"})
        registry.model("model").records[2].cancel()
        await asyncio.sleep(0)
        outcome = await old.predict([NUMBERS], 1, time.monotonic() + 20)
        assert outcome.results[0][0].label == "second"
    await asyncio.to_thread(until, lambda: registry.model("model").is_ready)
    assert await ask(registry) == (1, "second")
    await gone(reconciler)
    assert states(registry) == {1: "READY", 2: "UNAVAILABLE"}


@pytest.mark.parametrize("tune", [False, True])
async def test_nothing_is_opened_while_a_cancelled_load_still_works(reconciler, registry, root, monkeypatch, tune):
    begun, cancelled, opened = (threading.Event() for _ in range(3))
    beside, really = [], Engine.open

    def work(*_):  # on a thread, which cannot be stopped
        begun.set()
        cancelled.wait(30)
        beside.append(opened.wait(0.5))

    def opening(engine, classes):
        if not begun.is_set():
            return work()
        opened.set()
        return really(engine, classes)

    monkeypatch.setattr("service.versions.loader.tuned", work)
    monkeypatch.setattr(Engine, "open", opening)
    publish_numbers(root / "model")
    if tune:
        toml = root / "model" / "model.toml"
        toml.write_text(toml.read_text() + "tune = true\n")
    await reconciler.scan()
    await asyncio.to_thread(begun.wait, 30)
    publish_numbers(root / "other")
    await reconciler.scan()
    record = registry.model("model").records[1]
    for _ in range(2):
        record.cancel()
        await asyncio.sleep(0)
    cancelled.set()
    await record.loaded()
    await registry.model("other").records[1].loaded()
    assert beside == [False]
    assert (record.state, record.reason) == ("UNAVAILABLE", "its load was cancelled")
    assert (await ask(registry, "other"))[0] == 1


async def test_the_loaded_versions_stay_if_the_repository_vanishes(reconciler, registry, root):
    publish_numbers(root / "model")
    await reconciler.refresh()
    shutil.rmtree(root)
    await reconciler.refresh()
    assert await ask(registry) == (1, "second")


async def test_a_server_that_polls_swaps_under_load_without_an_error(application, repository):
    with application(poll_seconds=0.05, models="largest") as client:
        seen = set()
        for number in range(1, 6):
            if number > 1:
                staging = repository / ".staging"
                shutil.copytree(repository / "largest" / "1", staging)
                staging.rename(repository / "largest" / str(number))
            while number not in seen:
                answer = client.post("/predict/largest", json={"instances": [[0, 1, 0]]})
                assert answer.status_code == 200
                seen.add(answer.json()["version"])
        assert seen == {1, 2, 3, 4, 5}


def publish_broken(model, version=1):
    (publish_numbers(model, version) / "model.onnx").write_bytes(b"broken")


async def test_a_model_without_a_version_does_not_keep_a_restarted_server_unready(reconciler, registry, root):
    publish_numbers(root / "model")
    (root / "new").mkdir()
    (root / "new" / "model.toml").write_text('architecture = "mlp_iris"\n')  # as PUT leaves it
    await reconciler.refresh()
    await asyncio.to_thread(until, lambda: not registry.unready())
    assert "has no version" in registry.model("new").why_unready


async def test_a_model_that_cannot_be_loaded_does_not_keep_the_others_unready(reconciler, registry, root):
    publish_broken(root / "broken")
    publish_numbers(root / "model")
    await reconciler.refresh()
    await asyncio.to_thread(until, lambda: not registry.unready())
    assert "is not the file" in registry.model("broken").why_unready
    shutil.rmtree(root / "model")
    await reconciler.refresh()
    assert "is not the file" in registry.unready()["broken"]  # no model answers


async def test_the_server_is_unready_until_the_loads_of_the_start_have_ended(reconciler, registry, root, monkeypatch):
    publish_numbers(root / "model")
    publish_numbers(root / "slow")
    go, really = asyncio.Event(), Loader.load

    async def load(self, version, *arguments, **options):
        if version.model == "slow":
            await go.wait()
        return await really(self, version, *arguments, **options)

    monkeypatch.setattr(Loader, "load", load)
    await reconciler.scan()
    await registry.model("model").records[1].loaded()
    assert registry.unready().keys() == {"slow"}
    go.set()
    await asyncio.to_thread(until, lambda: not registry.unready())
    # From now on the model answers, even while another version of it is loaded.
    go.clear()
    shutil.copytree(root / "slow" / "1", root / "slow" / "2")
    await reconciler.scan()
    assert registry.unready() == {}
    go.set()


async def test_a_broken_model_that_is_loaded_again_does_not_make_the_server_unready(
    reconciler, registry, root, monkeypatch
):
    publish_broken(root / "broken")
    publish_numbers(root / "model")
    await reconciler.refresh()
    await asyncio.to_thread(until, lambda: not registry.unready())
    begun = asyncio.Event()

    async def load(*_, **__):
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Loader, "load", load)
    publish_broken(root / "other")
    (root / "broken" / "model.toml").touch()
    await reconciler.scan()
    await begun.wait()
    assert registry.unready() == {}
    assert states(registry, "other") == {1: "LOADING"}


async def test_every_model_that_the_settings_name_has_to_answer(registry, root, cache):
    publish_broken(root / "broken")
    publish_numbers(root / "model")
    async with reconciling(registry, repository=root, cache=cache, models=("broken", "model")) as reconciler:
        await reconciler.refresh()
        assert registry.model("model").is_ready
        assert registry.unready().keys() == {"broken"}
        shutil.rmtree(root / "broken")
        publish_numbers(root / "broken")
        await reconciler.refresh()
        assert registry.unready() == {}


async def test_an_error_in_one_model_affects_that_model_alone(reconciler, registry, root, monkeypatch):
    publish_numbers(root / "a_first")
    publish_numbers(root / "model")
    really = Repository.inventory

    def inventory(self, name):
        if name == "a_first":
            raise RecursionError("directories without end")
        return really(self, name)

    monkeypatch.setattr(Repository, "inventory", inventory)
    await reconciler.refresh()
    assert await ask(registry) == (1, "second")
    assert "internal error" in registry.model("a_first").why_unready


async def test_a_published_version_that_never_ends_leaves_the_live_one_and_delays_no_other_model(
    reconciler, registry, root
):
    publish_numbers(root / "model")
    await reconciler.refresh()
    (root / "model" / "2").mkdir()
    for path in publish(root / "endless", SPEC, endless()).iterdir():
        path.rename(root / "model" / "2" / path.name)
    await reconciler.scan()
    record = registry.model("model").records[2]
    await asyncio.to_thread(until, lambda: record.reason == "checking: run")
    publish_softmax(root / "other", labels=("one", "that", "nobody checked"))
    await reconciler.scan()
    await registry.model("other").records[1].loaded()
    assert states(registry, "other") == {1: "READY"}
    assert await ask(registry) == (1, "second")
    assert (states(registry), record.reason) == ({1: "READY", 2: "LOADING"}, "checking: run")
    record.cancel()
    await record.loaded()
    assert not converting()


async def test_a_conversion_that_never_ends_delays_no_other_model(registry, root, cache, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    converter = Converter(cache, timeout_seconds=600, module="tests.misbehaving")
    monkeypatch.setattr("service.versions.loader.Converter.of", lambda _: converter)
    monkeypatch.setattr("service.conversion.slots.available_memory_bytes", lambda: 10**12)
    for name, note in (("a_endless", b"loop"), ("b", b"sound"), ("c", b"sound again")):
        for version in (1, 2) if note == b"loop" else (1,):
            (root / name / str(version)).mkdir(parents=True)
            (root / name / str(version) / "weights.pth").write_bytes(torch_bytes(note + b" %d" % version))
        (root / name / "model.toml").write_text('architecture = "mlp_iris"\nnum_classes = 4\nversions = "all"\n')
    async with reconciling(registry, repository=root, cache=cache) as reconciler:
        await reconciler.scan()
        endless = registry.model("a_endless").records
        await asyncio.to_thread(until, lambda: len(converting()) > 1)
        for name in ("b", "c"):
            await registry.model(name).records[1].loaded()
            assert states(registry, name) == {1: "READY"}, registry.model(name).why_unready
        assert {str(record.state) for record in endless.values()} == {"LOADING"}
        assert len(converting()) == 1  # the model's other version waits for this one
    assert not converting()


async def test_files_that_change_between_check_and_opening_are_not_served(reconciler, registry, root, monkeypatch):
    publish_numbers(root / "model")
    really = Checker.check

    async def check(self, model, directory, *arguments):
        passed = await really(self, model, directory, *arguments)
        edited(directory, labels=["one", "two", "three"])
        return passed

    monkeypatch.setattr(Checker, "check", check)
    await reconciler.refresh()
    assert states(registry) == {1: "UNAVAILABLE"}
    assert "changed while it was loaded" in registry.model("model").why_unready
