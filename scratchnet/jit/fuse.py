"""From the kernel calls of a step to groups and stages of loops: all by looking at which memory each of them touches.

One rule fuses everything that can be fused: *two loops may run block by block, one after the other on each block of
rows, if whatever they share they share row by row*. So a layer, its activation, the loss and the gradients towards the
inputs become one pass over the rows of a batch, and a weight's gradient and its update one pass over the rows of the
weight. The arithmetic of each loop stays as it is, and with it every bit of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..native.execute import Group
from ..native.loops import BLOCK, Task
from ..native.updates import UPDATES

SMALL = 16384  # light operations; so little work is done by one thread, in order, rather than in stages
MOST_BLOCKS = 16  # of a group without products: enough for threads of uneven speed, and each block is large
PRODUCT_ROWS = 200  # most rows of a block with a product: each block reads, and may pack, the whole other factor
PRODUCTS = {"matmul", "matmul_packed", *(f"matmul_{update}" for update in UPDATES)}
FEWEST_ROWS = 16  # a loop over fewer rows does not join one over more: it would take its blocks away


class Access(NamedTuple):
    """What a loop does with a piece of memory; `by_rows`: its i-th item uses the i-th of equal parts alone; `later`:
    its stage comes after the stage of whoever writes there, because nobody looks before that one has ended."""

    start: int
    end: int
    written: bool
    by_rows: bool
    later: bool = False

    def conflicts(self, other: Access) -> bool:
        """Must these two stay in order?"""
        return (self.written or other.written) and self.start < other.end and other.start < self.end

    def matches(self, other: Access) -> bool:
        """Is it enough to keep the order within each row?"""
        return self.by_rows and other.by_rows and (self.start, self.end) == (other.start, other.end)


def access(array: np.ndarray, written: bool, by_rows: bool, later: bool = False) -> Access:
    start = array.__array_interface__["data"][0]
    return Access(start, start + array.nbytes, written, by_rows, later)


@dataclass(eq=False)
class _Open:
    """A group that may still grow."""

    stage: int
    rows: int
    tasks: list[Task] = field(default_factory=list)
    accesses: list[Access] = field(default_factory=list)
    work: int = 0

    def add(self, task: Task, accesses: Sequence[Access], rows: int) -> None:
        self.tasks.append(task)
        self.accesses += accesses
        self.rows, self.work = rows, self.work + task.work

    def take(self, other: _Open) -> None:
        """All that another group of this stage does; neither has to wait for the other."""
        self.tasks += other.tasks
        self.accesses += other.accesses
        self.work += other.work


def arrange(tasks: Sequence[tuple[Task, Sequence[Access]]], threads: int) -> list[list[Group]]:
    """Stages of groups in which every task comes after all that it conflicts with."""
    groups: list[_Open] = []
    floor = 0  # the first stage for large work
    for task, accesses in tasks:
        before = [(group, _conflicts(group, accesses)) for group in groups]
        before = _merged([(group, pairs) for group, pairs in before if pairs], groups)
        group, rows = _joined(task, before)
        if group is None:
            earliest = floor if task.work > SMALL and task.loop.name != "pack" else 0
            group = _Open(max(earliest, 1 + max((group.stage for group, _ in before), default=-1)), rows)
            groups.append(group)
        group.add(task, accesses, rows)
        if task.loop.name == "in_range":  # guards of arguments come first, and then a stage begins for all others
            floor = 1
    stages: list[list[Group]] = [[] for _ in range(1 + max((group.stage for group in groups), default=-1))]
    for group in sorted(groups, key=lambda group: -group.work):  # the largest first, so that threads end together
        stages[group.stage].append(Group(group.tasks, group.rows, _block(group, threads)))
    return stages


def _conflicts(group: _Open, accesses: Sequence[Access]) -> list[tuple[Access, Access]]:
    return [(a, b) for a in group.accesses for b in accesses if a.conflicts(b)]


def _merged(before: list[tuple[_Open, list]], groups: list[_Open]) -> list[tuple[_Open, list]]:
    """`before`, where the last groups become one if a task needs all of them row by row: it can join them then.

    So the sum of two gradients of one weight is computed block by block, while they are in the cache.
    """
    stage = max((group.stage for group, _ in before), default=0)
    last = [(group, pairs) for group, pairs in before if group.stage == stage]
    if len({group.rows for group, _ in last}) != 1 or last[0][0].rows < FEWEST_ROWS:
        return before
    if not all(a.matches(b) for _, pairs in last for a, b in pairs):
        return before
    (first, together), *others = last
    for group, pairs in others:
        first.take(group)
        together += pairs
        groups.remove(group)
    return [item for item in before if item[0].stage < stage] + [(first, together)]


def _joined(task: Task, before: Sequence[tuple[_Open, list]]) -> tuple[_Open | None, int]:
    """The group that the task can join, if there is one, and the rows of the group with it."""
    if before:
        last, pairs = max(before, key=lambda item: item[0].stage)
        alone = all(group is last or group.stage < last.stage for group, _ in before)
        if alone and all(a.matches(b) for a, b in pairs):
            rows = min(last.rows, task.size)
            if rows and task.size % rows == 0 and last.rows % rows == 0 and (rows == last.rows or rows >= FEWEST_ROWS):
                return last, rows
        small = task.work + (last.rows > 1) * last.work <= SMALL  # one row is one thread's already
        if alone and small and not any(b.later for _, b in pairs):
            return last, 1
    return None, max(task.size, 1)


def _block(group: _Open, threads: int) -> int:
    """Rows of a block: by the work, or where there is a product as many for each thread, in pieces of equal size."""
    if any(task.loop.name in PRODUCTS for task in group.tasks):
        rows = -(-group.rows // threads)
        return -(-rows // -(-rows // PRODUCT_ROWS))
    return -(-group.rows // max(1, min(MOST_BLOCKS, group.work // BLOCK)))
