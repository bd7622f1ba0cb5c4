"""Rows of the zoo as their users would have them: the same trained-looking weights, saved by each framework.

    python -m tests.models.make_row

reads lines of an architecture's name, a directory and a picture's size. It builds the architecture as it is by default,
counts its parameters, builds it once more with another size, channels and classes, and then for that size in each of
its frameworks: it carries the weights from one to the other and back where there are two, saves them as
`<directory>/<number>/weights.*`, and answers with a line of JSON: the counts, the other network's outputs, how far the
two frameworks are apart, and the probabilities that each gives for an item. A process of its own, because frameworks
warn; one for all rows, because they are slow to import.
"""

import gc
import json
import os
import sys
import traceback
from pathlib import Path

os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}

import numpy as np

from models import catalog, twins
from models.artifact.artifact import SAMPLES, Spec
from models.conversion.graph.export import forward, network_input
from models.conversion.graph.sample_items import sample_items
from models.inputs import ImageInput
from models.outputs import probabilities_of
from service.images.preprocess import decode

FILES = {"torch": "weights.pth", "keras": "weights.weights.h5"}


def photo(spec):
    """The image that is posted to a model of images."""
    return SAMPLES / ("chelsea.png" if spec.channels == 3 else "digit-7.png")


def item(spec):
    """One item as the served graph takes it, in a batch."""
    if isinstance(spec, ImageInput):
        return decode(photo(spec).read_bytes(), spec, max_pixels=10**8)[None]
    return np.random.default_rng(1).normal(size=(1, *spec.shape)).astype(np.float32).round(3)


def enliven(network, framework, batch):
    """Weights under which every layer matters, as in a trained network: with the default ones a deep network answers
    with little more than its last bias, and would go on doing so with two kernels exchanged.
    """
    (enliven_torch if framework == "torch" else enliven_keras)(network, batch)


def enliven_torch(network, batch):
    import torch
    from torch import nn

    torch.manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.normal_(module.bias, std=0.1)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.3, 0.9)
                nn.init.normal_(module.bias, std=0.1)
                module.momentum = None  # the statistics become those of the batch
            elif isinstance(module, nn.RNNBase):
                for parameter in module.parameters():
                    if parameter.requires_grad:
                        nn.init.normal_(parameter, std=0.8 * module.hidden_size**-0.5)
        for module in network.modules():
            if hasattr(module, "downsample"):  # a residual block: what it adds is small, else rounding errors grow
                last = [child for child in module.children() if isinstance(child, nn.BatchNorm2d)][-1]
                last.weight.mul_(0.2)
        network.train()
        network(torch.from_numpy(batch))
    network.eval()


def enliven_keras(network, batch):
    import keras

    keras.utils.set_random_seed(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            layer.kernel.assign(keras.initializers.HeNormal()(layer.kernel.shape))
        elif isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    network(batch, training=True)


def count(framework, network):
    """Trainable parameters, and running means and variances."""
    if framework == "torch":
        trainable = sum(value.numel() for value in network.parameters() if value.requires_grad)
        return trainable, sum(value.numel() for name, value in network.named_buffers() if "running" in name)
    sizes = [
        sum(int(np.prod(value.shape)) for value in values)
        for values in (network.trainable_weights, network.non_trainable_weights)
    ]
    return tuple(sizes)


def build_otherwise(architecture, framework):
    """Half the size, other channels and five classes: how many numbers the network gives for two items."""
    spec = architecture.input
    shape = (spec.height // 2, spec.width // 2, 4 - spec.channels) if isinstance(spec, ImageInput) else spec.shape
    network = architecture.build(framework, shape, 5)
    batch = np.zeros((2, *shape), np.float32)
    if framework == "torch":
        network.eval()
        batch = np.moveaxis(batch, -1, 1) if isinstance(spec, ImageInput) else batch
    return list(forward(network, framework, np.ascontiguousarray(batch)).shape)


def make(name, directory, size):
    import keras
    import torch

    torch.manual_seed(0)
    keras.utils.set_random_seed(0)  # what `enliven` leaves as it was built
    architecture = catalog.find(name)
    # The first row of each builder; a library's own network may have one size, or three channels.
    first = next((each for each in catalog.CATALOG.values() if each.builders == architecture.builders), None)
    counts, otherwise = {}, []
    for framework in architecture.builders:
        counts[framework] = count(framework, architecture.build(framework))
        if architecture is first:
            otherwise.append(build_otherwise(architecture, framework))
        keras.backend.clear_session()
        gc.collect()
    spec = architecture.input
    if isinstance(spec, ImageInput):
        spec = spec.model_copy(update={"height": int(size), "width": int(size)})
    specs = {
        framework: Spec(
            architecture=name,
            framework=framework,
            num_classes=architecture.num_classes,
            input=spec,
            output=architecture.output,
            labels=tuple(map(str, range(architecture.num_classes))),
        )
        for framework in architecture.builders
    }
    networks = {framework: architecture.build(framework, spec.shape) for framework in architecture.builders}
    batch = {framework: network_input(spec, sample_items(spec.input)) for framework, spec in specs.items()}

    first = next(iter(networks))
    enliven(networks[first], first, batch[first])
    apart, returned = 0.0, True
    if len(networks) > 1:
        twins.to_keras(networks["torch"], networks["keras"])
        answers = {framework: forward(network, framework, batch[framework]) for framework, network in networks.items()}
        apart = float(np.abs(answers["keras"] - answers["torch"]).max() / np.abs(answers["torch"]).max())
        back = architecture.build("torch", spec.shape)
        twins.to_torch(networks["keras"], back)
        kept = {key: value for key, value in networks["torch"].state_dict().items() if "num_batches" not in key}
        returned = all(torch.equal(value, back.state_dict()[key]) for key, value in kept.items())

    expected = {}
    for number, framework in enumerate(networks, 1):
        version = Path(directory) / str(number)
        version.mkdir(parents=True)
        if framework == "torch":
            torch.save(networks["torch"].state_dict(), version / FILES["torch"])
        else:
            networks["keras"].save_weights(version / FILES["keras"])
        given = forward(networks[framework], framework, network_input(specs[framework], item(spec)))
        expected[framework] = probabilities_of(given, architecture.output)[0].tolist()
    return {
        "counts": counts,
        "otherwise": otherwise,
        "apart": apart,
        "returned": returned,
        "probabilities": expected,
    }


def main():
    import torchvision  # noqa: F401 - after TensorFlow it crashes the process

    import keras  # isort: skip

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the frameworks print is no answer
    for request in sys.stdin:
        try:
            answer = make(*request.split())
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        keras.backend.clear_session()
        gc.collect()


if __name__ == "__main__":
    main()
