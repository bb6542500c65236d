"""How far a result may lie from the reference: rounding errors, bounded as in Higham's book, never tuned.

A result that sees n roundings, each a factor 1 + d with |d| <= u, carries at most (1 + u)^n - 1 times the magnitude of
what is added up (Accuracy and Stability of Numerical Algorithms, 2002, sections 3.1 and 4.2). This is a little sharper
than Higham's n u / (1 - n u), and holds where n u passes 1, as in long sums of float16.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import checks

WIDER: dict[np.dtype, np.dtype] = {
    np.dtype(kind): np.dtype(wider)
    for kind, wider in {
        np.float16: np.float64,
        np.float32: np.float64,
        np.float64: np.longdouble,
        np.complex64: np.complex128,
        np.complex128: np.clongdouble,
    }.items()
}


def pairwise(n: int, block: int = 1) -> int:
    """`terms` of a sum of n numbers that halves them until `block` are left, which it adds one after the other.

    No number passes more than block - 1 + ceil(log2(n / block)) additions. NumPy's sum of contiguous numbers has
    block=128; a tree over the threads of a GPU's block has 1.
    """
    n, block = checks.integer("pairwise: n", n, 0), checks.integer("pairwise: block", block, 1)
    return min(n, block + math.ceil(math.log2(n / block))) if n > block else n


def blocked(n: int, block: int) -> int:
    """`terms` of a sum of n numbers in blocks, whose sums are added one after the other."""
    n, block = checks.integer("blocked: n", n, 0), checks.integer("blocked: block", block, 1)
    return min(n, block) + max(math.ceil(n / block) - 1, 0)


ULPS: dict[str, float] = dict.fromkeys(["+", "-", "*", "/", "sqrt"], 0.5) | {
    "rsqrt": 2, "cbrt": 2, "hypot": 3, "exp": 3, "exp2": 2, "expm1": 3, "log": 4, "log2": 3, "log10": 4, "log1p": 3,
    "power": 4, "sin": 2, "cos": 2, "tan": 4, "arcsin": 4, "arccos": 3, "arctan": 3, "arctan2": 3, "sinh": 3, "cosh": 3,
    "tanh": 2, "arcsinh": 3, "arccosh": 4, "arctanh": 3, "erf": 2, "erfc": 5,
}  # fmt: skip
"""function -> the units in the last place by which it may be wrong: the most that the CUDA C++ Programming Guide states
(section "Mathematical Functions", float32 and float64) or that NumPy's vector code was measured at, rounded up."""


def roundings_of(*functions: str) -> int:
    """`roundings` of an element that passes through these functions (names in ULPS), one after the other.

    An ulp counts as two roundings, an operation as one: `roundings_of("exp", "+", "/")` for 1 / (1 + exp(-x)). That is
    right where no function makes the relative error of its argument larger, |x f'(x)| <= |f(x)|. Others, such as the
    exp of a large result or a difference, need a `magnitude`. For real numbers. Raises ConfigError for other names.
    """
    return sum(math.ceil(2 * ULPS[checks.one_of("roundings_of: a function", name, ULPS)]) for name in functions)


@dataclass(frozen=True)
class Bound:
    """What an element may be wrong by: `terms` - 1 additions in `accumulate`, `roundings` in the result's own type."""

    terms: int
    roundings: int
    accumulate: np.dtype | None
    rtol: float
    atol: float

    @property
    def additions(self) -> int:
        return max(self.terms, 1) - 1

    def source(self, dtype: np.dtype) -> str:
        """Where the bound comes from, in a few words."""
        within = f" in {self.accumulate}" if self.accumulate is not None else ""
        sums = f"{self.additions} additions{within} + " if self.additions else ""
        allowed = "".join(f", {name}={value:g}" for name, value in (("rtol", self.rtol), ("atol", self.atol)) if value)
        return f"{sums}{self.roundings} roundings in {dtype}{allowed}"

    def of(self, dtype: np.dtype, exact: bool, expected: np.ndarray, magnitude: np.ndarray) -> Any:
        """The bound of each element. exact: has the reference more digits than the result? Else it rounds as well."""
        allowed = self.atol + self.rtol * np.abs(expected)
        if dtype.kind not in "fc":
            return allowed
        info = np.finfo(dtype)
        u = info.eps / 2 if exact else info.eps
        sum_u = u if self.accumulate is None else max(np.finfo(self.accumulate).eps / 2, 0 if exact else info.eps)
        growth = math.expm1(min(self.additions * math.log1p(sum_u) + self.roundings * math.log1p(u), 700.0))  # finite
        # A product may lose what is below the smallest number. float32 and float64 may be flushed to zero below the
        # smallest normal one; float16 has so few exponents that this would hide real errors, and no CPU does it.
        tiny = info.smallest_subnormal if info.bits == 16 else info.smallest_normal
        underflow = (self.additions + self.roundings) * float(tiny)
        return np.maximum(growth * magnitude + underflow, allowed)


def worst(got: np.ndarray, expected: np.ndarray, magnitude: np.ndarray, bound: Bound) -> str | None:
    """What is wrong with the worst element of `got`; None if each lies within the bound of `expected`.

    NaN and infinities must be the same. Where magnitude + bound passes the largest number of the type, the result may
    be infinite or NaN as well: sums in another order overflow elsewhere.
    """
    inexact = got.dtype.kind in "fc"
    with np.errstate(all="ignore"):
        magnitude = np.broadcast_to(np.where(np.isnan(magnitude), 0, magnitude), got.shape)
        exact = inexact and (expected.dtype.kind not in "fc" or np.finfo(expected.dtype).eps < np.finfo(got.dtype).eps)
        limit = np.broadcast_to(np.asarray(bound.of(got.dtype, exact, expected, magnitude)), got.shape)
        same = _same(got, expected)
        error = np.abs(got - expected) if inexact else np.abs(got.astype(np.longdouble) - expected)  # all of int64
        right = same | (np.isfinite(got) & np.isfinite(expected) & (error <= limit))
        if inexact:
            cancels = np.abs(expected) + limit < magnitude  # an overflow of either sign, or both, on the way
            own_side = cancels | (got == np.copysign(np.inf, expected.real)) if got.dtype.kind == "f" else True
            huge = np.isfinite(expected) & (magnitude + limit > np.finfo(got.dtype).max)
            right |= huge & ~np.isfinite(got) & own_side
    if right.all():
        return None
    with np.errstate(all="ignore"):
        excess = np.where(right, -1, np.nan_to_num(error / np.maximum(limit, np.finfo(float).tiny), nan=np.inf))
    at = _index(np.unravel_index(np.argmax(excess), got.shape))
    first = _index(np.argwhere(~right)[0])
    count = f"{np.count_nonzero(~right)} of {got.size} wrong"
    return (
        f"element {at}: expected {expected[at]!s} within {float(limit[at]):.3g}, got {got[at]!s} ({got.dtype}, {count}"
        f"{'' if first == at else f', the first at {first}'}; the bound: {bound.source(got.dtype)})"
    )


def same_bits(first: np.ndarray, second: np.ndarray) -> bool:
    """Have two results the same bits? A long double has some between its numbers that mean nothing."""
    same = first.tobytes() == second.tobytes()
    return same or (first.dtype.char in "gG" and bool(_same(first, second).all()))


def differs(first: np.ndarray, second: np.ndarray) -> tuple[Any, str, str]:
    """Where two results with different bits differ first, and what stands there."""
    same = _same(first, second)
    if same.all():  # NaNs, or zeros, with other bits
        return "?", "nan or 0", "another nan or 0"
    at = _index(np.argwhere(~same)[0])
    return at, str(first[at]), str(second[at])


def _same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Equal, or NaN both; of complex numbers, each of the two parts."""
    if a.dtype.kind == "c" or b.dtype.kind == "c":
        return _same(a.real, b.real) & _same(a.imag, b.imag)
    return (a == b) | ((a != a) & (b != b))


def _index(at: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(i) for i in at)
