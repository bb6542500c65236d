"""Where parameters, buffers and the optimizer's state lie in shared memory.

A *page* is one version of all of them: parameters and buffers side by side, then each state of the optimizer, laid out
like the parameters. A *slot* is laid out like the parameters and buffers of a page: it holds the gradient, and the new
buffers, that one shard gave.

A gradient by rows (row_gradient.py) has its place in a slot, too. What lies in no row that occurs is -0.0 there, the
neutral element of IEEE addition: x + -0.0 has the bits of x, also of 0.0. Sums that begin at 0.0 are never -0.0, so a
sum over shards, in any order and on any machine, is -0.0 just where no shard has the row.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...nn import Module
from ..comm.memory import round_up

UNIT = 16  # elements: slices begin and end on whole cache lines

Page = list[np.ndarray]  # bytes: parameters and buffers, and each state of the optimizer


class Extent(NamedTuple):
    """Where an array lies in memory."""

    offset: int  # bytes
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def of(self, memory: np.ndarray) -> np.ndarray:
        """The array, in memory of bytes."""
        return memory[self.offset : self.offset + self.nbytes].view(self.dtype).reshape(self.shape)


class Segment(NamedTuple):
    """Neighbouring parameters that take the same hyperparameters, as one array; the numbers of their states.

    by_rows: are their gradients by rows?
    """

    extent: Extent
    states: tuple[int, ...]
    by_rows: bool


class PageLayout:
    """Extents of parameters and buffers in a page, for the sizes that a model and an optimizer have.

    trained: numbers of the optimizer's states whose parameters get gradients. The other parameters are constants.
    by_rows: those of them that get gradients by rows.
    """

    stages: Sequence[tuple[set[int], list[int]]] = ()  # of each stage of a pipeline its states, and buffers

    def __init__(self, model: Module, optimizer: Any, trained: Sequence[int], by_rows: Sequence[int] = ()):
        self.by_rows = list(by_rows)
        self.parameters: dict[int, Extent] = {}  # by the number of the optimizer's state
        self.segments: list[Segment] = []
        offset, alike = 0, None
        for i in trained:
            state = optimizer.states[i]
            kind = id(state.group), state.step, state.dtype, i in by_rows
            if kind != alike:
                self.segments.append(Segment(Extent(offset, (0,), state.dtype), (), i in by_rows))
                alike = kind
            self.parameters[i] = Extent(offset, state.shape, state.dtype)
            offset += round_up(self.parameters[i].nbytes)
            begin = self.segments[-1].extent.offset
            extent = Extent(begin, ((offset - begin) // state.dtype.itemsize,), state.dtype)
            self.segments[-1] = Segment(extent, (*self.segments[-1].states, i), i in by_rows)
        self.parameter_bytes = offset
        self.buffers: list[Extent] = []
        for buffer in model.buffers():
            self.buffers.append(Extent(offset, buffer.shape, buffer.dtype))
            offset += round_up(self.buffers[-1].nbytes)
        self.nbytes = max(offset, 1)
        self.states = len(optimizer.state_names)

    @property
    def page_bytes(self) -> int:
        """Bytes of a page, with the optimizer's state."""
        return round_up(self.nbytes) + self.states * round_up(self.parameter_bytes)

    @property
    def begins(self) -> list[int]:
        """Where in a page the parameters begin, and each state of the optimizer."""
        return [0, *(round_up(self.nbytes) + j * round_up(self.parameter_bytes) for j in range(self.states))]

    def page(self, memory: np.ndarray) -> Page:
        """`page_bytes` bytes as a page."""
        sizes = [self.nbytes] + [max(self.parameter_bytes, 1)] * self.states
        return [memory[begin : begin + size] for begin, size in zip(self.begins, sizes, strict=True)]

    def arrays(self, slot: np.ndarray) -> list[np.ndarray]:
        """The gradients and buffers in a slot, without the gaps between them."""
        return [extent.of(slot) for extent in (*self.parameters.values(), *self.buffers)]

    def cut(self, part: tuple[int, int]) -> list[Extent]:
        """Slice s of n, (s, n) = part, of each segment: it begins on a multiple of UNIT."""
        return [_slice_of(segment.extent, part) for segment in self.segments]

    def cut_stage(self, part: tuple[int, int], stage: int | None) -> list[tuple[int, Extent]]:
        """Slice s of n of what belongs to a stage, or of all: (number of the segment, where)."""
        if stage is None:
            return list(enumerate(self.cut(part)))
        own, found = self.stages[stage][0], []
        for number, segment in enumerate(self.segments):
            for mine, run in itertools.groupby(segment.states, own.__contains__):
                if mine:
                    states = list(run)
                    begin, (last_offset, last, dtype) = self.parameters[states[0]].offset, self.parameters[states[-1]]
                    end = last_offset + round_up(Extent(0, last, dtype).nbytes)
                    whole = Extent(begin, ((end - begin) // dtype.itemsize,), dtype)
                    found.append((number, _slice_of(whole, part)))
        return found

    def buffers_of(self, stage: int | None) -> list[Extent]:
        """The buffers of a stage, or all."""
        return self.buffers if stage is None else [self.buffers[i] for i in self.stages[stage][1]]


def _slice_of(extent: Extent, part: tuple[int, int]) -> Extent:
    s, n = part
    offset, (size,), dtype = extent
    lo, hi = (size * i // n // UNIT * UNIT if i < n else size for i in (s, s + 1))
    return Extent(offset + lo * dtype.itemsize, (hi - lo,), dtype)
