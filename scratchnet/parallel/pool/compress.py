"""Compression of gradients in the arena: who computes what, and where residuals and factors lie.

The formulas are in parallel/compression.py. A shard has two residuals: a step reads one and writes the other, so that a
piece may be done again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...random import Generator
from ..comm.tree import tree_sum
from ..compression import Compression
from .layout import Extent
from .replica import Replica
from .training_arena import TrainingArena

LEFT, RIGHT = 0, 1  # factors: P (rows, rank), Q (columns, rank)


class Compressor:
    """What a worker does to compress gradients; notation as in `Compression` and `PowerSGD`."""

    def __init__(self, replica: Replica, arena: TrainingArena):
        self.replica, self.arena, self.device = replica, arena, replica.host
        self.compression: Compression = replica.strategy.compression  # type: ignore[assignment]
        self.rank, extents = self.compression.rank, replica.layout.parameters.values()
        self.matrices = [extent for extent in extents if self.compression.is_low_rank(extent.shape)]  # two factors each
        self.others = [extent for extent in extents if not self.compression.is_low_rank(extent.shape)]

    def start(self) -> None:
        """Make the first Q, random. Only who makes the arena calls this."""
        for extent in self.matrices:
            right = self._factor(0, RIGHT, extent)
            right[...] = Generator(self.replica.settings.seed, extent.offset).numpy().standard_normal(right.shape)

    def send(self, k: int, step: int, is_full: bool) -> None:
        """Compress the gradient in slot k, with its residual. Of matrices this gives P_k; `project` does the rest."""
        arena = self.arena
        old, new = arena.residuals[step % 2, k], arena.residuals[(step + 1) % 2, k]
        if not is_full:
            new[...] = old
            return
        for extent in self.replica.layout.parameters.values():
            gradient = extent.of(arena.slots[0, k])
            np.add(gradient, extent.of(old), out=gradient)
        for extent in self.matrices:
            v = self._matrix(extent.of(arena.slots[0, k]))
            self.device.matmul(v, self._sum(RIGHT, extent, range(self.replica.shards)), self._factor(k, LEFT, extent))
        for extent in self.others:
            v, sent = extent.of(arena.slots[0, k]).copy(), extent.of(self._sent(k))
            self.compression.compress(v, sent)
            np.subtract(v, sent, out=extent.of(new))

    def skip(self, step: int) -> None:
        """The step is skipped: residuals stay as they were."""
        self.arena.residuals[(step + 1) % 2] = self.arena.residuals[step % 2]

    def find_basis(self, step: int, full: Sequence[int]) -> None:
        """P, orthonormal, from the P_k of the shards that have samples. It lies in the factors of number K."""
        for extent in self.matrices:
            basis = self._factor(self.replica.shards, LEFT, extent)
            basis[...] = self._sum(LEFT, extent, full)
            orthonormalize(basis)

    def project(self, k: int, step: int, is_full: bool) -> None:
        """Q_k, what is sent of the matrices of shard k, and the next residual."""
        for extent in self.matrices:
            right = self._factor(k, RIGHT, extent)
            if not is_full:
                right[...] = 0
                continue
            v = self._matrix(extent.of(self.arena.slots[0, k]))
            self.device.matmul(v, self._factor(self.replica.shards, LEFT, extent), right, transpose_a=True)
            sent = self._expand(k, extent)
            np.subtract(v, sent, out=self._matrix(extent.of(self.arena.residuals[(step + 1) % 2, k])))

    def _expand(self, k: int, extent: Extent) -> np.ndarray:
        """What is sent of a matrix: the product of its factors."""
        sent = self._matrix(extent.of(self.arena.sent[k]))
        left, right = self._factor(self.replica.shards, LEFT, extent), self._factor(k, RIGHT, extent)
        self.device.matmul(left, right, sent, transpose_b=True)
        return sent

    def _sent(self, k: int) -> np.ndarray:
        """What is sent of shard k. It has memory of its own where `project` still needs the gradient."""
        return self.arena.sent[k] if len(self.arena.sent) else self.arena.slots[0, k]

    def _matrix(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(array.shape[0], -1)

    def _factor(self, k: int, side: int, extent: Extent) -> np.ndarray:
        length = int(np.prod(extent.shape[1:])) if side else extent.shape[0]
        return Extent(extent.offset, (length, self.rank), extent.dtype).of(self.arena.factors[k, side])

    def _sum(self, side: int, extent: Extent, shards: Sequence[int]) -> np.ndarray:
        """The sum of the factors of these shards, along the tree."""
        return tree_sum(shards, lambda k: self._factor(k, side, extent), np.add)

    # --- what travels, where machines share no memory: a shard's part of a phase, as bytes ------------------------

    def pack(self, phase: str, k: int) -> list[np.ndarray]:
        """What a phase made of shard k: after "project" Q_k, before that P_k and what is sent of other arrays."""
        factors = [self._factor(k, RIGHT if phase == "project" else LEFT, extent) for extent in self.matrices]
        others = [] if phase == "project" else [self.compression.pack(p.of(self._sent(k))) for p in self.others]
        return [array.reshape(-1).view(np.uint8) for array in (*factors, *others)]

    def unpack(self, phase: str, k: int, data: np.ndarray) -> None:
        """Take the joined bytes of `pack` on another machine: then shard k is as if the phase had been done here."""
        for extent in self.matrices:
            factor = self._factor(k, RIGHT if phase == "project" else LEFT, extent)
            own, data = data[: factor.nbytes], data[factor.nbytes :]
            factor[...] = own.view(factor.dtype).reshape(factor.shape)
            if phase == "project":
                self._expand(k, extent)
        for extent in [] if phase == "project" else self.others:
            size = self.compression.sent_bytes(extent.shape, extent.dtype.itemsize)
            own, data = data[:size], data[size:]
            self.compression.unpack(own, extent.of(self._sent(k)))


def orthonormalize(basis: np.ndarray) -> None:
    """Gram and Schmidt's way, modified: columns of (rows, rank) become orthonormal, in extent; dependent ones zero.

    Sums are NumPy's own, not BLAS's, whose order may depend on threads.
    """
    columns = basis.T.astype(np.float64)
    for i, column in enumerate(columns):
        size = np.sqrt((column * column).sum())
        for other in columns[:i]:
            column -= (other * column).sum() * other
        norm = np.sqrt((column * column).sum())
        column *= 0 if norm <= 1e-6 * size or norm == 0 else 1 / norm
    basis[...] = columns.T
