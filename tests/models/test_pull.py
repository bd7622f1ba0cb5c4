"""Official weights become a version of a model: whole, beside the others, and answering as their library does."""

import json
import tomllib

import pytest

from models import catalog, pull
from models.errors import ArtifactError
from models.inputs import NORMALIZATIONS, ImageInput
from service.repository.repository import Repository
from tests.models.saved import torch_bytes
from tests.models.scripts import START, TRAINED, child

# A pulled version, as the server would take it.
PULLED = """
import json, sys
import numpy as np
from pathlib import Path
from models import catalog, pull
from models.conversion.readers import weights
from service.repository.repository import Repository

def pulled(version):
    artifact = Repository(version.parent.parent).resolve(version.parent.name, int(version.name)).source
    spec = artifact.spec
    network = catalog.find(spec.architecture).build(spec.framework, spec.input.shape, spec.outputs)
    weights.load(network, spec.framework, artifact.weights, spec.architecture)
    return network, spec.input
"""

# Files as the library publishes them, where it looks for them before it fetches: as the old ones, without counters, and
# DenseNet's with the names of old.
TORCH = f"""{TRAINED}{PULLED}
import re
from torchvision import models
torch.hub.set_dir(sys.argv[1])
(Path(sys.argv[1]) / "checkpoints").mkdir()
for name, chosen in json.loads(sys.argv[3]):
    official = models.get_model_weights(name)[chosen]
    plain, size = ({{"init_weights": False}}, 299) if name == "inception_v3" else ({{}}, 64)
    state = trained(models.get_model(name, weights=None, **plain), pixels[:, :size, :size]).state_dict()
    old = re.compile(r"(denselayer[0-9]+[.](?:norm|conv))([12])")
    state = {{old.sub(r"\\1.\\2", key): value for key, value in state.items() if "batches_tracked" not in key}}
    torch.save(state, Path(sys.argv[1]) / "checkpoints" / official.url.rsplit("/", 1)[-1])
    job = pull.PullJob(architecture="torchvision:" + name, weights=chosen, output=Path(sys.argv[2]), name=name)
    version, title = pull.pull(job)
    network, image = pulled(version)
    items = pixels[:, : image.height, : image.width]
    found = answer(network, items, image.scale, image.mean, image.std)
    own, transforms = models.get_model(name, weights=official), official.transforms()
    expected = answer(own, items, 1 / 255, transforms.mean, transforms.std)
    own.transform_input = False
    other = answer(own, items, 1 / 255, transforms.mean, transforms.std) if plain else expected
    print(json.dumps([str(version), title, difference(found, expected), difference(other, expected)]))
"""

# The library's download gives a file that was made here, of a network whose Normalization is ImageNet's.
KERAS = f"""{START}{PULLED}
from keras.src.utils import file_utils
keras.utils.set_random_seed(0)
scratch = applications.EfficientNetB0(weights=None, classifier_activation=None)
normalization = next(layer for layer in scratch.layers if isinstance(layer, keras.layers.Normalization))
for variable, values in zip(normalization.weights, ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])):
    variable.assign(values)
normalization.finalize_state()
scratch.save(sys.argv[1] + "/efficientnetb0.h5")
file_utils.get_file = lambda *_, **__: sys.argv[1] + "/efficientnetb0.h5"
job = pull.PullJob(architecture="keras:EfficientNetB0", output=Path(sys.argv[2]), name="efficientnetb0")
version, title = pull.pull(job)
network, image = pulled(version)
pixels = np.random.default_rng(0).integers(0, 256, (2, *image.shape)).astype(np.uint8)

def answer(network, x):
    return np.asarray(network(x, training=False))

def difference(found, expected):
    return float(np.abs(found - expected).max() / np.abs(expected).max())

x = pixels.astype(np.float32)
found = answer(network, image.normalized(pixels))
expected = answer(applications.EfficientNetB0(weights="imagenet", classifier_activation=None), x)
other = answer(scratch, x)
print(json.dumps([str(version), title, difference(found, expected), difference(other, expected)]))
path = Path(sys.argv[1], "weights.keras")
scratch.save(path)
for asked in ("keras:EfficientNetB0", "lenet5", "keras:EfficientNetB0_scratch"):
    try:
        weights.load(catalog.find(asked).build("keras"), "keras", path, asked)
    except pull.ArtifactError as error:
        print(json.dumps([str(error), error.cure]))
"""


@pytest.mark.slow
def test_pulled_weights_of_torchvision_answer_as_there(tmp_path):
    asked = [
        ("inception_v3", "IMAGENET1K_V1"),
        ("densenet121", "IMAGENET1K_V1"),
        ("mobilenet_v3_large", "IMAGENET1K_V1"),
    ]
    (tmp_path / "hub").mkdir()
    pulled = child(TORCH, tmp_path / "hub", tmp_path / "models", json.dumps(asked))
    root = tmp_path / "models"
    expected = [root / name / "1" for name, _ in asked]
    assert [version for version, *_ in pulled] == [str(path) for path in expected]
    for (_, weights), (_, title, difference, _) in zip(asked, pulled, strict=True):
        assert title.startswith(f"{weights} of torchvision ")
        assert difference < 1e-9
    assert pulled[0][3] > 1e-3  # without transform_input, the answers would be others
    assert Repository(root).resolve("mobilenet_v3_large", 1).source.spec.input.resize_to == 256
    assert catalog.find("torchvision:mobilenet_v3_large").input.resize_to == 232  # V2's
    spec = Repository(root).resolve("inception_v3", 1).source.spec
    assert spec.input == catalog.find("torchvision:inception_v3").input
    assert spec.labels[0] == "tench"


@pytest.mark.slow
def test_pulled_weights_of_keras_answer_as_there(tmp_path):
    (version, title, difference, without), *refusals = child(KERAS, tmp_path, tmp_path / "models")
    assert version == str(tmp_path / "models" / "efficientnetb0" / "1")
    assert title.startswith("imagenet of keras ")
    assert difference < 1e-5
    assert without > 1e-3  # built as for weights=None, the network would answer otherwise
    (twin, cure), (other, same_cure) = refusals  # of what was saved from a network for weights=None
    assert twin == "weights.keras was not saved from keras:EfficientNetB0"
    assert "weights.keras does not fit the network: " in other
    assert 'architecture = "keras:EfficientNetB0_scratch"' in cure == same_cure
    assert Repository(tmp_path / "models").resolve("efficientnetb0", 1).source.spec.labels[0] == "tench"


FOUND = catalog.find("torchvision:resnet18")


def fetched(save=None, **changes):
    def write(path):
        path.write_bytes(torch_bytes())

    image = FOUND.input.model_copy(update=changes)
    return pull.Fetched(title="V1 of x", file="weights.pth", save=save or write, input=image, labels="imagenet")


def test_the_first_version_comes_with_its_model_toml(tmp_path):
    assert pull.place(fetched(), FOUND, tmp_path / "models" / "one") == tmp_path / "models" / "one" / "1"
    text = (tmp_path / "models" / "one" / "model.toml").read_text()
    assert tomllib.loads(text) == {"architecture": "torchvision:resnet18", "labels": "imagenet"}
    assert text.startswith("# V1 of x")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["one"]
    pull.place(fetched(resize_to=300, interpolation="bicubic"), FOUND, tmp_path / "models" / "two")
    found = tomllib.loads((tmp_path / "models" / "two" / "model.toml").read_text())
    assert found["input"]["resize_to"] == 300
    assert found["input"]["normalization"] == "torch"
    assert Repository(tmp_path / "models").resolve("two", 1).source.spec.input.interpolation == "bicubic"


def test_a_later_version_says_all_of_itself_and_leaves_the_others_alone(tmp_path):
    model = tmp_path / "one"
    pull.place(fetched(resize_to=300), FOUND, model)
    before = (model / "model.toml").read_text()
    (model / "7").mkdir()
    assert pull.place(fetched(), FOUND, model) == model / "8"
    assert (model / "model.toml").read_text() == before
    assert Repository(tmp_path).resolve("one", 8).source.spec.input == FOUND.input
    assert Repository(tmp_path).resolve("one", 1).source.spec.input.resize_to == 300


def test_a_pull_that_is_stopped_leaves_nothing(tmp_path):
    def stop(path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    (tmp_path / ".one.staging" / "1").mkdir(parents=True)  # of one that was killed
    with pytest.raises(KeyboardInterrupt):
        pull.place(fetched(stop), FOUND, tmp_path / "one")
    assert list(tmp_path.iterdir()) == []
    pull.place(fetched(), FOUND, tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):
        pull.place(fetched(stop), FOUND, tmp_path / "one")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["1", "model.toml"]


def test_settings_hold_labels_and_a_normalisation_without_a_name(tmp_path):
    image = ImageInput(height=8, width=8, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    labels = ['a "quoted" one', "Käfer", "back\\slash"]
    text = pull.settings(
        pull.Fetched(title="V1", file="weights.pth", save=print, input=image, labels=labels), FOUND, whole=True
    )
    found = tomllib.loads(text)
    assert found["labels"] == labels
    assert ImageInput(**found["input"]) == image
    assert "normalization" not in found["input"]
    assert pull._described(FOUND.input)["normalization"] == "torch"
    assert not pull._described(FOUND.input).keys() & NORMALIZATIONS["torch"].keys()


@pytest.mark.parametrize(
    ("architecture", "cure"),
    [
        ("resnet18", "menagerie pull torchvision:resnet18"),
        ("keras:EfficientNetB0_scratch", "menagerie pull keras:EfficientNetB0"),
        ("lenet5", "torchvision:NAME"),
    ],
)
def test_what_has_no_official_weights_is_told(tmp_path, architecture, cure):
    with pytest.raises(ArtifactError, match="no official weights") as caught:
        pull.pull(pull.PullJob(architecture=architecture, output=tmp_path, name="one"))
    assert cure in caught.value.cure
    (tmp_path / "one").mkdir()
    with pytest.raises(ArtifactError, match=r"no model\.toml"):
        pull.pull(pull.PullJob(architecture=architecture, output=tmp_path, name="one"))
