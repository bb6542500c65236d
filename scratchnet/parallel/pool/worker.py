"""The life of a worker: take a piece of a step, do it, seal it, until told to stop.

Each phase that a strategy can state is a method here, called with the number of a piece and of a step. A piece reads
only what is sealed and writes only what belongs to it: a worker holds nothing that another could not compute again.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from multiprocess import connection

from ...errors import NonFiniteError
from ...native.atomics import LINE, publish
from ...precisions import LEAST_SCALE, SCALED, next_scale
from ...tensor import default_device
from .. import failpoints
from ..model.pieces import Memory, Part, Stages
from ..objects import SharedObject, dumps
from ..phases import NORMS
from ..placement import Placement, go_to
from ..shards import Shares
from .claims import NOTHING, OWNERS, STOPPED, table_of, take
from .compress import Compressor
from .device_memory import Blocks, memory_for
from .launch import describe
from .replica import Gradient, Replica
from .slices import Average, Slice
from .training_arena import COMPUTE, EVENTS, MERGE, SHARDS, WAIT, TrainingArena

LOSS_IS_BAD = -1  # in `bad`; else 1 + the number of the parameter whose gradient is not finite
COLUMNS = {"slice": MERGE, "norm": MERGE, "serve": MERGE, "basis": MERGE}  # of `times`; other phases compute


def work(
    channel: connection.Connection,
    rank: int,
    arena: TrainingArena,
    job: SharedObject,
    spins: int,
    placement: Placement,
    blocks: Blocks | None,
    own: Sequence[int],
) -> None:
    """What a worker process runs. job: the replica. placement: of all workers. blocks: see `memory_for`. own: cores to
    keep to; none: any.
    """
    if own:
        os.sched_setaffinity(0, own)
    channel.recv()
    fail = failpoints.armed(rank, int(arena.starts[rank]) - 1)
    fail("start", arena.committed())
    worker = None
    try:
        device = go_to(placement.of(rank))
        replica = job.open()
        replica.streams_kept = contextlib.nullcontext
        if device == replica.device.name:  # a GPU gets copies
            replica.let_go()
        with default_device(device):
            may = placement.shards_of(rank, replica.shards) if placement.are_mixed else None
            worker = Worker(rank, arena, replica.to(device), spins, fail, may, blocks)
            worker.run()
    except NonFiniteError as error:
        channel.send_bytes(dumps(("nonfinite", worker and worker.doing, str(error))))
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:  # as any other death: another worker does the piece
            raise
        channel.send_bytes(dumps(("error", worker and worker.doing, describe(error))))
    fail("exit", arena.committed())


class Worker:
    """Worker `rank` of those that share `arena`. Gradients are computed on the device of the replica, all else on the
    host, or where the blocks are.

    spins: see `take`. fail: see failpoints. may: bools, the shards that it may compute; None: all. blocks: see
    `memory_for`.
    """

    folded: np.ndarray | None = None  # the sum of all slots, where somebody else makes it: see mpi/engine.py
    leaves: Callable[[tuple[int, ...]], Sequence[int]] = staticmethod(lambda full: full)  # see `_to_fold`

    def __init__(
        self,
        rank: int,
        arena: TrainingArena,
        replica: Replica,
        spins: int,
        fail: Callable[..., None] = failpoints.never,
        may: np.ndarray | None = None,
        blocks: Blocks | None = None,
    ):
        self.rank, self.arena, self.replica, self.fail = rank, arena, replica, fail
        self.spins, self.scratch = spins, np.zeros(2, np.int64)
        self.gradients = memory_for(replica, arena, blocks)
        self.pages = self.gradients.pages
        self.doing: tuple[int, int] | None = None  # step and piece
        self.last = time.perf_counter()  # end of the last piece
        self.table = arena.tables[rank] if len(arena.tables) else table_of(arena.pieces, [may])
        self.stages = Stages(replica, replica.plan) if replica.plan else None
        self.stage: int | None = None  # of a pipeline, that of the piece in hand
        self.times, self.events = arena.times[rank], arena.events[rank] if rank < len(arena.events) else None
        self.kept: dict[Any, Any] = {}  # gradients and slices, recorded at their first use
        self.shares: dict[bytes, Shares] = {}  # by the samples of each batch
        self.compressor = Compressor(replica, arena) if replica.strategy.compression else None
        self.is_scaled = replica.settings.precision == SCALED

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
        """A piece of phase `number`, in the next step in which it is to be done, and its seal."""
        begin, words, pieces = time.perf_counter(), self.arena.words, self.arena.pieces[number]
        name, at = pieces.phase.name, pieces.seals + piece * LINE
        step = int(words[at])
        self.doing, self.stage = (step, piece), pieces.phase.stage
        self.fail(f"{name}.claimed", step)
        getattr(self, name)(piece, step)
        self.gradients.wait()
        self.fail(f"{name}.written", step)
        end = time.perf_counter()  # noted before the seal: whoever sees a step done sees all its events
        self.times[WAIT] += begin - self.last
        self.times[COLUMNS.get(name, COMPUTE)] += end - begin
        if self.events is not None:
            count = int(self.times[-1])
            self.events[count % EVENTS] = number, step, piece, begin, end
            self.times[-1] = count + 1
        self.last = end
        publish(words, at, step + 1)
        self.fail("idle", step)

    # --- phases: gradients ------------------------------------------------------------------------------------------

    def shard(self, k: int, step: int) -> None:
        """The gradient of shard k goes to its slot; or, after local steps, its page."""
        arena, ring = self.arena, step % len(self.arena.slots)
        if arena.local[step % arena.window]:
            self._take_local_steps(k, step)
        else:
            self._gradient(k, step, ring, self._version(step))
            if self.compressor:
                self.compressor.send(k, step, k in self.shares_of(step).full)
        self.times[SHARDS] += 1
        self.fail("shard.half_written", step, lambda: self.replica.layout.arrays(self.gradients.slots[ring][k]))

    def _version(self, step: int) -> int:
        """Of the parameters at which the gradients of a step are computed."""
        arena = self.arena
        return int(arena.updates() if arena.counts_pushes else arena.version[step % arena.window])

    def _gradient(self, k: int, step: int, ring: int, version: int) -> None:
        """The part of shard k in the gradient of the mean loss over all batches of a step."""
        arena, replica, shares, entry = self.arena, self.replica, self.shares_of(step), step % self.arena.window
        page, slot, first = self.gradients.page(version), self.gradients.slot(ring, k), int(arena.first[entry])
        bad, fresh = 0, True
        try:
            for a, lo, hi in shares.parts[k]:
                loss, n = math.nan, hi - lo
                if n:
                    kind = "gradient", id(page), id(slot), n, fresh
                    gradient = self._kept(kind, Gradient, replica, n, page, slot, fresh)
                    weight = n / shares.samples * arena.scales[entry, 0]
                    loss = gradient.compute(arena.positions[entry, lo:hi], weight, first + a, k)
                    fresh = False
                arena.losses[entry, a, k] = loss
            if not fresh:
                bad = self.gradients.finish(ring, k, arena.scales[entry, 0])
        except NonFiniteError:
            bad, arena.losses[entry, :, k] = LOSS_IS_BAD, math.nan
        self._mark(k, step, bad)

    def _mark(self, k: int, step: int, bad: int) -> None:
        """Note what is not finite in a shard, if anything; see `bad` of the arena."""
        entry = step % self.arena.window
        self.arena.bad[entry, k] = bad
        is_overflow = self.is_scaled and bad != LOSS_IS_BAD and self.arena.scales[entry, 0] > LEAST_SCALE
        if bad and not (self.replica.settings.skip_nonfinite or is_overflow):
            what = "loss" if bad == LOSS_IS_BAD else f"gradient of {self.replica.name_of(bad - 1)!r}"
            raise NonFiniteError(f"expected a finite {what}, got one that is not")

    def _take_local_steps(self, k: int, step: int) -> None:
        """One for each batch, from a copy of the newest page in the slot, which is updated in place."""
        arena, replica, entry = self.arena, self.replica, step % self.arena.window
        slot, own = self.gradients.copy(self._version(step), 0, k), self.gradients.scratch
        page = replica.layout.page(slot)
        update = self._kept(("update", id(slot)), Slice, replica, (0, 1), page, page, {k: own})
        arena.bad[entry, k] = LOSS_IS_BAD  # until all batches are done
        for a, lo, hi in self.shares_of(step).parts[k]:
            loss, n = math.nan, hi - lo
            if n:
                gradient = self._kept(("local", id(slot), n), Gradient, replica, n, page, own)
                loss = gradient.compute(arena.positions[entry, lo:hi], 1.0, int(arena.first[entry]) + a, k)
                update.update(arena.numbers[entry, a], (1.0,))
            arena.losses[entry, a, k] = loss
        self.gradients.flush(0, k)
        arena.bad[entry, k] = 0

    # --- phases: stages of a pipeline -------------------------------------------------------------------------------

    def forward(self, k: int, step: int) -> None:
        """The stage of shard k: its activations, and the losses, go to the arena."""
        stages, s, parts, memory = self._stage_of(k, step)
        if s == 0:
            self.arena.bad[step % self.arena.window, k] = 0
        losses = self.arena.losses[step % self.arena.window]
        try:
            if s + 1 < len(stages.plan.stages):
                stages.forward(s, k, step, parts, memory)
            else:
                losses[:, k] = math.nan
                losses[[part.a for part in parts], k] = stages.forward(s, k, step, parts, memory)
        except NonFiniteError:
            losses[:, k] = math.nan
            self._mark(k, step, LOSS_IS_BAD)
        self.fail("forward.half_written", step, lambda: stages.written_forward(s, parts, memory))

    def backward(self, k: int, step: int) -> None:
        """The gradients of the stage, for shard k: of its parameters to the slot, of activations to the arena."""
        self._backward(Stages.backward, k, step)

    def backward_inputs(self, k: int, step: int) -> None:
        """The first half of `backward`: what the stage before waits for."""
        stages, s, parts, memory = self._stage_of(k, step)
        if parts and self.arena.bad[step % self.arena.window, k] != LOSS_IS_BAD:
            stages.backward_inputs(s, k, step, parts, memory)
        self.fail("backward_inputs.half_written", step, lambda: stages.written_inputs(s, parts, memory))

    def backward_weights(self, k: int, step: int) -> None:
        """The second half: gradients of parameters."""
        self._backward(Stages.backward_weights, k, step)

    def _backward(self, compute: Callable[..., None], k: int, step: int) -> None:
        stages, s, parts, memory = self._stage_of(k, step)
        bad = self.arena.bad[step % self.arena.window, k]
        if parts and bad != LOSS_IS_BAD:
            compute(stages, s, k, step, parts, memory)
            if (i := stages.find_nonfinite(s, memory)) >= 0:
                self._mark(k, step, min(bad, 1 + i) if bad else 1 + i)
        self.times[SHARDS] += 1
        self.fail(f"{compute.__name__}.half_written", step, lambda: stages.written_backward(s, memory))

    def _stage_of(self, k: int, step: int) -> tuple[Stages, int, list[Part], Memory]:
        """For a piece of a stage: who runs it, the stage, the samples, and where all is."""
        arena, shares, entry = self.arena, self.shares_of(step), step % self.arena.window
        first, positions = int(arena.first[entry]), arena.positions[entry]
        parts = [
            Part(a, first + a, positions[lo:hi], (hi - lo) / shares.samples) for a, lo, hi in shares.parts[k] if hi > lo
        ]
        theta, slot = self.gradients.page(self._version(step))[0], self.gradients.slot(step % len(arena.slots), k)
        assert self.stages is not None and self.stage is not None
        return self.stages, self.stage, parts, Memory(theta, slot, arena.activations[k], arena.gradients[k])

    # --- phases: merges ---------------------------------------------------------------------------------------------

    def norm(self, i: int, step: int) -> None:
        """Part i of the squared norm of the merged gradient."""
        squares = self.arena.squares[step % len(self.arena.squares)]
        squares[i] = self.gradients.sum_of_squares((i, NORMS), self._to_fold(step))

    def slice(self, s: int, step: int) -> None:
        """Slice s of the page after the step, from the page before it and all slots."""
        arena, replica, entry, ring = self.arena, self.replica, step % self.arena.window, step % len(self.arena.slots)
        part, shares, stage = (s, arena.pieces[-1].count), self.shares_of(step), self.stage
        old, new = (t % len(self.pages) for t in (step, step + 1))
        slots = self._chosen("slots", ring, self.gradients.slots[ring], shares.full)
        if arena.local[entry]:
            pages = {k: replica.layout.page(memory) for k, memory in self._to_fold(step).items()}
            merge = self._kept(("mean", s, new, shares.full), Average, replica, part, pages, self.pages[new], slots)
            merge.update(shares.weights)
        else:
            kind, fold = ("slice", s, stage, old, ring, shares.full), self.gradients.folded(part, self._to_fold(step))
            merge = self._kept(kind, Slice, replica, part, self.pages[old], self.pages[new], fold, slots, stage)
            self.scale_next(step)
            if self._is_skipped(step):
                merge.skip()
                if self.compressor:
                    self.compressor.skip(step)
            else:
                merge.update(arena.numbers[entry, 0], shares.weights, self._factor(step))
        self.fail("slice.half_written", step, lambda: merge.written)

    def scale_next(self, step: int) -> None:
        """Note the loss scale of the step after this one. All slices write the same."""
        if self.is_scaled:
            scales, window = self.arena.scales, self.arena.window
            scales[(step + 1) % window] = next_scale(scales[step % window].tolist(), self._is_skipped(step))

    def serve(self, k: int, step: int) -> None:
        """Asynchronous: the gradient of shard k alone becomes an update."""
        old, new = ((self.arena.updates() + i) % len(self.pages) for i in (0, 1))
        self._apply(k, step, old, new)

    def live(self, k: int, step: int) -> None:
        """Hogwild: the gradient of shard k, and at once its update, in place."""
        self._gradient(k, step, 0, 0)
        self.times[SHARDS] += 1
        self._apply(k, step, 0, 0)

    def _apply(self, k: int, step: int, old: int, new: int) -> None:
        pages, slot, entry = (self.pages[old], self.pages[new]), self.arena.slots[0, k], step % self.arena.window
        merge = self._kept(("apply", k, old), Slice, self.replica, (0, 1), *pages, {k: slot})
        if self.arena.bad[entry, k] or k not in self.shares_of(step).full:
            for source, target in zip(*pages, strict=True):
                target[...] = source
        else:
            merge.update(self.arena.numbers[entry, 0], (1.0,))

    def basis(self, piece: int, step: int) -> None:
        """PowerSGD: the common basis."""
        if not self._is_skipped(step):
            self.compressor.find_basis(step, self.shares_of(step).full)  # type: ignore[union-attr]

    def project(self, k: int, step: int) -> None:
        """PowerSGD: what shard k sends."""
        if not self._is_skipped(step):
            self.compressor.project(k, step, k in self.shares_of(step).full)  # type: ignore[union-attr]

    # --- helpers ----------------------------------------------------------------------------------------------------

    def shares_of(self, step: int) -> Shares:
        """How the samples of a step are shared out."""
        counts = self.arena.counts[step % self.arena.window]
        found = self.shares.get(key := counts.tobytes())
        if found is None:
            batches = counts[: self.arena.batches[step % self.arena.window]]
            found = self.shares[key] = Shares.of(tuple(batches.tolist()), self.replica.shards)
        return found

    def _to_fold(self, step: int) -> dict[int, np.ndarray]:
        """What is folded: of each shard that is not empty its slot, or what compression sent of it. Between machines
        some slots hold sums of subtrees: `leaves` names those, and the shards that stand for themselves.
        """
        if self.folded is not None:
            return {0: self.folded}
        arena, full = self.arena, self.leaves(self.shares_of(step).full)
        ring = step % len(arena.slots)
        return self._chosen("leaves", ring, arena.sent if len(arena.sent) else self.gradients.slots[ring], full)

    def _chosen(self, kind: str, ring: int, slots: Any, numbers: Sequence[int]) -> dict[int, np.ndarray]:
        """{k: slots[k]} for these numbers of shards; of a kind and ring the slots are always the same."""
        return self._kept((kind, ring, *numbers), lambda: {k: slots[k] for k in numbers})

    def _is_skipped(self, step: int) -> bool:
        """Is something in the step not finite, and are such steps skipped? All gradients are there."""
        skips = self.replica.settings.skip_nonfinite or self.is_scaled
        return skips and bool(self.arena.bad[step % self.arena.window].any())

    def _factor(self, step: int) -> float:
        """The number that scales the gradient to a norm of at most clip_norm."""
        if self.replica.settings.clip_norm is None:
            return 1.0
        norm = math.sqrt(sum(self.arena.squares[step % len(self.arena.squares)].tolist()))
        return min(1.0, self.replica.settings.clip_norm / (norm + 1e-6))

    def _kept(self, kind: Any, make: Callable[..., Any], *arguments: Any) -> Any:
        """make(*arguments), which is made once of each kind."""
        if kind not in self.kept:
            self.kept[kind] = make(*arguments)
        return self.kept[kind]
