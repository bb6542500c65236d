"""All that an engine has to know of a run, in one record. The Trainer makes it; engines and the planner read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data import DataLoader
from ..jit.program import Outputs
from ..jit.step import Step
from ..nn import Module
from ..tensor import Tensor
from .placement import Placement
from .strategies import Strategy


@dataclass(frozen=True)
class Settings:
    """What a run computes, and where. The names are those of the Trainer's arguments.

    skip_nonfinite: pass over a step with a gradient that is not finite, instead of raising NonFiniteError.
    keeps_checkpoints: somebody will ask engines for their state.
    patience: seconds without progress after which a worker process counts as stuck, at least.
    precision: in which type the model and the loss compute products, see precisions.py.
    """

    model: Module
    optimizer: Any
    loss: Callable[..., Tensor]
    scheduler: Any
    loader: DataLoader
    strategy: Strategy
    shards: int
    seed: int
    accumulate: int
    clip_norm: float | None
    skip_nonfinite: bool
    jit: bool
    workers: int
    placement: Placement
    timeline: Path | None
    keeps_checkpoints: bool
    patience: float = 30.0
    precision: str = "float32"

    @property
    def batch_size(self) -> int:
        """The most samples of a batch."""
        return min(self.loader.batch_size, len(self.loader.order))

    @property
    def dataset(self) -> Any:
        """What samples are read from."""
        return self.loader.source

    @property
    def is_local(self) -> bool:
        """Does one process do everything, on the device of the model?"""
        return self.workers == 1 and not self.placement.is_given

    @property
    def schedule_of_steps(self) -> Any:
        """The scheduler, if it steps with the optimizer; Trainer steps one that goes by epochs or by a metric."""
        return self.scheduler if getattr(self.scheduler, "by", "step") == "step" else None

    @property
    def functions(self) -> list[Any]:
        """What a step calls of the user, besides the model: the loss, and functions of the data set."""
        return [self.loss, *_functions(self.dataset if self.loader else None)]

    def recorded(self, step: Callable[..., Any], outputs: Outputs | None = None) -> Callable[..., Any]:
        """`step`, recorded in its first calls and replayed later, if the run is to; else as it is.

        Where no program can stand for it, a warning says why, and it runs as it is.
        """
        if not self.jit:
            return step
        return Step(step, outputs, (self.model, *self.functions), tolerant=True)


def _functions(dataset: Any) -> Iterator[Any]:
    """The user's functions in a data set that maps another one."""
    while dataset is not None:
        yield getattr(dataset, "function", None)
        dataset = getattr(dataset, "dataset", None)


class Start(NamedTuple):
    """Where an engine begins: the numbers of its first step and batch in the run; `state()` of the engine before."""

    step: int = 0
    batch: int = 0
    state: dict[str, np.ndarray] = {}  # noqa: RUF012 - never changed
