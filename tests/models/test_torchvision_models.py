"""The table of torchvision's networks says what the library says, and their checkpoints fit."""

import numpy as np
import pytest

from models import catalog
from models.errors import ArtifactError
from models.zoo.torchvision_models import CHANNELS, PREFIX, ROWS, TRAINING_ONLY
from tests.models.scripts import TRAINED, child

# What the library says of its recommended weights; what its networks have, as they are built here and as the library
# builds them; and what the first layers see of the darkest and the lightest pixel.
FACTS = """
import json
from torchvision import models
from models import catalog
from models.conversion.readers import recognition

def parameters(network):
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad)

for name in models.list_models(module=models):
    weights = models.get_model_weights(name).DEFAULT
    transforms = weights.transforms()
    with recognition.without_memory():
        network = catalog.find("torchvision:" + name).build("torch")
    statistics = [each for key, each in network.named_buffers() if key.endswith(("running_mean", "running_var"))]
    print(json.dumps({
        "name": name,
        "crop": transforms.crop_size,
        "shorter_side": transforms.resize_size,
        "interpolation": transforms.interpolation.value,
        "mean": transforms.mean,
        "std": transforms.std,
        "parameters": parameters(network),
        "statistics": sum(each.numel() for each in statistics),
        "published": weights.meta["num_params"],
        "classes": len(weights.meta["categories"]),
    }))
"""


# Networks as the library builds them, their own files loaded here, and the largest difference of the answers. Official
# weights come with `transform_input` where the library knows it.
ANSWERS = f"""{TRAINED}
import json, sys
from pathlib import Path
from torchvision import models
from models import catalog
from models.conversion.readers import weights

for name in sys.argv[2:]:
    official = {{"transform_input": True, "init_weights": False}} if name in {{"googlenet", "inception_v3"}} else {{}}
    own = models.get_model(name, weights=None, num_classes=7, **official)
    found = catalog.find("torchvision:" + name)
    items = pixels[:, : found.input.height, : found.input.width]
    trained(own, items)
    path = Path(sys.argv[1], name + ".pth")
    torch.save(own.state_dict(), path)
    network = found.build("torch", outputs=7)
    weights.load(network, "torch", path, found.name)
    transforms = models.get_model_weights(name).DEFAULT.transforms()
    expected = answer(own, items, 1 / 255, transforms.mean, transforms.std)
    found = answer(network, items, found.input.scale, found.input.mean, found.input.std)
    print(json.dumps([name, difference(found, expected)]))
"""


@pytest.fixture(scope="module")
def facts():
    return {each["name"]: each for each in child(FACTS)}


@pytest.mark.slow
def test_every_classifier_of_the_library_has_a_row(facts):
    assert list(facts) == list(ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_what_the_library_says(facts, name):
    found, fact = catalog.find(PREFIX + name), facts[name]
    assert found.num_classes == fact["classes"]
    assert (found.parameters, found.statistics) == (fact["parameters"], fact["statistics"])
    assert (found.parameters == fact["published"]) == (name != "inception_v3")  # published with what trains it
    assert [found.input.height] == [found.input.width] == fact["crop"]
    assert found.input.resize == "crop"
    assert [found.input.resize_to] == fact["shorter_side"]
    assert found.input.interpolation == fact["interpolation"]
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    expected = (values / 255 - fact["mean"]) / fact["std"]
    if name in TRAINING_ONLY:  # as transform_input has it
        expected = (expected * fact["std"] + fact["mean"] - 0.5) / 0.5
    np.testing.assert_allclose(found.input.normalized(values), expected, atol=1e-6)


@pytest.mark.slow
def test_checkpoints_of_the_library_fit_and_are_answered_as_there(tmp_path):
    names = ["vit_b_32", "mnasnet0_5", "googlenet"]
    answers = dict(child(ANSWERS, tmp_path, *names))
    assert list(answers) == names
    assert all(0 <= difference < 1e-9 for difference in answers.values()), answers


SHAPES = """
import json
import torch
from models import catalog
answer = catalog.find("torchvision:vit_b_32").build("torch", (64, 64, 3), 5).eval()(torch.zeros(2, 3, 64, 64))
print(json.dumps(list(answer.shape)))
for name, shape in (("resnet18", (64, 64, 1)), ("vit_b_32", (64, 96, 3))):
    try:
        catalog.find("torchvision:" + name).build("torch", shape)
    except ValueError as error:
        print(json.dumps(str(error)))
"""


@pytest.mark.slow
def test_a_shape_that_the_library_has_not_is_told():
    assert child(SHAPES) == [
        [2, 5],
        f"torchvision's networks take {CHANNELS} channels, not 1",
        "torchvision's vision transformers take square images",
    ]


def test_the_libraries_are_found_and_are_not_in_the_catalog():
    assert catalog.find("torchvision:resnet50").builders.keys() == {"torch"}
    assert not catalog.CATALOG.keys() & catalog.LIBRARIES.keys()
    with pytest.raises(ArtifactError) as caught:
        catalog.find("torchvision:resnet5")
    assert "did you mean 'torchvision:resnet50'" in caught.value.cure
    assert "torchvision:NAME" in caught.value.cure


def test_every_row_says_where_it_is_from():
    assert all("arXiv:" in each.paper for each in catalog.LIBRARIES.values())
