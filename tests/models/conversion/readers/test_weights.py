"""Weights of every format that PyTorch has written go where they belong, or are refused with what is wrong."""

import pytest

from tests.models.scripts import child

pytestmark = pytest.mark.slow

START = """
import json, pickle, struct, sys, time, warnings, zipfile
from collections import OrderedDict
from pathlib import Path
import torch
from models import catalog
from models.artifact import formats
from models.conversion.readers import weights
from models.errors import ArtifactError
warnings.simplefilter("error")
room = Path(sys.argv[1])
own = catalog.find("mlp_iris").build("torch")
state = own.state_dict()

def load(path):
    network = catalog.find("mlp_iris").build("torch")
    torch.nn.init.zeros_(network.fc1.weight)
    weights.load(network, "torch", path, "mlp_iris")
    loaded = network.state_dict()
    return max(float((loaded[name] - value).abs().max()) for name, value in state.items())
"""

SOUND = f"""{START}
from safetensors.torch import save_file
half = {{name: value.half() for name, value in state.items()}}
cases = {{
    "weights.pth": lambda path: torch.save(state, path),
    "weights.bin": lambda path: torch.save(OrderedDict(state), path),
    "old.pt": lambda path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "lightning.ckpt": lambda path: torch.save(
        {{"epoch": 3, "state_dict": {{"model." + name: value for name, value in state.items()}}, "loops": {{}}}}, path),
    "checkpoint.pth": lambda path: torch.save(
        {{"model": state, "optimizer": {{"state": {{}}, "param_groups": [{{"lr": 0.1}}]}}, "epoch": 3}}, path),
    "old_checkpoint.tar": lambda path: torch.save(
        {{"state_dict": {{"module." + name: value for name, value in state.items()}}, "best_acc1": 0.5}}, path,
        _use_new_zipfile_serialization=False),
    "compiled.pt": lambda path: torch.save(
        {{"model_state_dict": {{"_orig_mod.module." + name: value for name, value in state.items()}}}}, path),
    "half.pt": lambda path: torch.save(half, path),
    "bfloat16.pt": lambda path: torch.save({{name: value.bfloat16() for name, value in state.items()}}, path),
    "weights.safetensors": lambda path: save_file(dict(state), path),
    "half.safetensors": lambda path: save_file(half, path, metadata={{"format": "pt"}}),
    "parameters.pt": lambda path: torch.save(dict(own.named_parameters()), path),
}}
for name, save in cases.items():
    save(room / name)
    print(json.dumps([name, formats.detect(room / name).name, load(room / name)]))
"""


def test_whatever_torch_has_written_is_read(tmp_path):
    found = {name: (kind, error) for name, kind, error in child(SOUND, tmp_path)}
    assert len(found) == 12
    for name, (kind, error) in found.items():
        expected = "pickle" if "old" in name else "safetensors" if name.endswith(".safetensors") else "state_dict"
        assert kind == expected, name
        assert error == 0 if "half" not in name and "bfloat16" not in name else 0 < error < 0.01, name


REFUSED = f"""{START}
import resource
import torchvision  # which looks for what would fit: most of the memory that it takes

class Hostile:
    def __reduce__(self):
        return Path.touch, (room / "trap",)

def bomb(path):
    torch.save(state, path)
    with zipfile.ZipFile(path) as before:
        entries = {{entry.filename: before.read(entry) for entry in before.infolist()}}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        archive.writestr("bomb/data/99", bytes(2**28))

def giant(path):  # a legacy file that says that its one storage has 2**40 numbers
    torch.save({{"fc1.weight": torch.zeros(65521)}}, path, _use_new_zipfile_serialization=False)
    claim = b"\\x8a\\x06" + (2**40).to_bytes(6, "little")
    content = path.read_bytes().replace(pickle.dumps(65521, 2)[2:-1], claim)
    path.write_bytes(content)

one = torch.zeros(1)
wrong = OrderedDict(state)
wrong["fc1.weight"] = wrong["fc1.weight"][:, :3]
wrong["fc3.bias"] = torch.zeros(3)
del wrong["fc2.bias"]
cases = {{
    "code": lambda path: torch.save({{"fc1.weight": Hostile()}}, path),
    "wrapped code": lambda path: torch.save({{"state_dict": {{"a": {{"b": [Hostile()]}}}}, "epoch": 1}}, path),
    "legacy code": lambda path: torch.save({{"x": Hostile()}}, path, _use_new_zipfile_serialization=False),
    "plain pickle": lambda path: path.write_bytes(pickle.dumps({{"x": Hostile()}})),
    "whole model": lambda path: torch.save(torch.nn.Sequential(torch.nn.Linear(4, 3)), path),
    "list": lambda path: torch.save([1, 2], path),
    "stride": lambda path: torch.save({{**state, "fc1.weight": one.as_strided((10**6, 10**6), (0, 0))}}, path),
    "giant": giant,
    "bomb": bomb,
    "sparse": lambda path: torch.save({{**state, "fc1.weight": state["fc1.weight"].to_sparse()}}, path),
    "meta": lambda path: torch.save({{**state, "fc1.weight": state["fc1.weight"].to("meta")}}, path),
    "integers": lambda path: torch.save({{**state, "fc1.weight": state["fc1.weight"].to(torch.int8)}}, path),
    "wrong": lambda path: torch.save(wrong, path),
    "safetensors": lambda path: path.write_bytes(struct.pack("<Q", 64) + json.dumps({{"fc1.weight": {{
        "dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4]}}}}).encode().ljust(64)[:64] + bytes(4)),
    "hdf5": lambda path: path.write_bytes(b"\\x89HDF\\r\\n\\x1a\\n" + bytes(100)),
}}
for name, save in cases.items():
    warnings.simplefilter("ignore")
    save(room / "weights.pth")
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        load(room / "weights.pth")
    except ArtifactError as error:
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(json.dumps([name, str(error), error.cure, time.process_time() - started, grown]))
assert not (room / "trap").exists()
"""

PROBLEMS = {
    "code": "is not a plain state_dict: it is damaged, or it carries Python code",
    "wrapped code": "is not a plain state_dict: it is damaged, or it carries Python code",
    "legacy code": "is not a plain state_dict: it is damaged, or it carries Python code",
    "plain pickle": "is not a plain state_dict: it is damaged, or it carries Python code",
    "whole model": "is not a plain state_dict: it is damaged, or it carries Python code",
    "list": "holds a list, not a state_dict",
    "stride": "fc1.weight is (1000000, 1000000) and should be (16, 4)",
    "giant": "cannot be read as a PyTorch file",
    "bomb": "claims to hold",
    "sparse": "quantized, sparse or integer tensors where the network has floating point: fc1.weight",
    "meta": "quantized, sparse or integer tensors where the network has floating point: fc1.weight",
    "integers": "quantized, sparse or integer tensors where the network has floating point: fc1.weight",
    "wrong": "fc2.bias is missing; fc3.bias is not in the network; fc1.weight is (16, 3) and should be (16, 4)",
    "safetensors": "cannot be read",
    "hdf5": "weights.pth is an HDF5 file, as Keras writes, and the network is built in torch",
}


def test_what_is_hostile_or_wrong_is_refused_quickly_and_cheaply(tmp_path):
    found = {name: rest for name, *rest in child(REFUSED, tmp_path)}
    assert found.keys() == PROBLEMS.keys()
    for name, (problem, cure, seconds, kibibytes) in found.items():
        assert PROBLEMS[name] in problem, name
        assert cure
        assert kibibytes < 200 * 1024, name
        assert seconds < (30 if name in {"stride", "wrong"} else 5), name  # these look for what would fit
