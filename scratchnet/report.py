"""Pictures of a training run, drawn by matplotlib, which the package itself does not require."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import checks
from .errors import ConfigError, ShapeError
from .trainer import History


def new_figure(what: str, width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(f"{what}: expected matplotlib, found none; pip install matplotlib") from None
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: str | Path) -> None:
    """Raises ConfigError for a file that cannot be written, or is no image by its ending."""
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}: expected an image file to write to: {why}") from None


def plot_curves(history: History, path: str | Path) -> None:
    """Draws loss and accuracy by epoch into an image file. Raises ConfigError if matplotlib is not installed."""
    figure = new_figure("plot_curves", 9, 3.5)
    left, right = figure.subplots(1, 2)
    epochs = history["epoch"]
    for axes, title, columns in (
        (left, "loss", {"train_loss": "train", "val_loss": "validation"}),
        (right, "accuracy", {"val_accuracy": "validation"}),
    ):
        for column, label in columns.items():
            if any(value is not None for value in history[column]):
                axes.plot(epochs, history[column], marker="o", markersize=3, label=label)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if axes.lines:
            axes.legend(frameon=False)
    save_figure(figure, path)


def plot_confusion(counts: Any, path: str | Path, classes: Sequence[str] | None = None) -> None:
    """Draws a confusion matrix (see `metrics.confusion_matrix`) into an image file: a row for each label, shaded by the
    share of its rows, with the counts. classes: the names. Raises ShapeError, or ConfigError without matplotlib.
    """
    counts = checks.array("plot_confusion", counts, "iu")
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not counts.size:
        raise ShapeError(f"plot_confusion: expected counts (classes, classes), got {counts.shape}")
    names = list(map(str, range(len(counts)) if classes is None else classes))
    if len(names) != len(counts):
        raise ShapeError(f"plot_confusion: expected {len(counts)} names of classes, got {len(names)}")
    size = 2.5 + 0.5 * len(names)
    figure = new_figure("plot_confusion", size, size)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (i, j), n in np.ndenumerate(counts):
        axes.text(j, i, n, ha="center", va="center", fontsize=8, color="white" if shares[i, j] > 0.5 else "black")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="label")
    save_figure(figure, path)
