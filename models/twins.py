"""Copies weights between the PyTorch and the Keras network of one architecture.

Layers with weights are paired by their order if the Keras network is a Sequential, else by their names, which are the
same in both networks. Kernels are transposed from one framework's layout to the other's.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# For each gate of a Keras recurrent layer, its position in PyTorch: the same for LSTM, the first two swapped for GRU.
_GATES = {"RNN": (0,), "LSTM": (0, 1, 2, 3), "GRU": (1, 0, 2)}


class Pair(NamedTuple):
    """The same layer in both networks."""

    name: str
    module: Any
    layer: Any
    depth: int
    """The layer inside a recurrent module of PyTorch, which may have several; each is a layer of its own in Keras."""
    channels: int
    """Channels of the image that a dense layer reads flattened, channels first in PyTorch and last in Keras. Else 1."""


def to_keras(source: Any, target: Any) -> None:
    """Copies a PyTorch network's weights into a Keras network. If the networks differ, raises ValueError first."""
    copied = [(pair, _keras_arrays(pair)) for pair in _pairs(source, target)]
    for pair, arrays in copied:
        _check(pair.name, [array.shape for array in arrays], [tuple(value.shape) for value in pair.layer.weights])
    for pair, arrays in copied:
        pair.layer.set_weights(arrays)


def to_torch(source: Any, target: Any) -> None:
    """Copies a Keras network's weights into a PyTorch network. If the networks differ, raises ValueError first."""
    import torch  # noqa: PLC0415

    copied = [(pair, _torch_arrays(pair)) for pair in _pairs(target, source)]
    for pair, arrays in copied:
        state = pair.module.state_dict()
        _check(pair.name, [array.shape for array in arrays.values()], [tuple(state[name].shape) for name in arrays])
    for pair, arrays in copied:
        for name, value in pair.module.state_dict().items():
            if name in arrays:
                value.copy_(torch.from_numpy(np.ascontiguousarray(arrays[name])))


def _check(name: str, found: Sequence[tuple[int, ...]], expected: Sequence[tuple[int, ...]]) -> None:
    if list(found) != list(expected):
        raise ValueError(f"{name or 'a layer'} holds {list(found)} in one network and {list(expected)} in the other")


def _pairs(network: Any, keras_network: Any) -> Iterator[Pair]:
    """The layers with weights, paired. Raises ValueError if one network has a layer that the other lacks."""
    from keras import Sequential, layers  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415

    modules = [(name, module) for name, module in network.named_modules() if list(module.parameters(recurse=False))]
    holding = [layer for layer in keras_network.layers if layer.weights]
    steps: list[tuple[str, Any, int, Any]]
    if isinstance(keras_network, Sequential):
        remaining = iter(holding)
        steps = [
            (name, module, depth, next(remaining, None))
            for name, module in modules
            for depth in range(module.num_layers if isinstance(module, nn.RNNBase) else 1)
        ]
        left_over = list(remaining)
    else:
        by_name = {layer.name: layer for layer in holding}
        steps = [(name, module, 0, by_name.pop(name, None)) for name, module in modules]
        left_over = list(by_name.values())
    if missing := [name for name, _, _, layer in steps if layer is None]:
        raise ValueError(f"the Keras network has no layer for {missing[0]}")
    if left_over:
        raise ValueError(f"the PyTorch network has no layer for {left_over[0].name}")

    flattened: dict[str, int] = {}
    channels, flat = 1, False
    for layer in keras_network.layers:
        if isinstance(layer, layers.Conv2D):
            channels = layer.filters
        elif isinstance(layer, layers.Flatten):
            flat = True
        elif isinstance(layer, layers.Dense):
            flattened[layer.name] = channels if flat else 1
            channels, flat = 1, False
    for name, module, depth, layer in steps:
        yield Pair(name, module, layer, depth, flattened.get(layer.name, 1))


def _keras_arrays(pair: Pair) -> list[Array]:
    """The PyTorch module's weights as arrays of the Keras layer, in its order."""
    from torch import nn  # noqa: PLC0415

    module = pair.module
    held = {name: value.detach().cpu().numpy() for name, value in module.state_dict().items()}
    if isinstance(module, nn.RNNBase):
        return _recurrent_keras_arrays(pair, held)
    if isinstance(module, nn.BatchNorm2d):
        return [held[name] for name in ("weight", "bias", "running_mean", "running_var")]
    kernel = held["weight"]
    if isinstance(module, nn.Conv2d):
        # [out, in, height, width] -> [height, width, in, out]; depthwise, where in is 1, [height, width, out, 1].
        kernel = kernel.transpose(2, 3, 0, 1) if module.groups > 1 else kernel.transpose(2, 3, 1, 0)
    elif isinstance(module, nn.Linear):
        width = len(kernel)
        kernel = kernel.reshape(width, pair.channels, -1).transpose(2, 1, 0).reshape(-1, width)
    else:
        raise TypeError(f"the weights of a {type(module).__name__} cannot be transplanted")
    return [kernel, held["bias"]] if "bias" in held else [kernel]


def _torch_arrays(pair: Pair) -> dict[str, Array]:
    """The Keras layer's weights as arrays of the PyTorch module, by name."""
    from torch import nn  # noqa: PLC0415

    module = pair.module
    held = pair.layer.get_weights()
    if isinstance(module, nn.RNNBase):
        return _recurrent_torch_arrays(pair, held)
    if isinstance(module, nn.BatchNorm2d):
        return dict(zip(("weight", "bias", "running_mean", "running_var"), held, strict=True))
    kernel = held[0]
    if isinstance(module, nn.Conv2d):
        kernel = kernel.transpose(2, 3, 0, 1) if module.groups > 1 else kernel.transpose(3, 2, 0, 1)
    elif isinstance(module, nn.Linear):
        width = kernel.shape[-1]
        kernel = kernel.reshape(-1, pair.channels, width).transpose(2, 1, 0).reshape(width, -1)
    else:
        raise TypeError(f"the weights of a {type(module).__name__} cannot be transplanted")
    return dict(zip(("weight", "bias"), [kernel, *held[1:]], strict=False))


def _directions(pair: Pair) -> list[str]:
    """The endings of the parameter names of one recurrent layer in PyTorch, one for each direction."""
    return [f"_l{pair.depth}{end}" for end in ("", "_reverse")[: 1 + pair.module.bidirectional]]


def _reordered(array: Array, mode: str, axis: int) -> Array:
    """The gates of one framework in the order of the other. The same call converts back."""
    gates = np.split(array, len(_GATES[mode]), axis)
    return np.concatenate([gates[index] for index in _GATES[mode]], axis)


def _mode(pair: Pair) -> str:
    return str(pair.module.mode).partition("_")[0]  # RNN_TANH


def _recurrent_keras_arrays(pair: Pair, held: dict[str, Array]) -> list[Array]:
    arrays = []
    ends, mode = _directions(pair), _mode(pair)
    count = len(pair.layer.weights) // len(ends)  # two kernels, and one bias, one of two rows, or two
    for end in ends:
        kernels = [_reordered(held[f"weight_{kind}{end}"].T, mode, 1) for kind in ("ih", "hh")]
        biases = [_reordered(held[f"bias_{kind}{end}"], mode, 0) for kind in ("ih", "hh")]
        if mode == "GRU":
            biases = [np.stack(biases)]
        elif count == 3:  # noqa: PLR2004
            biases = [biases[0] + biases[1]]
        arrays += [*kernels, *biases]
    return arrays


def _recurrent_torch_arrays(pair: Pair, held: list[Array]) -> dict[str, Array]:
    arrays = {}
    ends, mode = _directions(pair), _mode(pair)
    count = len(held) // len(ends)
    for index, end in enumerate(ends):
        kernel, recurrent, *biases = held[index * count : (index + 1) * count]
        if mode == "GRU":
            biases = list(biases[0])
        elif len(biases) == 1:
            biases.append(np.zeros_like(biases[0]))
        for kind, weight, bias in zip(("ih", "hh"), (kernel, recurrent), biases, strict=True):
            arrays[f"weight_{kind}{end}"] = _reordered(weight, mode, 1).T
            arrays[f"bias_{kind}{end}"] = _reordered(bias, mode, 0)
    return arrays
