"""Training by the ranks of an MPI job: the steps of a run, with the bits of one process for any number of ranks.

Rank r computes shards r K/W to (r + 1) K/W, and owns slice r of W of the parameters and of the optimizer's state:

    gradient of shard k, slice s  ->  rank s        every rank sends (W-1)/W of each of its shards' gradients
    page t+1, slice s = update(page t, slot 0, slot 1, ...)      rank s folds all K in shard order: the exact order
    slice s of the parameters     ->  all ranks     all_gather

So a rank sends n (W-1)/W (K/W + 1) bytes for n bytes of parameters. With order "fast" it adds up its own shards first,
and the library reduces: 2 n (W-1)/W bytes for any K, but the last bits depend on the number of ranks. The optimizer's
state travels only before a checkpoint. A round of LocalSGD sends pages, state and all, whose slices are averaged. Rank
0 alone touches the run's folder; what it loads, all ranks get.
"""

from __future__ import annotations

import bisect
import itertools
import json
import math
import mmap
import os
import signal
import sys
import threading
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import checkpoint
from ..data.dataset import gather
from ..errors import CollectiveError, ConfigError, NonFiniteError
from ..kernels import get_num_threads, set_num_threads
from . import failpoints
from .communicator import RAISED, ranks_named
from .job import RESTARTS
from .memory import cores
from .mpi import MpiCommunicator, world
from .replica import Average, Gradient, Page, Place, Replica, Slice
from .shards import StepResult, split
from .strategies import AllReduce, LocalSGD
from .training_arena import NORMS
from .worker import LOSS_IS_BAD


def begin(trainer: Any, run: Any, first: Callable[[], None]) -> None:
    """first() on rank 0, which may load a checkpoint; then all ranks have its state."""
    comm = world()
    _share_cores(comm)
    blob = b""
    with _Told(comm):
        if comm.rank == 0:
            first()
            blob = checkpoint.dumps(run.state(trainer))
        blob = share(comm, "fit", blob)
        if comm.rank:
            run.load(checkpoint.loads(blob), trainer)


def share(comm: MpiCommunicator, text: str, blob: bytes) -> bytes:
    """Rank 0's bytes, on all ranks."""
    size = int(comm.meet(text, len(blob))[0, 0])
    data = np.frombuffer(blob, np.uint8).copy() if comm.rank == 0 else np.empty(size, np.uint8)
    with comm.waiting(text):
        for at in range(0, size, 1 << 30):  # counts are int32
            comm.group.Bcast(data[at : at + (1 << 30)])
    return data.tobytes()


def share_record(record: dict[str, Any]) -> dict[str, Any]:
    """Rank 0's record of an epoch, on all ranks."""
    return json.loads(share(world(), "the epoch's record", json.dumps(record).encode()))


def _share_cores(comm: MpiCommunicator) -> None:
    """Ranks of one machine that may use all its cores take an equal part each, unless they were told to take less."""
    here = comm.group.Split_type(comm.library.COMM_TYPE_SHARED)
    if cores() == os.cpu_count():
        set_num_threads(min(get_num_threads(), max(1, cores() // here.size)))
    here.Free()


class _Told:
    """Inside, an exception of this rank alone is told to the others, whose next meeting then raises CollectiveError."""

    def __init__(self, comm: MpiCommunicator):
        self.comm = comm

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None and not self.comm.is_broken:
            step = f", step {self.comm.watch.step}" if self.comm.watch.step >= 0 else ""
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            sys.stderr.write(f"scratchnet: rank {self.comm.rank}{step}: {what}\n")  # one write: lines stay whole
            sys.stderr.flush()
            error.said_elsewhere = True
            self.comm.leave(RAISED, what)


class MpiEngine:
    """The steps of a run on all ranks. The trainer's model and optimizer follow when the steps are `settled`."""

    def __init__(self, trainer: Any, run: Any):
        loader, strategy, shards = run.loader, trainer.strategy, trainer.shards
        if trainer.workers != 1:
            raise ConfigError(
                f"Trainer: expected workers=1 under MPI: its ranks are the workers, got {trainer.workers!r}"
            )
        is_known = isinstance(strategy, AllReduce | LocalSGD) and strategy.compression is None
        if not is_known or trainer.nonfinite == "skip":
            expected = "AllReduce or LocalSGD, no compression and nonfinite='raise' under MPI"
            raise ConfigError(f"Trainer: expected {expected}, got {strategy} and {trainer.nonfinite!r}")
        batch = min(loader.batch_size, len(loader.dataset))
        if shards > batch:
            raise ConfigError(f"Trainer: expected at most one shard a sample, got {shards} for {batch} samples")
        self._comm = comm = world()
        self._trainer, self._run, self._order = trainer, run, getattr(strategy, "order", "exact")
        self._dataset, self.submitted, self._number = loader.dataset, run.step, run.batches
        self._asked, run.stop = run.stop, type(run.stop)()  # the run stops when all ranks know of it
        self._fail = failpoints.armed(comm.rank, int(os.environ.get(RESTARTS, "0")))
        self._replica = Replica(
            trainer.model, trainer.optimizer, trainer.loss, shards, trainer.seed, strategy, trainer.clip_norm,
            jit=trainer.jit,
        )  # fmt: skip
        self._replica.leave_out_untrained(loader.dataset, split((next(loader.batch_indices(0)),), 0, shards)[0])
        layout = self._replica.layout
        self._memories = [_memory(layout.page_bytes) for _ in range(2)]
        self._pages: list[Page] = [layout.page(memory) for memory in self._memories]
        self._replica.write(self._pages[self.submitted % 2])
        self._is_whole = True  # is all of the optimizer's state here, not only that of this rank's slice?
        apart = isinstance(strategy, LocalSGD)  # then a slot may be a page
        self._slots = [_memory(layout.page_bytes if apart else layout.nbytes) for _ in range(shards)]
        self._own = _memory(layout.nbytes)
        self._sum = [_memory(layout.nbytes) for _ in range(2)] if self._order == "fast" else []
        self._shards, self._parts = _Shares(shards, comm.size), _Shares(NORMS, comm.size)
        self._cuts = [self._cut(rank) for rank in range(comm.size)]
        self._messages: dict[Any, list[Any]] = {}  # by the shards that are not empty or the page, and what is sent
        self._gradients: dict[Any, Gradient] = {}  # by shard, samples, the page's number, and whether they are added
        self._slices: dict[Any, Slice] = {}  # by the page's number, and the shards that are not empty
        self._averages: dict[Any, Average] = {}  # likewise
        self._batches: list[np.ndarray] = []
        self._done: list[StepResult] = []
        self._listens = threading.current_thread() is threading.main_thread()
        self._wakeup = comm.watch.listen() if self._listens else -1

    def _cut(self, rank: int) -> list[Place]:
        """The slice of a rank: of each segment a place. With clip_norm it has whole pieces of the norm."""
        layout, size = self._replica.layout, self._comm.size
        if self._replica.clip_norm is None:
            return layout.cut((rank, size))
        cuts = [layout.cut((i, NORMS)) for i in range(NORMS)]
        own = [cuts[i] for i in self._parts.of(rank)] or [
            [Place(s.place.offset, (0,), s.place.dtype) for s in layout.segments]
        ]
        return [Place(p[0].offset, (sum(x.shape[0] for x in p),), p[0].dtype) for p in zip(*own, strict=True)]

    # --- a step -----------------------------------------------------------------------------------------------------

    def submit(self, positions: np.ndarray) -> None:
        self._batches.append(positions)
        if len(self._batches) == self._trainer.strategy.batches(self.submitted, self._trainer.accumulate):
            self._step()

    def _step(self) -> None:
        """A step of the batches that have come together."""
        comm, step, batches = self._comm, self.submitted, self._batches
        apart = self._trainer.strategy.trains_apart(step)
        comm.watch.step = step
        numbers = []
        for _ in batches if apart else batches[:1]:
            numbers.append(self._replica.next_numbers())
            if self._trainer.scheduler is not None:
                self._trainer.scheduler.step()
        if apart and not self._is_whole:
            comm.meet("first round apart")
            with comm.waiting("the exchange of the optimizer's state"):
                self._gather(self._pages[step % 2][1:])
        losses = np.full((self._replica.shards, len(batches)), math.nan)
        bad = 0, 0
        for k in self._shards.of(comm.rank):
            self._fail("shard.claimed", step)
            what = self._train_apart(k, losses[k], numbers) if apart else self._gradient(k, losses[k])
            bad = (1 + k, what) if what and not bad[0] else bad
            self._fail("shard.written", step)
        self._meet(*bad)
        sizes = [sum(len(split((rows,), k, len(self._slots))[0]) for rows in batches) for k in range(len(self._slots))]
        full = tuple([k for k, size in enumerate(sizes) if size])
        weights = [sizes[k] / sum(sizes) for k in full]
        with comm.waiting("the exchange of gradients"):
            self._exchange(full, apart)
            factor = 1.0 if apart else self._factor(full)
        self._fail("slice.claimed", step)
        if apart:
            self._average(full).update(weights)
        else:
            self._slice(full).update(numbers[0], weights, factor)
        self._fail("slice.written", step)
        with comm.waiting("the exchange of parameters"):
            self._spread(apart)
            self._shards.join(comm, losses)
        self._is_whole = apart
        self._done.append(StepResult(step, self._number, batches, losses.T))
        self._batches, self._number, self.submitted = [], self._number + len(batches), step + 1

    def _gradient(self, k: int, losses: np.ndarray) -> int:
        """The gradient of shard k over all batches, to its slot; what was not finite, as in worker.py, or 0."""
        page, total, fresh = self._pages[self.submitted % 2], sum(map(len, self._batches)), True
        try:
            for a, batch in enumerate(self._batches):
                (own,) = split((batch,), k, self._replica.shards)
                if len(own):
                    kind = k, len(own), self.submitted % 2, fresh
                    if kind not in self._gradients:
                        place = page, self._slots[k], fresh
                        self._gradients[kind] = self._replica.gradient_of(self._dataset, len(own), *place)
                    losses[a] = self._gradients[kind].compute(own, len(own) / total, self._number + a, k)
                    fresh = False
        except NonFiniteError:
            return LOSS_IS_BAD
        return 0 if fresh else 1 + self._replica.find_nonfinite(self._slots[k])

    def _train_apart(self, k: int, losses: np.ndarray, numbers: list[np.ndarray]) -> int:
        """Shard k's own steps from the newest page, to its slot, which is then a page; as `_gradient`."""
        replica, slot = self._replica, self._slots[k]
        slot[...] = self._memories[self.submitted % 2]
        page = replica.layout.page(slot)
        if ("apart", k) not in self._slices:
            self._slices["apart", k] = replica.slice_of((0, 1), page, page, [self._own])
        try:
            for a, batch in enumerate(self._batches):
                (own,) = split((batch,), k, replica.shards)
                if len(own):
                    kind = "apart", k, len(own)
                    if kind not in self._gradients:
                        self._gradients[kind] = replica.gradient_of(self._dataset, len(own), page, self._own)
                    losses[a] = self._gradients[kind].compute(own, 1.0, self._number + a, k)
                    self._slices["apart", k].update(numbers[a], (1.0,))
        except NonFiniteError:
            return LOSS_IS_BAD
        return 0

    def _meet(self, shard: int, what: int) -> None:
        """All ranks have their gradients, finite ones of the same samples; or all raise. shard: 1 + that of `what`."""
        comm, step = self._comm, self.submitted
        samples = zlib.crc32(np.concatenate(self._batches).tobytes(), step)
        brought = comm.meet("training step", shard, what, self._asked.requested or 0, samples)
        others = [rank for rank in range(comm.size) if brought[rank, 3] != brought[0, 3]]
        if others:
            raise comm.fail(CollectiveError(f"step {step}: {ranks_named(others)} took other samples than rank 0"))
        for shard, what in brought[brought[:, 0] > 0, :2].tolist():
            self._settle()
            raise comm.fail(self._origin(shard - 1, what))
        self._run.stop.requested = int(brought[:, 2].max()) or None

    def _origin(self, k: int, what: int) -> Exception:
        can_repeat = what == LOSS_IS_BAD and not self._trainer.strategy.trains_apart(self.submitted)
        for a, rows in enumerate(self._batches if can_repeat else []):
            batch = gather(self._dataset, rows)
            if found := self._trainer._origin(batch, self._number + a, self.submitted):
                return found
        name = "loss" if what == LOSS_IS_BAD else f"gradient of {self._replica.name_of(what - 1)!r}"
        return NonFiniteError(f"fit: step {self.submitted}, shard {k}: expected a finite {name}, got one that is not")

    def _exchange(self, full: tuple[int, ...], apart: bool) -> None:
        """The slots of these shards, as far as they belong to this rank's slice, come here."""
        if (full, apart) not in self._messages:
            self._messages[full, apart] = self._make_messages(full, apart)
        requests = self._messages[full, apart]
        self._comm.library.Prequest.Startall(requests)
        if self._order == "fast":
            self._reduce(full)
        self._comm.library.Prequest.Waitall(requests)

    def _spread(self, apart: bool) -> None:
        """This rank's slice of the new page goes to all others, and theirs come here.

        All at once, each straight to its place: on a slow link an Allgatherv took twice as long.
        """
        kind = self.submitted % 2, apart
        if kind not in self._messages:
            page, group, me = self._pages[1 - kind[0]][: None if apart else 1], self._comm.group, self._comm.rank
            others = [rank for rank in range(self._comm.size) if rank != me]
            self._messages[kind] = [group.Recv_init(x, rank) for rank in others for x in self._slice_in(page, rank)]
            self._messages[kind] += [group.Send_init(x, rank) for rank in others for x in self._slice_in(page, me)]
        self._comm.library.Prequest.Startall(self._messages[kind])
        self._comm.library.Prequest.Waitall(self._messages[kind])

    def _make_messages(self, full: tuple[int, ...], apart: bool) -> list[Any]:
        comm, messages = self._comm, []
        for k in full:
            owner = self._shards.owner(k)
            if owner != comm.rank:
                messages += [comm.group.Recv_init(x, owner) for x in self._pieces(k, comm.rank, apart)]
                continue
            for rank in range(comm.size):
                if rank != comm.rank:
                    messages += [comm.group.Send_init(x, rank) for x in self._pieces(k, rank, apart)]
        return messages

    def _pieces(self, k: int, rank: int, apart: bool) -> list[np.ndarray]:
        """What a rank needs of slot k: its slice of the gradient or of the page, and the last rank the buffers."""
        page = self._replica.layout.page(self._slots[k]) if apart else [self._slots[k]]
        return self._slice_in(page, rank, without_parameters=self._order == "fast")

    def _slice_in(self, page: Page, rank: int, without_parameters: bool = False) -> list[np.ndarray]:
        """The slice of a rank: of parameters and states, and the last rank's has the buffers."""
        spans = [] if without_parameters else [span.of(x) for x in page for span in self._cuts[rank]]
        layout, is_last = self._replica.layout, rank == self._comm.size - 1
        buffers = [page[0][layout.parameter_bytes : layout.nbytes]] if is_last else []
        return [x for x in spans + buffers if x.size]

    def _reduce(self, full: tuple[int, ...]) -> None:
        """The fast order: the library adds what each rank has added up of its own."""
        own, merged = self._sum
        slots = [self._slots[k] for k in self._shards.of(self._comm.rank) if k in full]
        for i, (place, counts, _) in enumerate(self._segments()):
            total = place.of(own)
            total[...] = place.of(slots[0]) if slots else 0
            for slot in slots[1:]:
                total += place.of(slot)
            self._comm.group.Reduce_scatter(total, self._cuts[self._comm.rank][i].of(merged), counts)

    def _merged(self, full: tuple[int, ...]) -> list[np.ndarray]:
        return self._sum[1:] or [self._slots[k] for k in full]

    def _factor(self, full: tuple[int, ...]) -> float:
        """What the gradient is multiplied with, so that its norm is at most clip_norm."""
        if self._replica.clip_norm is None:
            return 1.0
        squares = np.zeros(NORMS)
        for i in self._parts.of(self._comm.rank):
            squares[i] = self._replica.sum_of_squares((i, NORMS), self._merged(full))
        self._parts.join(self._comm, squares)
        return min(1.0, self._replica.clip_norm / (math.sqrt(sum(squares.tolist())) + 1e-6))

    def _slice(self, full: tuple[int, ...]) -> Slice:
        """This rank's slice of the update."""
        parity, rank = self.submitted % 2, self._comm.rank
        if (parity, full) not in self._slices:
            old, new, merged = self._pages[parity], self._pages[1 - parity], self._merged(full)
            segments = [
                ([span.of(x) for x in old], [span.of(slot) for slot in merged], [span.of(x) for x in new])
                for span in self._cuts[rank]
            ]
            slots = [self._slots[k] for k in full]
            buffers = self._replica._buffers((rank, self._comm.size), slots, new)
            self._slices[parity, full] = Slice(self._replica, segments, buffers)
        return self._slices[parity, full]

    def _average(self, full: tuple[int, ...]) -> Average:
        """This rank's slice of the mean of pages."""
        kind = self.submitted % 2, full
        if kind not in self._averages:
            pages = [self._replica.layout.page(self._slots[k]) for k in full]
            part = self._comm.rank, self._comm.size
            self._averages[kind] = self._replica.average_of(part, pages, self._pages[1 - kind[0]])
        return self._averages[kind]

    def _gather(self, arrays: Page) -> None:
        """Of each of these arrays of a page all ranks get the slices of all."""
        for x in arrays:
            for place, counts, starts in self._segments():
                self._comm.group.Allgatherv(self._comm.library.IN_PLACE, [place.of(x), (counts, starts)])

    def _segments(self) -> list[tuple[Place, list[int], list[int]]]:
        """Of each segment its place, and how its elements are shared out: numbers, and starts."""
        found = []
        for i, segment in enumerate(self._replica.layout.segments):
            counts = [cut[i].shape[0] for cut in self._cuts]
            found.append((segment.place, counts, [0, *np.cumsum(counts).tolist()][:-1]))
        return found

    # --- the rest of what an engine does --------------------------------------------------------------------------

    @property
    def workers(self) -> int:
        return self._trainer.workers

    @property
    def is_between(self) -> bool:
        """Is there no step of which only some batches are known?"""
        return not self._batches

    def finished(self) -> list[StepResult]:
        """The steps that were done since the last call."""
        done, self._done = self._done, []
        return done

    def settled(self) -> list[StepResult]:
        """All steps are done, and the trainer's model and optimizer have their state."""
        if self._batches:
            self._step()
        self._comm.meet("settle")
        self._settle()
        return self.finished()

    def _settle(self) -> None:
        page = self._pages[self.submitted % 2]
        with self._comm.waiting("the exchange of the optimizer's state"):
            self._gather(page[1:])
        self._replica.read(page)

    def memory(self) -> dict[str, np.ndarray]:
        return {}

    def report(self) -> list[dict[str, float]]:
        return []

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._listens:
            signal.set_wakeup_fd(self._wakeup)
        if not self._run.stop.requested:
            _Told(self._comm).__exit__(kind, error, trace)
        self._comm.watch.step = -1


class _Shares:
    """n things shared out among ranks: each has consecutive ones, n // size or one more."""

    def __init__(self, n: int, size: int):
        self.starts = [rank * n // size for rank in range(size + 1)]
        self.counts = [hi - lo for lo, hi in itertools.pairwise(self.starts)]

    def of(self, rank: int) -> range:
        return range(self.starts[rank], self.starts[rank + 1])

    def owner(self, i: int) -> int:
        return bisect.bisect_right(self.starts, i) - 1

    def join(self, comm: MpiCommunicator, rows: np.ndarray) -> None:
        """Row i of (n, ...) float64 is that of its owner, on all ranks."""
        width = rows.size // max(len(rows), 1)
        shares = [width * count for count in self.counts], [width * start for start in self.starts[:-1]]
        comm.group.Allgatherv(comm.library.IN_PLACE, [rows, shares])


def _memory(size: int) -> np.ndarray:
    """Bytes of zeros that begin on a page of memory, and take none before they are written."""
    return np.frombuffer(mmap.mmap(-1, max(size, 1)), np.uint8)
