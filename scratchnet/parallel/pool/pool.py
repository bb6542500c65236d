"""A pool of processes that computes the steps of a run: its bytes depend neither on their number nor on their deaths.

The parent writes what a step needs (positions of samples, numbers of the optimizer) ahead of time and lets the workers
go; they share out the pieces by themselves (claims.py), and the parent only watches. All state is in the arena: pages
that take turns, a slot for each shard, and the words. A worker holds nothing that another could not compute again, so
one that dies is replaced, and what it had not sealed is done once more.

    page t -> [gradient of shard k -> slot k]  all sealed -> [slice s of page t + 1]  all sealed = step t is committed

`Solo` is the same without processes: this one does the pieces.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from multiprocess import connection

from ...errors import ConfigError, IndexOutOfRangeError, NonFiniteError, WorkerError
from ...native.atomics import SPINS, publish
from ..comm.memory import SharedMemory, cores
from ..shards import StepResult, split
from ..strategies import LocalSGD
from .claims import NOTHING, Phase, allow, lay_out, stop, table_of, take
from .compress import Compressor
from .launch import SharedObject, Workers, loads
from .placement import Placement
from .replica import Replica
from .timeline import Timeline
from .training_arena import COMPUTE, MERGE, MOST_WORKERS, SHARDS, SLICES, WAIT, TrainingArena
from .worker import LOSS_IS_BAD, Worker, work

AHEAD = 0.2  # seconds of work that are allowed ahead, so that a run that is asked to stop does so soon
POLL, SOON = 0.005, 0.0005  # seconds between two looks of the parent, while workers have enough to do and at the end
PATIENCE = 30.0  # seconds without progress after which a worker counts as stuck, at least
PATIENCE_GAPS = 20  # times the longest pause so far
STARTING = 4  # times its patience for a process that reads all libraries, and records its first shard
COMPILING = 300.0  # seconds from a start on a GPU in which PATIENCE is as long: no cache keeps kernels of a GPU
RETRIES = 3  # workers that may die over the same piece, or without any progress
SLOW_EVERY = 0.5  # seconds between two looks for slow workers
SLOW = 5.0  # times as long a shard as others take: a worker that deserves a warning
SLOW_AFTER = 10  # shards of each worker: the first ones are recorded, which takes longer

log = logging.getLogger("scratchnet.parallel")


class Steps:
    """Steps that are told to workers, and what came of them.

    replica: the model, optimizer and loss at their start, and the strategy. dataset: what the positions of a step
    number. batch: the most samples of a batch. slices: pieces of a merge and update, a choice of speed alone. span: the
    most batches of a step. first: the number of the first step. timeline: a file for what each worker did when, see
    timeline.py. memory: see TrainingArena.
    """

    def __init__(
        self,
        replica: Replica,
        dataset: Any,
        batch: int,
        slices: int,
        span: int = 1,
        first: int = 0,
        timeline: str | Path | None = None,
        memory: Callable[[int], SharedMemory] = SharedMemory,
    ):
        self.replica, self.dataset, self._samples = replica, dataset, len(dataset)
        self.arena = TrainingArena(replica, batch, span, slices, timeline is not None, memory)
        self.timeline = None if timeline is None else Timeline(timeline, self.arena)
        for pieces in self.arena.pieces:
            pieces.sealed(self.arena.words)[:] = first
        replica.write(replica.layout.page(self.arena.newest()))
        allow(self.arena.words, first)
        self.submitted = self._collected = first
        self._done: list[StepResult] = []
        self.compressor = Compressor(replica, self.arena) if replica.strategy.compression else None
        if self.compressor:
            self.compressor.start()

    def submit(self, batches: Sequence[np.ndarray], numbers: Sequence[np.ndarray], first: int, apart: bool) -> None:
        """The next step: positions of the samples of each batch, what the optimizer's kernel takes in each of its
        steps, the number of the first batch in the run, and whether shards train apart.
        """
        arena, row = self.arena, self.submitted % self.arena.window
        positions = np.concatenate(batches) if len(batches) > 1 else batches[0]
        if positions.view(np.uint64).max() >= self._samples:  # a negative one, too; workers rely on it
            raise IndexOutOfRangeError(
                f"fit: expected positions from 0 to {self._samples - 1}, got {positions.min()} to {positions.max()}"
            )
        arena.positions[row, : len(positions)] = positions
        arena.counts[row] = 0
        arena.counts[row, : len(batches)] = [len(batch) for batch in batches]
        arena.numbers[row, : len(numbers)] = numbers
        arena.batches[row], arena.first[row], arena.apart[row] = len(batches), first, apart
        arena.version[row] = max(0, self.submitted - self.replica.strategy.lag)
        self.submitted += 1
        allow(arena.words, self.submitted)

    def drain(self) -> None:
        """Wait until all steps are done."""
        while self._collect() < self.submitted:
            self._watch(SOON)

    def _watch(self, pause: float) -> None:
        raise NotImplementedError

    def finished(self) -> list[StepResult]:
        """The steps that were found done since the last call, in order."""
        done, self._done = self._done, []
        return done

    def read(self) -> None:
        """The state after the last step that is done, to the model and optimizer."""
        self.replica.read(self.replica.layout.page(self.arena.newest()))

    def current(self) -> StepResult:
        """The step that is being computed, without losses."""
        return self._result(self.arena.committed(), with_losses=False)

    def _collect(self) -> int:
        committed = self.arena.committed()
        for number in range(self._collected, committed):
            self._done.append(self._result(number))
            if self.replica.skip_nonfinite:
                self._warn_of_skipped(number)
        self._collected = committed
        return committed

    def _result(self, number: int, with_losses: bool = True) -> StepResult:
        arena, row = self.arena, number % self.arena.window
        counts = arena.counts[row, : arena.batches[row]].tolist()
        ends = list(itertools.accumulate(counts))
        positions = arena.positions[row, : ends[-1]].copy()
        batches = [positions[end - n : end] for n, end in zip(counts, ends, strict=True)]
        losses = arena.losses[row, : len(counts)].copy() if with_losses else np.empty((0, 0))
        return StepResult(number, int(arena.first[row]), batches, losses)

    def _warn_of_skipped(self, number: int) -> None:
        bad = self.arena.bad[number % self.arena.window]
        for k in np.flatnonzero(bad):
            log.warning("step %d was skipped: in shard %d the %s is not finite", number, k, self._name_of(bad[k]))

    def _name_of(self, bad: int) -> str:
        """Of what was not finite, as a shard's `bad` has it."""
        return "loss" if bad == LOSS_IS_BAD else f"gradient of {self.replica.name_of(int(bad) - 1)!r}"

    def memory(self) -> dict[str, np.ndarray]:
        """What is remembered besides the newest page: older ones, residuals of compression. All steps are done."""
        arena, found = self.arena, {}
        if self.replica.strategy.lag:
            found["pages"] = arena.pages.copy()
        if self.compressor is not None:
            found |= {"residuals": arena.residuals[self.submitted % 2].copy(), "factors": arena.factors.copy()}
        return found

    def remember(self, memory: dict[str, np.ndarray]) -> None:
        """Go on from what `memory` gave, before the first step."""
        places = {"pages": self.arena.pages, "factors": self.arena.factors}
        places["residuals"] = self.arena.residuals[self.submitted % 2]
        for name, array in memory.items():
            places[name][...] = array

    def report(self) -> list[dict[str, float]]:
        """Of each worker: seconds that it computed, merged and waited, shards that it did, processes that it had."""
        columns = {"computing": COMPUTE, "merging": MERGE, "waiting": WAIT, "shards": SHARDS}
        return [
            {name: float(self.arena.times[rank, column]) for name, column in columns.items()}
            | {"starts": int(self.arena.starts[rank])}
            for rank in range(self.workers)
        ]

    workers: int
    has_processes = True

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self.timeline:
            self.timeline.write(self.workers)


def slices_of(replica: Replica, workers: int) -> int:
    """In how many pieces so many workers that share memory merge."""
    return min(replica.strategy.slices(workers), SLICES)


class Solo(Steps):
    """All pieces are done by this process, as soon as a step is submitted."""

    workers, has_processes = 1, False

    def __init__(self, replica: Replica, dataset: Any, batch: int, **options: Any):
        super().__init__(replica, dataset, batch, 1, **options)
        self.arena.starts[0] = 1
        self._worker = Worker(0, self.arena, replica, dataset, spins=-1)

    def submit(self, batches: Sequence[np.ndarray], numbers: Sequence[np.ndarray], first: int, apart: bool) -> None:
        super().submit(batches, numbers, first, apart)
        try:
            self._worker.run()
        except NonFiniteError as error:
            step, k = self._worker.doing or (self.submitted, 0)
            raise NonFiniteError(f"fit: step {step}, shard {k}: {error}") from None
        self._collect()


class _Processes(Workers):
    """Processes that come and go; they wait for a word before they begin.

    Where they share out all cores, each keeps to its own: else two may meet on one core while another is idle.
    """

    started = False

    def __init__(self, workers: int, threads: int, *args: Any):
        available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._cores = available if workers * threads == len(available) else []
        super().__init__(0, work, *args, threads=threads)

    def _args_of(self, rank: int) -> tuple:
        own = self._cores[rank * self._threads : (rank + 1) * self._threads]
        return (*self._args, own)

    def start(self, rank: int) -> None:
        """Rank `rank`, the next one."""
        self._start(rank)
        if self.started:
            self._say_go(rank)

    def restart(self, rank: int) -> None:
        """A new process for a rank whose process is dead."""
        self._start(rank)
        dead, channel = self.processes[rank], self.channels[rank]
        self.processes[rank], self.channels[rank] = self.processes.pop(), self.channels.pop()
        dead.close()
        channel.close()
        if self.started:
            self._say_go(rank)

    def drop(self, size: int) -> None:
        """Forget the ranks from `size` on, whose processes are dead."""
        for process, channel in zip(self.processes[size:], self.channels[size:], strict=True):
            process.close()
            channel.close()
        del self.processes[size:], self.channels[size:]

    def go(self) -> None:
        for rank in range(0 if self.started else len(self.processes)):
            self._say_go(rank)
        self.started = True

    def _say_go(self, rank: int) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionError):
            self.channels[rank].send("go")


class Pool(Steps):
    """Steps that processes compute, in order. A context: at its end they are gone.

    workers: how many. placement: where they compute; all on the device of the replica by default. threads: of each; the
    cores, shared out, by default. patience: seconds; see PATIENCE above. The rest: see Steps.

    Raises ConfigError for what cannot be sent; SharedMemoryError; while it runs, WorkerError for an exception in a
    worker, a piece over which RETRIES workers died, or workers that cannot be started, and NonFiniteError for a loss.
    """

    def __init__(
        self,
        replica: Replica,
        dataset: Any,
        batch: int,
        workers: int,
        *,
        placement: Placement | None = None,
        threads: int | None = None,
        patience: float = PATIENCE,
        **options: Any,
    ):
        job = SharedObject((replica, dataset), "Trainer: expected a model, loss and data that can be sent to a worker")
        super().__init__(replica, dataset, batch, slices_of(replica, workers), **options)
        self.placement = placement or Placement(None, replica.device.name)
        self.patience, self._first = patience, self.submitted
        self._deaths: Counter[Any] = Counter()
        self._seals, self._since, self._longest, self._seconds = 0, time.monotonic(), 0.0, math.inf
        spins = SPINS if workers <= cores() else 16
        threads = max(1, cores() // workers) if threads is None else threads
        self._processes = _Processes(workers, threads, self.arena, job, spins, self.placement)
        self._born: dict[int, tuple[float, float]] = {}  # when the process of a rank was started; shards by then
        self._compiling = -math.inf  # until when workers on GPUs may compile
        self._missing: set[int] = set()
        self._slow: set[int] = set()
        self._looked = time.monotonic()
        try:
            self.resize(workers)
            self._warm_up(job)
        except BaseException:
            self._processes.end()
            raise

    def resize(self, workers: int) -> None:
        """Have so many workers from now on. One that is not needed any more may be ended at any point of its work."""
        if isinstance(workers, bool) or not isinstance(workers, int) or not 1 <= workers <= MOST_WORKERS:
            raise ConfigError(f"workers: expected an integer from 1 to {MOST_WORKERS}, got {workers!r}")
        self.placement.check(workers)
        for rank in range(len(self._processes.processes), workers):
            self._count_start(rank)
            self._processes.start(rank)
        for rank in range(workers, len(self._processes.processes)):
            self._processes.processes[rank].kill()
            self._processes.processes[rank].join()
            self._release(rank)
        self._processes.drop(workers)
        self._missing -= set(range(workers, MOST_WORKERS))

    def _count_start(self, rank: int) -> None:
        self.arena.starts[rank] += 1
        self._born[rank] = time.monotonic(), self.arena.times[rank, SHARDS]
        if self.placement.kind(rank) == "cuda":
            self._compiling = time.monotonic() + COMPILING

    @property
    def workers(self) -> int:  # type: ignore[override]
        return len(self._processes.processes)

    def _warm_up(self, job: SharedObject) -> None:
        """Compile, in this process alone, all that the workers will run on the CPU, and then let them begin."""
        replica = self.replica
        slot, pages = np.zeros(replica.layout.nbytes, np.uint8), [self.arena.pages[0].copy() for _ in range(2)]
        old, new = map(replica.layout.page, pages)
        positions = split((np.arange(min(len(self.dataset), self.arena.positions.shape[1])),), 0, replica.shards)[0]
        if "cpu" in self.placement.kinds:
            there = replica if replica.device.is_host else job.open()[0]
            with contextlib.suppress(NonFiniteError):  # that may well be, and is said when the step is done in earnest
                there.gradient(self.dataset, positions, 1.0, 0, 0, old, slot)
        replica.find_nonfinite(slot)
        numbers = np.zeros((len(replica.layout.segments), replica.optimizer.n_numbers))
        replica.slice_of((0, 1), old, new, [slot, slot]).update(numbers, [0.5, 0.5])
        if isinstance(replica.strategy, LocalSGD):
            replica.average_of((0, 1), [old, old], new).update([0.5, 0.5])
        if replica.clip_norm is not None:
            replica.sum_of_squares((0, 1), [slot, slot])
        pieces = lay_out([Phase("warm", 1, slack=1)])
        words, scratch, table = np.zeros(pieces[-1].end, np.int64), np.zeros(2, np.int64), table_of(pieces)
        allow(words, 1)
        while take(words, table, 0, -1, scratch) != NOTHING:
            publish(words, pieces[0].seals, 1)
        self._processes.go()

    # --- steps ---

    def submit(self, batches: Sequence[np.ndarray], numbers: Sequence[np.ndarray], first: int, apart: bool) -> None:
        """See Steps. Waits while too many steps are not done yet."""
        if self._collected == self.submitted:  # there was nothing to do: that is no pause of the workers
            self._seals, self._since = self._count_seals(), time.monotonic()
        most = min(max(AHEAD / self._seconds, 2), self.arena.window // 2)
        if self.submitted - self._collected >= most:  # then until there is half of the room: few looks, for many steps
            while self.submitted - self._collect() > most / 2:
                self._watch()
        super().submit(batches, numbers, first, apart)

    # --- watching ---

    def _watch(self, pause: float = POLL) -> None:
        """Wait for so many seconds; see to workers that failed, died or are stuck."""
        ranks = [rank for rank in range(self.workers) if rank not in self._missing]
        channels = [self._processes.channels[rank] for rank in ranks]
        sentinels = [self._processes.processes[rank].sentinel for rank in ranks]
        ready = connection.wait([*channels, *sentinels], pause)
        for rank, channel, sentinel in zip(ranks, channels, sentinels, strict=True):
            if channel in ready:
                self._hear(rank, channel)
            if sentinel in ready:
                self._replace(rank)
        self._look_for_stuck()

    def _hear(self, rank: int, channel: connection.Connection) -> None:
        try:
            kind, doing, message = loads(channel.recv_bytes())
        except (EOFError, OSError):  # it died
            return
        where = "worker {}, step {}, shard {}".format(rank, *doing) if doing else f"worker {rank}, at its start"
        if kind == "nonfinite":
            raise NonFiniteError(f"fit: {where}: {message}")
        raise WorkerError(f"{where}: {message['message']}", rank, None, message["traceback"])

    def _replace(self, rank: int) -> None:
        process = self._processes.processes[rank]
        process.join()  # from here on it writes nothing
        code = process.exitcode
        how = signal.Signals(-code).name if code < 0 else f"exit with status {code}"
        had = self._release(rank) or ["no piece"]
        log.warning("worker %d ended by %s over %s; another takes its place", rank, how, ", ".join(had))
        for what in had:
            self._deaths[what] += 1
            if self._deaths[what] >= RETRIES * (1 if what != "no piece" else self.workers):
                raise WorkerError(
                    f"fit: expected workers that live, but {self._deaths[what]} died over {what}, the last by {how}",
                    rank, max(0, -code) or None,
                )  # fmt: skip
        self._count_start(rank)
        began = time.perf_counter()
        try:
            self._processes.restart(rank)
        except WorkerError as error:  # no room for a new process: the others go on
            self._missing.add(rank)
            log.warning("worker %d could not be started again; %d are left", rank, self.workers - len(self._missing))
            left = {self.placement.kind(rank) for rank in range(self.workers) if rank not in self._missing}
            if left != set(self.placement.kinds):
                raise error
        if self.timeline:
            self.timeline.note(f"worker {rank} ended by {how}: start another", began, time.perf_counter())

    def _release(self, rank: int) -> list[str]:
        """Frees what a dead worker had not sealed; returns what that was."""
        found = []
        for pieces in self.arena.pieces:
            for piece, step in pieces.owned(self.arena.words, rank):
                name = pieces.phase.name
                found.append(f"{name} {piece} of step {step}{self._samples_of(piece, step) if name == 'shard' else ''}")
                pieces.release(self.arena.words, piece, step)
        return found

    def _samples_of(self, k: int, step: int) -> str:
        shard = np.concatenate([split((b,), k, self.replica.shards)[0] for b in self._result(step).batches])
        return f" (samples {', '.join(map(str, shard[:4]))}{', ...' if len(shard) > 4 else ''})"

    def _count_seals(self) -> int:
        """Since the pool began."""
        return sum(int((pieces.sealed(self.arena.words) - self._first).sum()) for pieces in self.arena.pieces)

    def _look_for_stuck(self) -> None:
        arena, now, seals = self.arena, time.monotonic(), self._count_seals()
        if seals != self._seals:
            gap, self._since = now - self._since, now
            per_step = sum(pieces.count for pieces in arena.pieces)
            if self._seals:
                self._longest = max(self._longest, gap)
                seconds = gap * per_step / (seals - self._seals)
                self._seconds = min(seconds, 0.7 * self._seconds + 0.3 * seconds)
            self._seals = seals
            self._deaths.pop("no piece", None)
            if now > self._looked + SLOW_EVERY:
                self._looked = now
                self._look_for_slow()
        elif now - self._since > self._patience(now) and self._collected < self.submitted:
            self._since = now
            owners = [r for r in range(self.workers) if any(p.owned(arena.words, r) for p in arena.pieces)]
            for rank in owners or range(self.workers):
                if rank not in self._missing and not self._is_starting(rank, now):
                    log.warning("worker %d made no progress for %.0f s: it is killed", rank, self.patience)
                    self._processes.processes[rank].kill()

    def _patience(self, now: float) -> float:
        """Seconds without a seal after which somebody is stuck."""
        return max(self.patience, PATIENCE_GAPS * self._longest, COMPILING if now < self._compiling else 0)

    def _is_starting(self, rank: int, now: float) -> bool:
        """Has its process not done a shard yet, and may it still take a while? Machines may be crowded."""
        born, shards = self._born[rank]
        return self.arena.times[rank, SHARDS] == shards and now - born < STARTING * self.patience

    def _look_for_slow(self) -> None:
        """A warning, once, of a worker whose shards take much longer than those of others; it gets fewer of them."""
        times = self.arena.times[: self.workers]
        done = times[:, SHARDS]
        if self.workers < 2 or done.min() < SLOW_AFTER or self.placement.are_mixed:
            return
        seconds = times[:, COMPUTE] / done
        for rank in set(range(self.workers)) - self._slow:
            ratio = seconds[rank] / np.median(np.delete(seconds, rank))
            if ratio > SLOW:
                self._slow.add(rank)
                log.warning("worker %d takes %.1f times as long as others for a shard", rank, ratio)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        stop(self.arena.words)
        self._processes.__exit__(kind, error, trace)
