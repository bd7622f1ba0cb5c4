"""The engine: the plans for hosts with a GPU, and calls on the CPU of this machine."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from service.errors import DeviceLost, EngineError
from service.inference.engine import CPU, CUDA, TENSORRT, Engine, plan
from service.settings import Settings

EVERY_PROVIDER = (TENSORRT, CUDA, CPU)
H200 = ("NVIDIA H200",)


def planned(*, gpus=(), cores=4, available=EVERY_PROVIDER, **settings):
    return plan(
        Settings(**settings),
        gpus=gpus,
        cores=cores,
        available=available,
        item_shape=(224, 224, 3),
        fingerprint="f" * 64,
    )


def softmax_model():
    """`pixels`, uint8 [N, 2, 2, 1] -> softmax over the four, with the input and output names of a served graph."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("Softmax", ["flat"], ["probabilities"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "softmax",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 2, 2, 1])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture
def engine():
    engine = Engine(softmax_model(), planned(max_batch_size=8))
    engine.open(4)
    yield engine
    engine.close()


def test_a_gpu_host_runs_on_cuda_with_options_for_dynamic_batches():
    on_gpu = planned(gpus=H200)
    assert [name for name, _ in on_gpu.providers] == [CUDA, CPU]
    assert dict(on_gpu.providers)[CUDA] == {
        "device_id": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",
        "prefer_nhwc": "0",
    }
    assert on_gpu.intra_op_threads == 1
    assert on_gpu.pads
    assert on_gpu.buckets == (1, 2, 4, 8, 16, 32)


def test_fp16_on_a_gpu_prefers_nhwc():
    on_gpu = plan(Settings(), gpus=H200, cores=4, precision="fp16", available=EVERY_PROVIDER)
    assert dict(on_gpu.providers)[CUDA]["prefer_nhwc"] == "1"


def test_tensorrt_is_opt_in_with_profiles_and_a_cache_of_its_own():
    names = [name for name, _ in planned(gpus=H200, provider="tensorrt").providers]
    assert names == [TENSORRT, CUDA, CPU]
    options = dict(planned(gpus=H200, provider="tensorrt").providers)[TENSORRT]
    assert options["trt_profile_min_shapes"] == "pixels:1x224x224x3"
    assert options["trt_profile_opt_shapes"] == options["trt_profile_max_shapes"] == "pixels:32x224x224x3"
    assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "1"
    assert "ffff" in options["trt_engine_cache_path"]
    assert "NVIDIA_H200" in options["trt_engine_cache_path"]


def test_a_host_without_a_gpu_runs_on_every_core_of_the_cpu():
    here = planned(cores=2)
    assert here.providers == ((CPU, {}),)
    assert here.intra_op_threads == 2
    assert not here.pads


def test_the_second_gpu_can_be_chosen():
    on_gpu = planned(gpus=H200 * 2, device_id=1)
    assert dict(on_gpu.providers)[CUDA]["device_id"] == "1"


@pytest.mark.parametrize(
    "host",
    [
        {"gpus": ()},
        {"gpus": H200, "device_id": 3},
        {"gpus": H200, "provider": "cpu"},
        {"gpus": H200, "available": (CPU,)},
        {"gpus": H200, "provider": "tensorrt", "available": (CUDA, CPU)},
    ],
)
def test_require_gpu_refuses_to_fall_back_to_the_cpu(host):
    with pytest.raises(EngineError, match="require_gpu") as caught:
        planned(require_gpu=True, **host)
    assert "MENAGERIE_REQUIRE_GPU" in caught.value.cure


def test_require_gpu_refuses_a_provider_that_did_not_start():
    """Here CUDA's provider is built in and finds no driver: ONNX Runtime falls back to the CPU without an error."""
    engine = Engine(softmax_model(), planned(gpus=H200, require_gpu=True))
    with pytest.raises(EngineError, match="fell back to the CPU"):
        engine.open(4)


@pytest.mark.parametrize(("largest", "buckets"), [(1, (1,)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))])
def test_buckets_end_with_the_largest_batch(largest, buckets):
    assert planned(max_batch_size=largest).buckets == buckets


@pytest.mark.parametrize(("gpus", "largest"), [((), 16), (H200, 32)])
def test_without_a_setting_batches_are_smaller_on_a_cpu(gpus, largest):
    assert planned(gpus=gpus).buckets[-1] == largest
    assert planned(gpus=gpus, max_batch_size=64).buckets[-1] == 64


def test_the_engine_answers_any_batch_up_to_the_largest(engine):
    assert engine.provider == CPU
    for size in range(1, 9):
        pixels = np.random.default_rng(size).integers(0, 8, (size, 2, 2, 1), np.uint8)
        powers = np.exp(pixels.reshape(size, 4).astype(np.float64))
        np.testing.assert_allclose(engine.run(pixels), powers / powers.sum(1, keepdims=True), rtol=1e-5)


def test_padding_to_a_bucket_changes_no_answer():
    padding = Engine(
        softmax_model(), planned(gpus=H200, max_batch_size=8)
    )  # falls back to the CPU here, and still pads
    padding.open(4)
    pixels = np.arange(20, dtype=np.uint8).reshape(5, 2, 2, 1)
    alone = np.concatenate([padding.run(pixels[index : index + 1]) for index in range(5)])
    together = padding.run(pixels)
    padding.close()
    assert together.shape == (5, 4)
    np.testing.assert_allclose(together, alone, rtol=1e-6)


def test_a_file_that_is_no_model_is_an_error():
    with pytest.raises(EngineError, match="cannot open"):
        Engine(b"not a model", planned()).open(4)


def test_a_model_that_does_not_run_is_an_error_before_it_is_ready():
    """Frozen at batch 2: it opens, and fails its warm-up."""
    model = onnx.load_from_string(softmax_model())
    reshape = helper.make_tensor("shape", TensorProto.INT64, [2], [2, 4])
    model.graph.initializer.append(reshape)
    model.graph.node[1].CopyFrom(helper.make_node("Reshape", ["floats", "shape"], ["flat"]))
    with pytest.raises(EngineError, match="does not run at batch 1"):
        Engine(model.SerializeToString(), planned()).open(4)


def test_a_lost_device_is_distinguished_from_an_ordinary_failure(engine, monkeypatch):
    class Lost:
        def get_inputs(self):
            return [type("Input", (), {"name": "pixels"})]

        def run(self, *_):
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

    monkeypatch.setattr(engine, "_session", Lost())
    with pytest.raises(DeviceLost):
        engine.run(np.zeros((1, 2, 2, 1), np.uint8))
