"""Every row of the catalog, from saved weights to an answer over HTTP, in both frameworks."""

import asyncio
import json
import subprocess
import sys

import numpy as np
import pytest

from models.catalog import CATALOG
from models.inputs import ImageInput
from models.parity import BATCHES, TOLERANCE
from service.conversion import Converter
from service.repository import Repository
from tests.models.make_row import FRAMEWORKS, item, photo
from tests.servers import until

pytestmark = pytest.mark.slow

MODEL_TOML = """\
architecture = "{name}"
versions = "all"
[batching]
max_batch_size = 2
"""


@pytest.fixture(scope="module")
def make_row(tmp_path_factory):
    """Asks the process that makes rows for one of them."""
    command = [sys.executable, "-m", "tests.models.make_row"]
    words = tmp_path_factory.mktemp("rows") / "words"
    with (
        words.open("wb") as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):

        def make(name, directory):
            process.stdin.write(f"{name} {directory}\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            assert answer, words.read_text()
            return json.loads(answer)

        yield make
        process.stdin.close()


@pytest.mark.parametrize("name", CATALOG)
def test_a_row_is_built_saved_loaded_converted_and_served_alike(name, make_row, application, tmp_path, record_property):
    found = CATALOG[name]
    model = tmp_path / "rows" / name
    row = make_row(name, model)
    assert row["counts"] == {framework: [found.parameters, found.statistics] for framework in FRAMEWORKS}
    assert row["distance"] <= TOLERANCE
    assert row["returned"]

    (model / "model.toml").write_text(MODEL_TOML.format(name=name))
    convert_both(model.parent, name, tmp_path / "cache")
    with application(repository=model.parent) as client:
        versions = ready_versions(client, name)
        for version, framework in zip(versions, FRAMEWORKS, strict=True):
            assert version["framework"] == framework
            assert version["parity"]["relative_error"] <= TOLERANCE
            assert version["parity"]["batches"] == list(BATCHES)
            answer = ask(client, found, version["version"])
            np.testing.assert_allclose(answer, row["probabilities"][framework], atol=TOLERANCE)
    record_property("row", line(found, row, versions))


def convert_both(repository, name, cache):
    """At the same time: a conversion keeps one core busy."""
    converter, found = Converter(cache, 1800), Repository(repository)

    async def both():
        sources = [found.resolve(name, number).source for number in (1, 2)]
        await asyncio.gather(*map(converter.convert, sources))

    asyncio.run(both())


def ready_versions(client, name):
    """Both of them: the model itself is ready with the first."""
    until(lambda: all(each["state"] != "LOADING" for each in client.get(f"/models/{name}").json()["versions"]))
    versions = client.get(f"/models/{name}").json()["versions"]
    assert [each["state"] for each in versions] == ["READY", "READY"], versions
    return versions


def ask(client, architecture, version):
    """The probability of each class, in class order."""
    params = {"version": version, "top_k": architecture.num_classes}
    url = f"/predict/{architecture.name}"
    if isinstance(architecture.input, ImageInput):
        answer = client.post(url, params=params, content=photo(architecture.input).read_bytes())
    else:
        answer = client.post(url, params=params, json={"instances": item(architecture.input).tolist()})
    assert answer.status_code == 200, answer.text
    assert answer.json()["version"] == version
    predictions = sorted(answer.json()["predictions"], key=lambda each: each["index"])
    return [each["probability"] for each in predictions]


def line(architecture, row, versions):
    """Both counts, how far the frameworks are apart, and how far ONNX Runtime is from each."""
    counts = "  ".join(f"{framework} {sum(row['counts'][framework]):>11,}" for framework in FRAMEWORKS)
    parity = "  ".join(f"{each['parity']['relative_error']:.1e}" for each in versions)
    return f"{architecture.name:<20} {counts}  apart {row['distance']:.1e}  ONNX Runtime {parity}"
