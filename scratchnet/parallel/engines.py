"""Engines: what a Trainer runs the steps of a run on. Each gets one record of settings, and knows no Trainer.

OneProgram        AllReduce in this process: a step is one recorded program
pool.steps.Solo   any other strategy in this process, piece by piece
pool.pool.Pool    worker processes
mpi.engine.Ranks  the ranks of an MPI job
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from .. import tracing
from ..data.dataset import fields_of, selects
from ..errors import DeviceError, NonFiniteError
from ..grad_mode import no_grad
from ..jit.series import TURNS
from ..kernels import device as find_device
from ..precisions import SCALED
from ..random import Generator
from ..row_gradient import total
from ..tensor import Tensor, default_device
from .comm.job import report_end, started_as
from .comm.tree import tree_sum
from .model.parts import network
from .settings import Settings, Start
from .shards import (
    StepResult,
    first_stream,
    gathered,
    nonfinite_loss,
    others_seeded,
    require_finite,
    rows_of,
    shard_loss,
    split,
    streams_kept,
    weighted_mean,
)

TOGETHER = 4e-3  # seconds of steps that are done together: Python hears of a signal that late


class Engine(Protocol):
    """Computes the steps of a run, in order.

    workers: how many compute. submitted: steps that were submitted in the run. is_between: no step has only some of its
    batches.
    """

    @property
    def workers(self) -> int: ...
    @property
    def is_between(self) -> bool: ...

    submitted: int

    def submit(self, positions: np.ndarray) -> None:
        """The positions of the next batch's samples. A step begins when it has all its batches; it may go on after
        this returns. Raises NonFiniteError, as `settled` does, for a loss or a gradient that is not finite.
        """

    def finished(self) -> list[StepResult]:
        """The steps that were found done since the last call, in order."""
        ...

    def settled(self) -> list[StepResult]:
        """`finished`, when all steps are done, and the model and the optimizer have their state."""
        ...

    def following(self, within_epoch: bool) -> AbstractContextManager[None]:
        """Inside, after `settled`, callbacks may change values of the model and the optimizer: training goes on from
        them. Raises ConfigError for what workers cannot see. within_epoch: no epoch begins then, which sets the mode.
        """
        ...

    def resize(self, workers: int) -> bool:
        """Have so many workers from now on. False: that takes another engine."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps besides model, optimizer and scheduler, once all is settled. See `Start`."""
        ...

    def loss_scale(self) -> dict[str, float]:
        """Of the next step, once all is settled, and the steps skipped because of it; empty where there is none."""
        ...

    def report(self) -> list[dict[str, float]]:
        """Of each worker: seconds spent `computing`, `merging`, `waiting`; `shards` done; `starts`, its processes."""
        ...

    def close(self, error: BaseException | None = None) -> None:
        """The end of the run, because of `error` if there is one. Processes and memory are gone afterwards."""


class OneProgram:
    """AllReduce in this process: gradients of all shards, merge and update as one recorded program.

    It has the bits of `Solo`, but needs no pages and slots, as nobody has to repeat a piece of a step: gradients are
    added up as they come, and the update is in place. jit fuses that update into the products that give the gradients,
    which it cannot do across slots and slices. A step of 784-128-10 at batch 64 takes half the time (1 shard: 366 of
    694 us; 4 shards: 652 of 1,389), so this one strategy is written twice.
    """

    workers, is_between = 1, True

    def __init__(self, settings: Settings, start: Start):
        self.settings, self.dataset, self.submitted = settings, settings.dataset, start.step
        self._device = next(iter(settings.model.parameters())).device
        self._generators = [Generator(settings.seed) for _ in range(settings.shards)]
        self._done: list[StepResult] = []
        self._gathers = settings.jit and selects(self.dataset)  # does the step gather its samples itself?
        step = self._gather_and_compute if self._gathers else self._compute_read
        self._step = settings.recorded(step)
        self._waiting: list[np.ndarray] = []  # positions of steps that are done together: see Step.series
        self._together = 1

    def submit(self, positions: np.ndarray) -> None:
        self._waiting.append(positions)
        self.submitted += 1
        if len(self._waiting) >= self._together:
            self._run()

    def _run(self) -> None:
        """Does the steps that wait, and measures how many take so long that nobody waits for them."""
        waiting, self._waiting = self._waiting, []
        first, start, done = self.submitted - len(waiting), time.perf_counter(), 0
        try:
            for number, losses in enumerate(self._losses(waiting, first), first):
                found = [[losses[k].item() if k in losses else math.nan for k in range(self.settings.shards)]]
                self._done.append(StepResult(number, number, [waiting[number - first]], np.array(found)))
                done += 1
        except NonFiniteError:
            number = first + done
            lost = NonFiniteError(f"fit: expected a finite loss at step {number}, got one that was not")
            raise nonfinite_loss(self.settings, waiting[done], number, number) or lost from None
        finally:
            self.submitted = first + done  # an error ends the run at its step
        if waiting and self._gathers:
            each = (time.perf_counter() - start) / len(waiting)
            self._together = max(1, min(TURNS, int(TOGETHER / each)))

    def _losses(self, waiting: list[np.ndarray], first: int) -> Iterator[dict[int, Tensor]]:
        """Of each step the losses of its shards."""
        shards = self.settings.shards

        def begin(i: int) -> None:
            for k, generator in enumerate(self._generators):
                generator.stream = first_stream(first + i, k, shards)

        if self._gathers:
            calls = [(Tensor(positions, device=self._device),) for positions in waiting]
            yield from self._step.series(calls, begin)  # type: ignore[attr-defined]
            return
        for i, positions in enumerate(waiting):
            begin(i)
            with streams_kept():  # the data set draws what it would in a worker that has this shard alone
                arrays = self._read(positions)
            yield self._step(*(Tensor(array, device=self._device) for array in arrays))

    def _read(self, positions: np.ndarray) -> list[np.ndarray]:
        """The samples of each shard that is not empty, one after the other."""
        seed, found = self.settings.seed, list[np.ndarray]()
        for k, generator in enumerate(self._generators):
            if len(own := split((positions,), k, len(self._generators))[0]):
                batch = gathered(self.dataset, own, seed, generator.stream)
                self._names, arrays = zip(*fields_of(batch), strict=True)
                found += arrays
        return found

    def _gather_and_compute(self, positions: Tensor) -> dict[int, Tensor]:
        with default_device(self._device):
            batch = self.dataset._select(positions)  # type: ignore[attr-defined]
        shards = self.settings.shards
        return self._compute({k: shard for k in range(shards) if len((shard := split(batch, k, shards))[0])})

    def _compute_read(self, *arrays: Tensor) -> dict[int, Tensor]:
        """arrays: those of `_read`."""
        shards, names = self.settings.shards, self._names
        parts: list[Any] = [arrays[i : i + len(names)] for i in range(0, len(arrays), len(names))]
        if isinstance(names[0], str):
            parts = [dict(zip(names, part, strict=True)) for part in parts]
        n = sum(map(rows_of, parts))
        full = [k for k in range(shards) if k * n // shards < (k + 1) * n // shards]
        return self._compute(dict(zip(full, parts, strict=True)))

    def _compute(self, parts: dict[int, Any]) -> dict[int, Tensor]:
        """A step of the optimizer; the losses of the shards that are not empty, whose samples are given."""
        settings, n = self.settings, sum(map(rows_of, parts.values()))
        buffers = list(settings.model.buffers())
        start = [_copy(buffer) for buffer in buffers]
        parameters = [state.param for state in settings.optimizer.states]
        weights = {k: rows_of(part) / n for k, part in parts.items()}
        losses: dict[int, Tensor] = {}
        ends: dict[int, list[Tensor]] = {}  # of each shard the buffers, which all shards find as they were at the start

        def gradients(k: int) -> list[Tensor | None]:
            settings.optimizer.zero_grad()
            with others_seeded(self._generators[k], settings.jit):
                losses[k] = loss = shard_loss(
                    settings.model, settings.loss, parts[k], self._generators[k], settings.precision
                )
                require_finite(loss)
                loss.backward(np.full(loss.shape, weights[k], loss.dtype))
            ends[k] = [_copy(buffer) for buffer in buffers]
            for buffer, old in zip(buffers, start, strict=True):
                _assign(buffer, old)
            return [parameter.grad for parameter in parameters]

        with streams_kept():
            merged = tree_sum(parts, gradients, _add)
        for parameter, gradient in zip(parameters, merged, strict=True):
            parameter.grad = gradient
        for i, buffer in enumerate(buffers):
            _assign(buffer, weighted_mean({k: end[i] for k, end in ends.items()}, [*weights.values()]))
        settings.optimizer.step()
        if (schedule := settings.schedule_of_steps) is not None:
            schedule.step()
        return {k: loss.detach() for k, loss in losses.items()}

    def finished(self) -> list[StepResult]:
        done, self._done = self._done, []
        return done

    def settled(self) -> list[StepResult]:
        self._run()
        return self.finished()

    def following(self, within_epoch: bool) -> AbstractContextManager[None]:
        return contextlib.nullcontext()  # it computes with the model itself

    def resize(self, workers: int) -> bool:
        return workers == 1

    def state(self) -> dict[str, np.ndarray]:
        return {}

    def loss_scale(self) -> dict[str, float]:
        return {}

    def report(self) -> list[dict[str, float]]:
        return []

    def close(self, error: BaseException | None = None) -> None:
        pass


def _add(left: Sequence[Tensor | None], right: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The sums of two shards' gradients; None where a parameter did not take part."""
    with no_grad():
        return [b if a is None else a if b is None else total(a, b) for a, b in zip(left, right, strict=True)]


def _copy(t: Tensor) -> Tensor:
    device = tracing.active(find_device(t.device))
    out = device.empty(t.shape, t.dtype)
    device.copy(t._data, out)
    return Tensor(out, device=t.device)


def _assign(t: Tensor, value: Tensor) -> None:
    tracing.active(find_device(t.device)).copy(value._data, t._data)


# --- which engine -----------------------------------------------------------------------------------------------------
# Importing scratchnet loads neither Numba nor multiprocess nor mpi4py, so engines that need them are imported here.


def is_distributed() -> bool:
    """Is this process one of several ranks of an MPI job?"""
    job = started_as()
    return job is not None and job[1] > 1


def engine_of(settings: Settings, start: Start, stop: Any = None) -> Engine:
    """The engine for these settings. stop: `stop.requested` is the signal that the run is to obey, or None."""
    strategy = settings.strategy
    settings = dataclasses.replace(settings, model=network(settings.model, strategy.parts, strategy.plan))
    if is_distributed():
        divides = strategy.divides(started_as()[1])  # type: ignore[index]
        if "cuda" in settings.placement.kinds and (settings.placement.is_given or divides):
            found = str(strategy) if divides else f"devices {settings.placement}"
            expected = "neither devices nor a divided model with GPUs under MPI, where each rank has one by its place"
            raise DeviceError(f"Trainer: expected {expected}, got {found}")
        from .mpi import engine, stages

        return (stages.StagedRanks if divides else engine.Ranks)(settings, start, stop)
    if not settings.is_local:
        from .pool.pool import Pool

        return Pool(settings, start, stop=stop)
    is_plain = settings.strategy.is_plain and settings.strategy.span(settings.accumulate) == 1
    skips = settings.skip_nonfinite or settings.precision == SCALED
    if is_plain and settings.clip_norm is None and not skips and settings.timeline is None:
        return OneProgram(settings, start)
    from .pool.steps import Solo

    return Solo(settings, start)


def begin(settings: Settings, run: Any) -> None:
    """run.start(); of several ranks the first one does it, and the others load its run.state()."""
    if not is_distributed():
        report_end()
        run.start()
        return
    from .mpi import engine

    engine.begin(settings, run)


def share_record(record: dict[str, Any]) -> dict[str, Any]:
    """The record of an epoch; of several ranks all get that of the first one."""
    if not is_distributed():
        return record
    from .mpi import engine

    return engine.share_record(record)
