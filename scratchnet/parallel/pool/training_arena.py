"""The memory that all workers of a run share: parameters and gradients live here once, and steps are told here.

A *row* describes one step to the workers: which samples, which numbers for the optimizer. There are `window` rows,
which take turns. Pages and slots are those of replica.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ...native.atomics import LINE
from ..comm.memory import Layout, SharedMemory
from ..strategies import Compression, Hogwild, LocalSGD, ParameterServer, PowerSGD
from .claims import Phase, lay_out
from .replica import Replica

WINDOW = 256  # batches that are written ahead at most
MOST_WORKERS = 256
SLICES = 16  # pieces of the merge and update of a pool, at most: one a worker
NORMS = 8  # pieces of the norm of a gradient: part of the arithmetic, so not one a worker
EVENTS, EVENT_RANKS = 1 << 14, 32  # that a timeline holds: of each worker, and of how many
COMPUTE, MERGE, WAIT, SHARDS = range(4)  # columns of `times`


class Event(NamedTuple):
    """Something that a worker did: seconds of time.perf_counter(), which all processes share."""

    phase: int
    step: int
    piece: int
    start: float
    end: float


def phases_of(replica: Replica, slices: int) -> list[Phase]:
    """What a step consists of: the names are those of the worker's methods. slices: pieces of the merge and update."""
    strategy, shards = replica.strategy, replica.shards
    if isinstance(strategy, Hogwild):
        return [Phase("live", shards, slack=1, paired=True)]
    if isinstance(strategy, ParameterServer) and strategy.staleness is None:
        return [Phase("shard", shards, slack=1, paired=True), Phase("serve", shards, paired=True, exclusive=True)]
    phases = [Phase("shard", shards, slack=strategy.lag + 1)]
    if isinstance(strategy.compression, PowerSGD):
        phases += [Phase("basis", 1), Phase("project", shards)]
    if replica.clip_norm is not None:
        phases += [Phase("norm", NORMS)]
    return [*phases, Phase("slice", slices)]


class TrainingArena:
    """What the processes of a pool share. It travels to them as an open file.

    batch: the most samples of a batch; span: the most batches of a step. slices: see phases_of. timeline: keep what
    each worker did, and when. memory: makes so many bytes of it.

    Raises SharedMemoryError where there is not enough memory.
    """

    TOLD = ("positions", "counts", "batches", "first", "version", "apart", "numbers")  # written by who submits a step

    words: np.ndarray  # int64, see claims.py
    # Of each step, by its number modulo `window`:
    positions: np.ndarray  # (span * batch,) of samples, batch after batch
    counts: np.ndarray  # (span,) samples in each batch
    batches: np.ndarray  # how many
    first: np.ndarray  # number of the first one in the run
    version: np.ndarray  # of the parameters that the gradients are of
    apart: np.ndarray  # do shards train apart? See LocalSGD
    numbers: np.ndarray  # (span, segments, n) for the optimizer's kernel
    losses: np.ndarray  # (span, shards), NaN where there are no samples
    bad: np.ndarray  # (shards,) 0, or what was not finite, see worker.py
    # Of the run:
    pages: np.ndarray  # (pages, bytes)
    slots: np.ndarray  # (steps that wait at once, shards, bytes)
    squares: np.ndarray  # (steps that wait at once, NORMS) parts of the squared norm
    residuals: np.ndarray  # (2, shards, bytes) that compression left out
    sent: np.ndarray  # (shards, bytes) and
    factors: np.ndarray  # (shards + 1, 2, bytes) of PowerSGD
    times: np.ndarray  # (MOST_WORKERS, LINE) seconds by column; the last counts events
    starts: np.ndarray  # (MOST_WORKERS,) processes that each worker had
    events: np.ndarray  # (EVENT_RANKS, EVENTS, fields of Event)

    def __init__(
        self,
        replica: Replica,
        batch: int,
        span: int,
        slices: int,
        timeline: bool = False,
        memory: Callable[[int], SharedMemory] = SharedMemory,
    ):
        layout, shards, strategy = replica.layout, replica.shards, replica.strategy
        self.pieces = lay_out(phases_of(replica, slices))
        self.window = max(4, WINDOW // span)
        self.is_free = any(pieces.phase.exclusive for pieces in self.pieces)  # versions count pushes, not steps
        rings = strategy.lag + 1
        pages = 1 if isinstance(strategy, Hogwild) else 3 if self.is_free else max(2, rings)
        compressed = shards if isinstance(strategy.compression, Compression) else 0
        low_rank = shards if isinstance(strategy.compression, PowerSGD) else 0
        slot_bytes = layout.page_bytes if isinstance(strategy, LocalSGD) else layout.nbytes
        arrays = {
            "words": ((self.pieces[-1].end,), np.int64),
            "positions": ((self.window, span * batch), np.int64),
            "counts": ((self.window, span), np.int64),
            "batches": ((self.window,), np.int64),
            "first": ((self.window,), np.int64),
            "version": ((self.window,), np.int64),
            "apart": ((self.window,), np.int64),
            "numbers": ((self.window, span, len(layout.segments), replica.optimizer.n_numbers), np.float64),
            "losses": ((self.window, span, shards), np.float64),
            "bad": ((self.window, shards), np.int64),
            "squares": ((rings, NORMS), np.float64),
            "times": ((MOST_WORKERS, LINE), np.float64),
            "starts": ((MOST_WORKERS,), np.int64),
            "events": ((EVENT_RANKS if timeline else 0, EVENTS, len(Event._fields)), np.float64),
            "pages": ((pages, layout.page_bytes), np.uint8),
            "slots": ((rings, shards, slot_bytes), np.uint8),
            "residuals": ((2, compressed, layout.nbytes), np.uint8),
            "sent": ((low_rank, layout.nbytes), np.uint8),
            "factors": ((low_rank + 1 if low_rank else 0, 2, layout.nbytes), np.uint8),
        }
        room = Layout()
        self.places = {
            name: (room.place(math.prod(shape) * np.dtype(dtype).itemsize), shape, dtype)
            for name, (shape, dtype) in arrays.items()
        }
        self.memory = memory(room.size)
        self._map()

    def _map(self) -> None:
        for name, place in self.places.items():
            setattr(self, name, self.memory.array(*place))

    def __getstate__(self):
        return {name: getattr(self, name) for name in ("pieces", "window", "is_free", "places", "memory")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._map()

    def committed(self) -> int:
        """Steps that are done: all of each is in a page."""
        return int(self.pieces[-1].sealed(self.words).min())

    def updates(self) -> int:
        """Where each shard is an update of its own: how many were done."""
        return int(self.pieces[-1].sealed(self.words).sum())

    def newest(self) -> np.ndarray:
        """The page after the last update that is done."""
        return self.pages[(self.updates() if self.is_free else self.committed()) % len(self.pages)]
