"""Pictures of a training run, drawn by matplotlib, which the package itself does not require."""

from pathlib import Path

from .errors import ConfigError
from .trainer import History


def plot_curves(history: History, path: str | Path) -> None:
    """Draws loss and accuracy by epoch into an image file. Raises ConfigError if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("plot_curves: expected matplotlib, found none; pip install matplotlib") from None
    figure = Figure(figsize=(9, 3.5), layout="constrained")
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
    figure.savefig(path, dpi=120)
