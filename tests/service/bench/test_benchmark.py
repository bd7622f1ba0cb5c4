"""The benchmark as a user runs it."""

import json
import shutil

import pytest

from models.inputs import ImageInput
from service.bench import agreement, benchmark, limits, load
from service.bench.benchmark import TINY
from service.bench.server import BenchError
from service.images.preprocess import decode
from service.images.shortcuts import EXACT, Shortcuts
from service.inference.engine import Engine, plan
from service.repository.repository import read_converted
from service.settings import Settings
from tests import images
from tests.command_line import menagerie
from tests.models.tiny import make_tiny
from tests.torchvision_pixels import reference

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
    manifest, content = read_converted(TINY / "tiny" / "1")
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
    engine.close()


def test_shortcuts_are_compared_alone_and_together():
    manifest, content = read_converted(TINY / "tiny" / "1")
    spec = manifest.spec.input
    engine = Engine(content, plan(Settings(provider="cpu", max_batch_size=4), gpus=[], cores=1))
    engine.open(3)
    large = limits.enlarged(PHOTOGRAPH)
    found = agreement.measure([PHOTOGRAPH, large], spec, engine, Shortcuts(margin=1))
    engine.close()
    assert list(found) == ["only what is cropped", "SIMD", "JPEG margin 1", "as served"]
    assert {(each.pictures, each.same_top1) for each in found.values()} == {(2, 2)}
    assert found["only what is cropped"].largest_difference <= 1
    assert found["SIMD"].largest_difference <= 2
    assert found["JPEG margin 1"].largest_difference > 2  # of the large picture, an eighth was decoded
    assert found["only what is cropped"].mean_difference <= found["SIMD"].mean_difference < 0.1
    assert found["only what is cropped"].probability_difference < 0.01


def test_what_a_shortcut_changes_is_counted(monkeypatch):
    import numpy as np

    manifest, content = read_converted(TINY / "tiny" / "1")
    engine = Engine(content, plan(Settings(provider="cpu", max_batch_size=4), gpus=[], cores=1))
    engine.open(3)
    spec = manifest.spec.input
    blue = np.broadcast_to(np.array([0, 0, 255], np.uint8), spec.shape)
    monkeypatch.setattr(agreement, "decode", lambda *_, **__: blue)
    found = agreement.measure([PHOTOGRAPH], spec, engine, EXACT)
    engine.close()
    assert found["as served"].same_top1 == 0
    assert found["as served"].largest_difference > 100
    assert found["as served"].probability_difference > 0.1


def test_the_photographs_are_those_of_a_directory(tmp_path):
    with pytest.raises(BenchError, match="holds no JPEG"):
        benchmark._photographs(tmp_path)
    (tmp_path / "more").mkdir()
    (tmp_path / "b.JPG").write_bytes(b"2")
    (tmp_path / "more" / "c.jpeg").write_bytes(b"3")
    (tmp_path / "a.png").write_bytes(b"1")
    (tmp_path / "d.jpg").mkdir()
    assert [path.name for path in benchmark._photographs(tmp_path)] == ["b.JPG", "c.jpeg"]
    assert benchmark._photographs(None) == []


@pytest.mark.parametrize("body", [b"", b"no image", PHOTOGRAPH[:5000], images.png(images.gradient())])
def test_what_cannot_be_compared_is_left_out(body):
    manifest, content = read_converted(TINY / "tiny" / "1")
    engine = Engine(content, plan(Settings(provider="cpu", max_batch_size=4), gpus=[], cores=1))
    engine.open(3)
    found = agreement.measure([body, PHOTOGRAPH, body], manifest.spec.input, engine, Shortcuts())
    engine.close()
    assert found["as served"].pictures == 1


@pytest.mark.parametrize("options", [{}, {"resize": "stretch"}, {"height": 40, "width": 30, "channels": 1}])
def test_what_it_is_measured_against_is_torchvisions_way(options):
    from io import BytesIO

    import numpy as np
    from PIL import Image

    spec = ImageInput(**({"height": 64, "width": 64} | options))
    expected = reference(Image.open(BytesIO(PHOTOGRAPH)), spec)
    assert np.array_equal(agreement.whole(PHOTOGRAPH, spec), np.asarray(expected).reshape(spec.shape))


@pytest.mark.slow
def test_the_whole_of_it(hurried, tmp_path):
    result = menagerie(
        *(
            "bench",
            "--tiny",
            "--clients",
            "1,3",
            "--seconds",
            3,
            "--cache",
            tmp_path / "cache",
            "--output",
            tmp_path / "out",
        ),
        COLUMNS="200",
    )
    assert result.exit_code == 0, result.stderr
    for word in ("Under load", "Each part alone", "CPU time of the server", "12 megapixels", "batch 16", "HTTP"):
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
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.backends.backend_agg", None)
    server = serve(repository=repository).wait_ready()
    options = ("--url", server.url, "--clients", "2", "--seconds", 1, "--repository", repository)
    assert "Under load" in menagerie("bench", *options).output  # of `colour`, the first
    result = menagerie("bench", "largest", *options, "--output", tmp_path / "out", COLUMNS="200")
    assert result.exit_code == 0, result.stderr
    assert "no chart: it needs matplotlib, pip install 'menagerie[bench]'" in result.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["limits"] == []
    assert "bytes of JSON" in report["machine"]["request"]
    assert report["results"][0]["server_cpu_milliseconds"] > 0
    (tmp_path / "text.jpg").write_text("no picture")
    for arguments, problem in (
        (("color",), "there is no model 'color'"),
        (("colour", "--image", tmp_path / "nothing.jpg"), "nothing.jpg cannot be read"),
        (("colour", "--image", tmp_path / "text.jpg"), "the server answers with errors only"),
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
    assert result.exit_code == 2
    assert "--clients" in result.stderr
    assert "is not a list of numbers" in result.stderr


def test_wrk_is_required_and_how_to_install_it_is_said(monkeypatch):
    monkeypatch.setattr(load.shutil, "which", lambda _: None)
    result = menagerie("bench", "--tiny")
    assert result.exit_code == 1
    assert "wrk, which is not installed" in result.stderr
    assert "apt-get install wrk" in result.stderr


def test_an_interruption_is_told(monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("service.bench.benchmark.run", interrupted)
    result = menagerie("bench", "--tiny")
    assert result.exit_code == 1
    assert "interrupted" in result.stderr
