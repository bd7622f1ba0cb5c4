"""Recipes that read the digits: 95 % and more of what was held out, in both frameworks, in minutes on two cores.

    python -m tests.models.train.recipes [NETWORK...] [FRAMEWORK...]

trains those that are named, or all, and prints a line for each.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

FRAMEWORKS = ("torch", "keras")

# Each at about the least size that the network can be built for.
RECIPES = {
    "mlp_image": "--size 16 --epochs 30",
    "lstm_rows": "--size 16 --epochs 30 --learning-rate 0.005",
    "convnet_functional": "--size 16 --epochs 30 --normalization tf",
    "nin_gray": "--size 72 --epochs 30 --batch-size 32 --normalization tf",
    "googlenet_gray": "--size 32 --epochs 25 --batch-size 32 --normalization tf",
    "resnet18": "--size 32 --epochs 10 --batch-size 32",
    "densenet121": "--size 32 --epochs 10 --batch-size 32",
}
QUICK = ("mlp_image", "lstm_rows", "convnet_functional")


def train(network, framework, output):
    """What training.json says in the end."""
    arguments = [network, "digits", "--framework", framework, "--output", str(output), *RECIPES[network].split()]
    subprocess.run([sys.executable, "-m", "models.train", *arguments], check=True, stdout=subprocess.DEVNULL)
    return json.loads((output / "1" / "training.json").read_text())


def main(names):
    with tempfile.TemporaryDirectory() as directory:
        for network in [name for name in names if name in RECIPES] or RECIPES:
            for framework in [name for name in names if name in FRAMEWORKS] or FRAMEWORKS:
                told = train(network, framework, Path(directory) / framework / network)
                size = "x".join(str(told["spec"]["input"][side]) for side in ("height", "width", "channels"))
                print(
                    f"{network:20} {framework:6} {size:9} {len(told['epochs']):3} epochs {told['seconds']:6.1f} s"
                    f"  accuracy {told['figures']['accuracy']:.4f} of {told['data']['test']}",
                    flush=True,
                )


if __name__ == "__main__":
    main(sys.argv[1:])
