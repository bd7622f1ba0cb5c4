"""Descriptions of networks in Keras files: Keras' own layers pass, and everything that contains code is refused."""

import json

import pytest

from models.conversion.readers.keras_config import plain
from models.errors import ArtifactError


def layer(name, module="keras.layers", registered=None, **config):
    return {"module": module, "class_name": name, "config": {"name": "one", **config}, "registered_name": registered}


def network(*layers, name="Sequential", **more):
    config = {"name": "net", "layers": [layer("InputLayer", batch_shape=[None, 4]), *layers], **more}
    return {"module": "keras", "class_name": name, "config": config, "registered_name": None}


def layers_of(config):
    return plain(config, "weights.keras")["config"]["layers"]


def test_layers_of_keras_pass_without_what_only_training_needs():
    given = layer(
        "Dense",
        units=3,
        activation={"module": "builtins", "class_name": "function", "config": "softmax", "registered_name": "function"},
        dtype={"module": "keras", "class_name": "DTypePolicy", "config": {"name": "mixed_float16"}},
        kernel_initializer=layer("GlorotUniform", "keras.initializers"),
        kernel_regularizer=layer("Anything", "evil.module"),
        bias_constraint={"class_name": "__lambda__", "config": {"value": "4wAA"}},
    )
    given["build_config"] = {"input_shape": [None, 4], "other": "thing"}
    found = plain({**network(given), "compile_config": {"loss": layer("Lambda")}}, "weights.keras")
    assert "compile_config" not in found
    assert found["config"]["layers"][1] == {
        "module": "keras.layers",
        "class_name": "Dense",
        "config": {"name": "one", "units": 3, "activation": "softmax", "dtype": "float32"},
        "registered_name": None,
        "build_config": {"input_shape": [None, 4]},
    }


def test_what_varies_pictures_in_training_becomes_nothing():
    assert (
        layers_of(network(layer("RandomFlip", mode="horizontal", rng_type="stateful")))[1]["class_name"] == "Identity"
    )


CODE = {"class_name": "__lambda__", "config": {"value": "4wAA", "defaults": None, "closure": None}}

HOSTILE = [
    layer("Lambda", function=CODE),
    layer("Lambda", "keras.layers", function="os.system"),
    layer("TFSMLayer", filepath="/evil"),
    layer("TorchModuleWrapper", module_bytes="gAJj"),
    layer("JaxLayer"),
    layer("StringLookup", vocabulary="/etc/passwd"),
    layer("TextVectorization", vocabulary="http://evil/words"),
    layer("Dense", "evil.layers", units=3),
    layer("Dense", "keras.layers.evil; import os", units=3),
    layer("Dense", registered="evil>Dense", units=3),
    layer("Mine", "keras.layers", registered="Custom>Mine"),
    layer("system", "os"),
    layer("Layer"),
    layer("load_model", "keras.models"),
    layer("get_file", "keras.utils", origin="http://evil"),
    layer("Dense", units=3, activation="evil"),
    layer("Dense", units=3, activation=CODE),
    layer("Dense", units=3, activation={"module": "os", "class_name": "function", "config": "system"}),
    layer("Dense", units=3, activation=layer("Lambda", function=CODE)),
    layer("Activation", activation={"class_name": "function", "module": "keras.utils", "config": "get_file"}),
    layer("TimeDistributed", layer=layer("Lambda", function=CODE)),
    layer("Bidirectional", layer=layer("LSTM", units=2), backward_layer=layer("Lambda", function=CODE)),
    layer("RNN", cell=layer("evil", "evil")),
    layer("Dense", units={"class_name": "__typespec__", "spec_name": "x", "module": "evil", "config": []}),
    layer("Rescaling", scale={"class_name": "__numpy__", "config": {"value": [1], "dtype": "object"}}),
    layer("Rescaling", scale={"class_name": "__bytes__", "config": {"value": "x"}}),
    layer("Dense", units=3, other={"deep": [{"class_name": "system", "module": "os", "config": {}}]}),
    layer("Dense", units=3, dtype={"class_name": "QuantizedDTypePolicy", "config": {"name": "int8_from_float32"}}),
    layer("system", "keras.src.ops.numpy"),
    layer("Lambda", "keras.src.ops.numpy"),
    network(layer("Lambda", function=CODE)),
    {**layer("Dense", units=3), "inbound_nodes": [{"args": [layer("Lambda", function=CODE)], "kwargs": {}}]},
    {**layer("Dense", units=3), "inbound_nodes": [[["input", 0, 0, {"x": layer("Lambda", function=CODE)}]]]},
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda each: f"{each['class_name']}-{len(str(each))}")
def test_code_is_refused_wherever_it_stands(hostile):
    with pytest.raises(ArtifactError, match=r"weights\.keras holds") as caught:
        plain(network(hostile), "weights.keras")
    assert "ONNX" in caught.value.cure


@pytest.mark.parametrize("kind", ["Lambda", "MyModel", None, ["Sequential"], "__lambda__"])
def test_a_network_of_another_class_is_refused(kind):
    with pytest.raises(ArtifactError, match=r"weights\.keras (holds|cannot be read)"):
        plain({**network(), "class_name": kind}, "weights.keras")


def nested(depth):
    config = {"name": "x"}
    for _ in range(depth):
        config = {"inside": config}
    return layer("Dense", **config)


@pytest.mark.parametrize(
    "config",
    [
        {"class_name": "Sequential"},
        {"class_name": "Functional", "config": {"layers": [5]}},
        network(layer("BatchNormalization", axis=[1, 2])),
    ],
)
def test_what_is_damaged_is_told(config):
    with pytest.raises(ArtifactError, match=r"cannot be read|holds"):
        plain(config, "weights.keras")


def test_what_is_too_deep_is_told():
    with pytest.raises(ArtifactError, match="too deep"):
        plain(network(nested(100_000)), "weights.keras")


def test_names_of_keras_2_are_written_as_keras_3_has_them():
    old = {
        "class_name": "Model",
        "config": {
            "name": "net",
            "layers": [
                {
                    "class_name": "InputLayer",
                    "name": "in",
                    "inbound_nodes": [],
                    "config": {"batch_input_shape": [None, 4]},
                },
                {
                    "class_name": "Sequential",
                    "name": "inner",
                    "inbound_nodes": [[["in", 0, 0, {}]]],
                    "config": [{"class_name": "Dense", "config": {"batch_input_shape": [None, 4], "units": 2}}],
                },
                {
                    "class_name": "BatchNormalization",
                    "name": "last",
                    "inbound_nodes": [[["inner", 1, 0, {}]]],
                    "config": {"axis": [3]},
                },
            ],
            "input_layers": [["in", 0, 0]],
            "output_layers": [["last", 0, 0]],
        },
    }
    before = json.dumps(old)
    found = plain(old, "weights.h5")
    first, inner, last = found["config"]["layers"]
    assert found["class_name"] == "Functional"
    assert first["config"] == {"batch_shape": [None, 4]}
    assert [each["class_name"] for each in inner["config"]["layers"]] == ["InputLayer", "Dense"]
    assert last["inbound_nodes"] == [[["inner", 0, 0, {}]]]  # its making was the first call
    assert last["config"] == {"axis": 3}
    assert (found["config"]["input_layers"], found["config"]["output_layers"]) == (["in", 0, 0], ["last", 0, 0])
    assert json.dumps(old) == before
