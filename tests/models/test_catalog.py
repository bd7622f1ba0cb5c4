"""Published numbers: every architecture has the parameters its paper gives it, in every framework."""

import json
import os
import subprocess
import sys

import pytest

from models import catalog
from models.artifact import ArtifactError
from models.catalog import CATALOG

COUNT = """
import json, os, sys
os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
import numpy as np
from models.catalog import CATALOG
found = CATALOG[sys.argv[2]]
network = found.builders[sys.argv[1]](num_classes=int(sys.argv[3]))
if sys.argv[1] == "torch":
    print(sum(weight.numel() for weight in network.parameters() if weight.requires_grad))
else:
    print(sum(int(np.prod(weight.shape)) for weight in network.trainable_weights))
"""

BUILDS = [(framework, name) for name, found in CATALOG.items() for framework in found.builders]


def count(framework, name, num_classes):
    command = [sys.executable, "-c", COUNT, framework, name, str(num_classes)]
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    return json.loads(result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(("framework", "name"), BUILDS)
def test_it_has_the_parameters_of_its_paper(framework, name):
    assert count(framework, name, CATALOG[name].num_classes) == CATALOG[name].parameters


@pytest.mark.slow
@pytest.mark.parametrize(("framework", "name"), BUILDS)
def test_it_has_as_many_classes_as_it_is_asked_for(framework, name):
    assert count(framework, name, CATALOG[name].num_classes + 1) > CATALOG[name].parameters


@pytest.mark.parametrize("found", CATALOG.values(), ids=CATALOG)
def test_it_says_where_it_is_from(found):
    assert any(source in found.paper for source in ("arXiv:", "doi:"))
    assert found.builders


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ArtifactError, match="no architecture 'efficientnet_lite'") as caught:
        catalog.find("efficientnet_lite")
    assert "did you mean 'efficientnet_lite0'" in caught.value.cure
