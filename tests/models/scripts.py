"""Scripts that run in a process of their own, because a framework is large and keeps its state."""

import json
import os
import subprocess
import sys
from typing import Any

# Batch normalisation as after a training: otherwise what reaches the last layers is all but nothing.
TRAINED = """
import numpy as np
import torch

torch.manual_seed(0)
pixels = np.random.default_rng(0).integers(0, 256, (2, 299, 299, 3)).astype(np.uint8)

def trained(network, items):
    for each in network.modules():
        if isinstance(each, torch.nn.BatchNorm2d):
            each.momentum = None  # the mean of all batches
    for each in network.parameters():
        if not each.any():  # an untrained vision transformer answers with zeros
            torch.nn.init.normal_(each, std=0.02)
    with torch.no_grad():
        network.train()(torch.from_numpy(items).permute(0, 3, 1, 2) / 127.5 - 1)
    return network.eval()

def answer(network, items, scale, mean, std):  # in double precision: rounding hides nothing
    x = (items[:1] * scale - np.array(mean)) / np.array(std)
    with torch.inference_mode():
        return network.double().eval()(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()

def difference(found, expected):
    return float(np.abs(found - expected).max() / np.abs(expected).max())
"""


def child(script: str, *arguments: object) -> list[Any]:
    """Runs a script in a process of its own; the lines of JSON that it prints."""
    result = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


START = """
import os
os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
import inspect, json, sys
import numpy as np
import keras
from keras import applications
"""
