"""Tuning: the fastest settings are chosen, cached and used."""

import json

import pytest

from service.inference import tuning
from service.inference.engine import Engine, plan
from service.inference.tuning import Tuning, candidates, tuned
from service.settings import Settings
from tests.client import JPEG, picture
from tests.models.published import publish_softmax


@pytest.fixture
def planned():
    return plan(Settings(provider="cpu", max_batch_size=8), gpus=[], cores=4)


@pytest.fixture
def content(tmp_path):
    return (publish_softmax(tmp_path / "colour") / "model.onnx").read_bytes()


def test_the_default_is_a_candidate_and_every_split_uses_every_core(planned):
    found = candidates(planned, 4)
    assert found[0] == planned
    assert {each.intra_op_threads * each.instances for each in found} == {4}
    assert {each.optimization for each in found} == {"all", "extended"}
    assert len(found) == 6


def test_on_a_gpu_only_the_batch_is_measured():
    gpu = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    on_gpu = plan(Settings(provider="cuda"), gpus=["H100"], cores=4, available=gpu)
    assert candidates(on_gpu, 4) == [on_gpu]


def test_the_fastest_is_chosen_with_the_smallest_batch_that_is_enough(planned, content, tmp_path, monkeypatch):
    def throughput(engine, batch):
        chosen = (engine.plan.instances, engine.plan.optimization)
        return {1: 10.0, 2: 50.0, 4: 98.0, 8: 100.0}[batch] * (2 if chosen == (2, "extended") else 1)

    monkeypatch.setattr(tuning, "throughput", throughput)
    found = tuned(content, planned, 3, 4, tmp_path)
    assert (found.optimization, found.instances, found.intra_op_threads, found.max_batch_size) == ("extended", 2, 2, 4)
    assert found.images_per_second["extended, 2 x 2 threads, batch 8"] == 200
    assert found.applied(planned).buckets == (1, 2, 4)
    monkeypatch.setattr(tuning, "throughput", None)  # the result is cached
    assert tuned(content, planned, 3, 4, tmp_path) == found
    (kept,) = tmp_path.glob("*.json")
    kept.write_text("{broken")
    with pytest.raises(TypeError):
        tuned(content, planned, 3, 4, tmp_path)


@pytest.mark.parametrize(("times", "instances"), [(1.09, 1), (1.11, 4)])
def test_more_instances_must_be_faster_by_a_tenth(planned, content, tmp_path, monkeypatch, times, instances):
    monkeypatch.setattr(
        tuning, "throughput", lambda engine, batch: batch * (times if engine.plan.instances == 4 else 1)
    )
    assert tuned(content, planned, 3, 4, tmp_path).instances == instances


def test_a_result_that_cannot_be_cached_is_still_used(planned, content, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "MEASURED_SECONDS", 0.001)
    (tmp_path / "file").write_text("no directory")
    assert isinstance(tuned(content, planned, 3, 4, tmp_path / "file"), Tuning)


def test_throughput_counts_images(planned, content, monkeypatch):
    monkeypatch.setattr(tuning, "MEASURED_SECONDS", 0.2)
    engine = Engine(content, planned)
    engine.open(3)
    assert tuning.throughput(engine, 8) > 100
    engine.close()


def test_a_tuned_model_is_served_and_shown(application, repository, monkeypatch):
    monkeypatch.setattr(tuning, "MEASURED_SECONDS", 0.01)
    with (repository / "colour" / "model.toml").open("a") as file:
        file.write("tune = true\n")
    with application() as client:
        shown = client.get("/models/colour").json()["versions"][0]["engine"]
        assert shown["images_per_second"]
        assert client.post("/predict/colour", content=picture("red"), headers=JPEG).status_code == 200
        other = client.get("/models/largest").json()["versions"][0]["engine"]
        assert (other["optimization"], other["instances"], other["images_per_second"]) == ("all", 1, None)
    kept = list((repository.parent / "cache" / "tuning").glob("*.json"))
    assert [json.loads(path.read_text())["instances"] for path in kept] == [shown["instances"]]
