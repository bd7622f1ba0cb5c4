"""Reports how good a network is: figures from scikit-learn, charts from Matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.train.checkpoints import Epoch
from models.train.data import Array

MAX_NUMBERED_CLASSES = 20  # in a larger confusion matrix there is no room for numbers


def figures(shares: Array, labels: Array) -> dict[str, float | None]:
    """Accuracy; precision, recall, F1 and AUC (of each class against the others) as the mean over the classes.

    The AUC is None if a class has no example.
    """
    from sklearn import metrics  # noqa: PLC0415

    classes = np.arange(shares.shape[1])
    answers = shares.argmax(axis=1)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        labels, answers, labels=classes, average="macro", zero_division=0
    )
    auc = None
    if len(np.unique(labels)) == len(classes):
        one = len(classes) == 2  # noqa: PLR2004
        auc = metrics.roc_auc_score(labels, shares[:, 1] if one else shares, multi_class="ovr", labels=classes)
    found = {"accuracy": metrics.accuracy_score(labels, answers), "precision": precision, "recall": recall, "f1": f1}
    return {name: float(value) for name, value in found.items()} | {"auc": None if auc is None else float(auc)}


def draw_confusion(path: Path, shares: Array, labels: Array, classes: Sequence[str]) -> None:
    """Draws the confusion matrix as a PNG: a row for each true class, a column for each answer."""
    from sklearn.metrics import confusion_matrix  # noqa: PLC0415

    counts = confusion_matrix(labels, shares.argmax(axis=1), labels=np.arange(len(classes)))
    side = min(4 + 0.3 * len(classes), 14)
    figure = _figure(side, side)
    axes = figure.subplots()
    axes.imshow(counts, cmap="Blues")
    axes.set(xlabel="answer", ylabel="true class")
    if len(classes) <= MAX_NUMBERED_CLASSES:
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes)
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if count > counts.max() / 2 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    figure.savefig(path)


def draw_curves(path: Path, epochs: Sequence[Epoch]) -> None:
    """Draws losses, accuracy and learning rate by epoch as a PNG."""
    panels: Mapping[str, Mapping[str, list[float]]] = {
        "loss": {
            "training": [epoch.loss for epoch in epochs],
            "validation": [epoch.validation_loss for epoch in epochs],
        },
        "accuracy": {"validation": [epoch.validation_accuracy for epoch in epochs]},
        "learning rate": {"": [epoch.learning_rate for epoch in epochs]},
    }
    figure = _figure(12, 3.6)
    numbers = [epoch.number for epoch in epochs]
    for axes, (title, curves) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for label, values in curves.items():
            axes.plot(numbers, values, marker=".", label=label)
        axes.set(title=title, xlabel="epoch")
        if len(curves) > 1:
            axes.legend()
    figure.savefig(path)


def _figure(width: float, height: float) -> Any:
    """A figure of this size in inches, which needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(width, height), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    return figure
