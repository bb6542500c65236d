"""The memory that all workers of a run share: pages and slots (layout.py), and the description of steps.

An *entry* describes a step to the workers: its samples, and numbers for the optimizer. `window` entries take turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ...native.atomics import LINE
from ..comm.memory import Layout, SharedMemory
from ..phases import NORMS
from .claims import lay_out, table_of
from .layout import Extent
from .replica import Replica

WINDOW = 256  # the most batches that are described ahead
MOST_WORKERS = 256
EVENTS, EVENT_RANKS = 1 << 14, 32  # a timeline keeps so many events a worker, of so many workers
COMPUTE, MERGE, WAIT, SHARDS = range(4)  # columns of `times`


class Event(NamedTuple):
    """Something that a worker did: seconds of time.perf_counter(), which all processes share."""

    phase: int
    step: int
    piece: int
    start: float
    end: float


class TrainingArena:
    """What the processes of a pool share. It travels to them as an open file.

    slices: pieces of a merge and update. memory: makes so many bytes of shared memory.

    Raises SharedMemoryError where there is not enough memory.
    """

    ENTRY = ("positions", "counts", "batches", "first", "version", "local", "numbers")  # written by who submits a step

    words: np.ndarray  # int64, see claims.py
    # Of each step, in entry `step % window`:
    positions: np.ndarray  # (span * batch,) of samples, batch after batch
    counts: np.ndarray  # (span,) samples in each batch
    batches: np.ndarray  # how many
    first: np.ndarray  # number of the first one in the run
    version: np.ndarray  # of the parameters at which gradients are computed
    local: np.ndarray  # do shards take local steps?
    numbers: np.ndarray  # (span, segments, n) for the optimizer's kernel
    losses: np.ndarray  # (span, shards), NaN where there are no samples
    bad: np.ndarray  # (shards,) 0, or what is not finite, see worker.py
    scales: (
        np.ndarray
    )  # (3,) the loss scale and what it follows from, see precisions.py; those of a step by the one before
    # Of the run:
    pages: np.ndarray  # (pages, bytes)
    slots: np.ndarray  # (rings, shards, bytes)
    squares: np.ndarray  # (rings, NORMS) parts of the squared norm
    tables: np.ndarray  # (MOST_WORKERS, phases, columns) what each worker may take, if that may change: see claims.py
    activations: np.ndarray  # (shards, span, bytes) that stages of a pipeline send to later ones, and
    gradients: np.ndarray  # (shards, span, bytes) to earlier ones
    residuals: np.ndarray  # (2, shards, bytes) that compression left out
    sent: np.ndarray  # (shards, bytes) and
    factors: np.ndarray  # (shards + 1, 2, bytes) of low-rank compression
    times: np.ndarray  # (MOST_WORKERS, LINE) seconds by column; the last one counts events
    starts: np.ndarray  # (MOST_WORKERS,) processes that each worker had
    events: np.ndarray  # (EVENT_RANKS, EVENTS, fields of Event)

    def __init__(self, replica: Replica, slices: int, memory: Callable[[int], SharedMemory] = SharedMemory):
        layout, shards, settings, strategy = replica.layout, replica.shards, replica.settings, replica.strategy
        plan = replica.plan
        self.pieces = lay_out(
            strategy.phases(shards, slices, settings.clip_norm is not None, plan.links if plan else ())
        )
        needs = self.pieces[0].phase.waits()  # a step is committed when the next one may begin
        self.commits = [-need.back % len(self.pieces) for need in needs if need.slack]
        tables = table_of(self.pieces)
        span = strategy.span(settings.accumulate)
        self.window = max(4, WINDOW // span)
        self.counts_pushes = any(pieces.phase.exclusive for pieces in self.pieces)  # a version is a push, not a step
        compression, rings = strategy.compression, strategy.rings
        compressed = shards if compression else 0
        low_rank = shards if compression and compression.rank else 0
        arrays = {
            "words": ((self.pieces[-1].end,), np.int64),
            "positions": ((self.window, span * settings.batch_size), np.int64),
            "counts": ((self.window, span), np.int64),
            "batches": ((self.window,), np.int64),
            "first": ((self.window,), np.int64),
            "version": ((self.window,), np.int64),
            "local": ((self.window,), np.int64),
            "numbers": ((self.window, span, len(layout.segments), replica.optimizer.n_numbers), np.float64),
            "losses": ((self.window, span, shards), np.float64),
            "bad": ((self.window, shards), np.int64),
            "scales": ((self.window, 3), np.float64),
            "squares": ((rings, NORMS), np.float64),
            "times": ((MOST_WORKERS, LINE), np.float64),
            "starts": ((MOST_WORKERS,), np.int64),
            "events": ((EVENT_RANKS if settings.timeline else 0, EVENTS, len(Event._fields)), np.float64),
            "tables": ((MOST_WORKERS if plan else 0, *tables.shape), np.int64),
            "activations": ((shards, span, plan.activation_bytes if plan else 0), np.uint8),
            "gradients": ((shards, span, plan.gradient_bytes if plan else 0), np.uint8),
            "pages": ((strategy.pages, layout.page_bytes), np.uint8),
            "slots": ((rings, shards, strategy.slot_bytes(layout)), np.uint8),
            "residuals": ((2, compressed, layout.nbytes), np.uint8),
            "sent": ((low_rank, layout.nbytes), np.uint8),
            "factors": ((low_rank + 1 if low_rank else 0, 2, layout.nbytes), np.uint8),
        }
        memory_layout = Layout()
        self.extents = {
            name: Extent(memory_layout.place(math.prod(shape) * np.dtype(dtype).itemsize), shape, np.dtype(dtype))
            for name, (shape, dtype) in arrays.items()
        }
        self.memory = memory(memory_layout.size)
        self._map()
        self.tables[...] = tables

    def _map(self) -> None:
        for name, extent in self.extents.items():
            setattr(self, name, self.memory.array(*extent))

    def __getstate__(self):
        return {
            name: getattr(self, name) for name in ("pieces", "commits", "window", "counts_pushes", "extents", "memory")
        }

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._map()

    def committed(self) -> int:
        """How many steps are done: the result of each is in a page."""
        return int(min(self.pieces[i].sealed(self.words).min() for i in self.commits))

    def updates(self) -> int:
        """How many updates are done, where each shard is an update of its own."""
        return int(self.pieces[-1].sealed(self.words).sum())

    def newest(self) -> np.ndarray:
        """The page with the newest parameters."""
        return self.pages[self.newest_page()]

    def newest_page(self) -> int:
        """Its number."""
        return (self.updates() if self.counts_pushes else self.committed()) % len(self.pages)
