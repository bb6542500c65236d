"""The merge and update of a slice of the parameters: from slots and a page to the next page.

    page t+1 = update(page t, sum of the slots along the tree, numbers of the step),  slice by slice

A slice may be done again, by any worker: it reads one page, writes another, and gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ... import tracing
from ...kernels import Device
from ...native import vectors
from ...optim.optimizer import update_rows
from ...tensor import Tensor
from ..comm.tree import tree_sum
from ..shards import weighted_mean
from .layout import Extent, Page, PageLayout
from .replica import Replica

Leaves = Mapping[int, np.ndarray]  # by shard, ascending
_Fold = tuple[Leaves, np.ndarray]  # arrays of shards, and where their fold goes


class Slice:
    """Slice s of n, (s, n) = part, of the step from page `old` to page `new`, which may be the same memory.

    gradients: what is folded, laid out like slots; under the number of a shard may stand the sum of a subtree that has
    this shard. slots: those of the shards that are not empty, if they differ from `gradients`; the buffers in them
    belong to the last slice. stage: of a pipeline, if the slice is one of what belongs to this stage.
    """

    def __init__(
        self,
        replica: Replica,
        part: tuple[int, int],
        old: Page,
        new: Page,
        gradients: Leaves,
        slots: Leaves | None = None,
        stage: int | None = None,
    ):
        cut = replica.layout.cut_stage(part, stage)
        self.segments = [
            ([extent.of(x) for x in old], _at(extent, gradients), [extent.of(x) for x in new]) for _, extent in cut
        ]
        self.numbers_of = [number for number, _ in cut]
        buffers = replica.layout.buffers_of(stage)
        self.buffers = _buffers(buffers, part, gradients if slots is None else slots, new)
        self.before = [buffer for _, buffer in _buffers(buffers, part, {}, old)]
        self.kernel = replica.optimizer.kernel
        self.device = replica.at(old[0])  # updates may be made on a GPU, see device_memory.py
        self.numbers = np.empty((len(self.segments), replica.optimizer.n_numbers))
        clips = replica.settings.clip_norm is not None
        self.by_rows = [replica.layout.segments[number].by_rows for number in self.numbers_of]
        one = [self.device.from_host(np.ones((), old[0].dtype)) for old, _, _ in self.segments]
        self.factors = one if clips else None
        # Of arrays that stay where they are, so a replay looks nothing up; but which rows occur is looked at.
        self._step = self._merge if any(self.by_rows) else replica.settings.recorded(self._merge)

    def update(self, numbers: np.ndarray, weights: Sequence[float], factor: float = 1.0) -> None:
        """numbers: see `Replica.next_numbers`. weights: of each slot's buffers. factor: scales the gradient."""
        numbers.take(self.numbers_of, 0, self.numbers, "clip")  # which needs no memory between
        for own in self.factors or []:
            self.device.write(own, np.full((), factor, own.dtype))
        self._step(tuple(weights) if self.buffers else ())

    def skip(self) -> None:
        """The new page is the old one."""
        for old, _, new in self.segments:
            for source, target in zip(old, new, strict=True):
                self.device.write(target, source)
        for source, (_, target) in zip(self.before, self.buffers, strict=True):
            self.device.write(target, source)

    @property
    def written(self) -> list[np.ndarray]:
        """The arrays that `update` writes."""
        return [x for _, _, new in self.segments for x in new]

    def _merge(self, weights: Sequence[float]) -> None:
        device = tracing.active(self.device)
        for i, (old, gradients, new) in enumerate(self.segments):
            gradient = _folded(device, gradients)
            rows = _occurring(gradient) if self.by_rows[i] else None
            if self.factors is not None:
                scaled = device.empty(gradient.shape, gradient.dtype)
                device.mul(gradient, self.factors[i], scaled)
                gradient = scaled
            kernel = getattr(device, self.kernel)
            if rows is None:
                kernel(old[0], gradient, *old[1:], *new, self.numbers[i])
                continue
            for before, after in zip(old, new, strict=True):
                if before is not after:
                    np.copyto(after, before)
            update_rows(kernel, rows, gradient[rows], old, new, self.numbers[i])
        _merge_buffers(self.device, self.buffers, weights)


class Average:
    """Slice s of n, (s, n) = part, of the mean of pages, after local steps: parameters and the optimizer's state.

    pages: what is folded to the sum, as in `Slice`. slots: those of the shards that are not empty, if they differ from
    `pages`.
    """

    def __init__(
        self,
        replica: Replica,
        part: tuple[int, int],
        pages: Mapping[int, Page],
        new: Page,
        slots: Leaves | None = None,
    ):
        slots = {k: page[0] for k, page in pages.items()} if slots is None else slots
        self.arrays: list[_Fold] = [
            ({k: extent.of(page[j]) for k, page in pages.items()}, extent.of(new[j]))
            for extent in replica.layout.cut(part)
            for j in range(len(new))
        ]
        self.device, self.count, self.buffers = (
            replica.host,
            len(slots),
            _buffers(replica.layout.buffers, part, slots, new),
        )
        self._step = replica.settings.recorded(self._merge)

    def update(self, weights: Sequence[float]) -> None:
        """weights: of each slot's buffers."""
        self._step(tuple(weights) if self.buffers else ())

    @property
    def written(self) -> list[np.ndarray]:
        """The arrays that `update` writes."""
        return [out for _, out in self.arrays]

    def _merge(self, weights: Sequence[float]) -> None:
        device = tracing.active(self.device)
        for parts, out in self.arrays:
            device.mul(_folded(device, parts), np.full((), 1 / self.count, out.dtype), out)
        _merge_buffers(self.device, self.buffers, weights)


def sum_of_squares(layout: PageLayout, part: tuple[int, int], gradients: Leaves) -> float:
    """The sum of squares of slice s of n, (s, n) = part, of the merged gradient, in float64."""
    total = 0.0
    for extent in layout.cut(part):
        total += vectors.sum_of_squares(tree_sum(gradients, _at(extent, gradients).__getitem__, np.add))
    return total


def _occurring(gradient: np.ndarray) -> np.ndarray:
    """The positions in a sum of gradients by rows that lie in rows that occur: what is not -0.0, see layout.py."""
    bits = gradient.view(f"i{gradient.itemsize}")
    return np.flatnonzero(bits != np.iinfo(bits.dtype).min)


def _at(extent: Extent, memory: Leaves) -> Leaves:
    return {k: extent.of(own) for k, own in memory.items()}


def _buffers(buffers: Sequence[Extent], part: tuple[int, int], slots: Leaves, new: Page) -> list[_Fold]:
    return [(_at(extent, slots), extent.of(new[0])) for extent in buffers] if part[0] == part[1] - 1 else []


def _folded(device: Device, arrays: Leaves) -> np.ndarray:
    """The sum along the tree, in at most log2 K buffers, which take turns: they stay in the cache."""
    made: set[int] = set()
    free: list[np.ndarray] = []

    def add(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        sums = [x for x in (left, right) if id(x) in made] + free
        out = sums[0] if sums else device.empty(left.shape, left.dtype)
        free[:] = sums[1:]
        made.add(id(out))
        device.add(left, right, out)
        return out

    return tree_sum(arrays, arrays.__getitem__, add)


def _merge_buffers(device: Device, buffers: Sequence[_Fold], weights: Sequence[float]) -> None:
    for parts, buffer in buffers:
        merged = weighted_mean({k: Tensor._wrap(x, device) for k, x in parts.items()}, weights)
        tracing.active(device).copy(merged._data, buffer)
