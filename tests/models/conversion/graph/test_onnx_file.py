"""ONNX files as they are: whatever reaches outside of the one file, or needs code, is refused; the rest is served."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.artifact.artifact import Artifact, ModelConfig
from models.artifact.resolution import resolve
from models.conversion.graph import export, onnx_file, parity
from models.conversion.readers import whole
from models.errors import ArtifactError
from tests.models.onnx_models import model

SCALED = {"input": {"normalization": "unit"}}


def opened(tmp_path, content, **config):
    directory = tmp_path / "1"
    directory.mkdir(exist_ok=True)
    content = content if isinstance(content, bytes) else content.SerializeToString()
    (directory / "weights.onnx").write_bytes(content)
    spec = resolve(ModelConfig(**config), None, directory, tmp_path / "labels.txt").spec
    artifact = Artifact(spec=spec, weights=directory / "weights.onnx", fingerprint="")
    return whole.open_whole(artifact, allow_code=False)


def served(network, spec):
    """The joined graph's session, once it agrees with the file's own."""
    content = export.join(export.export(network, spec), spec).SerializeToString()
    assert parity.compare(network, content, spec).relative_error < 1e-6
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def probabilities(network, spec, pixels):
    return served(network, spec).run(["probabilities"], {"pixels": pixels})[0]


PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)


def test_an_onnx_model_is_served_as_it_is(tmp_path):
    network, spec = opened(tmp_path, model(), labels=("r", "g", "b"), **SCALED)
    assert (spec.architecture, spec.framework, spec.output) == ("whole:onnx", "onnx", "logits")
    assert (spec.layout, spec.input.shape, spec.labels) == ("NCHW", (8, 8, 3), ("r", "g", "b"))
    logits = PIXELS.mean((1, 2)) / 255
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities(network, spec, PIXELS), expected, atol=1e-6)


def test_a_network_that_answers_0_to_everything_is_served(tmp_path):
    zero = numpy_helper.from_array(np.zeros((), np.float32), "zero")
    mean = helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=0)
    nodes = [mean, helper.make_node("Mul", ["m", "zero"], ["y"])]
    network, spec = opened(tmp_path, model(nodes, [zero]), **SCALED)
    np.testing.assert_allclose(probabilities(network, spec, PIXELS), 1 / 3, atol=1e-6)


LAST = {
    "Softmax": [helper.make_node("Softmax", ["m"], ["y"], axis=-1)],
    "Sigmoid": [helper.make_node("Sigmoid", ["m"], ["y"])],
    "Exp": [
        helper.make_node("Exp", ["m"], ["e"]),
        helper.make_node("ReduceSum", ["e", "last"], ["s"]),
        helper.make_node("Div", ["e", "s"], ["y"]),
    ],
}


def ending(name):
    mean = helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=0)
    return model([mean, *LAST[name]], [numpy_helper.from_array(np.array([1]), "last")])


@pytest.mark.parametrize("name", ["Softmax", "Exp"])
def test_probabilities_are_told_from_logits(tmp_path, name):
    _, spec = opened(tmp_path, ending(name), **SCALED)
    assert spec.output == "probabilities"


def test_a_sigmoid_for_each_class_is_no_answer(tmp_path):
    with pytest.raises(ArtifactError, match="sigmoid for each class"):
        opened(tmp_path, ending("Sigmoid"), **SCALED)
    assert opened(tmp_path, ending("Sigmoid"), output="logits", **SCALED)[1].output == "logits"


def test_bytes_channels_last_need_no_normalization(tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f"], ["y"], axes=[1, 2], keepdims=0),
    ]
    given = model(nodes, shape=("batch", 8, 8, 3), kind=TensorProto.UINT8)
    network, spec = opened(tmp_path, given)
    assert (spec.layout, spec.dtype, spec.input.scale) == ("NHWC", "uint8", 1.0)
    assert probabilities(network, spec, PIXELS).shape == (5, 3)
    with pytest.raises(ArtifactError, match="whole numbers from 0 to 255"):
        opened(tmp_path, given, **SCALED)


def test_a_fixed_batch_is_set_free_and_half_precision_widened(tmp_path):
    weights = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("ReduceMean", ["h"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["m", "w"], ["z"]),
        helper.make_node("Cast", ["z"], ["y"], to=TensorProto.FLOAT),
    ]
    network, spec = opened(
        tmp_path, model(nodes, [numpy_helper.from_array(weights, "w")], shape=(1, 3, 8, 8), width=4), **SCALED
    )
    assert (spec.num_classes, network.sizes) == (4, (1, 3, 8, 8))
    assert probabilities(network, spec, PIXELS).shape == (5, 4)


def test_an_answer_of_one_pixel_is_flattened_and_an_old_files_constants_are_no_inputs(tmp_path):
    weights = numpy_helper.from_array(np.ones((2, 3, 8, 8), np.float32), "w")
    old = model([helper.make_node("Conv", ["x", "w"], ["y"])], [weights], width=2)
    old.graph.output[0].type.tensor_type.shape.dim.extend([onnx.TensorShapeProto.Dimension(dim_value=1)] * 2)
    old.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 3, 8, 8]))
    old.ir_version = 3
    network, spec = opened(tmp_path, old, **SCALED)
    assert spec.num_classes == 2
    assert probabilities(network, spec, PIXELS).shape == (5, 2)


def test_a_free_size_is_model_tomls(tmp_path):
    free = model(shape=("batch", 3, "height", "width"))
    with pytest.raises(ArtifactError, match="pictures of any size") as caught:
        opened(tmp_path, free, **SCALED)
    assert "height = 224" in caught.value.cure
    _, spec = opened(tmp_path, free, input={"height": 16, "width": 12, "normalization": "tf"})
    assert spec.input.shape == (16, 12, 3)


def test_what_the_file_cannot_tell_model_toml_must(tmp_path):
    with pytest.raises(ArtifactError, match="does not say how pictures were scaled") as caught:
        opened(tmp_path, model())
    assert 'normalization in model.toml, "unit"' in caught.value.cure
    with pytest.raises(ArtifactError, match="say 2"):
        opened(tmp_path, model(), labels=("a", "b"), **SCALED)
    with pytest.raises(ArtifactError, match="takes int64"):
        opened(tmp_path, model([helper.make_node("Cast", ["x"], ["y"], to=1)], kind=TensorProto.INT64), **SCALED)


def external(tensor):
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")
    return tensor


def hidden(node):
    """A model that has this node in a branch of a branch."""
    inner = helper.make_graph([node], "inner", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)])
    outer = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    outer = helper.make_graph([outer], "outer", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)])
    condition = numpy_helper.from_array(np.ones((), bool), "c")
    return model([helper.make_node("If", ["c"], ["y"], then_branch=outer, else_branch=outer)], [condition])


def in_function(node):
    body = helper.make_function("own", "F", ["a"], ["b"], [node], [helper.make_opsetid("", 17)])
    call = helper.make_node("F", ["x"], ["y"], domain="own")
    return model([call], domains=("own",), functions=[body])


def constant():
    return helper.make_node("Constant", [], ["b"], value=external(numpy_helper.from_array(np.zeros(3), "t")))


EVIL = helper.make_node("Run", ["x"], ["y"], domain="evil.code")
CLAIM = [
    helper.make_node("ConstantOfShape", ["s"], ["c"]),
    helper.make_node("ReduceSum", ["c"], ["d"], keepdims=0),
    helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=0),
    helper.make_node("Add", ["m", "d"], ["y"]),
]

HOSTILE = {
    "weights": (model(constants=[external(numpy_helper.from_array(np.zeros(3), "w"))]), "keeps w in another file"),
    "constant": (model([constant()]), "in another file"),
    "branch": (hidden(constant()), "in another file"),
    "function": (in_function(constant()), "in another file"),
    "domain": (model([EVIL]), "needs evil.code.Run, which would be code"),
    "domain in branch": (hidden(EVIL), "needs evil.code.Run"),
    "domain in function": (in_function(EVIL), "needs evil.code.Run"),
    "opset": (model(domains=("evil.code",)), "needs operators of 'evil.code'"),
    "old": (model(opset=6), "has opset 6"),
    "claim": (model(CLAIM, [numpy_helper.from_array(np.array([2**20, 2**20]), "s")]), "1048576 x 1048576 numbers"),
    "invalid": (model([helper.make_node("Nonsense", ["x"], ["y"])]), "not a valid ONNX model"),
    "inputs": (
        model(
            [
                helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0),
                helper.make_node("Identity", ["x"], ["z"]),
            ]
        ),
        "1 inputs and 2 outputs: x, y, z",
    ),
}
HOSTILE["inputs"][0].graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 3, 8, 8]))


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_model_of_one_file_and_standard_operators_is_refused(tmp_path, name):
    given, problem = HOSTILE[name]
    with pytest.raises(ArtifactError) as caught:
        opened(tmp_path, given, **SCALED)
    assert problem in str(caught.value)
    assert caught.value.cure


def test_a_function_of_the_models_own_is_no_code(tmp_path):
    mean = helper.make_node("ReduceMean", ["a"], ["b"], axes=[2, 3], keepdims=0)
    assert opened(tmp_path, in_function(mean), **SCALED)[1].num_classes == 3


def test_a_training_is_no_model(tmp_path):
    given = model()
    given.training_info.add()
    with pytest.raises(ArtifactError, match="contains a training graph"):
        onnx_file.check(given, "weights.onnx")


def test_a_batch_that_is_frozen_inside_is_told(tmp_path):
    mean = helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=0)
    shape = numpy_helper.from_array(np.array([1, 3]), "shape")
    given = model([mean, helper.make_node("Reshape", ["m", "shape"], ["y"])], [shape], shape=(1, 3, 8, 8))
    network, spec = opened(tmp_path, given, **SCALED)
    with pytest.raises(ArtifactError, match="does not run on batches of 1 and 3") as caught:
        served(network, spec)
    assert "free batch" in caught.value.cure
