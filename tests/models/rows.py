"""A row of the catalog, from saved weights to an answer over HTTP."""

import asyncio
import math

import numpy as np

from models.artifact.manifest import converted_manifest
from models.catalog import find
from models.conversion.graph.parity import BATCHES, TOLERANCE
from models.inputs import ImageInput
from service.conversion.conversion import Converter
from service.repository.repository import Repository
from tests.models.make_row import item, photo
from tests.servers import until

# Everything of a model.toml that is not left to its default: the size, where a row is not walked at its own.
MODEL_TOML = """\
architecture = "{name}"
versions = "all"
batching.max_batch_size = 2
"""


SIZE = "input = {{ height = {size}, width = {size} }}\n"


# A smaller picture saves minutes where a dense layer that is as wide as the picture holds nine of ten parameters, or
# where there are many layers. What is counted is the row at its own size; the large vgg19 is walked at it, too.
SMALLER = {
    **dict.fromkeys(("vgg11", "vgg13", "vgg11_gray", "vgg13_gray", "vgg16_gray", "vgg19_gray"), 64),
    **dict.fromkeys(("convnet_functional", "convnet_subclassed"), 64),
    **dict.fromkeys(("resnet34", "resnet101", "resnet152", "resnet34_relu_bn", "resnet50_relu_bn"), 96),
    "resnet50_unstrided": 64,
    **dict.fromkeys(("vgg16", "inception_stack", "convnet_sequential"), 112),
}


MOST_MEMORY = {"vgg19": 6e9}  # of a conversion, in bytes


def walk(name, make_row, application, tmp_path):
    """From saved weights to answers; a line about it."""
    found = find(name)
    model = tmp_path / "rows" / name.replace(":", "-").lower()
    size = SMALLER.get(name, getattr(found.input, "height", 0))
    row = make_row(name, model, size)
    assert row["counts"] == {framework: [found.parameters, found.statistics] for framework in found.builders}
    assert all(shape == [2, 5] for shape in row["otherwise"])
    assert row["apart"] <= TOLERANCE
    assert row["returned"]

    settings = MODEL_TOML + SIZE if name in SMALLER else MODEL_TOML
    (model / "model.toml").write_text(settings.format(name=name, size=size))
    memory = convert_all(model, tmp_path / "cache", numbers=range(1, len(found.builders) + 1))
    assert 10**8 < memory < MOST_MEMORY.get(name, math.inf)
    # Pillow's own pixels, as the framework was given: with SIMD's, 1 of 255 off, VGG-19 answers 1.1e-4 differently.
    with application(repository=model.parent, simd=False, jpeg_margin=0) as client:
        versions = ready_versions(client, model.name)
        for version, framework in zip(versions, found.builders, strict=True):
            assert version["framework"] == framework
            assert version["parity"]["relative_error"] <= TOLERANCE
            assert version["parity"]["batches"] == list(BATCHES)
            answer = ask(client, model.name, found, version["version"])
            np.testing.assert_allclose(answer, row["probabilities"][framework], atol=TOLERANCE)
    return line(found, row, versions, memory)


def convert_all(model, cache, numbers):
    """Two at a time, for each keeps one core busy; large ones in turn. The most bytes that one took."""
    converter, repository = Converter(cache, 1800), Repository(model.parent)

    async def convert():
        sources = [repository.resolve(model.name, number).source for number in numbers]
        if model.name in MOST_MEMORY:
            return [await converter.convert(source) for source in sources]
        return await asyncio.gather(*map(converter.convert, sources))

    return max(converted_manifest(directory).peak_memory_bytes for directory in asyncio.run(convert()))


def ready_versions(client, name):
    """All of them: the model itself is ready with the first."""
    until(lambda: all(each["state"] != "LOADING" for each in client.get(f"/models/{name}").json()["versions"]))
    versions = client.get(f"/models/{name}").json()["versions"]
    assert {each["state"] for each in versions} == {"READY"}, versions
    return versions


def ask(client, model, architecture, version):
    """The probability of each class, in class order."""
    params = {"version": version, "top_k": architecture.num_classes}
    url = f"/predict/{model}"
    if isinstance(architecture.input, ImageInput):
        answer = client.post(url, params=params, content=photo(architecture.input).read_bytes())
    else:
        answer = client.post(url, params=params, json={"instances": item(architecture.input).tolist()})
    assert answer.status_code == 200, answer.text
    assert answer.json()["version"] == version
    predictions = sorted(answer.json()["predictions"], key=lambda each: each["index"])
    return [each["probability"] for each in predictions]


def line(architecture, row, versions, memory):
    """Counts with statistics; how far ONNX Runtime is from each framework, and they from each other; memory."""
    columns = [
        f"{framework} {sum(row['counts'][framework]):>11,} (ONNX Runtime {version['parity']['relative_error']:.1e})"
        for framework, version in zip(architecture.builders, versions, strict=True)
    ]
    apart = [f"apart {row['apart']:.1e}"] if len(versions) > 1 else []
    return f"{architecture.name:<30} {'  '.join([*columns, *apart])}  {memory / 1e9:.1f} GB"
