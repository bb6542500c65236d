"""The life of a worker: take a piece of a step, do it, seal it, until told to stop.

Each phase of claims.py that a strategy can have is a method here, called with the number of a piece and of a step. A
piece writes only what belongs to it, from what is sealed: a worker holds nothing that another could not compute again.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from multiprocess import connection

from ...errors import NonFiniteError
from ...native.atomics import LINE, publish
from ...tensor import default_device
from .. import failpoints
from .claims import NOTHING, OWNERS, STOPPED, table_of, take
from .compress import Compressor
from .device_memory import memory_for
from .launch import SharedObject, describe, dumps
from .placement import Placement, go_to
from .replica import Replica
from .training_arena import COMPUTE, EVENTS, MERGE, NORMS, SHARDS, WAIT, TrainingArena

LOSS_IS_BAD = -1  # in `bad`; else 1 + the number of the parameter whose gradient is not finite
COLUMNS = {"slice": MERGE, "norm": MERGE, "serve": MERGE, "basis": MERGE}  # of `times`; other phases compute


def work(
    channel: connection.Connection,
    rank: int,
    arena: TrainingArena,
    job: SharedObject,
    spins: int,
    placement: Placement,
    own: Sequence[int],
) -> None:
    """What a worker process runs. placement: the devices of all workers. own: cores that it keeps to; none: any."""
    if own:
        os.sched_setaffinity(0, own)
    channel.recv()
    fail = failpoints.armed(rank, int(arena.starts[rank]) - 1)
    fail("start", arena.committed())
    worker = None
    try:
        device = go_to(placement.of(rank))
        replica, dataset = job.open()
        with default_device(device):
            may = placement.shards_of(rank, replica.shards) if placement.are_mixed else None
            worker = Worker(rank, arena, replica.to(device), dataset, spins, fail, may)
            worker.run()
    except NonFiniteError as error:
        channel.send_bytes(dumps(("nonfinite", worker and worker.doing, str(error))))
    except Exception as error:
        channel.send_bytes(dumps(("error", worker and worker.doing, describe(error))))
    fail("exit", arena.committed())


class Shares(NamedTuple):
    """Of a step: parts of each shard, (batch, first sample, end); samples in all; shards with any, and their part."""

    parts: list[list[tuple[int, int, int]]]
    samples: int
    full: tuple[int, ...]
    weights: list[float]

    @classmethod
    def of(cls, counts: Sequence[int], shards: int) -> Shares:
        """Batches of so many samples."""
        ends = [sum(counts[:a]) for a in range(len(counts))]
        parts = [
            [(a, ends[a] + k * n // shards, ends[a] + (k + 1) * n // shards) for a, n in enumerate(counts)]
            for k in range(shards)
        ]
        sizes = [sum(hi - lo for _, lo, hi in part) for part in parts]
        full = tuple([k for k, size in enumerate(sizes) if size])
        return cls(parts, sum(counts), full, [sizes[k] / sum(counts) for k in full])


class Worker:
    """Worker `rank` of those that share `arena`. spins: see `take`. fail: see failpoints. may: shards that it may do.

    Gradients are computed on the device of the replica, all else on the host.
    """

    def __init__(
        self,
        rank: int,
        arena: TrainingArena,
        replica: Replica,
        dataset: Any,
        spins: int,
        fail: Callable[..., None] = failpoints.never,
        may: np.ndarray | None = None,
    ):
        self.rank, self.arena, self.replica, self.dataset, self.fail = rank, arena, replica, dataset, fail
        self.spins, self.scratch = spins, np.zeros(2, np.int64)
        self.gradients = memory_for(replica, arena)
        self.pages = self.gradients.pages
        self.doing: tuple[int, int] | None = None
        self.last = time.perf_counter()  # end of the last piece
        self.table = table_of(arena.pieces, may)
        self.times, self.events = arena.times[rank], arena.events[rank] if rank < len(arena.events) else None
        self.kept: dict[Any, Any] = {}  # what is recorded, by what it works on
        self.shares: dict[tuple[int, ...], Shares] = {}
        self.compressor = Compressor(replica, arena) if replica.strategy.compression else None

    def run(self) -> None:
        """Until told to stop; if `spins` is negative, until there is nothing left to do."""
        self.last = time.perf_counter()
        self.fail("idle", self.arena.committed())
        while True:
            taken = take(self.arena.words, self.table, self.rank, self.spins, self.scratch)
            if taken in (STOPPED, NOTHING):
                return
            self.do(*divmod(int(taken), OWNERS))

    def do(self, number: int, piece: int) -> None:
        """A piece of phase `number`, for the next step in which it is to be done, and its seal."""
        begin, words, pieces = time.perf_counter(), self.arena.words, self.arena.pieces[number]
        name, at = pieces.phase.name, pieces.seals + piece * LINE
        step = int(words[at])
        self.doing = step, piece
        self.fail(f"{name}.claimed", step)
        getattr(self, name)(piece, step)
        self.fail(f"{name}.written", step)
        publish(words, at, step + 1)
        end = time.perf_counter()
        self.times[WAIT] += begin - self.last
        self.times[COLUMNS.get(name, COMPUTE)] += end - begin
        if self.events is not None:
            count = int(self.times[-1])
            self.events[count % EVENTS] = number, step, piece, begin, end
            self.times[-1] = count + 1
        self.last = end
        self.fail("idle", step)

    # --- phases: gradients ------------------------------------------------------------------------------------------

    def shard(self, k: int, step: int) -> None:
        """The gradient of shard k, or its steps apart, to its slot."""
        row, ring = step % self.arena.window, step % len(self.arena.slots)
        if self.arena.apart[row]:
            self._train_apart(k, row)
        else:
            self._gradient(k, row, ring, self._version(row))
            if self.compressor:
                self.compressor.send(k, step, k in self._shares(row).full)
        self.times[SHARDS] += 1
        self.fail("shard.half_written", step, lambda: self.replica.layout.arrays(self.arena.slots[ring, k]))

    def _version(self, row: int) -> int:
        """Of the parameters that the gradients of a step are of."""
        arena = self.arena
        return int(arena.updates() if arena.is_free else arena.version[row])

    def _gradient(self, k: int, row: int, ring: int, version: int) -> None:
        """The gradient, as far as shard k has the samples, of the mean loss over all batches of a step."""
        arena, replica, shares = self.arena, self.replica, self._shares(row)
        page, slot, first = self.gradients.page(version), self.gradients.slot(ring, k), int(arena.first[row])
        bad, fresh = 0, True
        try:
            for a, lo, hi in shares.parts[k]:
                loss = math.nan
                if lo < hi:
                    gradient = self._kept(
                        ("gradient", id(page), id(slot), hi - lo, fresh),
                        lambda n, fresh: replica.gradient_of(self.dataset, n, page, slot, fresh), hi - lo, fresh,
                    )  # fmt: skip
                    loss = gradient.compute(arena.positions[row, lo:hi], (hi - lo) / shares.samples, first + a, k)
                    fresh = False
                arena.losses[row, a, k] = loss
            if not fresh:
                self.gradients.hand_in(ring, k)
                bad = 1 + replica.find_nonfinite(arena.slots[ring, k])
        except NonFiniteError:
            bad, arena.losses[row, :, k] = LOSS_IS_BAD, math.nan
        arena.bad[row, k] = bad
        if bad and not replica.skip_nonfinite:
            what = "loss" if bad == LOSS_IS_BAD else f"gradient of {replica.name_of(bad - 1)!r}"
            raise NonFiniteError(f"expected a finite {what}, got one that is not")

    def _train_apart(self, k: int, row: int) -> None:
        """From the newest page, a step of its own for each batch: the slot is then a page."""
        arena, replica = self.arena, self.replica
        slot, own = self.gradients.copy(self._version(row), 0, k), self.gradients.scratch
        page = replica.layout.page(slot)
        update = self._kept(("update", id(slot)), lambda: replica.slice_of((0, 1), page, page, [own]))
        arena.bad[row, k] = LOSS_IS_BAD  # unless it turns out otherwise
        for a, lo, hi in self._shares(row).parts[k]:
            loss = math.nan
            if lo < hi:
                kind = "apart", id(slot), hi - lo
                gradient = self._kept(kind, lambda n: replica.gradient_of(self.dataset, n, page, own), hi - lo)
                loss = gradient.compute(arena.positions[row, lo:hi], 1.0, int(arena.first[row]) + a, k)
                update.update(arena.numbers[row, a], (1.0,))
            arena.losses[row, a, k] = loss
        self.gradients.hand_in(0, k)
        arena.bad[row, k] = 0

    # --- phases: merges ---------------------------------------------------------------------------------------------

    def norm(self, i: int, step: int) -> None:
        """Part i of the squared norm of the merged gradient."""
        squares = self.arena.squares[step % len(self.arena.squares)]
        squares[i] = self.replica.sum_of_squares((i, NORMS), self._merged(step))

    def slice(self, s: int, step: int) -> None:
        """Slice s of the page after the step, from the page before it and all slots."""
        arena, replica, row = self.arena, self.replica, step % self.arena.window
        part, shares = (s, arena.pieces[-1].count), self._shares(row)
        old, new = (t % len(self.pages) for t in (step, step + 1))
        apart, ring = bool(arena.apart[row]), step % len(arena.slots)
        merged, slots = self._merged(step), [arena.slots[ring, k] for k in shares.full]
        if apart:
            pages = [replica.layout.page(memory) for memory in merged]
            merge = self._kept(
                ("mean", s, new, shares.full), lambda: replica.average_of(part, pages, self.pages[new], slots)
            )
            merge.update(shares.weights)
        else:
            merge = self._kept(
                ("slice", s, old, ring, shares.full),
                lambda: replica.slice_of(part, self.pages[old], self.pages[new], merged, slots),
            )
            if self._is_skipped(row):
                merge.skip()
                if self.compressor:
                    self.compressor.skip(step)
            else:
                merge.update(arena.numbers[row, 0], shares.weights, self._factor(step))
        self.fail("slice.half_written", step, lambda: merge.written)

    def serve(self, k: int, step: int) -> None:
        """Asynchronous: the gradient of shard k alone becomes an update."""
        old, new = ((self.arena.updates() + i) % len(self.pages) for i in (0, 1))
        self._apply(k, step % self.arena.window, old, new)

    def live(self, k: int, step: int) -> None:
        """Hogwild: the gradient of shard k, and at once its update, in place."""
        row = step % self.arena.window
        self._gradient(k, row, 0, 0)
        self.times[SHARDS] += 1
        self._apply(k, row, 0, 0)

    def _apply(self, k: int, row: int, old: int, new: int) -> None:
        pages, slot = (self.pages[old], self.pages[new]), self.arena.slots[0, k]
        merge = self._kept(("apply", k, old), lambda: self.replica.slice_of((0, 1), *pages, [slot]))
        if self.arena.bad[row, k] or k not in self._shares(row).full:
            for source, target in zip(*pages, strict=True):
                target[...] = source
        else:
            merge.update(self.arena.numbers[row, 0], (1.0,))

    def basis(self, piece: int, step: int) -> None:
        """PowerSGD: the common basis."""
        row = step % self.arena.window
        if not self._is_skipped(row):
            self.compressor.find_basis(step, self._shares(row).full)  # type: ignore[union-attr]

    def project(self, k: int, step: int) -> None:
        """PowerSGD: what shard k sends."""
        row = step % self.arena.window
        if not self._is_skipped(row):
            self.compressor.project(k, step, k in self._shares(row).full)  # type: ignore[union-attr]

    # --- helpers ----------------------------------------------------------------------------------------------------

    def _shares(self, row: int) -> Shares:
        """How the samples of a step are shared out."""
        counts = tuple(self.arena.counts[row, : self.arena.batches[row]].tolist())
        if counts not in self.shares:
            self.shares[counts] = Shares.of(counts, self.replica.shards)
        return self.shares[counts]

    def _merged(self, step: int) -> list[np.ndarray]:
        """What is folded: of each shard that is not empty its slot, or what it sent of it."""
        arena = self.arena
        slots = arena.sent if len(arena.sent) else arena.slots[step % len(arena.slots)]
        return [slots[k] for k in self._shares(step % arena.window).full]

    def _is_skipped(self, row: int) -> bool:
        """Is the step left out, because something is not finite in it? All gradients are there."""
        return self.replica.skip_nonfinite and bool(self.arena.bad[row].any())

    def _factor(self, step: int) -> float:
        """What the gradient is multiplied with, so that its norm is at most clip_norm."""
        if self.replica.clip_norm is None:
            return 1.0
        norm = math.sqrt(sum(self.arena.squares[step % len(self.arena.squares)].tolist()))
        return min(1.0, self.replica.clip_norm / (norm + 1e-6))

    def _kept(self, kind: Any, make: Callable[..., Any], *arguments: Any) -> Any:
        """What is recorded, of a kind, made at its first use."""
        if kind not in self.kept:
            self.kept[kind] = make(*arguments)
        return self.kept[kind]
