"""LearningRateFinder: a range test on copies, before a run begins."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np

from .. import checks
from ..errors import ConfigError
from ..grad_mode import no_grad
from ..parallel.shards import shard_loss, tensors_of
from ..random import Generator
from ..report import new_figure, save_figure
from ..sealed import Sealed
from ..tensor import Tensor
from ..trainer.moments import Progress
from ..trainer.progress import say

SMOOTHING = 0.9  # of the running mean of the losses
DIVERGED = 4.0  # times the best smoothed loss: the test ends


class LearningRateFinder(Sealed):
    """Trains a copy of the model for some steps while the learning rate rises, and says where the loss falls fastest.

    smallest, largest: learning rates of the first and the last step, between which it grows by a constant factor.
    steps: at most; the test ends where the smoothed loss is four times the best one. After the test, `rates` and
    `losses` hold the steps, and `suggestion` the rate where the smoothed loss falls fastest, each batch compared with
    the model as it was, or None. The run is as it was: build the optimizer with the rate that you choose. Method:
    L. N. Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, section 3.3.
    """

    def __init__(self, smallest: float = 1e-6, largest: float = 1.0, steps: int = 100):
        self.smallest = checks.number("LearningRateFinder: smallest", smallest, "(0, inf)")
        self.largest = checks.number("LearningRateFinder: largest", largest, "(0, inf)")
        if self.smallest >= self.largest:
            raise ConfigError(f"LearningRateFinder: expected smallest < largest, got {smallest} and {largest}")
        self.steps = checks.integer("LearningRateFinder: steps", steps, 3)
        self.rates: list[float] = []
        self.losses: list[float] = []
        self._gains: list[float] = []
        self.suggestion: float | None = None

    def on_fit_start(self, run: Progress) -> None:
        if run.step:
            return  # a resumed run has had its test
        self.rates, self.losses, self._gains = [], [], []
        self._test(run)
        self.suggestion = self._steepest()
        where = "nowhere" if self.suggestion is None else f"fastest at {self.suggestion:.2g}"
        say(f"learning rate: the loss falls {where} ({len(self.rates)} steps on a copy)")

    def _test(self, run: Progress) -> None:
        model, optimizer = copy.deepcopy((run.model, run.optimizer))
        device, batches = next(iter(model.parameters())).device, _endless(run.loader)
        model.train()
        still = copy.deepcopy(model)
        smooth, gained, best, generator, twin = 0.0, 0.0, math.inf, Generator(0), Generator(0)
        for i in range(self.steps):
            rate = self.smallest * (self.largest / self.smallest) ** (i / (self.steps - 1))
            for group in optimizer.param_groups:
                group["lr"] = rate
            tensors = tensors_of(next(batches), lambda array: Tensor(array, device=device))
            loss = shard_loss(model, run.trainer.loss, tensors, generator, run.trainer.precision)
            with no_grad():
                before = shard_loss(still, run.trainer.loss, tensors, twin, run.trainer.precision).item()
            value = loss.item()
            smooth = SMOOTHING * smooth + (1 - SMOOTHING) * value
            gained = SMOOTHING * gained + (1 - SMOOTHING) * (before - value)
            weight = 1 - SMOOTHING ** (i + 1)
            mean = smooth / weight
            if not math.isfinite(value) or mean > DIVERGED * best:
                break
            best = min(best, mean)
            self.rates.append(rate)
            self.losses.append(mean)
            self._gains.append(gained / weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if len(self.rates) < 3:
            raise ConfigError(f"expected a loss that is finite for 3 steps from lr={self.smallest} on, got {value}")

    def _steepest(self) -> float | None:
        """Where training gains most: on each batch against the model as it was, since some batches are easier."""
        slopes = np.gradient(np.array(self._gains), np.log(self.rates))
        return self.rates[int(slopes.argmax())] if slopes.max() > 0 else None

    def plot(self, path: str | Path) -> None:
        """Draws loss by learning rate into an image file. Raises ConfigError without matplotlib, or before a test."""
        if not self.rates:
            raise ConfigError("LearningRateFinder.plot: expected a finder that fit has called, got a new one")
        figure = new_figure("LearningRateFinder.plot", 5, 3.5)
        axes = figure.subplots()
        axes.plot(self.rates, self.losses)
        if self.suggestion is not None:
            axes.axvline(self.suggestion, color="0.6", linestyle="--")
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss, smoothed")
        save_figure(figure, checks.path("LearningRateFinder.plot", path))

    def __repr__(self) -> str:
        return f"LearningRateFinder({self.smallest}, {self.largest}, steps={self.steps})"


def _endless(loader: Any) -> Any:
    epoch = 0
    while True:
        yield from loader.batches(epoch)
        epoch += 1
