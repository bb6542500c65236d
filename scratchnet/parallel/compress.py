"""What compression does to gradients in the arena: the arithmetic of strategies.Compression, with its memory.

Shard k's residual is double-buffered: a step reads one of two and writes the other, so its piece may be done again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..random import Generator
from .replica import Place, Replica
from .strategies import PowerSGD
from .training_arena import TrainingArena

LEFT, RIGHT = 0, 1  # factors: P (rows, rank), Q (columns, rank)


class Compressor:
    """Compression of a worker's shards. See `Compression` and `PowerSGD` for the formulas and their names."""

    def __init__(self, replica: Replica, arena: TrainingArena):
        self.replica, self.arena, self.device = replica, arena, replica.host
        self.compression = replica.strategy.compression
        self.rank = getattr(self.compression, "rank", 0)

    def start(self) -> None:
        """The first Q, random: whoever makes the arena calls this once."""
        for place in self._matrices():
            columns = self._matrix(place.of(self.arena.slots[0, 0])).shape[1]
            first = Generator(self.replica.seed, place.offset).numpy().standard_normal((columns, self.rank))
            self._factor(0, RIGHT, place, columns)[...] = first

    def send(self, k: int, step: int, is_full: bool) -> None:
        """From the gradient in slot k and the residual to what is sent and the next residual."""
        arena = self.arena
        old, new = arena.residuals[step % 2, k], arena.residuals[(step + 1) % 2, k]
        if not is_full:
            new[...] = old
            return
        slot, low_rank = arena.slots[0, k], list(self._matrices())
        for place in self.replica.layout.parameters.values():
            gradient = place.of(slot)
            np.add(gradient, place.of(old), out=gradient)
            if place in low_rank:
                v = self._matrix(gradient)
                self.device.matmul(v, self._sum(RIGHT, place, v.shape[1]), self._factor(k, LEFT, place, v.shape[0]))
                continue
            v = gradient.copy()
            sent = place.of(arena.sent[k]) if len(arena.sent) else gradient
            self.compression.compress(v, sent)  # type: ignore[union-attr]
            np.subtract(v, sent, out=place.of(new))

    def skip(self, step: int) -> None:
        """The step is left out: residuals stay as they were."""
        self.arena.residuals[(step + 1) % 2] = self.arena.residuals[step % 2]

    def find_basis(self, step: int, full: Sequence[int]) -> None:
        """P, orthonormal, from the P_k of all shards that have samples; in the factors of number K."""
        for place in self._matrices():
            rows = self._matrix(place.of(self.arena.slots[0, 0])).shape[0]
            basis = self._factor(self.replica.shards, LEFT, place, rows)
            basis[...] = self._factor(full[0], LEFT, place, rows)
            for k in full[1:]:
                basis += self._factor(k, LEFT, place, rows)
            orthonormalize(basis)

    def project(self, k: int, step: int, is_full: bool) -> None:
        """Q_k, what is sent of shard k, and what is not."""
        arena = self.arena
        for place in self._matrices():
            v = self._matrix(place.of(arena.slots[0, k]))
            basis = self._factor(self.replica.shards, LEFT, place, v.shape[0])
            right = self._factor(k, RIGHT, place, v.shape[1])
            if not is_full:
                right[...] = 0
                continue
            sent = self._matrix(place.of(arena.sent[k]))
            self.device.matmul(v, basis, right, transpose_a=True)
            self.device.matmul(basis, right, sent, transpose_b=True)
            np.subtract(v, sent, out=self._matrix(place.of(arena.residuals[(step + 1) % 2, k])))

    def _matrices(self) -> Iterator[Place]:
        """The parameters that are sent as two factors."""
        if isinstance(self.compression, PowerSGD):
            for place in self.replica.layout.parameters.values():
                if self.compression.is_low_rank(place.shape):
                    yield place

    def _matrix(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(array.shape[0], -1)

    def _factor(self, k: int, side: int, place: Place, length: int) -> np.ndarray:
        return Place(place.offset, (length, self.rank), place.dtype).of(self.arena.factors[k, side])

    def _sum(self, side: int, place: Place, length: int) -> np.ndarray:
        """Of all shards' factors, in their order."""
        total = self._factor(0, side, place, length).copy()
        for k in range(1, self.replica.shards):
            total += self._factor(k, side, place, length)
        return total


def orthonormalize(basis: np.ndarray) -> None:
    """Gram and Schmidt's way, modified: columns of (rows, rank) become orthonormal, in place; dependent ones zero.

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
