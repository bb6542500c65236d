"""A pool of processes that computes the steps of a run: its bytes depend neither on their number nor on their deaths.

The parent writes what a step needs (positions of samples, numbers of the optimizer) ahead of time and lets the workers
go; they share out shards and slices by themselves (claims.py), and the parent only watches. All state is in the arena:
two pages that take turns, a slot for each shard, and the words. A worker holds nothing that another could not compute
again, so one that dies is replaced, and what it had not sealed is done once more.

    page t -> [gradient of shard k -> slot k]  all sealed -> [slice s of page t + 1]  all sealed = step t is committed
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from multiprocess import connection

from ..errors import ConfigError, NonFiniteError, WorkerError
from ..kernels.cpu.atomics import LINE, SPINS
from . import failpoints
from .claims import ALL_SEALED, STOPPED, Pieces, allow, seal, stop, take, wait_for_step
from .launch import Parcel, Workers, cores, describe, dumps, loads
from .memory import Layout, SharedMemory
from .replica import Page, Replica, Slice
from .shards import StepResult, split

WINDOW = 256  # steps that are written ahead at most
AHEAD = 0.2  # seconds of work that are allowed ahead, so that a run that is asked to stop does so soon
POLL = 0.002  # seconds between two looks of the parent
PATIENCE = 30.0  # seconds without progress after which a worker counts as stuck, at least
PATIENCE_GAPS = 20  # times the longest pause so far
MOST_WORKERS = 256
RETRIES = 3  # workers that may die over the same piece, or without any progress
SLICES = 16  # pieces of the merge and update, at most: one a worker
COMPUTE, MERGE, WAIT = range(3)  # columns of `times`


class TrainingArena:
    """What the processes of a pool share. It travels to them as an open file.

    words: int64. positions (WINDOW, batch), counts (WINDOW,), numbers (WINDOW, segments, n), losses (WINDOW, shards):
    the steps, by number modulo WINDOW. pages (2, bytes), slots (shards, bytes). times (MOST_WORKERS, LINE): seconds.
    """

    def __init__(self, replica: Replica, batch: int, slices: int):
        layout, shards = replica.layout, replica.shards
        self.shards = Pieces(2 * LINE, shards)
        self.slices = Pieces(self.shards.end, slices)
        arrays = {
            "words": ((self.slices.end,), np.int64),
            "positions": ((WINDOW, batch), np.int64),
            "counts": ((WINDOW,), np.int64),
            "numbers": ((WINDOW, len(layout.segments), replica.optimizer.n_numbers), np.float64),
            "losses": ((WINDOW, shards), np.float64),
            "times": ((MOST_WORKERS, LINE), np.float64),
            "starts": ((MOST_WORKERS,), np.int64),
            "pages": ((2, layout.page_bytes), np.uint8),
            "slots": ((shards, layout.nbytes), np.uint8),
        }
        room = Layout()
        self.places = {
            name: (room.place(math.prod(shape) * np.dtype(dtype).itemsize), shape, dtype)
            for name, (shape, dtype) in arrays.items()
        }
        self.memory = SharedMemory(room.size)
        self._map()

    def _map(self) -> None:
        for name, place in self.places.items():
            setattr(self, name, self.memory.array(*place))

    def __getstate__(self):
        return {name: getattr(self, name) for name in ("shards", "slices", "places", "memory")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._map()

    words: np.ndarray
    positions: np.ndarray
    counts: np.ndarray
    numbers: np.ndarray
    losses: np.ndarray
    times: np.ndarray
    starts: np.ndarray
    pages: np.ndarray
    slots: np.ndarray

    def committed(self) -> int:
        """Steps that are done: their page is whole."""
        return int(self.slices.sealed(self.words).min())


# --- a worker ---------------------------------------------------------------------------------------------------------


def work(channel: connection.Connection, rank: int, arena: TrainingArena, job: Parcel, spins: int) -> None:
    """The life of a worker: take a piece, do it, seal it, until told to stop."""
    channel.recv()
    fail = failpoints.armed(rank, int(arena.starts[rank]) - 1)
    fail("start", arena.committed())
    worker = None
    try:
        replica, dataset = job.open()
        worker = _Worker(rank, arena, replica, dataset, spins, fail)
        worker.run()
    except NonFiniteError:
        channel.send_bytes(dumps(("nonfinite", worker and worker.doing)))
    except Exception as error:
        channel.send_bytes(dumps(("error", worker and worker.doing, describe(error))))
    fail("exit", worker.step if worker else 0)


class _Worker:
    def __init__(self, rank: int, arena: TrainingArena, replica: Replica, dataset: Any, spins: int, fail: Callable):
        self.rank, self.arena, self.replica, self.dataset, self.fail = rank, arena, replica, dataset, fail
        self.spins, self.scratch = spins, np.zeros(2, np.int64)
        self.pages: list[Page] = [replica.layout.page(memory) for memory in arena.pages]
        self.slots = list(arena.slots)
        self.step = arena.committed()
        self.doing: tuple[int, int] | None = None
        self.times = arena.times[rank]
        self.slices: dict[Any, Slice] = {}  # by number, page and shards that are not empty

    def run(self) -> None:
        words = self.arena.words
        last = time.perf_counter()
        while True:
            self.fail("idle", self.step)
            if not wait_for_step(words, self.step, self.spins, self.scratch):
                return
            count = int(self.arena.counts[self.step % WINDOW])
            shards = self.replica.shards
            bounds = [(k * count // shards, (k + 1) * count // shards) for k in range(shards)]
            for pieces, column, do in (
                (self.arena.shards, COMPUTE, self._gradient),
                (self.arena.slices, MERGE, self._update),
            ):
                while True:
                    piece = take(
                        words, pieces.claims, pieces.seals, pieces.count, self.step, self.rank, self.spins, self.scratch
                    )
                    now = time.perf_counter()
                    self.times[WAIT] += now - last
                    if piece == STOPPED:
                        return
                    if piece == ALL_SEALED:
                        last = now
                        break
                    do(piece, bounds, count)
                    last = time.perf_counter()
                    self.times[column] += last - now
                    seal(words, pieces.seals, piece, self.step)
            self.step += 1

    def _gradient(self, k: int, bounds: list[tuple[int, int]], count: int) -> None:
        lo, hi = bounds[k]
        self.doing = self.step, k
        self.fail("shard.claimed", self.step)
        row = self.step % WINDOW
        if lo < hi:
            self.arena.losses[row, k] = self.replica.gradient(
                self.dataset, self.arena.positions[row, lo:hi], (hi - lo) / count, self.step, k,
                self.pages[self.step % 2], self.slots[k],
            )  # fmt: skip
        else:
            self.arena.losses[row, k] = math.nan
        self.fail("shard.half_written", self.step, self.slots[k])
        self.fail("shard.written", self.step)

    def _update(self, s: int, bounds: list[tuple[int, int]], count: int) -> None:
        self.fail("slice.claimed", self.step)
        full = tuple([k for k, (lo, hi) in enumerate(bounds) if lo < hi])
        kind = s, self.step % 2, full
        piece = self.slices.get(kind)
        if piece is None:
            old, new = self.pages[self.step % 2], self.pages[1 - self.step % 2]
            part = s, self.arena.slices.count
            piece = self.replica.slice_of(part, old, new, [self.slots[k] for k in full])
            self.slices[kind] = piece
        weights = [(hi - lo) / count for lo, hi in bounds if lo < hi]
        piece.update(self.arena.numbers[self.step % WINDOW], weights)
        self.fail("slice.half_written", self.step, *[x for _, _, new in piece.segments for x in new])
        self.fail("slice.written", self.step)


class _Crew(Workers):
    """Processes that come and go; they wait for a word before they begin."""

    started = False

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


class Pool:
    """Processes that compute the steps given by `submit`, in order. A context: at its end they are gone.

    replica: the model, optimizer and loss at their start. dataset: what the positions of a step number. batch: the most
    samples of a step. first: the number of the first step. patience: seconds; see PATIENCE above.

    Raises ConfigError for what cannot be sent; SharedMemoryError; while it runs, WorkerError for an exception in a
    worker, a piece over which RETRIES workers died, or workers that cannot be started, and NonFiniteError for a loss.
    """

    def __init__(
        self, replica: Replica, dataset: Any, batch: int, workers: int, first: int = 0, patience: float = PATIENCE
    ):
        self.replica, self.dataset, self.patience = replica, dataset, patience
        job = Parcel((replica, dataset), "Trainer: expected a model, loss and data that can be sent to a worker")
        self.arena = TrainingArena(replica, batch, min(workers, SLICES))
        self.pages: list[Page] = [replica.layout.page(memory) for memory in self.arena.pages]
        for pieces in (self.arena.shards, self.arena.slices):
            pieces.sealed(self.arena.words)[:] = first
        replica.write(self.pages[first % 2])
        allow(self.arena.words, first)
        self.submitted = self._collected = self._first = first
        self._done: list[StepResult] = []
        self._deaths: Counter[Any] = Counter()
        self._seals, self._since, self._longest, self._seconds = 0, time.monotonic(), 0.0, math.inf
        self._crew = _Crew(0, work, self.arena, job, SPINS if workers <= cores() else 16, threads=cores() // workers)
        self._missing: set[int] = set()
        try:
            self.resize(workers)
            self._warm_up()
        except BaseException:
            self._crew.end()
            raise

    def resize(self, workers: int) -> None:
        """Have so many workers from now on. One that is not needed any more may be ended at any point of its work."""
        if isinstance(workers, bool) or not isinstance(workers, int) or not 1 <= workers <= MOST_WORKERS:
            raise ConfigError(f"workers: expected an integer from 1 to {MOST_WORKERS}, got {workers!r}")
        for rank in range(len(self._crew.processes), workers):
            self.arena.starts[rank] += 1
            self._crew.start(rank)
        for rank in range(workers, len(self._crew.processes)):
            self._crew.processes[rank].kill()
            self._crew.processes[rank].join()
            self._release(rank)
        self._crew.drop(workers)
        self._missing -= set(range(workers, MOST_WORKERS))

    @property
    def workers(self) -> int:
        return len(self._crew.processes)

    def _warm_up(self) -> None:
        """Compile, in this process alone, all that the workers will run, and then let them begin."""
        replica, words, scratch = self.replica, np.zeros(8 * LINE, np.int64), np.zeros(2, np.int64)
        slot, pages = np.zeros(replica.layout.nbytes, np.uint8), [page.copy() for page in self.arena.pages]
        old, new = map(replica.layout.page, pages)
        positions = split((np.arange(min(len(self.dataset), self.arena.positions.shape[1])),), 0, replica.shards)[0]
        with contextlib.suppress(NonFiniteError):  # that may well be, and is said when the step is done in earnest
            replica.gradient(self.dataset, positions, 1.0, 0, 0, old, slot)
        numbers = np.zeros((len(replica.layout.segments), replica.optimizer.n_numbers))
        replica.slice_of((0, 1), old, new, [slot, slot]).update(numbers, [0.5, 0.5])
        allow(words, 1)
        wait_for_step(words, 0, 0, scratch)
        pieces = Pieces(2 * LINE, 1)
        seal(words, pieces.seals, take(words, pieces.claims, pieces.seals, 1, 0, 0, 0, scratch), 0)
        self._crew.go()

    # --- steps ---

    def submit(self, positions: np.ndarray, numbers: np.ndarray) -> None:
        """The next step: its samples, and what the optimizer's kernel takes. Waits while too many are not done yet."""
        if self._collect() == self.submitted:  # there was nothing to do: that is no pause of the workers
            self._seals, self._since = self._count_seals(), time.monotonic()
        while self.submitted - self._collect() >= min(max(AHEAD / self._seconds, 2), WINDOW // 2):
            self._watch()
        row = self.submitted % WINDOW
        self.arena.positions[row, : len(positions)] = positions
        self.arena.counts[row] = len(positions)
        self.arena.numbers[row] = numbers
        self.submitted += 1
        allow(self.arena.words, self.submitted)

    def drain(self) -> None:
        """Wait until all steps are done."""
        while self._collect() < self.submitted:
            self._watch()

    def finished(self) -> list[StepResult]:
        """The steps that were done since the last call, in order."""
        done, self._done = self._done, []
        return done

    def read(self) -> None:
        """The state after the last step that is done, to the model and optimizer."""
        self.replica.read(self.pages[self.arena.committed() % 2])

    def current(self) -> StepResult:
        """The step that is being computed, without losses."""
        number = self.arena.committed()
        row = number % WINDOW
        return StepResult(number, self.arena.positions[row, : self.arena.counts[row]].copy(), np.empty(0))

    def _collect(self) -> int:
        committed = self.arena.committed()
        for number in range(self._collected, committed):
            row = number % WINDOW
            positions = self.arena.positions[row, : self.arena.counts[row]].copy()
            self._done.append(StepResult(number, positions, self.arena.losses[row].copy()))
        self._collected = committed
        return committed

    # --- watching ---

    def _watch(self) -> None:
        """Wait a little; see to workers that failed, died or are stuck."""
        ranks = [rank for rank in range(self.workers) if rank not in self._missing]
        channels = [self._crew.channels[rank] for rank in ranks]
        sentinels = [self._crew.processes[rank].sentinel for rank in ranks]
        ready = connection.wait([*channels, *sentinels], POLL)
        for rank, channel, sentinel in zip(ranks, channels, sentinels, strict=True):
            if channel in ready:
                self._hear(rank, channel)
            if sentinel in ready:
                self._replace(rank)
        self._look_for_stuck()

    def _hear(self, rank: int, channel: connection.Connection) -> None:
        try:
            kind, doing, *more = loads(channel.recv_bytes())
        except (EOFError, OSError):  # it died
            return
        where = f"worker {rank}, " + ("step {}, shard {}".format(*doing) if doing else "at its start")
        if kind == "nonfinite":
            raise NonFiniteError(f"{where}: expected a finite loss, got one that is not")
        raise WorkerError(f"{where}: {more[0]['message']}", rank, None, more[0]["traceback"])

    def _replace(self, rank: int) -> None:
        process = self._crew.processes[rank]
        process.join()  # from here on it writes nothing
        code = process.exitcode
        how = signal.Signals(-code).name if code < 0 else f"exit with status {code}"
        for what in self._release(rank) or ["no piece"]:
            self._deaths[what] += 1
            if self._deaths[what] >= RETRIES * (1 if what != "no piece" else self.workers):
                raise WorkerError(
                    f"fit: expected workers that live, but {self._deaths[what]} died over {what}, the last by {how}",
                    rank, max(0, -code) or None,
                )  # fmt: skip
        self.arena.starts[rank] += 1
        try:
            self._crew.restart(rank)
        except WorkerError as error:  # no room for a new process: the others go on
            self._missing.add(rank)
            if len(self._missing) == self.workers:
                raise error

    def _release(self, rank: int) -> list[str]:
        """Frees what a dead worker had not sealed; returns what that was."""
        found = []
        for name, pieces in (("shard", self.arena.shards), ("slice", self.arena.slices)):
            for piece, step in pieces.owned(self.arena.words, rank):
                found.append(f"{name} {piece} of step {step}{self._samples(piece, step) if name == 'shard' else ''}")
                pieces.release(self.arena.words, piece, step)
        return found

    def _samples(self, k: int, step: int) -> str:
        row = step % WINDOW
        positions = self.arena.positions[row, : self.arena.counts[row]]
        (shard,) = split((positions,), k, self.replica.shards)
        return f" (samples {', '.join(map(str, shard[:4]))}{', ...' if len(shard) > 4 else ''})"

    def _count_seals(self) -> int:
        """Since the pool began."""
        both = self.arena.shards, self.arena.slices
        return sum(int((pieces.sealed(self.arena.words) - self._first).sum()) for pieces in both)

    def _look_for_stuck(self) -> None:
        arena, now, seals = self.arena, time.monotonic(), self._count_seals()
        if seals != self._seals:
            gap, self._since = now - self._since, now
            per_step = arena.shards.count + arena.slices.count
            if self._seals:
                self._longest = max(self._longest, gap)
                self._seconds = 0.9 * min(self._seconds, 1.0) + 0.1 * gap * per_step / (seals - self._seals)
            self._seals = seals
            self._deaths.pop("no piece", None)
        elif now - self._since > max(self.patience, PATIENCE_GAPS * self._longest) and self._collected < self.submitted:
            self._since = now
            owners = [
                r for r in range(self.workers) if any(p.owned(arena.words, r) for p in (arena.shards, arena.slices))
            ]
            for rank in owners or range(self.workers):
                if rank not in self._missing:
                    self._crew.processes[rank].kill()

    def report(self) -> list[dict[str, float]]:
        """Seconds that each worker computed, merged and waited."""
        names = ("computing", "merging", "waiting")
        return [dict(zip(names, map(float, self.arena.times[rank]), strict=False)) for rank in range(self.workers)]

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        stop(self.arena.words)
        self._crew.__exit__(kind, error, trace)
