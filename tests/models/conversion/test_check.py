"""Of a published version, what its manifest claims is compared with its graph."""

import contextlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from models.conversion.check import CheckJob, check
from models.errors import first_line
from tests.models.published import SPEC, edited, graph, publish, publish_numbers


def refusal(directory):
    with pytest.raises(ValueError) as caught:
        check(
            CheckJob(directory=directory, batches=(1, 3), threads=1, memory_bytes=2**30),
            lambda _: contextlib.nullcontext(),
        )
    return first_line(caught.value)


CLAIMS = {
    "another graph": ({"onnx_sha256": "0" * 64}, "is not the file"),
    "another size": ({"onnx_bytes": 5}, "claims 5 bytes"),
    "a path for a fingerprint": ({"fingerprint": "../../../../tmp/x"}, "fingerprint"),
    "an input larger than any": ({"input": {"kind": "image", "height": 10**5, "width": 10**5}}, "height"),
    "an item larger than any": ({"input": {"kind": "image", "height": 16000, "width": 16000}}, "64 MiB"),
    "numbers without end": ({"input": {"kind": "numbers", "shape": [10**9]}}, "64 MiB"),
    "many dimensions": ({"input": {"kind": "numbers", "shape": [1] * 9}}, "shape"),
    "other numbers": ({"input": {"kind": "numbers", "shape": [4]}}, "manifest.json says tensor(float) of [4]"),
    "an image": ({"input": {"kind": "image", "height": 3, "width": 3}}, "manifest.json says tensor(uint8)"),
    "other classes": ({"num_classes": 2, "labels": ["a", "b"]}, "[1, 3] for 1 items of 2 classes"),
    "classes without end": ({"num_classes": 10**12}, "num_classes"),
    "labels missing": ({"labels": ["a"]}, "1 labels for 3 classes"),
    "no number": ({"peak_memory_bytes": 1, "parity": {"relative_error": float("nan")}}, "parity"),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_that_does_not_hold_is_told(tmp_path, name):
    changes, words = CLAIMS[name]
    assert words in refusal(edited(publish_numbers(tmp_path / "model"), **changes))


def test_an_infinite_figure_is_told(tmp_path):
    directory = publish_numbers(tmp_path / "model")
    path = directory / "manifest.json"
    path.write_text(path.read_text().replace('"relative_error":0.0', '"relative_error":1e999'))
    assert "infinite" in refusal(directory)


def external():
    """A graph whose weights are said to lie in another file, which is there."""
    model = onnx.load_from_string(graph([helper.make_node("Add", ["numbers", "w"], ["probabilities"])]))
    weights = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[3])
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "/etc/passwd"), ("length", "12")):
        weights.external_data.add(key=key, value=value)
    return model.SerializeToString()


def of_batch_1():
    reshape = helper.make_node("Reshape", ["numbers", "shape"], ["probabilities"])
    return graph([reshape], {"shape": np.array([1, 3], np.int64)})


IDENTITY = helper.make_node("Identity", ["numbers"], ["probabilities"])
GRAPHS = {
    "no graph": (b"\x08\x01" * 1000, "ONNX Runtime cannot open the model"),
    "weights elsewhere": (external(), "ONNX Runtime cannot open the model"),
    "an operator of its own": (
        graph([helper.make_node("Mine", ["numbers"], ["probabilities"], domain="mine")]),
        "ONNX Runtime cannot open the model",
    ),
    "a frozen batch": (of_batch_1(), "does not run at batch 3"),
    "a batch of one": (graph([IDENTITY], source=("numbers", TensorProto.FLOAT, [1, 3])), "batches of one size only"),
    "no probabilities": (
        graph([helper.make_node("Identity", ["numbers"], ["other"])], result="other"),
        "the outputs other",
    ),
    "whole numbers": (graph([IDENTITY], source=("numbers", TensorProto.INT64, ["batch", 3])), "cannot open"),
    "logarithms": (graph([helper.make_node("Log", ["numbers"], ["probabilities"])]), "infinite or NaN"),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_that_is_not_what_is_served_is_told(tmp_path, name):
    content, words = GRAPHS[name]
    assert words in refusal(publish(tmp_path / "model", SPEC, content))
