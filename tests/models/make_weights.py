"""Saves seeded weights of a catalog architecture.

    python -m tests.models.make_weights FRAMEWORK ARCHITECTURE FILE [NUM_CLASSES]

Run in a process of its own: frameworks are slow to import, and warn.
"""

import os
import subprocess
import sys

os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}


def make_weights(framework, architecture, path, num_classes=None):
    """Runs this file as a program."""
    arguments = [framework, architecture, str(path), *([] if num_classes is None else [str(num_classes)])]
    subprocess.run([sys.executable, "-m", "tests.models.make_weights", *arguments], check=True, capture_output=True)
    return path


def main(framework, architecture, path, num_classes=None):
    from models import catalog

    found = catalog.find(architecture)
    classes = int(num_classes) if num_classes else found.num_classes
    if framework == "torch":
        import torch

        torch.manual_seed(0)
        torch.save(found.build("torch", outputs=classes).state_dict(), path)
    else:
        import keras

        keras.utils.set_random_seed(0)
        network = found.build("keras", outputs=classes)
        (network.save if path.endswith(".keras") else network.save_weights)(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
