"""A checkpoint that does not fit names the architecture that it is of."""

import io
import json
import zipfile

import pytest

from models.conversion.readers import recognition
from models.conversion.readers.recognition import MAX_CONFIG_BYTES, of_keras_file
from tests.models.scripts import child

# Keys and shapes alone, of networks built without memory with so many classes.
KEYS = """
import json, sys
from models import catalog
from models.conversion.readers import recognition
for name, classes, asked in json.loads(sys.argv[1]):
    with recognition.without_memory():
        network = catalog.find(name).build("torch", outputs=classes)
    found = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    print(json.dumps(recognition.of_state_dict(found, asked)))
print(json.dumps(recognition.of_state_dict({"weight": (3, 4)})))
"""

# The messages of the reader of weights, with real files; the library's GoogLeNet has what only training asks.
MESSAGES = """
import json, sys
from pathlib import Path
import torch
from torchvision import models
from models import catalog
from models.conversion.readers import weights
from models.errors import ArtifactError
path = Path(sys.argv[1], "weights.pth")
quick = {"init_weights": False}
for name, asked, options in (
    ("googlenet", "lenet5", quick), ("squeezenet1_1", "torchvision:squeezenet1_1", {})
):
    own = models.get_model(name, weights=None, num_classes=5, **options)
    torch.save(own.state_dict(), path)
    try:
        weights.load(catalog.find(asked).build("torch"), "torch", path, asked)
    except ArtifactError as error:
        print(json.dumps([str(error), error.cure]))
"""


@pytest.mark.slow
def test_a_checkpoint_is_recognised_whatever_its_classes_and_whatever_was_asked():
    cases = [
        ("torchvision:vgg16", 1000, "torchvision:vgg19"),
        ("torchvision:regnet_y_400mf", 10, "lenet5"),
        ("torchvision:inception_v3", 5, ""),
        ("vgg11_gray", 10, "vgg11"),
        ("vgg11", 10, "vgg11_gray"),
        ("resnet18", 10, "lenet5"),
        ("resnet18", 10, "torchvision:resnet18"),  # the same keys and shapes: what was asked is right
    ]
    found = child(KEYS, json.dumps(cases))
    expected = [name if asked != "torchvision:resnet18" else asked for name, _, asked in cases]
    assert found == [*expected, None]


@pytest.mark.slow
def test_the_error_names_the_architecture_unless_it_is_the_one_asked_for(tmp_path):
    (wrong, cure), (classes, other_cure) = child(MESSAGES, tmp_path)
    assert "does not fit the network: 0.weight is missing" in wrong
    assert cure == 'these are the weights of torchvision:googlenet: set architecture = "torchvision:googlenet"'
    assert "classifier.1.weight is (5, 512, 1, 1) and should be (1000, 512, 1, 1)" in classes
    assert "num_classes" in other_cure


def keras_file(path, config):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", config if isinstance(config, (bytes, str)) else json.dumps(config))
    return path


def network(name, *layers):
    return {"config": {"name": name, "layers": [{"class_name": layer} for layer in layers]}}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (network("resnet50"), "keras:ResNet50"),
        (network("mobilenetv2_1.00_224"), "keras:MobileNetV2"),
        (network("mobilenetv2_0.35_224"), None),  # a narrower one
        (network("efficientnetv2-b0", "Rescaling"), "keras:EfficientNetV2B0"),
        (network("efficientnetb0", "Rescaling", "Rescaling"), "keras:EfficientNetB0"),
        (network("efficientnetb0", "Rescaling"), "keras:EfficientNetB0_scratch"),
        (network("nasnet_large"), "keras:NASNetLarge"),
        (network("sequential"), None),
        (network(5), None),
        ({"config": []}, None),
        ("[" * 100_000, None),
        (b"\xff\xfe", None),
    ],
)
def test_a_keras_file_says_what_it_was_saved_from(tmp_path, config, name):
    assert of_keras_file(keras_file(tmp_path / "weights.keras", config)) == name


def test_a_keras_file_is_read_as_bounded_data(tmp_path, monkeypatch):
    monkeypatch.setattr(recognition, "MAX_CONFIG_BYTES", 100)
    assert of_keras_file(keras_file(tmp_path / "long.keras", network("resnet50", *["Dense"] * 100))) is None
    assert MAX_CONFIG_BYTES < 2**26
    (tmp_path / "no.keras").write_bytes(b"no zip")
    assert of_keras_file(tmp_path / "no.keras") is None
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("metadata.json", "{}")
    (tmp_path / "other.keras").write_bytes(other.getvalue())
    assert of_keras_file(tmp_path / "other.keras") is None
