"""Saves one classifier twice: for PyTorch with torchvision's normalisation, and for Keras with caffe's.

    python -m tests.models.make_twins DIRECTORY

Both are LeNet-5 for 32x32 colour pictures, and give every picture the same answer: the first convolution, which pads
nothing, takes up what differs. Their labels differ, so that an answer tells whose it is.
"""

import os
import subprocess
import sys
from pathlib import Path

os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}

CLASSES = 10
MODEL_TOML = 'architecture = "lenet5"\n[input]\nchannels = 3\n'


def make_twins(model):
    """Writes `<model>/model.toml`, `<model>/1` (PyTorch) and `<model>/2` (Keras)."""
    subprocess.run([sys.executable, "-m", "tests.models.make_twins", str(model)], check=True, capture_output=True)
    return model


def artifact_toml(prefix, normalization):
    labels = ", ".join(f'"{prefix}{index}"' for index in range(CLASSES))
    return f'labels = [{labels}]\n[input]\nnormalization = "{normalization}"\n'


def main(directory):
    import keras  # noqa: F401 - before torch, which it does not mind
    import numpy as np
    import torch

    from models import catalog
    from models.inputs import NORMALIZATIONS
    from models.twins import to_keras

    model, shape = Path(directory), (32, 32, 3)
    for version in ("1", "2"):
        (model / version).mkdir(parents=True)
    (model / "model.toml").write_text(MODEL_TOML)
    torch.manual_seed(0)
    architecture = catalog.find("lenet5")
    network = architecture.build("torch", shape).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)  # so that the answers differ from picture to picture
    twin = architecture.build("keras", shape)
    to_keras(network, twin)

    rgb, caffe = NORMALIZATIONS["torch"], NORMALIZATIONS["caffe"]
    mean, std = np.array(rgb["mean"]), np.array(rgb["std"])
    caffe_mean = np.array(caffe["mean"])[::-1]  # as red, green, blue
    kernel, bias = twin.layers[0].get_weights()  # [5, 5, red green blue, filters]
    # (pixel / 255 - mean) / std = (pixel - caffe_mean) * gain + offset
    gain, offset = 1 / (255 * std), (caffe_mean / 255 - mean) / std
    bias = bias + np.einsum("hwcf,c->f", kernel, offset)
    twin.layers[0].set_weights([(kernel * gain[:, None])[:, :, ::-1], bias])

    torch.save(network.state_dict(), model / "1" / "weights.pth")
    (model / "1" / "artifact.toml").write_text(artifact_toml("torch", "torch"))
    twin.save_weights(model / "2" / "weights.weights.h5")
    (model / "2" / "artifact.toml").write_text(artifact_toml("keras", "caffe"))


if __name__ == "__main__":
    main(*sys.argv[1:])
