"""Figures that can be checked by hand, and charts that can be opened."""

import numpy as np
import pytest
from PIL import Image

from models.train import report
from models.train.checkpoints import Epoch


def shares(answers, classes):
    return np.eye(classes)[answers] * 0.8 + 0.2 / classes


def test_figures_of_two_classes():
    given = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.8, 0.2]])
    found = report.figures(given, np.array([0, 0, 1, 1]))
    # One of the two yeses is missed; three of the four pairs of a yes and a no are in order.
    assert found == pytest.approx(
        {"accuracy": 3 / 4, "precision": (2 / 3 + 1) / 2, "recall": 3 / 4, "f1": (4 / 5 + 2 / 3) / 2, "auc": 3 / 4}
    )


def test_figures_of_many_classes():
    found = report.figures(shares([0, 1, 2, 2], 3), np.array([0, 1, 2, 2]))
    assert found == pytest.approx(dict.fromkeys(("accuracy", "precision", "recall", "f1", "auc"), 1))


def test_a_class_without_examples_has_no_auc():
    found = report.figures(shares([0, 1, 1], 3), np.array([0, 1, 1]))
    assert found["auc"] is None
    assert found["accuracy"] == 1


@pytest.mark.parametrize("classes", [2, 10, 200])
def test_the_pictures_open(tmp_path, classes):
    labels = np.arange(classes)
    names = [f"class {label}" for label in labels]
    report.draw_confusion(tmp_path / "confusion.png", shares(labels, classes), labels, names)
    epochs = [
        Epoch(number=n, loss=1 / n, validation_loss=2 / n, validation_accuracy=0.5, learning_rate=0.1, seconds=1)
        for n in (1, 2, 3)
    ]
    report.draw_curves(tmp_path / "curves.png", epochs)
    for path in tmp_path.iterdir():
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 300
