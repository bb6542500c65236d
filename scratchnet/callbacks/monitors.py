"""Callbacks that watch one metric of a run: they end it, or keep its best state."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .. import checks
from ..errors import ConfigError
from ..sealed import Sealed
from ..trainer.moments import Progress

MODES = {"min": 1.0, "max": -1.0}  # the sign with which less is better
BEST = "best.safetensors"


class _Monitor(Sealed):
    """Watches a metric. `best` is its best value so far, from epoch `best_epoch`; None before the first epoch.

    monitor: a name in the records of a run; "val_loss", or "train_loss" where there is no validation, if None.
    mode: is "min" or "max" better? None: "max" for an accuracy, "min" for all others.
    min_delta: what is better by no more than this counts as no better.
    """

    def __init__(self, monitor: str | None = None, mode: str | None = None, min_delta: float = 0.0):
        what = type(self).__name__
        self.monitor = None if monitor is None else checks.instance(f"{what}: monitor", monitor, str, "a name or None")
        self.mode = None if mode is None else checks.one_of(f"{what}: mode", mode, MODES)
        self.min_delta = checks.number(f"{what}: min_delta", min_delta, "[0, inf)")
        self.best: float | None = None
        self.best_epoch = 0
        self._goes_on = False

    def on_fit_start(self, run: Progress) -> None:
        """What another run left is forgotten; epochs that it did not watch do not count."""
        if not self._goes_on:
            self.best, self.best_epoch = None, run.epoch
        self._goes_on = False

    @property
    def watches(self) -> str:
        """A part of the name by which a checkpoint keeps its state: the best loss is nothing to an accuracy."""
        return f" of {self.monitor or 'val_loss'}"

    def watched(self, run: Progress) -> str:
        return self.monitor or ("val_loss" if "val_loss" in run.record else "train_loss")

    def is_better(self, run: Progress) -> bool:
        """Is the newest value the best? NaN is not, and so is nothing worse than the first value."""
        value = run.metric(self.watched(run))
        sign = MODES[self.mode or ("max" if "accuracy" in self.watched(run) else "min")]
        if math.isnan(value) or (self.best is not None and not sign * value < sign * self.best - self.min_delta):
            return False
        self.best, self.best_epoch = value, run.epoch
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self._goes_on = True


class EarlyStopping(_Monitor):
    """Ends a run when a metric has not become better for `patience` epochs; see BestCheckpoint for the best weights.

    patience: at least 1. monitor, mode, min_delta: see _Monitor. A resumed run goes on counting; a new
    phase, or a run that had no EarlyStopping before, counts anew.
    """

    def __init__(self, monitor: str | None = None, patience: int = 5, mode: str | None = None, min_delta: float = 0.0):
        super().__init__(monitor, mode, min_delta)
        self.patience = checks.integer("EarlyStopping: patience", patience, 1)

    def on_fit_start(self, run: Progress) -> None:
        super().on_fit_start(run)
        if run.epoch:
            self._stop_if_late(run)

    def on_epoch_end(self, run: Progress) -> None:
        if not self.is_better(run):
            self._stop_if_late(run)

    def _stop_if_late(self, run: Progress) -> None:
        late = run.epoch - max(self.best_epoch, run.phase_epoch)
        if late >= self.patience:
            best = "a number" if self.best is None else f"better than {self.best:.4g}, of epoch {self.best_epoch},"
            run.stop(f"{self.watched(run)} has not been {best} for {late} epoch{'s' * (late > 1)}")

    def __repr__(self) -> str:
        return f"EarlyStopping({self.monitor!r}, patience={self.patience})"


class BestCheckpoint(_Monitor):
    """Keeps the state of the best epoch in a file: a checkpoint like any other, to resume from or to predict with.

    path: of the file; None: best.safetensors in the folder of the run. `file`: the one of the last run. To go on with
    the best weights: `model.load_state_dict(sn.load(best.file)["model"])`.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: str | None = None,
        min_delta: float = 0.0,
        path: str | Path | None = None,
    ):
        super().__init__(monitor, mode, min_delta)
        self.path = None if path is None else Path(checks.path("BestCheckpoint: path", path))
        self.file: Path | None = self.path

    def on_fit_start(self, run: Progress) -> None:
        if self.path is None and run.folder is None:
            raise ConfigError("expected a path, or a Trainer with a folder, got neither")
        super().on_fit_start(run)
        self.file = self._file_in(run.folder)
        others = [c for c in run.trainer.callbacks if c is not self and isinstance(c, BestCheckpoint)]
        if any(c._file_in(run.folder) == self.file for c in others):
            raise ConfigError(f"expected a path of its own for each BestCheckpoint, got two with {str(self.file)!r}")

    def _file_in(self, folder: Path | None) -> Path | None:
        return self.path or (folder and folder / BEST)

    def on_epoch_end(self, run: Progress) -> None:
        if self.is_better(run):
            run.save(self.file)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"BestCheckpoint({self.monitor!r}, path={None if self.path is None else str(self.path)!r})"
