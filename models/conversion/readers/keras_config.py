"""Reads the description of a network in a Keras file as data: objects are checked by name, and code is refused.

Keras would import modules, registered names and functions that the file names. Here these names are replaced from the
tables below before Keras sees the description. Settings that only training needs are left out.
"""

import re
from collections.abc import Mapping
from typing import Any

from models.artifact.formats import BROKEN_FILE
from models.errors import ArtifactError

# Layers that depend on nothing but their configuration. Others contain Python (Lambda), load another program
# (TFSMLayer, TorchModuleWrapper, JaxLayer, FlaxLayer) or read a file (the lookups, TextVectorization).
_LAYERS = """
Activation ActivityRegularization Add AdditiveAttention AlphaDropout Attention Average AveragePooling1D
AveragePooling2D AveragePooling3D BatchNormalization Bidirectional CenterCrop Concatenate Conv1D Conv1DTranspose
Conv2D Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D Cropping1D Cropping2D Dense DepthwiseConv1D
DepthwiseConv2D Dot Dropout ELU EinsumDense Embedding Flatten GRU GRUCell GaussianDropout GaussianNoise
GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D
GlobalMaxPooling3D GroupNormalization Identity InputLayer LSTM LSTMCell LayerNormalization LeakyReLU Masking
MaxPooling1D MaxPooling2D MaxPooling3D Maximum Minimum MultiHeadAttention Multiply Normalization PReLU Permute RNN
ReLU RepeatVector Rescaling
Reshape Resizing RMSNormalization SeparableConv1D SeparableConv2D SimpleRNN SimpleRNNCell Softmax SpatialDropout1D
SpatialDropout2D SpectralNormalization StackedRNNCells Subtract TimeDistributed UnitNormalization UpSampling1D
UpSampling2D ZeroPadding1D ZeroPadding2D
"""
LAYERS = frozenset(_LAYERS.split())

# Layers that change pictures in training only, and pass them on unchanged in inference: they become an Identity.
_AUGMENTATIONS = """
RandomBrightness RandomColorJitter RandomContrast RandomErasing RandomFlip RandomGrayscale RandomHue RandomRotation
RandomSaturation RandomSharpness RandomShear RandomTranslation RandomZoom
"""
AUGMENTATIONS = frozenset(_AUGMENTATIONS.split())

MODELS = {
    "Sequential": "keras",
    "Functional": "keras.src.models.functional",
    "Model": "keras.src.models.functional",  # its name in Keras 2
}

# The operations that expressions between layers, such as `x / 255.0`, become.
_NUMPY = """
Absolute Add Amax Clip Concatenate Divide Exp ExpandDims GetItem Log Matmul Max Maximum Mean Min Minimum Multiply
Negative Pad Power Reshape Sqrt Square Squeeze Subtract Sum Transpose TrueDivide
"""
_NN = "Elu Gelu HardSigmoid HardSilu LeakyRelu LogSoftmax Relu Relu6 Selu Sigmoid Silu Softmax Softplus"
OPERATIONS = {
    "keras.src.ops.numpy": frozenset(_NUMPY.split()),
    "keras.src.ops.nn": frozenset(_NN.split()),
}

_ACTIVATIONS = """
celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu linear log_sigmoid
log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus softsign sparsemax squareplus swish tanh
tanh_shrink
"""
ACTIVATIONS = frozenset(_ACTIVATIONS.split())

_KERAS = re.compile(r"(tensorflow\.(python\.)?|tf_)?keras(\.[a-z0-9_.]*)?")
_SHAPE = "batch_input_shape"  # its name in Keras 2
_VALUES = frozenset({"__keras_tensor__", "__ellipsis__", "__slice__", "__numpy__", "__tensor__"})
_BUILT = ("input_shape", "shapes_dict")
_NUMBER = re.compile(r"(float|bfloat|int|uint)\d+|bool")
_ONLY_TRAINING = re.compile(r"\w+_(initializer|regularizer|constraint)|quantization_config")
# Settings of Keras 2 that Keras 3 lacks: the value that has no effect, and how the names of their layers begin.
_GONE: Mapping[str, tuple[Any, tuple[str, ...]]] = {
    "groups": (1, ("Depthwise", "Separable")),
    "time_major": (False, ("LSTM", "GRU", "SimpleRNN", "RNN", "Bidirectional")),
}
_WITHOUT_CODE = (
    "use layers of Keras itself, such as Rescaling or Activation; or name an architecture of the catalog, so that only "
    "the weights are read; or convert the model to ONNX and serve that"
)


def plain(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The configuration, safe for Keras to rebuild the network from. `name` is the file's. Raises ArtifactError."""
    try:
        return _Reader(name).network(config)
    except ArtifactError:
        raise
    except RecursionError as error:
        raise ArtifactError(f"{name} describes a network that is nested too deeply", _WITHOUT_CODE) from error
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        message = f"{name} cannot be read: its description of the network is damaged"
        raise ArtifactError(message, BROKEN_FILE) from error


class _Reader:
    """Reads the configuration in one file."""

    def __init__(self, name: str) -> None:
        self._name = name

    def network(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration of a whole network."""
        if given.get("class_name") not in MODELS:
            self._refuse(f"a network of the class {given.get('class_name')!r}")
        known: dict[str, Any] = self.object(given)
        return known

    def value(self, value: Any) -> Any:
        """One value of a configuration: an object of Keras if it has a class, else plain data."""
        if isinstance(value, dict):
            if "class_name" in value:
                return self.object(value)
            return {str(key): self.value(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self.value(each) for each in value]
        return value

    def object(self, given: Mapping[str, Any]) -> Any:
        """One object, with the module taken from the tables. A function becomes its name."""
        kind, config = given["class_name"], given.get("config")
        if kind == "function":
            return self._activation(config)
        if kind in _VALUES:
            if isinstance(config, dict) and not _NUMBER.fullmatch(str(config.get("dtype", "float32"))):
                self._refuse(f"values of the type {config['dtype']!r}")
            return {"class_name": kind, "config": self.value(config)}
        module = self._module(kind, given)
        if kind in MODELS:
            settings = self._of_network(kind, config)
        elif kind in AUGMENTATIONS:
            kind, settings = "Identity", {"name": dict(config or {})["name"]}
        else:
            settings = self._settings(kind, config or {})
        known = {
            "module": module,
            "class_name": "Functional" if kind == "Model" else kind,
            "config": settings,
            "registered_name": None,
        }
        if isinstance(built := given.get("build_config"), dict):
            known["build_config"] = {key: built[key] for key in _BUILT if key in built and _is_plain(built[key])}
        for key in ("name", "inbound_nodes"):
            if key in given:
                known[key] = self.value(given[key])
        return known

    def _of_network(self, kind: str, config: Any) -> dict[str, Any]:
        """The settings of a network, as Keras 3 writes them."""
        said = {"layers": config} if isinstance(config, list) else dict(config)
        if kind == "Sequential":
            return self._settings(kind, {**said, "layers": _with_input(said["layers"])})
        settings = self._settings(kind, said)
        _modernize(settings)
        return settings

    def _module(self, kind: Any, given: Mapping[str, Any]) -> str:
        """The module in which Keras has a class of that name."""
        said = given.get("module") or "keras"
        if not isinstance(kind, str) or not isinstance(said, str) or not _KERAS.fullmatch(said):
            self._refuse(f"{kind!r} of the module {said!r}")
        if given.get("registered_name") not in {None, "", kind}:
            self._refuse(f"{given['registered_name']!r}, a class of its own")
        if said in OPERATIONS and kind in OPERATIONS[said]:
            return str(said)
        if kind in MODELS:
            return MODELS[kind]
        if said.startswith("keras.src.ops") or kind not in LAYERS | AUGMENTATIONS:
            self._refuse(f"a {kind}")
        return "keras.layers"

    def _refuse(self, what: str) -> None:
        raise ArtifactError(
            f"{self._name} holds {what}: it is not among the layers that are known to contain no code", _WITHOUT_CODE
        )

    def _settings(self, kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
        known = {}
        for key, value in config.items():
            if _ONLY_TRAINING.fullmatch(key):
                continue
            if key in _GONE and value == _GONE[key][0] and kind.startswith(_GONE[key][1]):
                continue
            if key == "dtype":
                known[key] = self._dtype(value)
            elif "activation" in key and key != "activation_size":
                known[key] = self._activation(value) if not _is_layer(value) else self.object(value)
            elif kind == "BatchNormalization" and key == "axis" and isinstance(value, list):
                (known[key],) = value  # the form of Keras 2
            elif key == _SHAPE:
                if kind == "InputLayer":
                    known["batch_shape"] = self.value(value)
            else:
                known[key] = self.value(value)
        return known

    def _activation(self, value: Any) -> Any:
        """The name of a function in keras.activations."""
        said = value
        if isinstance(value, dict):
            said = value.get("config") if value.get("class_name") == "function" else value.get("class_name")
        if said is None:
            return None
        if said not in ACTIVATIONS:
            self._refuse(f"the function {said!r}")
        return said

    def _dtype(self, value: Any) -> Any:
        """The type of numbers. Half precision becomes float32; quantized types are refused."""
        if isinstance(value, dict):
            if value.get("class_name") not in {"DTypePolicy", "Policy"}:
                self._refuse(f"numbers of the type {value.get('class_name')!r}")
            value = value["config"]["name"]
        if value is None or not isinstance(value, str):
            return None
        if value.startswith("mixed_") or value in {"float16", "bfloat16", "float64"}:
            return "float32"
        if not _NUMBER.fullmatch(value):
            self._refuse(f"numbers of the type {value!r}")
        return value


def _with_input(layers: list[Any]) -> list[Any]:
    """The layers of a Sequential, with an input layer in front. In Keras 2 the first layer has the shape instead."""
    first = layers[0]
    if first["class_name"] == "InputLayer" or _SHAPE not in first["config"]:
        return layers
    return [{"class_name": "InputLayer", "config": {_SHAPE: first["config"][_SHAPE]}}, *layers]


def _modernize(network: dict[str, Any]) -> None:
    """Rewrites the calls between the layers of a Functional from the form of Keras 2 to that of Keras 3.

    Keras 2 puts a list around a single input and a single output, and counts the creation of a nested network as its
    first call.
    """
    kinds = {layer.get("name"): layer["class_name"] for layer in network["layers"]}
    calls = [call for layer in network["layers"] for node in layer.get("inbound_nodes", ()) for call in node]
    if not all(isinstance(call, list) for call in calls):
        return
    for end in ("input_layers", "output_layers"):
        if len(network[end]) == 1:
            (network[end],) = network[end]
    last = network["output_layers"]
    last = [last] if isinstance(last[0], str) else last
    # Keras itself corrects a Functional that comes last.
    for call in [*calls, *(call for call in last if kinds[call[0]] == "Sequential")]:
        if kinds[call[0]] in MODELS and call[1] > 0:
            call[1] -= 1


def _is_layer(value: Any) -> bool:
    return isinstance(value, dict) and value.get("class_name") in LAYERS


def _is_plain(value: Any) -> bool:
    """Whether a value consists of numbers, strings, lists and dictionaries only."""
    if isinstance(value, dict):
        return "class_name" not in value and all(map(_is_plain, value.values()))
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int)
