"""Options: their defaults, and options that contradict each other."""

from pathlib import Path

import pytest

from models import catalog
from models.errors import ArtifactError
from models.inputs import NORMALIZATIONS, ImageInput, NumbersInput
from models.train.__main__ import parse
from models.train.recipe import LEARNING_RATES, Recipe, find_architecture, find_input


def recipe(architecture="lenet5", data="digits", **options):
    return Recipe(architecture=architecture, data=data, **options)


def parsed(*options):
    return parse(["lenet5", "digits", "--output", "repository/model", *options])


def test_what_is_left_out_is_the_recipes_default():
    found, options = parsed()
    assert found == recipe()
    assert options == (Path("repository/model"), False, False)


def test_every_field_is_an_option():
    found, _ = parsed("--framework=keras", "--channels=3", "--learning-rate=0.5", "--flip", "--dropout=0", "--epochs=3")
    assert found == recipe(framework="keras", channels="3", learning_rate=0.5, flip=True, dropout=0, epochs=3)


@pytest.mark.parametrize(
    ("option", "name"),
    [("--epochs=0", "epochs"), ("--learning-rate=fast", "learning-rate"), ("--dropout=1", "dropout")],
)
def test_a_value_that_cannot_be_is_named(option, name):
    with pytest.raises(ArtifactError, match=f"^--{name}: ") as caught:
        parsed(option)
    assert "--help" in caught.value.cure


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--normalization=mine", "'mine' is not one of torch"),
        ("--test-split=0.9", "leave no examples to train on"),
    ],
)
def test_values_that_do_not_go_together(option, message):
    with pytest.raises(ArtifactError, match=message):
        parsed(option)


def test_the_optimizers_have_their_usual_rates():
    for optimizer, rate in LEARNING_RATES.items():
        assert recipe(optimizer=optimizer).first_learning_rate == rate
    assert recipe(learning_rate=0.3).first_learning_rate == 0.3


def find(*, architecture="lenet5", **options):
    return find_input(recipe(architecture, **options), catalog.find(architecture))


def test_an_input_is_the_architectures_but_for_what_is_asked():
    assert find(data="photos") == catalog.find("lenet5").input
    found = find(architecture="resnet18", data="photos", size=64, channels="1", normalization="unit")
    assert found == ImageInput(height=64, width=64, channels=1, **NORMALIZATIONS["unit"])


def test_digits_are_shown_whole_and_smooth():
    found = find(architecture="resnet18", size=32)
    assert (found.resize, found.interpolation, found.channels) == ("stretch", "bicubic", 3)
    assert find(architecture="resnet18", size=32, resize="crop").resize == "crop"


def test_digits_are_numbers_where_the_network_takes_numbers():
    assert find(architecture="mlp_iris") == NumbersInput(shape=(64,))
    assert find(architecture="lstm") == NumbersInput(shape=(8, 8))


@pytest.mark.parametrize(
    ("options", "message", "cure"),
    [
        ({"architecture": "mlp_iris", "data": "photos"}, "takes numbers", "images"),
        ({"architecture": "mlp_iris", "flip": True}, "no picture to resize", "augmentation"),
        ({"architecture": "mlp_iris", "size": 8}, "no picture to resize", "size"),
        ({"architecture": "resnet18", "channels": "1"}, "mean has 3 values", "--normalization"),
    ],
)
def test_inputs_that_do_not_fit(options, message, cure):
    with pytest.raises(ArtifactError, match=message) as caught:
        find(**options)
    assert cure in caught.value.cure


def test_an_unknown_architecture_names_the_nearest():
    with pytest.raises(ArtifactError, match="no architecture 'lenet6'") as caught:
        find_architecture(recipe("lenet6"))
    assert "lenet5" in caught.value.cure
