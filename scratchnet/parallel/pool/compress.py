"""What compression does to gradients in the arena: the arithmetic of strategies.Compression, with its memory.

Shard k's residual is double-buffered: a step reads one of two and writes the other, so its piece may be done again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...random import Generator
from ..strategies import Compression
from .replica import Extent, Replica
from .training_arena import TrainingArena

LEFT, RIGHT = 0, 1  # factors: P (rows, rank), Q (columns, rank)


class Compressor:
    """Compression of a worker's shards. See `Compression` and `PowerSGD` for the formulas and their names."""

    def __init__(self, replica: Replica, arena: TrainingArena):
        self.replica, self.arena, self.device = replica, arena, replica.host
        self.compression: Compression = replica.strategy.compression  # type: ignore[assignment]
        self.rank, places = getattr(self.compression, "rank", 0), replica.layout.parameters.values()
        is_low_rank = getattr(self.compression, "is_low_rank", lambda shape: False)
        self.matrices = [place for place in places if is_low_rank(place.shape)]  # sent as two factors
        self.others = [place for place in places if not is_low_rank(place.shape)]

    def start(self) -> None:
        """The first Q, random: whoever makes the arena calls this once."""
        for place in self.matrices:
            right = self._factor(0, RIGHT, place)
            right[...] = Generator(self.replica.seed, place.offset).numpy().standard_normal(right.shape)

    def send(self, k: int, step: int, is_full: bool) -> None:
        """From the gradient in slot k and the residual to what is sent and the next residual."""
        arena = self.arena
        old, new = arena.residuals[step % 2, k], arena.residuals[(step + 1) % 2, k]
        if not is_full:
            new[...] = old
            return
        for place in self.replica.layout.parameters.values():
            gradient = place.of(arena.slots[0, k])
            np.add(gradient, place.of(old), out=gradient)
        for place in self.matrices:
            v = self._matrix(place.of(arena.slots[0, k]))
            self.device.matmul(v, self._sum(RIGHT, place), self._factor(k, LEFT, place))
        for place in self.others:
            v, sent = place.of(arena.slots[0, k]).copy(), place.of(self._sent(k))
            self.compression.compress(v, sent)
            np.subtract(v, sent, out=place.of(new))

    def skip(self, step: int) -> None:
        """The step is left out: residuals stay as they were."""
        self.arena.residuals[(step + 1) % 2] = self.arena.residuals[step % 2]

    def find_basis(self, step: int, full: Sequence[int]) -> None:
        """P, orthonormal, from the P_k of all shards that have samples; in the factors of number K."""
        for place in self.matrices:
            basis = self._factor(self.replica.shards, LEFT, place)
            basis[...] = self._factor(full[0], LEFT, place)
            for k in full[1:]:
                basis += self._factor(k, LEFT, place)
            orthonormalize(basis)

    def project(self, k: int, step: int, is_full: bool) -> None:
        """Q_k, what is sent of shard k, and what is not."""
        for place in self.matrices:
            right = self._factor(k, RIGHT, place)
            if not is_full:
                right[...] = 0
                continue
            v = self._matrix(place.of(self.arena.slots[0, k]))
            self.device.matmul(v, self._factor(self.replica.shards, LEFT, place), right, transpose_a=True)
            sent = self._expand(k, place)
            np.subtract(v, sent, out=self._matrix(place.of(self.arena.residuals[(step + 1) % 2, k])))

    def _expand(self, k: int, place: Extent) -> np.ndarray:
        """What is sent of a matrix, from its factors."""
        sent = self._matrix(place.of(self.arena.sent[k]))
        left, right = self._factor(self.replica.shards, LEFT, place), self._factor(k, RIGHT, place)
        self.device.matmul(left, right, sent, transpose_b=True)
        return sent

    def _sent(self, k: int) -> np.ndarray:
        """Where what is sent of shard k lies: in a slot of its own, where `project` still needs the gradient."""
        return self.arena.sent[k] if len(self.arena.sent) else self.arena.slots[0, k]

    def _matrix(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(array.shape[0], -1)

    def _factor(self, k: int, side: int, place: Extent) -> np.ndarray:
        length = int(np.prod(place.shape[1:])) if side else place.shape[0]
        return Extent(place.offset, (length, self.rank), place.dtype).of(self.arena.factors[k, side])

    def _sum(self, side: int, place: Extent) -> np.ndarray:
        """Of all shards' factors, in their order."""
        total = self._factor(0, side, place).copy()
        for k in range(1, self.replica.shards):
            total += self._factor(k, side, place)
        return total

    # --- what travels, where machines share no memory: a shard's part of a phase, as bytes ------------------------

    def pack(self, phase: str, k: int) -> list[np.ndarray]:
        """What the phase made of shard k: what `send` sends and P_k, or Q_k."""
        factors = [self._factor(k, RIGHT if phase == "project" else LEFT, place) for place in self.matrices]
        others = [] if phase == "project" else [self.compression.pack(p.of(self._sent(k))) for p in self.others]
        return [array.reshape(-1).view(np.uint8) for array in (*factors, *others)]

    def unpack(self, phase: str, k: int, data: np.ndarray) -> None:
        """The same, joined, from another machine: afterwards shard k is as if the phase had been done here."""
        for place in self.matrices:
            factor = self._factor(k, RIGHT if phase == "project" else LEFT, place)
            own, data = data[: factor.nbytes], data[factor.nbytes :]
            factor[...] = own.view(factor.dtype).reshape(factor.shape)
            if phase == "project":
                self._expand(k, place)
        for place in [] if phase == "project" else self.others:
            size = self.compression.sent_bytes(place.shape, place.dtype.itemsize)
            own, data = data[:size], data[size:]
            self.compression.unpack(own, place.of(self._sent(k)))


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
