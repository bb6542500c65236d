"""Reductions of the middle axis of x (outer, n, inner).

A block folds at most `chunk` elements towards one result, or towards a few results side by side. Where n is larger, a
second pass of the same kernel folds the partial results. The chunks depend on n alone, and so do the bits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache, partial
from typing import NamedTuple

import numba
import numpy as np

from . import memory, tuning
from .compile import Kernel, cuda, kernel, launch
from .ends import PLAIN, End, ending
from .folds import OPERATIONS, folding, neutral
from .movement import copy
from .scalars import scalars
from .tuning import Tuning


class Strip(NamedTuple):
    """The part of x that a block folds along the middle axis: its columns side by side (one for a row), its threads."""

    columns: int
    threads: int

    @classmethod
    def of(cls, n: int, inner: int) -> Strip:
        numbers = tuning.current()
        return cls(1, row_threads(n)) if inner == 1 else cls(numbers.columns, numbers.threads)

    def blocks(self, outer: int, inner: int) -> int:
        return min(outer * -(-inner // self.columns), tuning.current().blocks)

    def folding(self, name: str, dtype: np.dtype) -> Callable:
        """See folds.py."""
        numbers = tuning.current()
        return folding(name, dtype, self.threads, self.columns, numbers.warp, numbers.shuffles)


@cache
def folding_strips(name: str, dtype: np.dtype, strip: Strip, fold: Callable, end_name: str | None) -> Kernel:
    """out (outer, parts, inner): folds of x (outer, n, inner), of each chunk of n in turn, and their ends (ends.py)."""
    function, START = scalars(dtype)[OPERATIONS[name]], neutral(name, dtype)
    kind, (COLUMNS, THREADS), LAYERS = numba.from_dtype(dtype), strip, strip.threads // strip.columns
    finish = ending(end_name, dtype)

    @kernel(THREADS)
    def loop(x, out, more, numbers, n, inner, chunk, results):
        shared = cuda.shared.array(THREADS, kind)
        own = cuda.threadIdx.x
        column, layer = own % COLUMNS, own // COLUMNS
        parts = max((n + chunk - 1) // chunk, 1)
        strips = (inner + COLUMNS - 1) // COLUMNS
        for item in range(cuda.blockIdx.x, results // inner * strips, cuda.gridDim.x):
            row, j = item // strips, item % strips * COLUMNS + column
            start, first = row // parts * n * inner + j, row % parts * chunk
            end = min(first + chunk, n) if j < inner else first
            value = START
            for i in range(first + layer, end, LAYERS):
                value = function(value, x[start + i * inner])
            value = fold(value, own, shared)
            if layer == 0 and j < inner:
                finish(value, row * inner + j, out, more, numbers)

    return loop


@cache
def finding(dtype: np.dtype, strip: Strip) -> Kernel:
    """argmax: a block a chunk of a strip. The larger value wins, of equals the first; NaN is the largest."""
    kind, (COLUMNS, THREADS), LAYERS = numba.from_dtype(dtype), strip, strip.threads // strip.columns

    @kernel(THREADS)
    def loop(x, indices, out, n, count, inner, chunk, is_first):
        """x: (outer, n, inner). out (outer, parts, inner): the index of the largest of each chunk of candidates.

        Candidates are all n elements if is_first, else those whose indices (outer, count, inner) the last pass found.
        """
        values = cuda.shared.array(THREADS, kind)
        found = cuda.shared.array(THREADS, numba.int64)
        own = cuda.threadIdx.x
        column, layer = own % COLUMNS, own // COLUMNS
        parts = (count + chunk - 1) // chunk
        strips = (inner + COLUMNS - 1) // COLUMNS
        for item in range(cuda.blockIdx.x, out.size // inner * strips, cuda.gridDim.x):
            row, j = item // strips, item % strips * COLUMNS + column
            inside = min(j, inner - 1)  # a thread beyond the last column looks at that one, and writes nothing
            start, candidates = row // parts * n * inner + inside, row // parts * count * inner + inside
            first = row % parts * chunk
            end = min(first + chunk, count)
            index = min(first + layer, end - 1)
            if not is_first:
                index = indices[candidates + index * inner]
            best = x[start + index * inner]
            for i in range(first + layer + LAYERS, end, LAYERS):
                other = i if is_first else indices[candidates + i * inner]
                value = x[start + other * inner]
                if (value > best) | ((value != value) & (best == best)):
                    best, index = value, other
            values[own], found[own] = best, index
            cuda.syncthreads()
            step = LAYERS // 2
            while step > 0:
                if layer < step:
                    value, other = values[own + step * COLUMNS], found[own + step * COLUMNS]
                    best, index = values[own], found[own]
                    larger = (value > best) | ((value != value) & (best == best))
                    equal = (value == best) | ((value != value) & (best != best))
                    if larger | (equal & (other < index)):
                        values[own], found[own] = value, other
                cuda.syncthreads()
                step //= 2
            if layer == 0 and j < inner:
                out[row * inner + j] = found[own]  # a word that no other thread writes: no barrier is needed

    return loop


def row_threads(n: int) -> int:
    """Threads of a block that works on rows of n elements: a warp for a short row."""
    numbers = tuning.current()
    return numbers.warp if n <= numbers.small_rows else numbers.threads


def chunk_of(inner: int) -> int:
    """Elements of the middle axis that a block folds for one result."""
    numbers = tuning.current()
    return numbers.chunk if inner == 1 else max(numbers.chunk // numbers.columns, 1)


@lru_cache(1024)
def _strips(
    numbers: Tuning, name: str, dtype: np.dtype, n: int, are_rows: bool, end: str | None
) -> tuple[Kernel, Strip]:
    """The kernel for folds of n elements in a block, and its strip."""
    with tuning.use(numbers):
        strip = Strip.of(n, 1 if are_rows else 2)
        return folding_strips(name, dtype, strip, strip.folding(name, dtype), end), strip


def is_single(x: memory.DeviceArray) -> bool:
    """Is it folded in one launch, which may have an end?"""
    return x.shape[1] <= chunk_of(x.shape[2])


def folded(name: str, x: memory.DeviceArray, out: memory.DeviceArray, end: End = PLAIN) -> None:
    """out (outer, inner) of x (outer, n, inner), and of each fold what `end` says, which is PLAIN unless is_single."""
    if not out.size:
        return
    if x.dtype != out.dtype:  # booleans and small integers are summed as int64
        wide = memory.empty(x.shape, out.dtype)
        copy(x, wide)
        x = wide
    outer, n, inner = x.shape
    chunk, numbers = chunk_of(inner), tuning.current()
    while True:
        parts = max(-(-n // chunk), 1)
        target = out if parts == 1 else memory.empty((outer, parts, inner), out.dtype)
        loop, strip = _strips(numbers, name, x.dtype, min(n, chunk), inner == 1, end.name)
        blocks, results = strip.blocks(outer * parts, inner), outer * parts * inner
        launch(loop, blocks, strip.threads, x, target, *end.arguments(target), n, inner, chunk, results)
        if parts == 1:
            return
        x, n = target, parts


def argmax(x, out):
    if not out.size:
        return
    outer, n, inner = x.shape
    chunk = chunk_of(inner)
    indices, count, is_first = out, n, True  # the first pass does not read `indices`
    while True:
        parts = -(-count // chunk)
        target = out if parts == 1 else memory.empty((outer, parts, inner), out.dtype)
        strip = Strip.of(min(count, chunk), inner)
        arguments = x, indices, target, n, count, inner, chunk, is_first
        launch(finding(x.dtype, strip), strip.blocks(outer * parts, inner), strip.threads, *arguments)
        if parts == 1:
            return
        indices, count, is_first = target, parts, False


KERNELS: dict[str, Callable[..., None]] = {**{name: partial(folded, name) for name in OPERATIONS}, "argmax": argmax}
