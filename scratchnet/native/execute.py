"""How a program runs: all threads do its tasks, stage by stage, in one parallel region.

A *group* of tasks goes over the same rows: a thread takes a block of rows and runs every task of the group on it, so
what one task leaves for the next is still in the cache. A *stage* is groups that do not depend on each other. Each
thread has a queue of blocks, the same in every run, so that it finds in its caches what it left there. When its queue
is empty, it takes blocks from the others' queues; when the last block of a stage is done, all go on to the next stage.
No thread waits for one that has not started: who is late finds less to do. The result does not depend on who does what.

A region may run a program several times, *turn* after turn, so that Python calls it once for many steps. Before each
turn, the first thread that comes puts the addresses of what belongs to that turn into the tables.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .atomics import LINE, SPINS, clock, fetch_add, let_others_run, load_acquire, pause
from .compile import MAX_THREADS, jit
from .loops import PACKED_WORDS, PARALLEL_FROM, Task, call, over_blocks, ranged

# --- one thread's part ----------------------------------------------------------------------------------------------


@jit
def _run_block(block, group, groups, tasks, stop):
    """All tasks of a group on one block of its rows, until a guard among them stops the program."""
    first, end, rows, size = groups[group, 0], groups[group, 1], groups[group, 2], groups[group, 3]
    lo = block * size
    hi = min(lo + size, rows)
    for t in range(first, end):
        if load_acquire(stop, 0) != 0:
            return
        items = tasks[t, 2]  # of all rows
        call(tasks[t, 0], items // rows * lo, items // rows * hi, tasks[t, 1])


@jit
def _wait(counters, at, value):
    """Until a counter has reached a value."""
    spins = 0
    while load_acquire(counters, at) < value:
        spins += 1
        if spins < SPINS:
            pause()
        else:
            let_others_run()


@jit
def _turn(me, counters, marks, tables):
    """Thread `me`'s part of a turn: the blocks of its own queue, then what is left in the others'. Does it go on?

    marks: see Executable.run_watched; may be empty.
    """
    queues, blocks, groups, tasks, stop = tables
    threads = queues.shape[1] - 1
    if marks.size:
        marks[0] = clock(marks[-2:])
    for stage in range(len(queues)):
        if load_acquire(stop, 0) != 0:  # written before the last stage ended, so all threads see it here, or none
            return False
        taken = LINE * (threads + 1) * stage
        done, all_blocks = taken + LINE * threads, queues[stage, threads] - queues[stage, 0]
        for other in range(threads):
            queue = (me + other) % threads
            while True:
                at = queues[stage, queue] + fetch_add(counters, taken + LINE * queue, 1)
                if at >= queues[stage, queue + 1]:
                    break
                _run_block(blocks[at, 1], blocks[at, 0], groups, tasks, stop)
                if marks.size:
                    marks[1 + stage] = clock(marks[-2:])
                fetch_add(counters, done, 1)
        _wait(counters, done, all_blocks)
    return True


@jit
def _work(me, turns, tables):
    """Thread `me`'s part of all turns, whose counters are rows. done, places, addresses: see Executable.run_turns."""
    counters, done, words, places, addresses, marks = turns
    stop = tables[4]
    for turn in range(len(counters)):
        own = counters[turn]
        if len(places):
            if load_acquire(stop, 0) != 0:
                return
            if fetch_add(own, 0, 1) == 0:
                done[0] = turn
                for i in range(len(places)):
                    words[places[i]] = addresses[turn, i]
                fetch_add(own, LINE, 1)
            _wait(own, LINE, 1)
        if not _turn(me, own[2 * LINE :], marks[me], tables):
            return
    if load_acquire(stop, 0) == 0:
        done[0] = len(counters)


@jit
def _work_of(lo, hi, turns, tables):
    """The parts of threads `lo` to `hi`."""
    for me in range(lo, hi):
        _work(me, turns, tables)


_program = ranged(_work_of, "program", writes=())


@jit
def _call(function, lo, hi, arguments):
    call(function, lo, hi, arguments)


# --- a program ------------------------------------------------------------------------------------------------------

NO_PLACES, NO_ADDRESSES = np.zeros(0, np.int64), np.zeros((1, 0), np.int64)
NO_MARKS = np.zeros((MAX_THREADS, 0), np.int64)


class Group(NamedTuple):
    """Tasks that run one after the other on each block of `block` rows; each has a multiple of `rows` items."""

    tasks: Sequence[Task]
    rows: int
    block: int

    @property
    def blocks(self) -> int:
        return -(-self.rows // self.block)

    @property
    def work(self) -> int:
        return sum(task.work for task in self.tasks)


class Executable:
    """Stages of groups as tables of addresses, which one compiled function reads: `run()`.

    threads: how many share the work. stop: int64 (1,); a task that writes another value than 0 there ends the run after
    its stage.
    """

    def __init__(self, stages: Sequence[Sequence[Group]], threads: int, stop: np.ndarray):
        groups = [group for stage in stages for group in stage]
        tasks = [task for group in groups for task in group.tasks]
        ends = np.cumsum([0, *(len(group.tasks) for group in groups)])
        self.arguments = np.zeros((len(tasks), PACKED_WORDS), np.int64)
        addresses = [row.ctypes.data for row in self.arguments]
        functions = [task.loop.pack(at, *task.arguments) for task, at in zip(tasks, addresses, strict=True)]
        self.tasks = _table([(f, at, task.size) for f, at, task in zip(functions, addresses, tasks, strict=True)], 3)
        self.groups = _table(
            [(ends[i], ends[i + 1], group.rows, group.block, group.blocks) for i, group in enumerate(groups)], 5
        )
        firsts = np.cumsum([0, *map(len, stages)])
        self.stages = _table([(firsts[i], firsts[i + 1]) for i in range(len(stages))], 2)
        queues = [q for first, stage in zip(firsts, stages, strict=False) for q in _queues(first, stage, threads)]
        self.blocks = _table([block for queue in queues for block in queue], 2)
        ends = np.cumsum([0, *map(len, queues)])
        self.queues = _table(
            [tuple(ends[i * threads : (i + 1) * threads + 1]) for i in range(len(stages))], threads + 1
        )
        self.words, self.done = self.arguments.reshape(-1), np.zeros(1, np.int64)
        self.counters = np.zeros((1, LINE * ((threads + 1) * len(stages) + 2)), np.int64)
        self.threads, self.stop, self.kept = threads, stop, tasks
        self.work = sum(group.work for group in groups)
        self.shared = threads > 1 and self.work >= PARALLEL_FROM
        self._whole = self._packed()
        self._watched: tuple[np.ndarray, tuple] | None = None

    def run(self) -> None:
        """Runs all tasks; on all threads if the work is large enough."""
        self._run(self._whole, self.shared)

    def run_watched(self) -> np.ndarray:
        """`run`, and when each thread began, and when it ended its last block of each stage: (threads, 1 + stages).

        Nanoseconds, as of `atomics.nanoseconds`; 0 where it did nothing. A program that is not watched pays nothing.
        """
        if self._watched is None:
            marks = np.zeros((self.threads, 1 + len(self.queues) + 2), np.int64)
            self._watched = marks, self._packed(marks=marks)
        marks, packed = self._watched
        marks.fill(0)
        self._run(packed, self.shared)
        return marks[:, :-2].copy()

    def run_turns(self, places: np.ndarray, addresses: np.ndarray, shared: bool) -> None:
        """Runs all tasks once for each row of `addresses`, which stands at `places` in the tables then.

        places: int64 (words,), see `places_of`. addresses: int64 (turns, words). shared: on all threads, or on one?
        `done[0]` counts the turns that are done: where a task writes to `stop`, the turn in which it did is not, and no
        later one begins.
        """
        turns = len(addresses)
        if len(self.counters) < turns:
            self.counters = np.zeros((turns, self.counters.shape[1]), np.int64)
        self._run(self._packed(turns, places, addresses), shared)

    def _packed(
        self,
        turns: int = 1,
        places: np.ndarray = NO_PLACES,
        addresses: np.ndarray = NO_ADDRESSES,
        marks: np.ndarray = NO_MARKS,
    ) -> tuple:
        """What `_run` runs: a function, the address of its arguments, their memory, and they, which live as long."""
        rows = self.counters[:turns], self.done, self.words, places, addresses, marks
        arguments = rows, (self.queues, self.blocks, self.groups, self.tasks, self.stop)
        memory = np.empty(PACKED_WORDS, np.int64)
        address = memory.ctypes.data
        return _program.pack(address, *arguments), address, memory, arguments

    def _run(self, packed: tuple, shared: bool) -> None:
        function, address, _, ((counters, *_), _) = packed
        counters.fill(0)
        if shared:
            over_blocks(self.threads, 1, function, address)
        else:
            _call(function, 0, 1, address)

    def places_of(self, array: np.ndarray) -> list[tuple[int, int]]:
        """Where in the tables addresses within an array stand: (place, offset in the array)."""
        start = array.__array_interface__["data"][0]
        at = np.flatnonzero((self.words >= start) & (self.words < start + max(array.nbytes, 1)))
        return [(int(i), int(self.words[i]) - start) for i in at]


def _queues(first: int, stage: Sequence[Group], threads: int) -> list[list[tuple[int, int]]]:
    """For each thread, the blocks (group, block) of a stage that it takes first; groups are numbered from `first`."""
    queues: list[list[tuple[int, int]]] = [[] for _ in range(threads)]
    load = [0.0] * threads
    for number, group in enumerate(stage, first):
        for block in range(group.blocks):
            many = group.blocks >= threads
            queue = block * threads // group.blocks if many else load.index(min(load))
            queues[queue].append((number, block))
            load[queue] += group.work / group.blocks
    return queues


def _table(rows: Sequence[tuple], columns: int) -> np.ndarray:
    return np.array(rows, np.int64).reshape(len(rows), columns)
