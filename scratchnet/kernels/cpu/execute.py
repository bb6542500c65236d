"""How a program runs: a list of tasks in stages, worked off by all threads in one parallel region.

A *group* of tasks goes over the same rows: a thread takes a block of rows and runs every task of the group on it, so
what one task leaves for the next is still in the cache. A *stage* is groups that do not depend on each other. Threads
take blocks by counting up a ticket; when the last block of a stage is done, all go on to the next. Nobody waits for a
thread that has not come: a thread that is late finds less to do. Who does which block changes nothing in the result.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import prange

from .atomics import LINE, SPINS, fetch_add, let_others_run, load_acquire, pause
from .blocks import PACKED_WORDS, PARALLEL_FROM, Task, call
from .compile import jit

# --- one thread's part ----------------------------------------------------------------------------------------------


@jit
def _run_block(block, group, groups, tasks):
    """All tasks of a group on one block of its rows."""
    first, end, rows, size = groups[group, 0], groups[group, 1], groups[group, 2], groups[group, 3]
    lo = block * size
    hi = min(lo + size, rows)
    for t in range(first, end):
        items = tasks[t, 2]  # of all rows
        call(tasks[t, 0], items // rows * lo, items // rows * hi, tasks[t, 1])


@jit
def _work(stages, groups, tasks, counters, stop):
    for stage in range(len(stages)):
        if load_acquire(stop, 0) != 0:  # written before the last stage ended, so all threads see it here, or none
            return
        group, blocks = stages[stage, 0], stages[stage, 2]
        first, taken, done = 0, 2 * LINE * stage, 2 * LINE * stage + LINE
        while True:
            ticket = fetch_add(counters, taken, 1)
            if ticket >= blocks:
                break
            while ticket >= first + groups[group, 4]:
                first += groups[group, 4]
                group += 1
            _run_block(ticket - first, group, groups, tasks)
            fetch_add(counters, done, 1)
        spins = 0
        while load_acquire(counters, done) < blocks:
            spins += 1
            if spins < SPINS:
                pause()
            else:
                let_others_run()


@jit(parallel=True)
def _work_together(threads, stages, groups, tasks, counters, stop):
    for _ in prange(threads):
        _work(stages, groups, tasks, counters, stop)


# --- a program ------------------------------------------------------------------------------------------------------


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
    """Stages of groups as tables of addresses, which one compiled function works off: `run()`.

    stop: int64 (1,); a task that writes another value than 0 there ends the run after its stage.
    """

    def __init__(self, stages: Sequence[Sequence[Group]], stop: np.ndarray):
        groups = [group for stage in stages for group in stage]
        tasks = [task for group in groups for task in group.tasks]
        ends = np.cumsum([0, *(len(group.tasks) for group in groups)])
        self.arguments = np.zeros((len(tasks), PACKED_WORDS), np.int64)
        places = [row.ctypes.data for row in self.arguments]
        functions = [task.loop.pack(place, *task.arguments) for task, place in zip(tasks, places, strict=True)]
        self.tasks = _table([(f, place, task.size) for f, place, task in zip(functions, places, tasks, strict=True)], 3)
        self.groups = _table(
            [(ends[i], ends[i + 1], group.rows, group.block, group.blocks) for i, group in enumerate(groups)], 5
        )
        firsts = np.cumsum([0, *map(len, stages)])
        self.stages = _table(
            [(firsts[i], firsts[i + 1], sum(g.blocks for g in stage)) for i, stage in enumerate(stages)], 3
        )
        self.counters, self.stop, self.kept = np.zeros(2 * LINE * len(stages), np.int64), stop, tasks
        self.shared = sum(group.work for group in groups) >= PARALLEL_FROM

    def run(self, threads: int, stage: int | None = None) -> None:
        """Runs all tasks, or those of one stage, on so many threads if the work is large enough."""
        stages = self.stages if stage is None else self.stages[stage : stage + 1]
        self.counters.fill(0)
        if threads == 1 or not self.shared:
            _work(stages, self.groups, self.tasks, self.counters, self.stop)
        else:
            _work_together(threads, stages, self.groups, self.tasks, self.counters, self.stop)


def _table(rows: Sequence[tuple], columns: int) -> np.ndarray:
    return np.array(rows, np.int64).reshape(len(rows), columns)
