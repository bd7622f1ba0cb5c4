"""Files of Keras 2 and Keras 3, made by each: read as weights of a known network, and as whole models."""

import pytest

from tests.models.test_keras_applications import START
from tests.models.test_torchvision_models import child

pytestmark = pytest.mark.slow

# The same three networks in both; data stands for pictures, and the answers of the one that saved them are right.
NETWORKS = f"""{START}
import resource, shutil, time, warnings
from pathlib import Path
import tensorflow as tf
import tf_keras
from models.artifact import formats
from models.conversion.readers import weights
from models.artifact.artifact import ModelConfig
from models.errors import ArtifactError
from models.artifact.resolution import find_weights, resolve
warnings.simplefilter("ignore")
keras.utils.set_random_seed(0)
room = Path(sys.argv[1])
pictures = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3)).astype(np.float32)

def sequential(of):
    layers = of.layers
    return of.Sequential([
        layers.Input((8, 8, 3)), layers.RandomFlip(), layers.Rescaling(1 / 255),
        layers.Conv2D(4, 3, activation="relu"), layers.BatchNormalization(), layers.Dropout(0.2),
        layers.SeparableConv2D(4, 3), layers.Flatten(), layers.Dense(3, activation="softmax"),
    ])

def functional(of):  # with a network inside, as those that are trained further have
    layers = of.layers
    inner = of.Sequential([layers.Input((8, 8, 3)), layers.DepthwiseConv2D(3), layers.ReLU(6.0)])
    source = layers.Input((8, 8, 3))
    x = inner(layers.Rescaling(1 / 127.5, -1)(source))
    x = layers.Concatenate()([layers.Conv2D(4, 3, name="b_first")(source), layers.Conv2D(4, 1, name="a_second")(x)])
    x = layers.GlobalAveragePooling2D()(x)
    return of.Model(source, layers.Dense(1, activation="sigmoid")(x))

def recurrent(of):
    layers = of.layers
    return of.Sequential([
        layers.Input((8, 24)), layers.Normalization(mean=128.0, variance=64.0**2),
        layers.Bidirectional(layers.LSTM(4, return_sequences=True)), layers.GRU(3), layers.Dense(4),
    ])

def trained(build, of):
    network = build(of)
    data = pictures.reshape(4, 8, 24) if build is recurrent else pictures
    network.compile("adam", "mse")
    network.fit(data, np.ones((4, network.output_shape[-1])), verbose=0)
    return network, data

def answers(network, data):
    return np.asarray(network(data, training=False))

def difference(one, other):
    return float(np.abs(one - other).max())
"""

WEIGHTS = f"""{NETWORKS}
def saved(network, of, name):
    network.save(room / f"{{name}}.keras")
    network.save(room / f"{{name}}.h5")
    network.save_weights(room / f"{{name}}.weights.h5")
    yield from (room / f"{{name}}{{suffix}}" for suffix in (".keras", ".h5", ".weights.h5"))
    if of is keras:
        network.export(room / f"{{name}}_exported", verbose=False)
        tf.train.Checkpoint(model=network).write(str(room / f"{{name}}_ckpt"))
        yield room / f"{{name}}_exported"
    else:
        network.save_weights(room / f"{{name}}_w.h5")
        network.save_weights(room / f"{{name}}_ckpt")
        network.save(room / f"{{name}}_saved", save_format="tf")
        yield from (room / f"{{name}}_w.h5", room / f"{{name}}_saved")
    yield room / f"{{name}}_ckpt.index"

for of in (keras, tf_keras):
    for build in (sequential, functional, recurrent):
        network, data = trained(build, of)
        expected = answers(network, data)
        for path in saved(network, of, f"{{of.__name__}}_{{build.__name__}}"):
            disguised = path if path.is_dir() or path.suffix == ".index" else path.rename(room / "weights.pth")
            fresh = build(keras)
            weights.load(fresh, "keras", disguised)
            print(json.dumps([path.name, formats.detect(disguised).name, difference(answers(fresh, data), expected)]))

class Subclassed(tf_keras.Model):  # as tutorials have it; what its layers are called is not how Keras numbers them
    def __init__(self):
        super().__init__()
        self.last = tf_keras.layers.Dense(3)
        self.first = tf_keras.layers.Conv2D(4, 3)

    def call(self, x):
        return self.last(tf.reduce_mean(self.first(x), (1, 2)))

network = Subclassed()
network(pictures)
network.save_weights(room / "ckpt")
fresh = keras.Sequential([keras.layers.Dense(3), keras.layers.Conv2D(4, 3)])
fresh.layers[0].build((None, 4)), fresh.layers[1].build((None, 8, 8, 3))
fresh.built = True
weights.load(fresh, "keras", room / "ckpt.index")
print(json.dumps(["subclassed", "checkpoint", difference(fresh.layers[1].kernel, network.first.kernel)]))
"""


def test_weights_of_both_kerases_fit_in_every_format(tmp_path):
    found = child(WEIGHTS, tmp_path)
    assert len(found) == 3 * 5 + 3 * 6 + 1
    assert {kind for _, kind, _ in found} == {"keras", "hdf5", "checkpoint", "saved_model"}
    for name, _, error in found:
        assert error < 1e-6, name


WRONG = f"""{NETWORKS}
network, data = trained(sequential, keras)
layers = keras.layers
other = keras.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(3)])
network.save(room / "a.keras")
network.save(room / "a.h5")
tf.train.Checkpoint(model=network).write(str(room / "a"))
for name in ("a.keras", "a.h5", "a.index"):
    try:
        weights.load(other, "keras", room / name)
    except ArtifactError as error:
        print(json.dumps([str(error), error.cure]))
(room / "a.data-00000-of-00001").unlink()
try:
    weights.load(other, "keras", room / "a.index")
except ArtifactError as error:
    print(json.dumps([str(error), error.cure]))
"""


def test_what_does_not_fit_is_named_in_every_convention(tmp_path):
    new, old, checkpoint, alone = child(WRONG, tmp_path)
    assert "layers/batch_normalization/0 is not in the network; layers/batch_normalization/1 is not" in new[0]
    assert "and 5 more" in new[0]
    assert "a.h5 does not fit the network: batch_normalization/moving_mean is not in the network" in old[0]
    assert "a.index does not fit the network: " in checkpoint[0]
    assert "num_classes" in new[1] == old[1] == checkpoint[1]
    assert "its values are not there" in alone[0]
    assert "a.data-00000-of-00001" in alone[1]


WHOLE = f"""{NETWORKS}
from models.conversion.graph import export, parity
from models.conversion.readers import whole
from models.artifact.artifact import Artifact

def opened(path, **config):
    spec = resolve(ModelConfig(weights=path.name, **config), None, room, room / "no").spec
    return whole.open_whole(Artifact(spec=spec, weights=path, fingerprint=""), allow_code=False)

unit = {{"input": {{"normalization": "unit"}}}}
for of in (keras, tf_keras):
    for build in (sequential, functional, recurrent):
        network, data = trained(build, of)
        for suffix in (".keras", ".h5"):
            path = room / f"{{of.__name__}}_{{build.__name__}}{{suffix}}"
            network.save(path)
            again, spec = opened(path, **({{}} if build is not functional else unit))
            print(json.dumps([
                path.name, difference(answers(again, data), answers(network, data)), spec.architecture, spec.output,
                spec.num_classes, spec.input.shape, getattr(spec.input, "scale", None),
            ]))
# One of them goes all the way.
graph = export.join(export.export(again, spec), spec)
print(json.dumps(["onnx", parity.compare(again, graph.SerializeToString(), spec).relative_error, "", "", 0, [], None]))

layers = keras.layers
small = keras.Sequential([
    layers.Input((None, None, 3), dtype="uint8"), layers.Rescaling(0.5), layers.Conv2D(2, 3),
    layers.GlobalMaxPooling2D(), layers.Dense(3, "relu"),
])
small.save(room / "small.keras")
again, spec = opened(room / "small.keras", input={{"height": 9, "width": 7}})
graph = export.join(export.export(again, spec), spec)
error = parity.compare(again, graph.SerializeToString(), spec).relative_error
print(json.dumps(["bytes", error, spec.dtype, spec.output, spec.num_classes, spec.input.shape, spec.input.scale]))
"""


def test_whole_models_of_both_kerases_need_no_architecture(tmp_path):
    found = {name: rest for name, *rest in child(WHOLE, tmp_path)}
    assert len(found) == 14
    for name, (error, *rest) in found.items():
        assert error < 1e-5, name
        kind = "whole:keras" if name.endswith(".keras") else "whole:hdf5"
        if "sequential" in name:
            assert rest == [kind, "probabilities", 3, [8, 8, 3], 1.0]
        if "functional" in name:
            assert rest == [kind, "probability", 2, [8, 8, 3], 1 / 255]
        if "recurrent" in name:
            assert rest == [kind, "logits", 4, [8, 24], None]
    assert found["bytes"][1:] == ["uint8", "logits", 3, [9, 7, 3], 1.0]


HOSTILE = f"""{NETWORKS}
import zipfile
import h5py
from models.conversion.readers import whole
from models.artifact.artifact import Artifact

def refused(name, path, **config):
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        spec = resolve(ModelConfig(weights=path.name, **config), None, room, room / "no").spec
        whole.open_whole(Artifact(spec=spec, weights=path, fingerprint=""), allow_code=False)
    except ArtifactError as error:
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(json.dumps([name, str(error), error.cure, time.process_time() - started, grown]))

def changed(change):  # a .keras whose network is described otherwise
    sound = room / "sound.keras"
    with zipfile.ZipFile(sound) as before, zipfile.ZipFile(room / "weights.keras", "w") as after:
        for entry in before.infolist():
            content = before.read(entry)
            if entry.filename == "config.json":
                config = json.loads(content)
                change(config["config"]["layers"])
                content = json.dumps(config).encode()
            after.writestr(entry.filename, content)
    return room / "weights.keras"

trap = room / "trap"
layers = keras.layers
sound = keras.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(3)])
sound.save(room / "sound.keras")
keras.Sequential([layers.Input((4,)), layers.Lambda(lambda x: open(str(trap), "w") and x)]).save(room / "lambda.keras")
keras.Sequential([layers.Input((4,)), layers.Lambda(lambda x: open(str(trap), "w") and x)]).save(room / "lambda.h5")
trap.unlink(missing_ok=True)
refused("lambda", room / "lambda.keras")
refused("lambda in h5", room / "lambda.h5")
refused("unscaled", room / "sound.keras")
refused("classes", room / "sound.keras", num_classes=5, input={{"normalization": "unit"}})
refused("size", room / "sound.keras", input={{"normalization": "unit", "height": 224}})
refused("labels", room / "sound.keras", labels=("a", "b"), input={{"normalization": "unit"}})

def units(found):
    found[3]["config"]["units"] = 10**7

def filters(found):
    found[1]["config"]["filters"] = 10**6

def upsampled(found):
    up = {{"module": "keras.layers", "class_name": "UpSampling2D", "config": {{"size": [10**5, 10**5]}}}}
    down = {{"module": "keras.layers", "class_name": "MaxPooling2D", "config": {{"pool_size": [10**5, 10**5]}}}}
    found[2:2] = [up, down]

def unknown(found):
    found[3]["config"]["colour"] = "red"

def embedding(found):
    config = {{"input_dim": 10**12, "output_dim": 10**6}}
    found.insert(1, {{"module": "keras.layers", "class_name": "Embedding", "config": config}})

for change in (units, filters, upsampled, unknown, embedding):
    refused(change.__name__, changed(change))

with zipfile.ZipFile(room / "empty.keras", "w") as archive:
    archive.writestr("config.json", "{{}}")
    archive.writestr("model.weights.h5", b"")
refused("empty", room / "empty.keras")
with h5py.File(room / "claims.weights.h5", "w") as file:
    file.create_dataset("layers/dense/vars/0", (2**40,), "f4", chunks=(1024,))
refused("claims", room / "claims.weights.h5")
small = keras.Sequential([layers.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3, activation="sigmoid")])
small.save(room / "several.keras")
refused("several", room / "several.keras", input={{"normalization": "unit"}})
small.save_weights(room / "alone.weights.h5")
refused("alone", room / "alone.weights.h5")
small.export(room / "exported", verbose=False)
refused("code", room / "exported")
assert not trap.exists()
"""

PROBLEMS = {
    "lambda": ("lambda.keras holds a Lambda", "ONNX"),
    "lambda in h5": ("lambda.h5 holds a Lambda", "ONNX"),
    "unscaled": ("does not say how pictures were scaled", "normalization"),
    "classes": ("tells 3 classes apart, and model.toml and the labels say 5", "num_classes"),
    "size": ("takes a height of 8, and [input] in model.toml says 224", "leave height out"),
    "labels": ("tells 3 classes apart, and model.toml and the labels say 2", "labels"),
    "units": ("layers/dense/0 is (144, 3) and should be (144, 10000000)", "again"),
    "filters": ("Keras cannot build: Input 0", "newer Keras"),
    "upsampled": ("would make 600000x600000x4 numbers in the layer", "catalog"),
    "unknown": ("Keras cannot build: Unrecognized keyword arguments passed to Dense", "newer Keras"),
    "embedding": ("Keras cannot build: Input 0", "newer Keras"),
    "empty": ("cut or damaged HDF5 file", "again"),
    "claims": ("claims to hold", "again"),
    "several": ("ends with a sigmoid for each class", "output"),
    "alone": ("holds only weights", "architecture"),
    "code": (
        "exported is a SavedModel: to convert it, code of whoever made it has to be run",
        "MENAGERIE_ALLOW_CODE=true",
    ),
}


def test_what_carries_code_or_claims_too_much_is_refused_quickly_and_cheaply(tmp_path):
    found = {name: rest for name, *rest in child(HOSTILE, tmp_path)}
    assert found.keys() == PROBLEMS.keys()
    for name, (problem, cure, seconds, kibibytes) in found.items():
        assert PROBLEMS[name][0] in problem, name
        assert PROBLEMS[name][1] in cure, name
        assert seconds < 5, name
        assert kibibytes < 200 * 1024, name
