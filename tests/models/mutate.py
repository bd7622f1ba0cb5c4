"""Mutates saved models and reads each as a conversion does: every refusal has to be one of ours, with a reason.

    python -m tests.models.mutate FORMAT [COUNT] [SEED]

FORMAT is one of `FORMATS`. Each mutation is read in a process of its own, with limits; the same seed makes the same
ones. It prints how they ended, and of each ending that is no ArtifactError the number to look at again.
"""

import contextlib
import itertools
import json
import os
import random
import resource
import struct
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

from models import catalog
from models.artifact.artifact import Artifact
from models.conversion.convert import build
from models.conversion.readers import weights, whole
from models.errors import ArtifactError
from service.repository.repository import Repository
from tests.models import published

SECONDS, MEMORY_BYTES = 60, 6 * 2**30
NUMBERS = [-1, 0, 1, 2, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 0.5, 1e999, float("nan")]
OTHERS = [None, True, "", "F32", "F7", "\ud800", "x" * 10**5, [], {}, [[]], [1, [2]], "NaN"]


def torch_file(suffix, *, legacy=False):
    def make(directory):
        import torch

        network = catalog.CATALOG["mlp_iris"].build("torch")
        path = directory / f"weights{suffix}"
        if suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(network.state_dict(), path)
        else:
            torch.save(network.state_dict(), path, _use_new_zipfile_serialization=not legacy)
        return "mlp_iris"

    return make


def keras_file(suffix, *, whole_model):
    def make(directory):
        network = catalog.CATALOG["mlp_iris"].build("keras")
        path = directory / f"weights{suffix}"
        network.save_weights(path) if suffix == ".weights.h5" else network.save(path)
        return None if whole_model else "mlp_iris"

    return make


def onnx_file(directory):
    (directory / "weights.onnx").write_bytes(published.softmax_onnx(published.SPEC))


def checkpoint(directory):
    import tensorflow as tf

    network = catalog.CATALOG["mlp_iris"].build("keras")
    tf.train.Checkpoint(model=network).write(str(directory / "weights"))
    return "mlp_iris"


FORMATS = {
    "safetensors": torch_file(".safetensors"),
    "pth": torch_file(".pth"),
    "legacy": torch_file(".pth", legacy=True),
    "keras": keras_file(".keras", whole_model=True),
    "keras-weights": keras_file(".keras", whole_model=False),
    "h5": keras_file(".h5", whole_model=True),
    "weights-h5": keras_file(".weights.h5", whole_model=False),
    "onnx": onnx_file,
    "checkpoint": checkpoint,
}


def mutated_bytes(content, draw):
    """A few bytes changed, cut out, repeated or inserted."""
    content = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 5, 20])):
        at, length = draw.randrange(len(content) + 1), draw.choice([1, 1, 2, 4, 8, 64, 1000])
        match draw.randrange(6):
            case 0:
                content[at : at + length] = draw.randbytes(length)
            case 1:
                del content[at : at + length]
            case 2:
                content[at:at] = content[at : at + length] * draw.choice([1, 2, 100])
            case 3:
                content[at : at + 4] = struct.pack("<I", draw.choice([0, 1, 2**31 - 1, 2**32 - 1]))
            case 4:
                content[at : at + 8] = struct.pack("<Q", draw.choice([0, 2**31, 2**63, 2**64 - 1]))
            case 5 if len(content) > at:
                content[at] ^= 1 << draw.randrange(8)
    return bytes(content[: draw.randrange(len(content) + 1)] if draw.random() < 0.05 else content)


def mutated_header(content, draw):  # noqa: C901 - a table of changes
    """A safetensors file whose header says something else."""
    if draw.random() < 0.3:
        return mutated_bytes(content, draw)
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    for _ in range(draw.choice([1, 1, 2])):
        tensor = header[draw.choice(list(header))]
        if not isinstance(tensor, dict):
            continue
        match draw.randrange(6):
            case 0:
                tensor[draw.choice(["dtype", "shape", "data_offsets", "more"])] = draw.choice(NUMBERS + OTHERS)
            case 1:
                tensor.pop(draw.choice(list(tensor)), None)
            case 2 | 3 if isinstance(tensor.get("data_offsets"), list) and tensor["data_offsets"]:
                offsets = tensor["data_offsets"]
                offsets[draw.randrange(len(offsets))] = draw.choice(NUMBERS + OTHERS + list(range(0, 400, 4)))
            case 4 if isinstance(tensor.get("shape"), list):
                tensor["shape"] += [draw.choice(NUMBERS + OTHERS)] * draw.choice([1, 1, 100])
            case 5:
                header[draw.choice(["__metadata__", "fc1.weight", "", "\ud800"])] = draw.choice(NUMBERS + OTHERS)
    text = json.dumps(header)
    match draw.randrange(12):
        case 0:
            text = text.replace("0", "9" * 5000, 1)
        case 1:
            text = text[:-1] + "," + text[1:]  # every key twice
        case 2:
            text = text.replace("{", '{"a":' + "[" * 10**5, 1)
        case 3:
            text = text + " " * draw.randrange(100)
    said = text.encode(errors="surrogatepass")
    return struct.pack("<Q", len(said) + draw.choice([0, 0, 0, 0, 1, -1])) + said + content[8 + length :]


def read(artifact):
    """The steps of a conversion until the network is loaded."""
    if hasattr(artifact.spec, "complete"):
        whole.open_whole(artifact, allow_code=False)
        return
    network = build(catalog.find(artifact.spec.architecture), artifact.spec)
    weights.load(network, artifact.spec.framework, artifact.weights, artifact.spec.architecture)


def ending(root):
    """Reads the version in a process of its own; how that ended, in a word, and in some more."""
    receiving, sending = os.pipe()
    if (child := os.fork()) == 0:
        os.close(receiving)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES * 4, MEMORY_BYTES * 4))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        kind, text = "read", ""
        try:
            source = Repository(root).resolve("model", 1).source
            assert isinstance(source, Artifact)
            read(source)
        except ArtifactError as error:
            kind, text = "refused", str(error)
        except BaseException as error:
            at = traceback.extract_tb(error.__traceback__)
            where = next(
                (each for each in reversed(at) if "/models/" in each.filename or "/service/" in each.filename), at[-1]
            )
            kind = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}"
            kind = "told" if type(error).__name__ == "RepositoryError" else kind
            text = str(error)
        with contextlib.suppress(BaseException):
            os.write(sending, json.dumps([kind, text[:300]]).encode())
        os._exit(0)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(said) if said else [f"ended with {os.waitstatus_to_exitcode(status)}", ""]


def main(kind, count="300", seed="0"):
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        version = root / "model" / "1"
        version.mkdir(parents=True)
        if architecture := FORMATS[kind](version):
            (root / "model" / "model.toml").write_text(f'architecture = "{architecture}"\n')
        originals = {path: path.read_bytes() for path in sorted(version.iterdir())}
        print("as it was saved:", *ending(root))
        found, examples = Counter(), {}
        for number in itertools.islice(itertools.count(), int(count)):
            draw = random.Random(f"{kind} {seed} {number}")
            path = draw.choice(list(originals))
            change = mutated_header if kind == "safetensors" else mutated_bytes
            path.write_bytes(change(originals[path], draw))
            how, text = ending(root)
            path.write_bytes(originals[path])
            found[how] += 1
            examples.setdefault(how, (number, text))
        for how, times in found.most_common():
            print(f"{times:6} {how}", *(examples[how] if how not in {"read", "refused", "told"} else ()))


if __name__ == "__main__":
    main(*sys.argv[1:])
