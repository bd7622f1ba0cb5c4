"""Lower precision: graphs that agree are served, others are refused with a reason."""

import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from models import hardware
from models.artifact.artifact import Spec
from models.artifact.manifest import Parity
from models.artifact.resolution import find_calibration
from models.conversion.graph import calibration, export, precision
from models.conversion.graph.precision import Chosen, choose
from models.errors import ArtifactError
from models.inputs import ImageInput, NumbersInput
from service.images.preprocess import decode

TINTS = ((200, 60, 60), (60, 200, 60), (60, 60, 200))
PROOF = Parity(relative_error=1e-7, probability_error=1e-7, top1_agreement=1, batches=(1, 3), items=8)


@pytest.fixture(autouse=True)
def quickly_and_without_a_gpu(monkeypatch):
    monkeypatch.setattr(precision, "_SECONDS", 0.02)
    monkeypatch.setattr(hardware, "has_gpu", lambda: False)


def spec_of(asked, **changes):
    image = ImageInput(height=16, width=16, normalization="torch")
    return Spec(
        **{
            "architecture": "any",
            "framework": "torch",
            "num_classes": 3,
            "input": image,
            "output": "logits",
            "labels": ("red", "green", "blue"),
            "precision": asked,
            **changes,
        }
    )


def photograph(path, tint, seed):
    noise = np.random.default_rng(seed).normal(0, 40, (20, 24, 3))
    Image.fromarray(np.clip(np.array(tint) + noise, 0, 255).astype(np.uint8)).save(path)


def darken(path, index):
    """Makes an image black, except for a pixel that makes its file unique."""
    black = Image.new("RGB", (20, 24))
    black.putpixel((0, 0), (int(index), 0, 0))
    black.save(path)


@pytest.fixture
def photographs(tmp_path):
    """Makes calibration folders with `count` images, whose tints alternate."""

    def make(count, tints=TINTS):
        folder = tmp_path / "model" / "calibration"
        folder.mkdir(parents=True)
        for index in range(count):
            photograph(folder / f"{index:03d}.png", tints[index % len(tints)], index)
        return find_calibration(folder.parent, ImageInput(height=16, width=16))

    return make


def chosen(network, spec):
    """The served fp32 graph of a network."""
    graph = helper.make_model(network, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return Chosen(export.join(graph, spec).SerializeToString(), 20, PROOF)


def layers(width, scale=1.0):
    """Two convolutions and their activations, without a last layer; each channel of the first has another range."""
    rng = np.random.default_rng(0)
    first = rng.normal(0, 0.3, (width, 3, 3, 3)) * np.geomspace(0.01, 1, width).reshape(-1, 1, 1, 1)
    second = rng.normal(0, 0.1, (width, width, 3, 3))
    nodes = [
        helper.make_node("Conv", ["image", "first"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["features"]),
    ]
    weights = {"first": first * scale, "second": second}
    return nodes, [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]


def colours(width=16, scale=1.0):
    """A network that distinguishes tints: its last layer is fitted to the features of the two convolutions."""
    nodes, weights = layers(width, scale)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 16, 16])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", width])
    graph = helper.make_graph(nodes, "features", [image], [features], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    rng = np.random.default_rng(1)
    pixels = np.clip(np.repeat(TINTS, 20, 0)[:, None, None] + rng.normal(0, 40, (60, 16, 16, 3)), 0, 255)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": export.network_input(spec_of("fp32"), pixels.astype(np.uint8))})
    wanted = np.repeat(np.eye(3) * 8 - 4, 20, 0)
    # The weights are kept small, like trained ones: an exact fit would magnify every rounding.
    scaled = found / scale
    fitted = np.linalg.solve(scaled.T @ scaled + 1e-2 * np.eye(width), scaled.T @ wanted) / scale
    weights.append(numpy_helper.from_array(fitted.astype(np.float32), "last"))
    nodes.append(helper.make_node("Gemm", ["features", "last"], ["answer"]))
    answer = helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["batch", 3])
    return chosen(helper.make_graph(nodes, "colours", [image], [answer], weights), spec_of("fp32"))


@pytest.fixture(scope="module")
def fp32():
    return colours()


def test_int8_agrees_and_holds_whole_numbers_by_channel(fp32, photographs):
    found = choose(fp32, spec_of("int8"), photographs(60))
    (trial,) = found.choice.trials
    assert (found.precision, trial.chosen, trial.calibrated_on, trial.judged_on) == ("int8", True, 37, 23)
    assert found.parity == trial.parity
    assert found.parity.items == 230
    assert found.parity.top1_agreement >= precision.AGREEMENT["int8"]
    assert found.parity.relative_error > PROOF.relative_error
    assert trial.speed > 0
    assert found.choice.fp32 == PROOF
    graph = onnx.load_from_string(found.content).graph
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    for node in convolutions:
        pixels, weights = made[node.input[0]], made[node.input[1]]
        assert (pixels.op_type, weights.op_type) == ("DequantizeLinear", "DequantizeLinear")
        assert constants[weights.input[0]].dtype == np.int8
        assert constants[weights.input[1]].shape == (16,)  # a scale for each channel
    assert len(convolutions) == 2
    kept = {node.op_type: node for node in graph.node if node.op_type in {"Cast", "Mul", "Add", "Gemm", "Softmax"}}
    assert len(kept) == 5
    assert constants[kept.pop("Gemm").input[1]].dtype == np.float32
    for node in kept.values():
        assert not [name for name in node.input if name in made and made[name].op_type == "DequantizeLinear"]


def test_int8_that_was_calibrated_on_the_dark_is_refused(fp32, photographs):
    paths = photographs(60)
    for index in np.flatnonzero(~calibration.held_out(60)):
        darken(paths[index], index)
    with pytest.raises(
        ArtifactError, match=r"int8 gives fp32's best label for \d\d\.\d% of 23 held-out items"
    ) as caught:
        choose(fp32, spec_of("int8"), paths)
    assert "more images" in caught.value.cure
    assert 'precision = "fp32"' in caught.value.cure
    found = choose(fp32, spec_of("auto"), paths)
    assert (found.precision, found.content, found.parity) == ("fp32", fp32.content, PROOF)
    int8, _ = found.choice.trials
    assert not int8.chosen
    assert int8.parity.top1_agreement < 0.98
    assert "98.0% is the minimum" in int8.reason


def test_less_agreement_is_enough_where_its_owner_says_so(fp32, photographs):
    paths = photographs(60)
    for index in np.flatnonzero(~calibration.held_out(60)):
        darken(paths[index], index)
    found = choose(fp32, spec_of("int8", precision_agreement=0.01), paths)
    assert found.precision == "int8"
    assert found.parity.top1_agreement < 0.98


@pytest.mark.parametrize("asked", ["int8", "fp16"])
def test_images_that_prove_nothing_are_refused(fp32, photographs, asked):
    with pytest.raises(ArtifactError, match="the same label, so agreement means nothing") as caught:
        choose(fp32, spec_of(asked), photographs(9, [(90, 40, 40)]))
    assert "several classes" in caught.value.cure


@pytest.mark.parametrize("count", [0, 1, 4])
def test_few_images_are_refused_and_none_pass_by(fp32, photographs, count):
    with pytest.raises(ArtifactError, match="too few"):
        choose(fp32, spec_of("int8"), photographs(count))


def test_auto_wants_more_images_than_one_who_asks_by_name(fp32, photographs):
    paths = photographs(20)
    assert choose(fp32, spec_of("int8"), paths).precision == "int8"
    found = choose(fp32, spec_of("auto"), paths)
    assert found.precision == "fp32"
    assert "7 held-out items" in found.choice.trials[0].reason
    assert "put 60 images" in found.choice.trials[0].reason


def test_auto_takes_int8_that_agrees_and_is_faster(fp32, photographs, monkeypatch):
    monkeypatch.setattr(precision, "_speed", lambda *_: precision.SPEED)
    found = choose(fp32, spec_of("auto"), photographs(60))
    assert found.precision == "int8"
    assert [(trial.precision, trial.chosen) for trial in found.choice.trials] == [("int8", True), ("fp16", False)]


def test_auto_keeps_fp32_where_int8_is_not_faster(photographs):
    """In so small a network the conversions to and from int8 take longer than int8 saves."""
    small = colours(width=2)
    found = choose(small, spec_of("auto"), photographs(60))
    int8, fp16 = found.choice.trials
    assert found.precision == "fp32"
    assert found.content == small.content
    assert (int8.chosen, fp16.chosen) == (False, False)
    assert int8.parity.top1_agreement >= 0.98
    assert int8.speed < precision.SPEED
    assert f"{int8.speed:.2f} times as fast as fp32" in int8.reason


def test_a_network_that_the_tools_do_not_know_stays_in_fp32(fp32, photographs, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no shape for\na tensor")

    monkeypatch.setattr(precision, "quantize_static", fail)
    paths = photographs(60)
    with pytest.raises(ArtifactError, match="cannot convert the network to int8: no shape for a tensor") as caught:
        choose(fp32, spec_of("int8"), paths)
    assert 'precision = "fp32"' in caught.value.cure
    found = choose(fp32, spec_of("auto"), paths)
    assert (found.precision, found.content) == ("fp32", fp32.content)
    assert "no shape" in found.choice.trials[0].reason


def test_auto_beside_a_gpu_keeps_fp32_and_says_how_to_ask(fp32, photographs, monkeypatch):
    monkeypatch.setattr(hardware, "has_gpu", lambda: True)
    found = choose(fp32, spec_of("auto"), photographs(60))
    int8, fp16 = found.choice.trials
    assert found.precision == "fp32"
    assert "for processors" in int8.reason
    assert 'precision = "fp16"' in fp16.reason
    assert fp16.parity is int8.parity is None


def test_fp16_agrees_and_keeps_what_goes_in_and_out(fp32, photographs):
    found = choose(fp32, spec_of("fp16"), photographs(60))
    assert found.precision == "fp16"
    assert found.parity.top1_agreement >= 0.99
    assert PROOF.relative_error < found.parity.relative_error < 0.01
    model = onnx.load_from_string(found.content)
    types = [each.type.tensor_type.elem_type for each in (*model.graph.input, *model.graph.output)]
    assert types == [TensorProto.UINT8, TensorProto.FLOAT, TensorProto.FLOAT]
    kinds = Counter(numpy_helper.to_array(each).dtype.name for each in model.graph.initializer if len(each.dims) == 4)
    assert kinds == {"float16": 2}


def test_answers_beyond_the_range_of_fp16_are_refused(photographs):
    with pytest.raises(ArtifactError, match="not finite"):
        choose(colours(scale=1e6), spec_of("fp16"), photographs(60))


def numbers_network(hidden):
    """A network that finds the largest of three numbers, with or without a hidden layer."""
    spec = spec_of("fp32", input=NumbersInput(shape=(3,)))
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    answer = helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["batch", 3])
    weights = [numpy_helper.from_array(np.eye(3, dtype=np.float32), name) for name in ("first", "last")]
    nodes = [helper.make_node("Gemm", ["h" if hidden else "x", "last"], ["answer"])]
    if hidden:
        nodes.insert(0, helper.make_node("Gemm", ["x", "first"], ["h"]))
    return chosen(helper.make_graph(nodes, "largest", [source], [answer], weights), spec)


def test_numbers_are_judged_on_rows_of_their_owner_alone(tmp_path):
    item = NumbersInput(shape=(3,))
    with pytest.raises(ArtifactError, match="no built-in samples") as caught:
        choose(numbers_network(hidden=True), spec_of("int8", input=item), find_calibration(tmp_path, item))
    assert "inputs.json" in caught.value.cure
    found = choose(numbers_network(hidden=True), spec_of("auto", input=item), ())
    assert "inputs.json" in found.choice.trials[0].reason
    (tmp_path / "calibration").mkdir()
    rows = np.random.default_rng(0).permuted(
        np.tile([0, 4, 8], (60, 1)) + np.random.default_rng(1).random((60, 3)), axis=1
    )
    (tmp_path / "calibration" / "inputs.json").write_text(json.dumps({"instances": rows.tolist()}))
    found = choose(numbers_network(hidden=True), spec_of("int8", input=item), find_calibration(tmp_path, item))
    assert (found.precision, found.parity.items, found.parity.top1_agreement) == ("int8", 23, 1)


def test_a_network_without_a_layer_for_int8_is_told(tmp_path):
    item = NumbersInput(shape=(3,))
    (tmp_path / "calibration").mkdir()
    rows = np.random.default_rng(0).normal(size=(60, 3)).tolist()
    (tmp_path / "calibration" / "inputs.json").write_text(json.dumps({"instances": rows}))
    paths = find_calibration(tmp_path, item)
    with pytest.raises(ArtifactError, match="no layer that int8 would speed up"):
        choose(numbers_network(hidden=False), spec_of("int8", input=item), paths)


def test_some_are_held_out_and_seen_in_views_where_there_are_few(photographs):
    image = ImageInput(height=16, width=16)
    items = calibration.read(photographs(20), image)
    assert (len(items.calibration), items.images, len(items.judged)) == (13, 7, 70)
    shown = [each.tobytes() for each in items.judged]
    assert len(set(shown)) == 70
    assert not set(shown) & {each.tobytes() for each in items.calibration}


@pytest.mark.parametrize("period", [2, 3, 4, 5, 10])
def test_classes_by_turns_are_all_on_both_sides(period):
    held = calibration.held_out(12 * period)
    classes = np.arange(12 * period) % period
    assert set(classes[held]) == set(classes[~held]) == set(range(period))


def test_what_is_there_twice_is_on_one_side(photographs):
    paths = photographs(30)
    for path in paths[15:]:
        path.write_bytes(paths[paths.index(path) - 15].read_bytes())
    items = calibration.read(paths, ImageInput(height=16, width=16))
    assert (len(items.calibration), items.images) == (9, 6)


def test_where_there_are_many_each_is_seen_once_as_the_server_fits_it(photographs):
    image, paths = ImageInput(height=16, width=16), photographs(132)
    items = calibration.read(paths, image)
    assert (len(items.calibration), items.images, len(items.judged)) == (82, 50, 50)
    for path, pixels in zip(np.array(paths)[calibration.held_out(132)], items.judged, strict=True):
        np.testing.assert_array_equal(pixels, decode(path.read_bytes(), image, max_pixels=10**6))


def test_an_image_that_cannot_be_read_is_named(fp32, photographs):
    paths = photographs(60)
    paths[7].write_bytes(b"no picture")
    with pytest.raises(ArtifactError, match=r"007\.png cannot be read"):
        choose(fp32, spec_of("int8"), paths)
