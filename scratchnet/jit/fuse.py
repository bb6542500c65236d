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
PRODUCT_ROWS = 256  # most rows of a block with a product: each block reads, and may pack, the whole other factor
PRODUCTS = {"matmul", "matmul_packed", *(f"matmul_{update}" for update in UPDATES)}
FEWEST_ROWS = 16  # a loop over fewer rows does not join one over more: it would take its blocks away


class Access(NamedTuple):
    """What a loop does with a piece of memory; `by_rows`: its i-th item uses the i-th of equal parts alone.

    is_stop: it is the word that guards write, all of them the same, so in any order. Who reads it comes in a later
    stage than they, or after them in the only block of a group, since a block ends where a guard has stopped it.
    """

    start: int
    end: int
    written: bool
    by_rows: bool
    is_stop: bool = False

    def conflicts(self, other: Access) -> bool:
        """Must these two stay in order?"""
        if self.is_stop:
            return other.is_stop and self.written != other.written
        return (self.written or other.written) and self.start < other.end and other.start < self.end

    def matches(self, other: Access) -> bool:
        """Is it enough to keep the order within each row?"""
        return self.by_rows and other.by_rows and (self.start, self.end) == (other.start, other.end)


def access(array: np.ndarray, written: bool, by_rows: bool, is_stop: bool = False) -> Access:
    start = array.__array_interface__["data"][0]
    return Access(start, start + array.nbytes, written, by_rows, is_stop)


@dataclass(eq=False)
class _Open:
    """A group that may still grow. before: the groups of earlier stages that it waits for."""

    rows: int
    before: list[_Open]
    stage: int = 0
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
        self.before += other.before
        self.work += other.work


def arrange(tasks: Sequence[tuple[Task, Sequence[Access]]], threads: int) -> list[list[Group]]:
    """Stages of groups in which every task comes after all that it conflicts with."""
    groups: list[_Open] = []
    for task, accesses in tasks:
        before = [(group, _conflicts(group, accesses)) for group in groups]
        before = _merged([(group, pairs) for group, pairs in before if pairs], groups)
        group, rows = _joined(task, before)
        if group is None:
            group = _Open(rows, [])
            groups.append(group)
        group.before += [other for other, _ in before if other is not group]
        _settle(group, groups)
        group.add(task, accesses, rows)
    stages: list[list[Group]] = [[] for _ in range(1 + max((group.stage for group in groups), default=-1))]
    for group in sorted(groups, key=lambda group: -group.work):  # the largest first, so that threads end together
        stages[group.stage].append(Group(group.tasks, group.rows, _block(group, threads)))
    return stages


def _settle(group: _Open, groups: Sequence[_Open]) -> None:
    """Puts a group after those that it waits for, and those that wait for it after it."""
    moved = [group]
    while moved:
        group = moved.pop()
        stage = 1 + max((other.stage for other in group.before), default=-1)
        if stage > group.stage:
            group.stage = stage
            moved += [other for other in groups if group in other.before]


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
        for other in groups:
            other.before = [first if x is group else x for x in other.before]
    return [item for item in before if item[0].stage < stage] + [(first, together)]


def _joined(task: Task, before: Sequence[tuple[_Open, list]]) -> tuple[_Open | None, int]:
    """The group that the task can join, if there is one, and the rows of the group with it.

    It is the last of those that it has to wait for; or the largest of the last ones, which then waits a stage for the
    others, if these are so small that they are better done before: numbers that a gradient is multiplied by.
    """
    if before:
        last, pairs = max(before, key=lambda item: (item[0].stage, item[0].work))
        others = [group for group, _ in before if group is not last and group.stage == last.stage]
        if all(a.matches(b) for a, b in pairs) and all(group.work <= SMALL < last.work for group in others):
            rows = min(last.rows, task.size)
            if rows and task.size % rows == 0 and last.rows % rows == 0 and (rows == last.rows or rows >= FEWEST_ROWS):
                return last, rows
        small = task.work + (last.rows > 1) * last.work <= SMALL  # one row is one thread's already
        if not others and small:
            return last, 1
    return None, max(task.size, 1)


def _block(group: _Open, threads: int) -> int:
    """Rows of a block: by the work, or where there is a product as many for each thread, in pieces of equal size."""
    if any(task.loop.name in PRODUCTS for task in group.tasks):
        rows = -(-group.rows // threads)
        return -(-rows // -(-rows // PRODUCT_ROWS))
    return -(-group.rows // max(1, min(MOST_BLOCKS, group.work // BLOCK)))
