"""The life of a worker: take a piece of a step, do it, seal it, until told to stop.

Each phase of claims.py that a strategy can have is a method here, called with the number of a piece and of a step. A
piece writes only what belongs to it, from what is sealed: a worker holds nothing that another could not compute again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from multiprocess import connection

from ..errors import NonFiniteError
from ..kernels.cpu.atomics import LINE
from . import failpoints
from .claims import NOTHING, OWNERS, STOPPED, seal, table_of, take
from .compress import Compressor
from .launch import Parcel, describe, dumps
from .replica import Page, Replica
from .training_arena import COMPUTE, EVENTS, MERGE, NORMS, SHARDS, WAIT, TrainingArena

LOSS_IS_BAD = -1  # in `bad`; else 1 + the number of the parameter whose gradient is not finite
COLUMNS = {"slice": MERGE, "norm": MERGE, "serve": MERGE, "basis": MERGE}  # of `times`; other phases compute


def work(channel: connection.Connection, rank: int, arena: TrainingArena, job: Parcel, spins: int) -> None:
    """What a worker process runs."""
    channel.recv()
    fail = failpoints.armed(rank, int(arena.starts[rank]) - 1)
    fail("start", arena.committed())
    worker = None
    try:
        replica, dataset = job.open()
        worker = Worker(rank, arena, replica, dataset, spins, fail)
        worker.run()
    except NonFiniteError as error:
        channel.send_bytes(dumps(("nonfinite", worker and worker.doing, str(error))))
    except Exception as error:
        channel.send_bytes(dumps(("error", worker and worker.doing, describe(error))))
    fail("exit", arena.committed())


class Worker:
    """Worker `rank` of those that share `arena`. spins: see `take`. fail: see failpoints."""

    def __init__(
        self,
        rank: int,
        arena: TrainingArena,
        replica: Replica,
        dataset: Any,
        spins: int,
        fail: Callable[..., None] = failpoints.never,
    ):
        self.rank, self.arena, self.replica, self.dataset, self.fail = rank, arena, replica, dataset, fail
        self.spins, self.scratch = spins, np.zeros(2, np.int64)
        self.pages: list[Page] = [replica.layout.page(memory) for memory in arena.pages]
        self.doing: tuple[int, int] | None = None
        self.table = table_of(arena.pieces)
        self.times, self.events = arena.times[rank], arena.events[rank] if rank < len(arena.events) else None
        self.merges: dict[Any, Any] = {}  # recorded, by what they work on
        self.shares: dict[tuple[int, ...], tuple[tuple[int, ...], list[float]]] = {}  # see _shares
        self.own = np.zeros(replica.layout.nbytes, np.uint8)  # a slot for steps apart
        self.compressor = Compressor(replica, arena) if replica.strategy.compression else None

    def run(self) -> None:
        """Until told to stop; if `spins` is negative, until there is nothing left to do."""
        arena, words, last = self.arena, self.arena.words, time.perf_counter()
        self.fail("idle", arena.committed())
        while True:
            taken = take(words, self.table, self.rank, self.spins, self.scratch)
            if taken in (STOPPED, NOTHING):
                return
            begin = time.perf_counter()
            number, piece = divmod(int(taken), OWNERS)
            pieces = arena.pieces[number]
            name, at = pieces.phase.name, pieces.seals + piece * LINE
            step = int(words[at])
            self.doing = step, piece
            self.fail(f"{name}.claimed", step)
            getattr(self, name)(piece, step)
            self.fail(f"{name}.written", step)
            seal(words, at, step + 1)
            end = time.perf_counter()
            self.times[WAIT] += begin - last
            self.times[COLUMNS.get(name, COMPUTE)] += end - begin
            if self.events is not None:
                count = int(self.times[-1])
                self.events[count % EVENTS] = number, step, piece, begin, end
                self.times[-1] = count + 1
            last = end
            self.fail("idle", step)

    # --- phases: gradients ------------------------------------------------------------------------------------------

    def shard(self, k: int, step: int) -> None:
        """The gradient of shard k, or its steps apart, to its slot."""
        row = step % self.arena.window
        slot = self.arena.slots[step % len(self.arena.slots), k]
        if self.arena.apart[row]:
            self._train_apart(k, row, slot)
        else:
            page = self.pages[self._version(row)]
            is_full = self._gradient(k, row, page, slot)
            if self.compressor:
                self.compressor.send(k, step, is_full)
        self.times[SHARDS] += 1
        self.fail("shard.half_written", step, lambda: self.replica.layout.arrays(slot))

    def _version(self, row: int) -> int:
        """Which page holds the parameters that the gradients of a step are of."""
        arena = self.arena
        return int(arena.updates() if arena.is_free else arena.version[row]) % len(self.pages)

    def _parts(self, k: int, row: int) -> Iterator[tuple[int, np.ndarray]]:
        """Shard k of each batch of a step: the batch's number in the step, and the positions of the samples."""
        end = 0
        for a in range(int(self.arena.batches[row])):
            begin, n, shards = end, int(self.arena.counts[row, a]), self.replica.shards
            end = begin + n
            yield a, self.arena.positions[row, begin + k * n // shards : begin + (k + 1) * n // shards]

    def _gradient(self, k: int, row: int, page: Page, slot: np.ndarray) -> bool:
        """The gradient of the mean loss over all batches of a step, as far as shard k has them. False: no samples."""
        arena, replica, fresh = self.arena, self.replica, True
        total = int(arena.counts[row].sum())
        arena.bad[row, k] = 0
        try:
            for a, positions in self._parts(k, row):
                arena.losses[row, a, k] = math.nan
                if len(positions):
                    arena.losses[row, a, k] = replica.gradient(
                        self.dataset, positions, len(positions) / total, int(arena.first[row]) + a, k, page, slot, fresh
                    )
                    fresh = False
            if not fresh:
                arena.bad[row, k] = 1 + replica.find_nonfinite(slot)
        except NonFiniteError:
            arena.bad[row, k], arena.losses[row, :, k] = LOSS_IS_BAD, math.nan
        if arena.bad[row, k] and not replica.skip_nonfinite:
            what = "loss" if arena.bad[row, k] == LOSS_IS_BAD else "gradient"
            name = "" if what == "loss" else f" of {replica.name_of(int(arena.bad[row, k]) - 1)!r}"
            raise NonFiniteError(f"expected a finite {what}{name}, got one that is not")
        return not fresh

    def _train_apart(self, k: int, row: int, slot: np.ndarray) -> None:
        """From the newest page, a step of its own for each batch: the slot is then a page."""
        arena, replica = self.arena, self.replica
        slot[...] = arena.pages[self._version(row)]
        page = replica.layout.page(slot)
        update = self._merge(("apart", k), lambda: replica.slice_of((0, 1), page, page, [self.own]))
        arena.bad[row, k] = 0
        for a, positions in self._parts(k, row):
            arena.losses[row, a, k] = math.nan
            if len(positions):
                number = int(arena.first[row]) + a
                arena.losses[row, a, k] = replica.gradient(self.dataset, positions, 1.0, number, k, page, self.own)
                update.update(arena.numbers[row, a], (1.0,))

    # --- phases: merges ---------------------------------------------------------------------------------------------

    def norm(self, i: int, step: int) -> None:
        """Part i of the squared norm of the merged gradient."""
        slots = [self._merged(step)[k] for k in self._shares(step)[0]]
        self.arena.squares[step % len(self.arena.squares), i] = self.replica.sum_of_squares((i, NORMS), slots)

    def slice(self, s: int, step: int) -> None:
        """Slice s of the page after the step, from the page before it and all slots."""
        arena, replica, row = self.arena, self.replica, step % self.arena.window
        part, (full, weights) = (s, arena.pieces[-1].count), self._shares(step)
        old, new = (self.pages[t % len(self.pages)] for t in (step, step + 1))
        apart, ring = bool(arena.apart[row]), step % len(arena.slots)
        kind = s, step % len(self.pages), ring, full, apart
        if apart:
            pages = [replica.layout.page(arena.slots[ring, k]) for k in full]
            merge = self._merge(kind, lambda: replica.average_of(part, pages, new))
            merge.update(weights)
        else:
            slots = [self._merged(step)[k] for k in full]
            merge = self._merge(kind, lambda: replica.slice_of(part, old, new, slots))
            if arena.bad[row].any():
                merge.skip()
            else:
                merge.update(arena.numbers[row, 0], weights, self._factor(step))
        self.fail("slice.half_written", step, lambda: merge.written)

    def serve(self, k: int, step: int) -> None:
        """Asynchronous: the gradient of shard k alone becomes an update."""
        old, new = ((self.arena.updates() + i) % len(self.pages) for i in (0, 1))
        self._apply(k, step, self.pages[old], self.pages[new], old)

    def live(self, k: int, step: int) -> None:
        """Hogwild: the gradient of shard k, and at once its update, in place."""
        self._gradient(k, step % self.arena.window, self.pages[0], self.arena.slots[0, k])
        self.times[SHARDS] += 1
        self._apply(k, step, self.pages[0], self.pages[0], 0)

    def _apply(self, k: int, step: int, old: Page, new: Page, kind: int) -> None:
        row, slot = step % self.arena.window, self.arena.slots[0, k]
        merge = self._merge((kind, k), lambda: self.replica.slice_of((0, 1), old, new, [slot]))
        if self.arena.bad[row, k] or k not in self._shares(step)[0]:
            for source, target in zip(old, new, strict=True):
                target[...] = source
        else:
            merge.update(self.arena.numbers[row, 0], (1.0,))

    def basis(self, piece: int, step: int) -> None:
        """PowerSGD: the common basis."""
        self.compressor.find_basis(step, self._shares(step)[0])  # type: ignore[union-attr]

    def project(self, k: int, step: int) -> None:
        """PowerSGD: what shard k sends."""
        self.compressor.project(k, step, k in self._shares(step)[0])  # type: ignore[union-attr]

    # --- helpers ----------------------------------------------------------------------------------------------------

    def _shares(self, step: int) -> tuple[tuple[int, ...], list[float]]:
        """The shards that have samples in a step, and what part of all samples each has."""
        row, shards = step % self.arena.window, self.replica.shards
        counts = tuple(self.arena.counts[row, : self.arena.batches[row]].tolist())
        if counts not in self.shares:
            sizes = [sum((k + 1) * n // shards - k * n // shards for n in counts) for k in range(shards)]
            full = tuple([k for k, size in enumerate(sizes) if size])
            self.shares[counts] = full, [sizes[k] / sum(counts) for k in full]
        return self.shares[counts]

    def _merged(self, step: int) -> np.ndarray:
        """What is merged of each shard: its slot, or what it sent of it."""
        arena = self.arena
        return arena.sent if len(arena.sent) else arena.slots[step % len(arena.slots)]

    def _factor(self, step: int) -> float:
        """What the gradient is multiplied with, so that its norm is at most clip_norm."""
        if self.replica.clip_norm is None:
            return 1.0
        norm = math.sqrt(sum(self.arena.squares[step % len(self.arena.squares)].tolist()))
        return min(1.0, self.replica.clip_norm / (norm + 1e-6))

    def _merge(self, kind: Any, make: Callable[[], Any]) -> Any:
        """The recorded merge of a kind, made at its first use."""
        if kind not in self.merges:
            self.merges[kind] = make()
        return self.merges[kind]
