"""The benchmark as a user runs it."""

import json
import shutil

import pytest

from service.bench import benchmark, limits, load
from service.bench.benchmark import TINY
from service.engine import Engine, plan
from service.preprocess import Shortcuts, decode
from service.repository import read_published
from service.settings import Settings
from tests.models.tiny import make_tiny
from tests.service.test_main import run as menagerie
from tests.service.test_preprocess import reference

PHOTOGRAPH = benchmark.PHOTOGRAPH.read_bytes()


@pytest.fixture
def hurried(monkeypatch):
    """Measures for as long as it takes to see that it measures."""
    monkeypatch.setattr(benchmark, "LIMIT_SECONDS", 0.02)
    monkeypatch.setattr(benchmark, "WARM_SECONDS", 0.2)
    monkeypatch.setattr(limits, "LARGE", (800, 600))


def test_the_tiny_model_is_the_one_that_the_tests_make(tmp_path):
    make_tiny(tmp_path)
    for file in ("model.toml", "1/model.onnx", "1/manifest.json"):
        assert (TINY / "tiny" / file).read_bytes() == (tmp_path / "tiny" / file).read_bytes(), (
            "python -m tests.models.tiny"
        )


def test_parts_are_measured_alone(monkeypatch):
    manifest, content = read_published(TINY / "tiny" / "1")
    spec = manifest.spec.input
    engine = Engine(content, plan(Settings(provider="cpu", max_batch_size=4), gpus=[], cores=1))
    engine.open(3)
    item = decode(PHOTOGRAPH, spec, max_pixels=10**6)
    found = [
        limits.preprocessing(PHOTOGRAPH, spec, Shortcuts(), 2, 0.02),
        limits.pillow(PHOTOGRAPH, spec, 0.02),
        *limits.engine(engine, item, 0.02),
    ]
    assert [(each.part, each.setting) for each in found] == [
        ("preprocessing", "2 threads"),
        ("Pillow", "1 thread"),
        *(("engine", f"batch {size}") for size in (1, 2, 4)),
    ]
    assert all(each.rate > 0 and each.cpu_milliseconds > 0 for each in found)
    agreed = limits.agreement(PHOTOGRAPH, spec, Shortcuts(), engine)
    assert agreed.largest_difference <= 2
    assert agreed.same_top1
    engine.close()


def test_what_it_is_measured_against_is_torchvisions_way(monkeypatch):
    from io import BytesIO

    import numpy as np
    from PIL import Image

    spec = read_published(TINY / "tiny" / "1")[0].spec.input
    seen = []
    monkeypatch.setattr(limits, "_measure", lambda part, setting, work, seconds: work())
    monkeypatch.setattr(limits.np, "asarray", lambda picture: seen.append(picture.copy()))
    assert limits.pillow(PHOTOGRAPH, spec, 0.0) == 1
    monkeypatch.undo()
    assert np.array_equal(np.asarray(seen[0]), reference(Image.open(BytesIO(PHOTOGRAPH)), spec))


@pytest.mark.slow
def test_the_whole_of_it(hurried, tmp_path, monkeypatch):
    monkeypatch.setattr(load.shutil, "which", lambda _: None)  # not every machine has wrk
    result = menagerie(
        *(
            "bench",
            "--tiny",
            "--clients",
            "1,3",
            "--seconds",
            1,
            "--cache",
            tmp_path / "cache",
            "--output",
            tmp_path / "out",
        ),
        COLUMNS="200",
    )
    assert result.exit_code == 0, result.stderr
    for word in ("Under load", "Each part alone", "Where the server's CPU goes", "12 megapixels", "batch 32", "HTTP"):
        assert word in result.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [each["load"]["clients"] for each in report["results"]] == [1, 3]
    for each in report["results"]:
        assert each["load"]["requests"] > 20
        assert each["load"]["refused"] == each["load"]["broken"] == 0
        assert each["server_cpu_milliseconds"] > 0
        assert each["memory_mib"] > 50
        assert 1 <= each["mean_batch"] <= 3
        assert each["stages"]["request"] >= each["stages"]["decode"] > 0
    assert {each["part"] for each in report["limits"]} == {"preprocessing", "Pillow", "engine", "HTTP"}
    assert (tmp_path / "out" / "report.md").read_text().startswith("# tiny\n")
    assert (tmp_path / "out" / "report.png").exists()


@pytest.mark.slow
def test_a_server_that_runs_already(hurried, serve, repository, tmp_path, monkeypatch):
    monkeypatch.setattr(load.shutil, "which", lambda _: None)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.backends.backend_agg", None)
    server = serve(repository=repository).wait_ready()
    options = ("--url", server.url, "--clients", "2", "--seconds", 1, "--repository", repository)
    assert "Under load" in menagerie("bench", *options).output  # of `colour`, the first
    result = menagerie("bench", "largest", *options, "--output", tmp_path / "out", COLUMNS="200")
    assert result.exit_code == 0, result.stderr
    assert "no chart: it takes matplotlib, pip install 'menagerie[bench]'" in result.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["limits"] == []
    assert "bytes of JSON" in report["machine"]["request"]
    assert report["results"][0]["server_cpu_milliseconds"] > 0
    (tmp_path / "text.jpg").write_text("no picture")
    for arguments, problem in (
        (("color",), "there is no model 'color'"),
        (("colour", "--image", tmp_path / "nothing.jpg"), "nothing.jpg cannot be read"),
        (("colour", "--image", tmp_path / "text.jpg"), "the server answers with errors alone"),
    ):
        result = menagerie("bench", *arguments, *options)
        assert result.exit_code == 1
        assert problem in result.stderr


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_told(hurried, repository, tmp_path):
    (repository / "colour" / "1" / "model.onnx").write_bytes(b"damaged")
    result = menagerie("bench", "colour", "--repository", repository, "--cache", tmp_path / "cache")
    assert result.exit_code == 1
    assert "colour is not ready: " in result.stderr
    assert "model.onnx is not the file" in result.stderr
    shutil.rmtree(repository / "colour")
    result = menagerie("bench", "colour", "--repository", repository, "--cache", tmp_path / "cache")
    assert result.exit_code == 1
    assert "there is no model colour" in result.stderr


def test_a_repository_without_models_is_told(tmp_path):
    result = menagerie("bench", "--repository", tmp_path)
    assert result.exit_code == 1
    assert "there is no model to measure" in result.stderr


@pytest.mark.parametrize("clients", ["", "0", "1,", "many", "1;2"])
def test_clients_are_a_list_of_numbers(clients):
    result = menagerie("bench", "--tiny", "--clients", clients)
    assert result.exit_code == 1
    assert "is no list of numbers" in result.stderr


def test_an_interruption_is_told(monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("service.bench.benchmark.run", interrupted)
    result = menagerie("bench", "--tiny")
    assert result.exit_code == 1
    assert "interrupted" in result.stderr
