"""A pool of processes that computes the steps of a run: no bit depends on their number, nor on how often they die.

The parent describes steps ahead of time (steps.py); workers share out the pieces among themselves (claims.py), and the
parent only watches. All state is in the arena. A worker holds nothing that another could not compute again, so one that
dies is replaced, and what it had not sealed is done once more.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from multiprocess import connection

from ...errors import ConfigError, NonFiniteError, WorkerError
from ...jit.names import Names
from ...native.atomics import SPINS, publish
from ...native.limits import cores
from ...nn import Module
from ...tensor import Tensor
from ..objects import SharedObject, generator_in, loads
from ..phases import Phase
from ..settings import Settings, Start
from ..shards import first_full, split
from .claims import NOTHING, allow, allow_pieces, lay_out, stop, table_of, take
from .device_memory import Blocks
from .launch import Workers, how_it_ended, threads_of
from .replica import Gradient, Replica
from .slices import Average, Slice, sum_of_squares
from .steps import Steps, log, slices_of
from .training_arena import COMPUTE, MOST_WORKERS, SHARDS
from .worker import work

AHEAD = 0.2  # seconds of work that are submitted ahead, so that a run that is asked to stop does so soon
POLL, SOON = 0.005, 0.0005  # seconds between two looks of the parent: while there is work to submit, and at the end
PATIENCE_GAPS = 20  # times the longest pause so far in which a worker, without progress, does not count as stuck
STARTING = 4  # times its patience for a process that reads all libraries, and records its first shard
COMPILING = 300.0  # seconds of patience for so many seconds after a start on a GPU: its kernels are in no cache
RETRIES = 5  # workers that may die over the same piece
STARTS = 10  # of each worker that may die over no piece, without any progress: as many as a storm of kills may take
SLOW_EVERY = 0.5  # seconds between two looks for slow workers
SLOW = 5.0  # times the time of other workers for a shard: deserves a warning
SLOW_AFTER = 10  # shards of each worker: recording the first ones takes longer
MODEL, LOSS = "the model", "the loss and the data"  # of which workers have copies


class _Processes(Workers):
    """Worker processes that come and go; they wait for a word before they begin.

    If they use all cores, each keeps to its own: otherwise two may meet on one core while another is idle.
    """

    started = False
    blocks: Blocks | None = None  # see `memory_for`

    def __init__(self, workers: int, threads: int, *args: Any):
        available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._cores = available if workers * threads == len(available) else []
        super().__init__(0, work, *args, threads=threads)

    def _args_of(self, rank: int) -> tuple:
        own = self._cores[rank * self._threads : (rank + 1) * self._threads]
        return (*self._args, self.blocks, own)

    def start(self, rank: int) -> None:
        """Start the process of the next rank."""
        self._start(rank)
        if self.started:
            self._say_go(rank)

    def restart(self, rank: int) -> None:
        """Start a new process for a rank whose process is dead."""
        self._start(rank)
        dead, channel = self.processes[rank], self.channels[rank]
        self.processes[rank], self.channels[rank] = self.processes.pop(), self.channels.pop()
        dead.close()
        channel.close()
        if self.started:
            self._say_go(rank)

    def drop(self, size: int) -> None:
        """Forget ranks from `size` on, whose processes are dead."""
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
    """Steps that processes compute. At `close` the processes are gone.

    patience: seconds; those of the settings unless given. A worker is patient for PATIENCE_GAPS times the longest
    pause so far, too, in which reading the first shard counts. stop: see `engine_of`.

    Raises ConfigError for what cannot be sent; SharedMemoryError; while it runs, WorkerError for an exception in a
    worker, for a piece over which RETRIES workers died, or for workers that cannot be started, and NonFiniteError;
    DeviceError where a GPU has no room for its part of the pages and slots.
    """

    def __init__(self, settings: Settings, start: Start, *, patience: float | None = None, stop: Any = None):
        replica, workers = Replica.of(settings), settings.workers
        job = SharedObject(replica, "Trainer: expected a model, loss and data that can be sent to a worker")
        if found := generator_in(replica.dataset, "dataset"):
            log.warning(
                "fit: %s is a generator of which each worker has its own copy; if samples draw from it, bits depend on "
                "the number of workers: make one from the sample's number, np.random.default_rng([seed, index])", found,
            )  # fmt: skip
        super().__init__(replica, start, slices_of(replica, workers))
        self.placement, self._modules = settings.placement, job.modules
        self.patience, self._first = patience or settings.patience, self.submitted
        self._stop = stop
        self._read: dict[str, Names] = {}  # what the user's code in workers reads by Python
        self._deaths: Counter[Any] = Counter()
        self._seals, self._since, self._seconds = 0, time.monotonic(), math.inf
        self._longest = replica.reading  # seconds: this process has read a shard already
        spins = SPINS if workers <= cores() else 16
        threads = threads_of(workers)
        self._processes = _Processes(workers, threads, self.arena, job, spins, self.placement)
        self._born: dict[int, tuple[float, float]] = {}  # of a rank: when its process was started; its shards by then
        self._compiling = -math.inf  # until when workers on GPUs may compile
        self._missing: set[int] = set()  # ranks whose process could not be started again
        self._slow: set[int] = set()
        self._looked = time.monotonic()
        try:
            if self.placement.kind(0) == "cuda":
                self._processes.blocks = self.use_gpus([*map(self.placement.gpu, range(workers))])
            self.resize(workers)
            self._warm_up(job)
        except BaseException:
            self._end()
            raise

    @contextlib.contextmanager
    def following(self, within_epoch: bool) -> Iterator[None]:
        modules = [x for x in (self.replica.model, self.settings.loss) if isinstance(x, Module)]
        before = _attributes(modules, within_epoch)
        for what, roots in {LOSS: self.settings.functions, MODEL: [self.replica.model]}.items():
            if what not in self._read or not self._read[what].hold():
                self._read[what] = Names(roots)
                self._read[what].of_modules.clear()  # they may have other values; and see `before`
        with super().following(within_epoch):
            yield
        for (module, old), (_, new) in zip(before, _attributes(modules, within_epoch), strict=False):
            for name in old.keys() | new.keys():
                if old.get(name, self) is not new.get(name, self):
                    raise self._unseen(MODEL, f"{type(module).__name__}.{name}")
        if (changed := self._read[LOSS].changed()) is not None:
            raise self._unseen(LOSS, changed)
        if (changed := self._read[MODEL].changed()) is not None:  # perhaps what it only keeps for another call
            warnings.warn(str(self._unseen(MODEL, changed)), RuntimeWarning, stacklevel=2)

    def _unseen(self, what: str, name: str) -> ConfigError:
        return ConfigError(
            f"expected callbacks that change values alone, as each of {self.workers} workers has a copy of {what}, "
            f"got another {name}; workers=1 sees it"
        )

    def resize(self, workers: int) -> bool:
        """A worker that is not needed any more is ended, at any point of its work."""
        if isinstance(workers, bool) or not isinstance(workers, int) or not 1 <= workers <= MOST_WORKERS:
            raise ConfigError(f"workers: expected an integer from 1 to {MOST_WORKERS}, got {workers!r}")
        self.placement.check(workers)
        self.strategy.check_workers(workers)
        self._share_stages(workers)
        for rank in range(len(self._processes.processes), workers):
            self._count_start(rank)
            self._processes.start(rank)
        for rank in range(workers, len(self._processes.processes)):
            self._processes.processes[rank].kill()
            self._processes.processes[rank].join()
            self._release(rank)
        self._processes.drop(workers)
        self._missing -= set(range(workers, MOST_WORKERS))
        return True

    def _share_stages(self, workers: int) -> None:
        """Say which pieces of a pipeline each worker may take: its own, and those of workers that are missing."""
        for rank, table in enumerate(self.arena.tables[:workers]):
            may = []
            for pieces in self.arena.pieces:
                phase, numbers = pieces.phase, range(pieces.count)
                owners = [
                    rank if phase.stage is None else self.strategy.owner(phase.place, i, workers) for i in numbers
                ]
                may.append(np.array([owner == rank or owner in self._missing for owner in owners]))
            allow_pieces(table, self.arena.pieces, may)

    def _count_start(self, rank: int) -> None:
        if self._processes.started and (file := self._modules.changed()):
            raise WorkerError(
                f"fit: worker {rank} has to start, but {file} was changed since the run began, and other code may give "
                "other bits; start again, from a checkpoint by resume='auto'", rank,
            )  # fmt: skip
        self.arena.starts[rank] += 1
        self._born[rank] = time.monotonic(), self.arena.times[rank, SHARDS]
        if self.placement.kind(rank) == "cuda":
            self._compiling = time.monotonic() + COMPILING

    @property
    def workers(self) -> int:  # type: ignore[override]
        return len(self._processes.processes)

    def _warm_up(self, job: SharedObject) -> None:
        """Compile here, in one process, all that the workers will run on the CPU; then let them begin."""
        replica = self.replica
        slot, pages = np.zeros(replica.layout.nbytes, np.uint8), [self.arena.pages[0].copy() for _ in range(2)]
        old, new = map(replica.layout.page, pages)
        batch = np.arange(min(len(replica.dataset), self.arena.positions.shape[1]))
        positions = first_full(batch, replica.shards)
        if "cpu" in self.placement.kinds and replica.plan is None:  # a plan was checked: that compiled its kernels
            there = replica if replica.device.is_host else job.open()
            with contextlib.suppress(NonFiniteError):  # the step itself raises it
                Gradient(there, len(positions), old, slot).compute(positions, 1.0, 0, 0)
        replica.find_nonfinite(slot)
        numbers = np.full((len(replica.layout.segments), replica.optimizer.n_numbers), 0.5)  # no rule divides by 0
        Slice(replica, (0, 1), old, new, {0: slot, 1: slot}).update(numbers, [0.5, 0.5])
        if self.strategy.has_local_steps:
            Average(replica, (0, 1), {0: old, 1: old}, new).update([0.5, 0.5])
        if self.settings.clip_norm is not None:
            sum_of_squares(replica.layout, (0, 1), {0: slot, 1: slot})
        pieces = lay_out([Phase("warm", 1, slack=1)])
        words, scratch, table = np.zeros(pieces[-1].end, np.int64), np.zeros(2, np.int64), table_of(pieces)
        allow(words, 1)
        while take(words, table, 0, -1, scratch) != NOTHING:
            publish(words, pieces[0].seals, 1)
        self._processes.go()

    # --- steps ------------------------------------------------------------------------------------------------------

    def submit_step(self, batches: Sequence[np.ndarray], numbers: Sequence[np.ndarray], is_local: bool) -> None:
        """See Steps. Waits while too many steps are not done yet."""
        if self._collected == self.submitted:  # workers had nothing to do, which is no sign of a stuck one
            self._seals, self._since = self._count_seals(), time.monotonic()
        most = min(max(AHEAD / self._seconds, 2), self.arena.window // 2)
        if self.submitted - self._collected >= most:  # wait until half is done: few looks, for many steps
            while self.submitted - self.collect() > most / 2:
                self._watch()
        super().submit_step(batches, numbers, is_local)

    def drain(self) -> None:
        while self.collect() < self.submitted:
            self._watch(SOON)

    # --- watching ---------------------------------------------------------------------------------------------------

    def _watch(self, pause: float = POLL) -> None:
        """Wait so many seconds; then look after workers that failed, died or are stuck."""
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
        how = how_it_ended(code)
        had = self._release(rank) or ["no piece"]
        log.warning("worker %d ended by %s over %s; another takes its place", rank, how, ", ".join(had))
        for what in had:
            self._deaths[what] += 1
            if self._deaths[what] >= (RETRIES if what != "no piece" else STARTS * self.workers):
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
            self._share_stages(self.workers)
            log.warning("worker %d could not be started again; %d are left", rank, self.workers - len(self._missing))
            left = {self.placement.kind(rank) for rank in range(self.workers) if rank not in self._missing}
            if left != set(self.placement.kinds):
                raise error
        if self.timeline:
            self.timeline.note(f"worker {rank} ended by {how}: start another", began, time.perf_counter())

    def _release(self, rank: int) -> list[str]:
        """Free the pieces that a dead worker had not sealed; returns their names."""
        found = []
        for pieces in self.arena.pieces:
            for piece, step in pieces.owned(self.arena.words, rank):
                name = pieces.phase.name
                found.append(f"{name} {piece} of step {step}{self._samples_of(piece, step) if name == 'shard' else ''}")
                pieces.release(self.arena.words, piece, step)
        return found

    def _samples_of(self, k: int, step: int) -> str:
        shard = np.concatenate([split((b,), k, self.replica.shards)[0] for b in self.result(step).batches])
        return f" (samples {', '.join(map(str, shard[:4]))}{', ...' if len(shard) > 4 else ''})"

    def _count_seals(self) -> int:
        """Pieces sealed since the pool began."""
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
            if self._stop is not None and self._stop.requested:  # the step in hand will not be done
                log.warning("no progress for %.0f s: the run ends, as it was asked to", now - self._since)
                self._stop.leave_if_requested()
            self._since = now
            owners = [r for r in range(self.workers) if any(p.owned(arena.words, r) for p in arena.pieces)]
            for rank in owners or range(self.workers):
                if rank not in self._missing and not self._is_starting(rank, now):
                    waited = f"after {self._patience(now):.0f} s without progress; Trainer(patience=...) allows more"
                    log.warning("worker %d is killed %s", rank, waited)
                    self._processes.processes[rank].kill()

    def _patience(self, now: float) -> float:
        """Seconds without a seal after which a worker counts as stuck."""
        return max(self.patience, PATIENCE_GAPS * self._longest, COMPILING if now < self._compiling else 0)

    def _is_starting(self, rank: int, now: float) -> bool:
        """Has its process not done a shard yet, and is it young? On a busy machine a start takes long."""
        born, shards = self._born[rank]
        return self.arena.times[rank, SHARDS] == shards and now - born < STARTING * self.patience

    def _look_for_slow(self) -> None:
        """Warn once of a worker whose shards take much longer than those of others. (It takes fewer of them.)"""
        times = self.arena.times[: self.workers]
        done = times[:, SHARDS]
        if self.workers < 2 or done.min() < SLOW_AFTER or self.placement.are_mixed or self.replica.plan:
            return
        seconds = times[:, COMPUTE] / done
        for rank in set(range(self.workers)) - self._slow:
            ratio = seconds[rank] / np.median(np.delete(seconds, rank))
            if ratio > SLOW:
                self._slow.add(rank)
                log.warning("worker %d takes %.1f times as long as others for a shard", rank, ratio)

    def close(self, error: BaseException | None = None) -> None:
        try:
            super().close(error)
            stop(self.arena.words)
            self._processes.__exit__(error and type(error), error, None)
        finally:
            self._end()

    def _end(self) -> None:
        self._processes.end()
        self.leave_gpus()  # once nobody uses their memory any more


def _attributes(modules: Sequence[Module], with_mode: bool) -> list[tuple[Module, dict[str, Any]]]:
    """Of each module what it consists of, and which of its parameters are trained."""
    found = []
    for module in itertools.chain.from_iterable(x.modules() for x in modules):
        own = {name: value for name, value in vars(module).items() if with_mode or name != "training"}
        trained = {f"{name}.requires_grad": t.requires_grad for name, t in own.items() if isinstance(t, Tensor)}
        found.append((module, own | trained))
    return found
