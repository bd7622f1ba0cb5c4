"""Trains the default model `digits`: LeNet-5 for pictures of handwritten digits.

    python -m models.train.digits --output models/repository/digits/1

It is the LeNet-5 of Keras, trained on the 1797 handwritten digits of 8x8 pixels in scikit-learn. The pictures that
users send are larger, have thinner strokes, and are often dark on light, not centred, and unevenly lit. The training
pictures are drawn to look like that.
"""

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models import catalog
from models.inputs import NORMALIZATIONS, ImageInput

Array = NDArray[Any]

HELD_OUT = 0.2
MARGIN = 0.2  # around the digit, as a share of its side, in the second part of the evaluation
EPOCHS = 16
DRAWINGS = 10  # of each digit, in one epoch
BATCH = 64  # drawings; each is trained on white on black and black on white
LEARNING_RATE = 3e-3
WARMUP_STEPS = 300
LIBRARIES = ("keras", "tensorflow", "numpy", "pillow", "scikit-learn", "scikit-image", "scipy")

CELL = 6  # side of a digit's pixel in its maps, in pixels
REACH = 1.5 * CELL  # distance from the middle of a stroke at which its map falls to 0
TWINS = 0.35  # share of the drawings that show a digit's twin


# The data.


class Digits(NamedTuple):
    """Ink from 0 to 1, float32 [N, 8, 8], and the digits' labels, [N]."""

    ink: Array
    labels: Array


def load_digits() -> tuple[Digits, Digits]:
    """The training and the held-out digits: always the same split, with the same share of each digit."""
    from sklearn import datasets, model_selection  # noqa: PLC0415

    found = datasets.load_digits()
    train_ink, held_ink, train_labels, held_labels = model_selection.train_test_split(
        (found.images / 16).astype(np.float32), found.target, test_size=HELD_OUT, random_state=0, stratify=found.target
    )
    return Digits(train_ink, train_labels), Digits(held_ink, held_labels)


def picture(ink: Array, side: int = 8, margin: float = 0.0) -> Image.Image:
    """One digit as a user might send it: white on black, enlarged to `side` pixels, with a black margin."""
    digit = Image.fromarray(np.rint(ink * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    border = round(side * margin)
    page = Image.new("L", (side + 2 * border, side + 2 * border))
    page.paste(digit, (border, border))
    return page


def squeeze(page: Image.Image, spec: ImageInput) -> Array:
    """The picture as the server passes it to the graph, uint8 [height, width]."""
    return np.asarray(page.convert("L").resize((spec.width, spec.height), Image.Resampling.BILINEAR))


# Augmentation: the same digits in other handwriting, on other paper, in other light.


def ink_maps(digits: Digits) -> tuple[Array, Array]:
    """Two maps of each digit, CELL times as large, float32 [2, M, height, width]; and each digit's twin in them, [N].

    The first map is the ink. The second is 1 in the middle of the strokes and falls to 0 at REACH: where it exceeds a
    given level, it shows the digit drawn by a pen of that width. Nearly all of these sevens have a bar, which many
    people leave out, so the twin of a seven is the seven without its short branches. Any other digit is its own twin.
    """
    from scipy import ndimage  # type: ignore[import-untyped]  # noqa: PLC0415
    from skimage.morphology import skeletonize  # noqa: PLC0415

    inks = [_enlarge(np.pad(ink, 1)) for ink in digits.ink]
    # Darker than its surroundings, instead of dark: this keeps the small loops of 6, 8 and 9 open.
    drawn = [ink > ndimage.gaussian_filter(ink, 8) + 0.03 for ink in inks]
    strokes: list[Array] = [skeletonize(ink) for ink in drawn]  # type: ignore[no-untyped-call]
    twins = np.arange(len(strokes))
    for seven in np.flatnonzero(digits.labels == 7):  # noqa: PLR2004
        twins[seven] = len(strokes)
        strokes.append(_prune(strokes[seven], 11))
        inks.append(ndimage.gaussian_filter(ndimage.binary_dilation(strokes[-1], iterations=4).astype(np.float32), 2.5))
    pens = [1 - ndimage.distance_transform_edt(~stroke) / REACH for stroke in strokes]
    maps = np.array([inks, pens], dtype=np.float32).clip(0, 1)
    maps[:, :, [0, -1]] = maps[..., [0, -1]] = 0  # a point outside the map takes the value at its edge
    return maps, twins


def _enlarge(ink: Array) -> Array:
    height, width = ink.shape
    return np.asarray(Image.fromarray(ink).resize((width * CELL, height * CELL), Image.Resampling.BICUBIC))


def _prune(skeleton: Array, steps: int) -> Array:
    """Removes branches of up to `steps` pixels: shortens every end by that much, and lets the remaining ends regrow."""
    from scipy import ndimage  # noqa: PLC0415

    around = np.ones((3, 3), np.int8)
    left = skeleton
    for _ in range(steps):
        left = left & (ndimage.convolve(left.astype(np.int8), around, mode="constant") > 2)  # noqa: PLR2004
    ends = left & (ndimage.convolve(left.astype(np.int8), around, mode="constant") <= 2)  # noqa: PLR2004
    return np.asarray(left | ndimage.binary_dilation(ends, around, iterations=steps, mask=skeleton))


class Dice:
    """Random values for a whole batch, one for each picture: [count, 1, 1]."""

    def __init__(self, random: np.random.Generator, count: int) -> None:
        self._random = random
        self._shape = (count, 1, 1)

    def between(self, low: float, high: float) -> Array:
        """Uniformly distributed values."""
        return low + (high - low) * self._random.random(self._shape, dtype=np.float32)

    def happens(self, share: float) -> Array:
        """1.0 for about this share of the pictures, 0.0 for the others."""
        return (self._random.random(self._shape, dtype=np.float32) < share).astype(np.float32)

    def wave(self, position: Array) -> Array:
        """A sine of the position, for a bend or for uneven light."""
        sine: Array = np.sin(self.between(1, 4) * position + self.between(0, 2 * np.pi))
        return self.between(0, 1) * sine

    def grain(self, shape: tuple[int, ...]) -> Array:
        """Normally distributed values, one for each pixel."""
        return self._random.standard_normal(shape, dtype=np.float32)


def draw(maps: Array, chosen: Array, spec: ImageInput, random: np.random.Generator) -> Array:
    """Draws the chosen digits: uint8 [N, height, width], white on black."""
    dice = Dice(random, len(chosen))
    y = np.linspace(-1, 1, 2 * spec.height + 1, dtype=np.float32)[1::2].reshape(1, -1, 1)
    x = np.linspace(-1, 1, 2 * spec.width + 1, dtype=np.float32)[1::2].reshape(1, 1, -1)
    changed = dice.happens(0.88)  # the others stay as scikit-learn has them
    height = 1 + changed * dice.between(-0.55, 0.05)
    rows, columns = _bend(dice, changed, height, y, x)
    by_pen = changed * dice.happens(0.45)
    found = _read(maps, (by_pen * maps.shape[1]).astype(int) + chosen.reshape(-1, 1, 1), rows, columns)
    ink = _ink(dice, found, by_pen, changed, height)
    light = _light(dice, ink, changed, y, x).clip(0, 1)
    pixels: Array = np.rint(light * 255).astype(np.uint8)
    return pixels


def _bend(dice: Dice, changed: Array, height: Array, y: Array, x: Array) -> tuple[Array, Array]:
    """The place of each pixel in its digit, as rows and columns (-1 to 1): moved, stretched, turned, slanted, bent."""
    width = height * np.exp(changed * dice.between(-0.45, 0.45))
    room = changed * (0.7 * np.maximum(1 - height, 0) + 0.06)
    y = (y - room * dice.between(-1, 1)) / height
    x = (x - room * dice.between(-1, 1)) / width
    angle = changed * np.radians(dice.between(-12, 12))
    slant = changed * dice.between(-0.3, 0.3)
    bend = changed * 0.16
    columns = np.cos(angle) * x + (slant - np.sin(angle)) * y + bend * (dice.wave(y) + dice.wave(x))
    rows = np.sin(angle) * x + np.cos(angle) * y + bend * (dice.wave(y) + dice.wave(x))
    return rows, columns


def _read(maps: Array, which: Array, rows: Array, columns: Array) -> Array:
    """The values of the maps at these places. `which` numbers the maps: all of the first kind, then the second."""
    from scipy import ndimage  # noqa: PLC0415

    _, _, height, width = maps.shape
    digit_height, digit_width = height - 2 * CELL, width - 2 * CELL  # each digit has a margin of one pixel of paper
    rows = (rows * digit_height + height - 1) / 2
    columns = (columns * digit_width + width - 1) / 2
    places = np.stack([rows.clip(0, height - 1) + which * height, columns.clip(0, width - 1)])
    return np.asarray(ndimage.map_coordinates(maps.reshape(-1, width), places, order=1, prefilter=False))


def _ink(dice: Dice, found: Array, by_pen: Array, changed: Array, height: Array) -> Array:
    """Strokes from 0 to 1: by a pen, or in the digit's own width with a sharp edge, or as blurred as the 8x8 pixels."""
    pen = 1 - np.exp(dice.between(np.log(0.15), np.log(0.9))) * CELL / REACH
    level = np.where(by_pen, pen, dice.between(0.3, 0.6))
    crisp = ((found - level) * height * dice.between(2, 6) + 0.5).clip(0, 1)
    ink = np.where(by_pen + changed * dice.happens(0.7), crisp, found)
    return _blur(ink, dice.happens(0.25) * dice.between(0, 1))


def _blur(ink: Array, share: Array) -> Array:
    from scipy import ndimage  # noqa: PLC0415

    blurred: Array = (1 - share) * ink + share * ndimage.gaussian_filter(ink, (0, 1, 1), truncate=2)
    return blurred


def _light(dice: Dice, ink: Array, changed: Array, y: Array, x: Array) -> Array:
    """The picture of that ink. More than half of the pictures have less contrast; some are unevenly lit or grainy."""
    dim = changed * dice.happens(0.6)
    paper = dim * dice.between(0, 0.4)
    tone = paper + (1 - paper) * (1 - dim * dice.between(0, 0.6))
    shadow = dice.between(-1, 1) * x + dice.between(-1, 1) * y + 0.5 * dice.wave(x) * dice.wave(y)
    paper = paper + dim * dice.happens(0.5) * 0.2 * shadow
    lit: Array = paper + (tone - paper) * ink
    lit += dim * dice.happens(0.5) * dice.between(0, 0.06) * dice.grain(lit.shape)
    return lit


def drawings(digits: Digits, spec: ImageInput, seed: int) -> Iterator[tuple[Array, Array]]:
    """Endless batches [2 * BATCH, height, width, 1] with one-hot labels: each drawing in both polarities."""
    maps, twins = ink_maps(digits)
    targets = np.eye(10, dtype=np.float32)[digits.labels]
    random = np.random.default_rng(seed)
    while True:
        for chosen in np.split(random.permutation(len(twins)), range(BATCH, len(twins), BATCH)):
            drawn = np.where(random.random(len(chosen)) < TWINS, twins[chosen], chosen)
            pixels = draw(maps, drawn, spec, random)
            yield spec.normalized(np.concatenate([pixels, 255 - pixels])[..., None]), np.tile(targets[chosen], (2, 1))


# Fit, evaluate, save.


def fit(network: Any, digits: Digits, spec: ImageInput, *, epochs: int, seed: int) -> None:
    """Trains on drawings of these digits, and on no others. The final weights are a running average."""
    import keras  # noqa: PLC0415

    steps = DRAWINGS * len(digits.labels) // BATCH
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps * epochs, warmup_target=LEARNING_RATE, warmup_steps=WARMUP_STEPS
    )
    network.compile(
        keras.optimizers.AdamW(rate, weight_decay=0.01, use_ema=True, ema_momentum=0.99),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.05),
        metrics=["accuracy"],
    )
    network.fit(drawings(digits, spec, seed), steps_per_epoch=steps, epochs=epochs, shuffle=False, verbose=2)


def evaluate(network: Any, digits: Digits, spec: ImageInput) -> dict[str, dict[str, float]]:
    """Accuracy, white on black and black on white, on the digits alone and on digits with a margin around them."""
    pictures = {
        "plain": [picture(ink) for ink in digits.ink],
        "margin": [picture(ink, side=200, margin=MARGIN) for ink in digits.ink],
    }
    figures = {}
    for name, pages in pictures.items():
        pixels = np.stack([squeeze(page, spec) for page in pages])[..., None]
        figures[name] = {
            "white_on_black": accuracy(network, spec.normalized(pixels), digits.labels),
            "black_on_white": accuracy(network, spec.normalized(255 - pixels), digits.labels),
        }
    return figures


def accuracy(network: Any, batch: Array, labels: Array) -> float:
    """The share of the batch whose largest output is its label."""
    return float(np.mean(np.argmax(network.predict_on_batch(batch), axis=-1) == labels))


def train_digits(output: Path, *, command: str, epochs: int, seed: int) -> None:
    """Writes weights.keras and training.json into `output`. The same seed gives the same weights."""
    os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    import keras  # noqa: PLC0415
    import tensorflow as tf  # noqa: PLC0415

    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    architecture = catalog.find("lenet5")
    # -1..1: inverting a picture only changes the sign.
    spec = ImageInput.model_validate(architecture.input.model_dump() | NORMALIZATIONS["tf"])
    network, uncompiled = (architecture.build("keras") for _ in range(2))
    train, held_out = load_digits()
    fit(network, train, spec, epochs=epochs, seed=seed)
    report = {
        "command": command,
        "data": "sklearn.datasets.load_digits",
        "trained_with": len(train.labels),
        "held_out": len(held_out.labels),
        "epochs": epochs,
        "seed": seed,
        "accuracy": evaluate(network, held_out, spec),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES},
    }
    output.mkdir(parents=True, exist_ok=True)
    uncompiled.set_weights(
        network.get_weights()
    )  # a smaller file, without the optimizer's three values for each weight
    uncompiled.save(output / "weights.keras")
    (output / "training.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    """Parses the command line and trains."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m models.train.digits", description=summary)
    parser.add_argument("--output", type=Path, required=True, help="the version's directory")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    command = shlex.join(["python", "-m", "models.train.digits", *arguments])
    train_digits(options.output, command=command, epochs=options.epochs, seed=options.seed)


if __name__ == "__main__":
    main(sys.argv[1:])
