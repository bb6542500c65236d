"""What a worker may leave out of a gradient before it is merged: compression with error feedback.

A compression is a value, `AllReduce(compression=TopK(0.01))`. Here is what each keeps and how that travels; where the
residuals lie, and who computes them, is in pool/compress.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import checks
from .phases import Phase


class Compression:
    """Sends less than the gradient; what was left out is added to the next one (error feedback).

    Shard k keeps a residual e_k, at first 0, and with its gradient g, weighted by n_k/n, it does

        v = g + e_k;    sends C(v);    e_k = v - C(v)

    (Seide et al. 2014; Karimireddy et al. 2019 show that this keeps the rate of convergence of SGD). The merge folds
    what was sent. On one machine, where gradients lie in shared memory, it saves nothing; it is there to be studied,
    and for slow networks (MPI): there each machine gets what every shard sent. The residuals are part of a checkpoint.

    rank: of the two factors as which matrices travel; 0: none does.
    """

    rank: int = 0

    def phases(self, shards: int) -> list[Phase]:
        """What a step does between the gradients of the shards and their merge."""
        return []

    def is_low_rank(self, shape: tuple[int, ...]) -> bool:
        """Do arrays of this shape travel as two factors?"""
        return False

    def compress(self, v: np.ndarray, out: np.ndarray) -> None:
        """out = C(v), in full; v is one parameter's gradient, of its shape, float32 or float64."""
        raise NotImplementedError

    def sent_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        """Bytes that C(v) takes on the way, for v of this shape."""
        raise NotImplementedError

    def pack(self, sent: np.ndarray) -> np.ndarray:
        """C(v), from `compress`, as it travels: `sent_bytes` bytes. All of it by default."""
        return sent.reshape(-1).view(np.uint8)

    def unpack(self, data: np.ndarray, out: np.ndarray) -> None:
        """out = C(v), with the same bits, from what `pack` gave."""
        out.reshape(-1)[...] = data.view(out.dtype)


@dataclass(frozen=True)
class Float16(Compression):
    """Half precision: C(v) is v rounded to the nearest float16, ties to even, and clipped to +-65504.

    It takes half the bytes of float32, with a relative error of at most 2^-11 for each number. The one to try first.
    """

    def compress(self, v, out):
        _half().round_half(v, out)

    def sent_bytes(self, shape, itemsize):
        return 2 * int(np.prod(shape))

    def pack(self, sent):
        return _half().half_bits(sent).view(np.uint8)

    def unpack(self, data, out):
        _half().read_half(data.view(np.uint16), out)


@dataclass(frozen=True)
class BFloat16(Compression):
    """C(v) is v rounded to the nearest bfloat16, ties to even, clipped to its largest number, 3.39e38.

    It takes half the bytes of float32, with a relative error of at most 2^-8 for each number, and no gradient is too
    small for it: what is below 2^-126, the least normal number, is kept for the next step.
    """

    def compress(self, v, out):
        np.copyto(out, _bfloat16_bits(v).view(np.float32), casting="same_kind")

    def sent_bytes(self, shape, itemsize):
        return 2 * int(np.prod(shape))

    def pack(self, sent):
        return (_bfloat16_bits(sent).reshape(-1) >> 16).astype(np.uint16).view(np.uint8)

    def unpack(self, data, out):
        out.reshape(-1)[...] = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _bfloat16_bits(x: np.ndarray) -> np.ndarray:
    """The bits, uint32, of float32 or float64 numbers rounded to the nearest bfloat16, ties to even, as float32.

    Magnitudes above its largest number become that, those below its least normal one 0; NaN stays NaN.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        near = np.ascontiguousarray(x, np.float32)
    bits = near.view(np.uint32)
    if x.dtype == np.float64:  # round to odd, so that the second rounding is right
        inexact = (near.astype(np.float64) != x) & (bits & 1 == 0)
        away = np.abs(near.astype(np.float64)) < np.abs(x)
        bits = np.where(inexact, np.where(away, bits + 1, bits - 1), bits).astype(np.uint32)
    sign, size = bits & np.uint32(1 << 31), bits & np.uint32(2**31 - 1)
    near_size = (size + np.uint32(0x7FFF) + (size >> 16 & np.uint32(1))) & np.uint32(0xFFFF0000)
    capped = np.minimum(near_size, np.uint32(0x7F7F0000))
    found = np.where(size < 0x00800000, np.uint32(0), capped)
    return sign | np.where(np.isnan(near), np.uint32(0x7FC00000), found)


def _half() -> Any:
    from .comm import half  # here, not above: importing scratchnet does not load Numba

    return half


@dataclass(frozen=True)
class TopK(Compression):
    """C(v) keeps the ceil(ratio * size) numbers of largest magnitude, the first among equals; the others become 0.

    Each number that is sent takes 8 bytes, its position and its value, so a ratio of 0.01 sends 2 % of float32. Stich,
    Cordonnier and Jaggi, "Sparsified SGD with Memory" (2018). What is left out arrives late, so small ratios need a
    lower learning rate.
    """

    ratio: float = 0.01

    def __post_init__(self):
        checks.number("TopK: ratio", self.ratio, "(0, 1]")

    def _count(self, size: int) -> int:
        return min(size, int(np.ceil(self.ratio * size)))

    def compress(self, v, out):
        size, count = np.abs(v.reshape(-1)), self._count(v.size)
        least = np.partition(size, size.size - count)[size.size - count]
        kept = size > least
        equal = np.flatnonzero(size == least)
        kept[equal[: count - np.count_nonzero(kept)]] = True
        np.copyto(out.reshape(-1), np.where(kept, v.reshape(-1), 0))

    def sent_bytes(self, shape, itemsize):
        return (4 + itemsize) * self._count(int(np.prod(shape)))

    def pack(self, sent):
        flat, count = sent.reshape(-1), self._count(sent.size)
        at = np.flatnonzero(flat)[:count]
        if len(at) < count:  # zeros were among the largest
            at = np.concatenate([at, np.flatnonzero(flat == 0)[: count - len(at)]])
        return np.concatenate([at.astype(np.uint32).view(np.uint8), flat[at].view(np.uint8)])

    def unpack(self, data, out):
        count = self._count(out.size)
        out[...] = 0
        out.reshape(-1)[data[: 4 * count].view(np.uint32)] = data[4 * count :].view(out.dtype)


@dataclass(frozen=True)
class PowerSGD(Compression):
    """C(v) is a matrix of rank `rank`, from one step of the power iteration, which goes on where the last step ended.

    For each gradient matrix V = sum_k V_k (rows, columns), with Q (columns, rank) of the step before:

        P = orthonormal basis of the columns of sum_k V_k Q;   Q_k = V_k^T P;   shard k's part is C(V_k) = P Q_k^T

    Two small matrices travel, (rows + columns) * rank numbers. Vogels, Karimireddy and Jaggi, "PowerSGD: Practical
    Low-Rank Gradient Compression for Distributed Optimization" (2019). Vectors travel whole. Arrays of more than two
    axes count as matrices of their first axis by all others.
    """

    rank: int = 2

    def __post_init__(self):
        checks.integer("PowerSGD: rank", self.rank, 1)

    def phases(self, shards):
        return [Phase("basis", 1), Phase("project", shards)]

    def compress(self, v, out):
        np.copyto(out, v)  # vectors

    def is_low_rank(self, shape):
        return len(shape) > 1 and self.rank * (shape[0] + int(np.prod(shape[1:]))) < int(np.prod(shape))

    def sent_bytes(self, shape, itemsize):
        if not self.is_low_rank(shape):
            return itemsize * int(np.prod(shape))
        return itemsize * self.rank * (shape[0] + int(np.prod(shape[1:])))


COMPRESSIONS: dict[str, Compression | None] = {
    "none": None,
    "float16": Float16(),
    "bfloat16": BFloat16(),
    "top_k": TopK(0.05),
    "power_sgd": PowerSGD(2),
}
