"""The default photographs model: what it was trained with, decided on real photographs."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from models import catalog
from models.conversion.graph.export import forward, network_input
from models.conversion.readers import weights
from models.inputs import NORMALIZATIONS, ImageInput
from service.repository.repository import Repository
from service.settings import DEFAULT_REPOSITORY
from tests.images import photograph

pytestmark = pytest.mark.slow

# What is on each photograph, and its probability after torchvision's Resize(256) and CenterCrop(224), normalised with
# ImageNet's mean and std, and as EfficientNet-Lite was trained.
FIGURES = {
    "coffee.png": ("espresso", 0.843, 0.957),
    "rocket.jpg": ("missile", 0.413, 0.364),
    "motorcycle_left.png": ("moped", 0.272, 0.582),
    "china.jpg": ("palace", 0.289, 0.351),
    "flower.jpg": ("daisy", 0.116, 0.275),
    "chelsea.png": ("Egyptian cat", 0.355, 0.375),
}


@pytest.fixture(scope="module")
def probabilities():
    """Of what is really on each photograph, under each normalisation: {photograph: (torch's, lite's)}."""
    artifact = Repository(DEFAULT_REPOSITORY).resolve("efficientnet_lite0", 1).source
    spec = artifact.spec
    network = catalog.find(spec.architecture).build("torch", spec.input.shape, spec.outputs)
    weights.load(network, "torch", artifact.weights)
    fit = torch.nn.Sequential(Resize(256, InterpolationMode.BILINEAR), CenterCrop(224))
    found = {}
    for name, (label, *_) in FIGURES.items():
        pixels = np.asarray(fit(Image.open(photograph(name)).convert("RGB")))[None]
        answers = []
        for mode in ("torch", "lite"):
            image = ImageInput(height=224, width=224, **NORMALIZATIONS[mode])
            logits = forward(network, "torch", network_input(spec.model_copy(update={"input": image}), pixels))[0]
            powers = np.exp(logits - logits.max())
            answers.append(powers[spec.labels.index(label)] / powers.sum())
        found[name] = answers
    return found


@pytest.mark.parametrize("name", FIGURES)
def test_the_probabilities_are_those_known(probabilities, name):
    assert probabilities[name] == pytest.approx(FIGURES[name][1:], abs=0.001)


def test_its_own_normalisation_is_the_likelier_one(probabilities):
    """The mean log-likelihood of what is on the photographs decides."""
    torch_mode, lite = np.log(np.array(list(probabilities.values()))).mean(axis=0)
    assert lite > torch_mode + 0.2
    spec = Repository(DEFAULT_REPOSITORY).resolve("efficientnet_lite0", 1).source.spec
    assert (spec.input.mean, spec.input.std) == ((127 / 255,), (128 / 255,))
