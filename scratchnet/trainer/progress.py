"""What a run shows while it trains: a progress bar over the batches of an epoch, and a line at its end."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import numpy as np

from ..parallel.engines import Engine

SHOW_EVERY = 0.5  # seconds between two looks at the workers


def epoch_line(record: dict[str, Any], epochs: int) -> str:
    """An epoch in one line."""
    names = {"train_loss": "train loss", "val_loss": "val loss", "val_accuracy": "val accuracy"}
    parts = [f"{label} {record[name]:.4f}" for name, label in names.items() if name in record]
    speed = f"{record['seconds']:.2f} s  {record['samples_per_second']:,.0f} samples/s"
    return "  ".join([f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}", *parts, speed])


def progress_bar(epoch: int, epochs: int, batch: int, batches: int, show: bool) -> Any:
    """A context manager: tqdm's bar if tqdm is installed and there is a terminal. It begins at `batch` of `batches`."""
    try:
        from tqdm import tqdm
    except ImportError:
        return _NoBar()

    class Bar(tqdm):
        shown, before = 0.0, np.zeros(0)

        def show_workers(self, engine: Engine) -> None:
            """The part of the time since the last look that each worker was busy."""
            if self.disable or time.monotonic() < self.shown + SHOW_EVERY:
                return
            self.shown = time.monotonic()
            seconds = np.array([[row["computing"] + row["merging"], row["waiting"]] for row in engine.report()])
            new = seconds - self.before if seconds.shape == self.before.shape else seconds
            self.before = seconds
            if len(new) and (new.sum(axis=1) > 0).all():
                self.set_postfix_str("busy " + " ".join(f"{x:.0%}" for x in new[:, 0] / new.sum(axis=1)), refresh=False)

    return Bar(
        total=batches,
        initial=batch,
        desc=f"epoch {epoch + 1}/{epochs}",
        leave=False,
        unit="batch",
        disable=None if show else True,
    )


class _NoBar(contextlib.nullcontext):
    def __enter__(self) -> _NoBar:
        return self

    def update(self) -> None:
        pass

    def show_workers(self, engine: Engine) -> None:
        pass
