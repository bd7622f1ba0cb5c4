"""Networks that differ are detected. tests/models/test_zoo.py shows that equal ones give equal outputs."""

import subprocess
import sys

import pytest

CARRY = """
import os, sys
os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
from models import twins
from models.catalog import CATALOG
shape = (64, 64, 3)
for source, target, classes in (("lenet5", "lenet5", 7), ("alexnet", "lenet5", 10), ("lenet5", "alexnet", 10),
                                ("resnet18", "resnet34", 10), ("resnet34", "resnet18", 10)):
    network = CATALOG[source].build("torch", shape, 10)
    twin = CATALOG[target].build("keras", shape, classes)
    for carry in (lambda: twins.to_keras(network, twin), lambda: twins.to_torch(twin, network)):
        try:
            carry()
        except ValueError as error:
            print(error)
"""

# What is told of each pair, in both directions.
TOLD = [
    "11 holds [(84, 10), (10,)] in one network and [(84, 7), (7,)] in the other",
    "11 holds [(7, 84), (7,)] in one network and [(10, 84), (10,)] in the other",
    *["the Keras network has no layer for classifier.1"] * 2,
    *["the PyTorch network has no layer for dense_6"] * 2,
    *["the PyTorch network has no layer for layer1.2.conv1"] * 2,
    *["the Keras network has no layer for layer1.2.conv1"] * 2,
]


@pytest.mark.slow
def test_the_first_layer_that_differs_is_named():
    told = subprocess.run([sys.executable, "-c", CARRY], check=True, capture_output=True, text=True).stdout
    assert told.splitlines() == TOLD
