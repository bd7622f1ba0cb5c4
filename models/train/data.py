"""Loads a folder of images or the built-in digits, splits the examples, and forms batches."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models import pictures
from models.errors import ArtifactError
from models.inputs import PICTURE_SUFFIXES, ImageInput, Input
from models.train.augment import DICE, augmented
from models.train.recipe import DIGITS, Recipe

Array = NDArray[Any]

MIN_CLASSES = 2


@dataclass(frozen=True)
class Examples:
    """Image files, or digits in uint8 [8, 8], each with the index of its class."""

    items: Sequence[Path | Array]
    labels: Array

    def __len__(self) -> int:
        return len(self.items)

    def at(self, chosen: Array) -> "Examples":
        """The examples with these indices."""
        return Examples([self.items[index] for index in chosen], self.labels[chosen])


@dataclass(frozen=True)
class Data:
    """Examples to train on, examples that choose the best epoch, and examples for the final figures."""

    classes: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples
    """Empty if the recipe keeps none."""
    digest: str
    """SHA-256 of the names and sizes of the files: a training cannot be resumed with other data."""


def load(recipe: Recipe) -> Data:
    """Finds, checks and splits the examples. To check them, it decodes every image. Raises ArtifactError."""
    return _load_digits(recipe) if recipe.data == DIGITS else _load_folder(recipe)


def _load_digits(recipe: Recipe) -> Data:
    from models.train import digits  # noqa: PLC0415 - it is also a program

    if recipe.test_split:
        raise ArtifactError("the digits are split already: 20 % are held out", "leave out --test-split")
    rest, test = (
        Examples([np.rint(ink * 255).astype(np.uint8) for ink in each.ink], each.labels)
        for each in digits.load_digits()
    )
    train, validation = _split(rest, round(recipe.validation_split * len(rest)), recipe.seed)
    return Data(tuple("0123456789"), train, validation, test, DIGITS)


def _load_folder(recipe: Recipe) -> Data:
    root = Path(recipe.data)
    if not root.is_dir():
        raise ArtifactError(f"there is no folder {root}", "name a folder with a subfolder for each class, or 'digits'")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(folders) < MIN_CLASSES:
        raise ArtifactError(
            f"{root} has {len(folders) or 'no'} class: a class is a subfolder",
            "make a subfolder of images for each class",
        )
    files = {folder: sorted(path for path in folder.rglob("*") if _is_image(path)) for folder in folders}
    for folder, found in files.items():
        if not found:
            raise ArtifactError(
                f"{folder} contains no image", f"put images there ({', '.join(PICTURE_SUFFIXES)}), or delete it"
            )
    paths = [path for found in files.values() for path in found]
    labels = np.repeat(np.arange(len(folders)), [len(found) for found in files.values()])
    _check_all(paths)
    rest, test = _split(Examples(paths, labels), round(recipe.test_split * len(paths)), recipe.seed)
    train, validation = _split(rest, round(recipe.validation_split * len(paths)), recipe.seed)
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
    return Data(tuple(folder.name for folder in folders), train, validation, test, digest.hexdigest())


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _check_all(paths: Sequence[Path]) -> None:
    """Decodes every file. Raises ArtifactError for the first that cannot be decoded."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, problem in zip(paths, pool.map(_problem, paths), strict=True):
            if problem:
                pool.shutdown(cancel_futures=True)
                raise ArtifactError(f"{path} cannot be read as an image: {problem}", "replace it, or delete it")


def _problem(path: Path) -> str:
    try:
        pictures.read(path)
    except Exception as error:  # noqa: BLE001 - broken files make Pillow raise nearly anything
        return str(error)
    return ""


def _split(examples: Examples, count: int, seed: int) -> tuple[Examples, Examples]:
    """Returns the rest and `count` examples, with the same share of each class. Raises ArtifactError if that fails."""
    if count == 0:
        return examples, examples.at(np.arange(0))
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    try:
        rest, chosen = train_test_split(
            np.arange(len(examples)), test_size=count, random_state=seed, stratify=examples.labels
        )
    except ValueError as error:
        raise ArtifactError(
            f"the examples cannot be split with some of each class in both parts: {error}",
            "add images to the smallest class, or change --validation-split or --test-split",
        ) from error
    return examples.at(np.sort(rest)), examples.at(np.sort(chosen))


# Batches.


class Batches:
    """Turns examples into batches for the network, channels last. The next batch is read while one is used."""

    def __init__(self, recipe: Recipe, spec: Input) -> None:
        self._recipe = recipe
        self._spec = spec
        self._pool = ThreadPoolExecutor(os.cpu_count())

    def shuffled(self, examples: Examples, epoch: int) -> Iterator[tuple[Array, Array]]:
        """The batches of one training epoch, in an order that depends only on the seed and the epoch.

        All have the same size. The examples that are left over are not used in this epoch.
        """
        order = np.random.default_rng((self._recipe.seed, epoch)).permutation(len(examples))
        size = min(self._recipe.batch_size, len(examples))
        places = [order[start : start + size] for start in range(0, len(order) - size + 1, size)]
        return self._read(examples, places, epoch if self._recipe.augments else None)

    def in_order(self, examples: Examples) -> Iterator[tuple[Array, Array]]:
        """All examples in their order, without augmentation."""
        size, places = self._recipe.batch_size, np.arange(len(examples))
        return self._read(examples, [places[start : start + size] for start in range(0, len(places), size)], None)

    def _read(self, examples: Examples, places: list[Array], epoch: int | None) -> Iterator[tuple[Array, Array]]:
        def submit(index: int) -> tuple[Array, list[Future[Array]]]:
            chosen = examples.at(places[index])
            changes: list[Array | None] = [None] * len(chosen)
            if epoch is not None:
                changes = list(np.random.default_rng((self._recipe.seed, epoch, index)).random((len(chosen), DICE)))
            return chosen.labels, [
                self._pool.submit(self._item, *each) for each in zip(chosen.items, changes, strict=True)
            ]

        following = submit(0) if places else None
        for index in range(1, len(places) + 1):
            assert following is not None
            labels, items = following
            following = submit(index) if index < len(places) else None
            yield self._finished(np.stack([item.result() for item in items])), labels

    def _item(self, item: Path | Array, change: Array | None) -> Array:
        if not isinstance(self._spec, ImageInput):
            return np.asarray(item).reshape(self._spec.shape)
        picture = pictures.read(item) if isinstance(item, Path) else Image.fromarray(item)
        found = pictures.pixels(picture, self._spec)
        return found if change is None else augmented(found, self._recipe, change)

    def _finished(self, items: Array) -> Array:
        if isinstance(self._spec, ImageInput):
            return self._spec.normalized(items)
        return (items / 255).astype(np.float32)  # a digit's ink, from 0 to 1

    def close(self) -> None:
        """Ends the threads that read examples."""
        self._pool.shutdown(cancel_futures=True)
