"""The table of Keras' networks says what the library says."""

import numpy as np
import pytest

from models import catalog
from models.zoo.keras_applications import PREFIX, ROWS, SCRATCH, TWICE_SCALED, twin
from tests.models.scripts import START, child

# Nothing is built: the library asks one function for the shape, and it is told of no default.
FACTS = f"""{START}
from keras.src.applications import imagenet_utils

class Asked(Exception):
    pass

def asked(input_shape, default_size, **_):
    raise Asked(default_size)

imagenet_utils.obtain_input_shape = asked
pixels = np.arange(256, dtype=np.float32).reshape(1, 16, 16, 1).repeat(3, axis=3)
for name, build in inspect.getmembers(applications, inspect.isfunction):
    module = sys.modules[build.__module__]
    module.obtain_input_shape = asked
    try:
        build(weights=None)
    except Asked as found:
        size = found.args[0]
    print(json.dumps([name, size, module.preprocess_input(pixels.copy()).tolist()]))
"""

COUNTS = f"""{START}
from models import catalog
for name in sys.argv[1:]:
    network = catalog.find("keras:" + name).build("keras")
    counts = [sum(int(np.prod(weight.shape)) for weight in weights)
              for weights in (network.trainable_weights, network.non_trainable_weights)]
    other = catalog.find("keras:" + name).build("keras", (96, 96, 3), 5) if "B0" in name else network
    print(json.dumps([name, *counts, list(other.input_shape), list(other.output_shape),
                      [type(layer).__name__ for layer in network.layers].count("Rescaling")]))
"""

# Whatever the library builds otherwise when it is asked for official weights.
BRANCHES = f"""{START}
from keras.src.utils import file_utils
file_utils.get_file = lambda *_, **__: None
keras.Model.load_weights = lambda *_, **__: None

def layers(network):
    return [type(layer).__name__ for layer in network.layers]

for name in sys.argv[1:]:
    build = getattr(applications, name)
    official, scratch = (layers(build(weights=weights, classifier_activation=None)) for weights in ("imagenet", None))
    print(json.dumps([name, official == scratch]))
    keras.backend.clear_session()
"""


@pytest.fixture(scope="module")
def facts():
    return {name: rest for name, *rest in child(FACTS)}


@pytest.mark.slow
def test_every_classifier_of_the_library_has_a_row(facts):
    assert list(facts) == list(ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_what_the_library_says(facts, name):
    found, (size, preprocessed) = catalog.find(PREFIX + name), facts[name]
    assert (found.input.height, found.input.width) == (size, size)
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    np.testing.assert_allclose(found.input.normalized(values), preprocessed, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_networks_have_the_parameters_of_their_rows():
    names = [
        "ResNet50",
        "MobileNetV2",
        "InceptionResNetV2",
        "EfficientNetB0",
        f"EfficientNetB0{SCRATCH}",
        "InceptionV3",
    ]
    counts = child(COUNTS, *names)
    assert [row[0] for row in counts] == names
    for name, trainable, other, shape, classes, rescalings in counts:
        found = catalog.find(PREFIX + name)
        assert (trainable, other) == (found.parameters, found.statistics)
        if "B0" in name:
            assert (shape, classes) == ([None, 96, 96, 3], [None, 5])
        assert rescalings == {"EfficientNetB0": 2, f"EfficientNetB0{SCRATCH}": 1}.get(name, 0)


@pytest.mark.slow
def test_only_efficientnet_is_built_otherwise_for_official_weights():
    names = ["EfficientNetB0", "MobileNetV3Small", "EfficientNetV2B0", "ConvNeXtTiny"]  # they rescale inside
    assert dict(child(BRANCHES, *names)) == {name: name not in TWICE_SCALED for name in names}


def test_a_twin_has_the_same_weights_and_other_answers():
    assert twin("keras:EfficientNetB3") == "keras:EfficientNetB3_scratch"
    assert twin("keras:EfficientNetB3_scratch") == "keras:EfficientNetB3"
    assert {twin(name) for name in (*catalog.CATALOG, "keras:ResNet50", "")} == {None}
    assert list(TWICE_SCALED) == [f"EfficientNetB{size}" for size in range(8)]
