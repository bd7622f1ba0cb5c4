"""Whole models from end to end: TorchScript, torch.export and SavedModel where code is allowed, ONNX anywhere."""

import os

import numpy as np
import pytest
from typer.testing import CliRunner

from service.__main__ import app
from service.conversion.conversion import Converter
from service.errors import ConversionError
from service.inference.engine import Engine, plan
from service.repository.repository import Repository, read_converted
from service.settings import Settings
from tests.models.onnx_models import model as onnx_model
from tests.models.saved import archive
from tests.models.scripts import START, child

TORCH = """
import sys, warnings
import torch
from pathlib import Path
warnings.simplefilter("ignore")
room = Path(sys.argv[1])
torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 3)).eval()
torch.jit.script(network).save(room / "script.pt")
example = (torch.zeros(2, 3, 8, 8),)
free = torch.export.export(network, example, dynamic_shapes=({0: torch.export.Dim("batch")},))
torch.export.save(free, room / "free.pt2")
torch.export.save(torch.export.export(network, example), room / "fixed.pt2")
"""

KERAS = f"""{START}
from pathlib import Path
keras.utils.set_random_seed(0)
layers = keras.layers
network = keras.Sequential([layers.Input((8, 8, 3)), layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(3)])
network.export(Path(sys.argv[1], "weights"), verbose=False)
network.save(Path(sys.argv[1], "weights.keras"))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    room = tmp_path_factory.mktemp("programs")
    child(TORCH, room)
    child(KERAS, room)
    return room


@pytest.fixture
def put(tmp_path):
    """A model of one version, resolved."""

    def make(path, toml=""):
        version = tmp_path / "repository" / "model" / "1"
        version.mkdir(parents=True)
        path.rename(version / ("weights" if path.is_dir() else "weights.x"))
        if toml:
            (version.parent / "model.toml").write_text(toml)
        return Repository(tmp_path / "repository").resolve("model", 1).source

    return make


PICTURES = '[input]\nheight = 8\nwidth = 8\nnormalization = "unit"\n'


@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "kind"), [("script.pt", "torchscript"), ("free.pt2", "pt2"), ("weights", "saved_model")]
)
async def test_code_is_run_only_where_that_is_allowed(saved, put, tmp_path, name, kind):
    artifact = put(saved / name, PICTURES)
    assert artifact.spec.architecture == f"whole:{kind}"
    with pytest.raises(ConversionError, match="code in the file has to be run") as caught:
        await Converter(tmp_path / "cache", 300).convert(artifact)
    assert "MENAGERIE_ALLOW_CODE=true" in caught.value.cure
    directory = await Converter(tmp_path / "cache", 300, allow_code=True).convert(artifact)
    manifest, content = read_converted(directory)
    assert (manifest.spec.num_classes, manifest.spec.output) == (3, "logits")
    assert 0 < manifest.parity.relative_error < 1e-5
    engine = Engine(content, plan(Settings(), gpus=(), cores=2, max_batch_size=4))
    engine.open(3)
    np.testing.assert_allclose(engine.run(np.ones((3, 8, 8, 3), np.uint8)).sum(1), 1, rtol=1e-5)
    engine.close()


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_program_for_one_size_of_batch_is_told(saved, put, tmp_path):
    with pytest.raises(ConversionError, match="was exported for batches of 2 only") as caught:
        await Converter(tmp_path / "cache", 300, allow_code=True).convert(put(saved / "fixed.pt2", PICTURES))
    assert "dynamic_shapes" in caught.value.cure


@pytest.mark.slow
def test_a_whole_keras_model_needs_no_model_toml(saved, put, tmp_path):
    put(saved / "weights.keras")
    options = ["--repository", str(tmp_path / "repository")]
    assert "sound" in CliRunner().invoke(app, ["check", *options]).output
    converting = ["convert", *options, "--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "published")]
    assert CliRunner().invoke(app, converting).exit_code == 0
    again = Repository(tmp_path / "published")
    assert again.wanted("model") == [1]
    manifest, _ = read_converted(again.resolve("model", 1).source)
    assert (manifest.spec.architecture, manifest.spec.input.scale) == ("whole:keras", 1.0)


@pytest.mark.anyio
async def test_an_onnx_model_is_converted_without_a_framework(put, tmp_path, monkeypatch):
    (tmp_path / "lean").mkdir()
    for framework in ("torch", "tensorflow", "keras", "h5py"):
        (tmp_path / "lean" / f"{framework}.py").write_text(f"raise ModuleNotFoundError('no', name='{framework}')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'lean'}:{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "model.onnx").write_bytes(onnx_model().SerializeToString())
    artifact = put(tmp_path / "model.onnx", 'labels = ["r", "g", "b"]\n[input]\nnormalization = "unit"\n')
    manifest, _ = read_converted(await Converter(tmp_path / "cache", 300).convert(artifact))
    assert (manifest.spec.framework, manifest.spec.labels, list(manifest.producers)) == (
        "onnx",
        ("r", "g", "b"),
        ["onnx"],
    )


@pytest.mark.anyio
async def test_a_whole_model_on_a_bare_host_says_what_to_install(put, tmp_path, monkeypatch):
    (tmp_path / "lean").mkdir()
    (tmp_path / "lean" / "h5py.py").write_text("raise ModuleNotFoundError('no', name='h5py')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'lean'}:{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "model.keras").write_bytes(archive(config_json="{}", model_weights_h5=b""))
    with pytest.raises(ConversionError, match="h5py is not installed") as caught:
        await Converter(tmp_path / "cache", 300).convert(put(tmp_path / "model.keras"))
    assert "pip install 'menagerie[keras]'" in caught.value.cure
