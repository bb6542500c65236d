"""Elementwise functions without a kernel of their own: compositions of rows, and questions answered by yes or no."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import checks
from ..errors import DtypeError, ShapeError
from ..kernels.signatures import FLOATS as WIDE
from ..kernels.signatures import HALVES
from .elementwise import abs, ceil_op, clip, cos, eq, floor_op, maximum, minimum, ne, round_op, sin, where
from .movement import index, reshape_op
from .operands import FLOATS, ArrayLike, as_operand
from .shapes import clone, constant, row_numbers
from .table import Op, Tensor, method

# --- arithmetic --------------------------------------------------------------------------------------------------


@method
def square(x: Tensor) -> Tensor:
    """x * x."""
    return x * x


@method
def reciprocal(x: Tensor) -> Tensor:
    """1 / x."""
    return 1.0 / x


@method
def rsqrt(x: Tensor) -> Tensor:
    """1 / sqrt(x)."""
    return 1.0 / x.sqrt()


@method
def tan(x: Tensor) -> Tensor:
    """Tangent of an angle in radians: sin(x) / cos(x)."""
    return sin(x) / cos(x)


def _whole(op: Op, x: Tensor) -> Tensor:
    return op(x) if x.dtype in FLOATS else clone(x)


@method
def floor(x: Tensor) -> Tensor:
    """The largest whole number that is not above x; not differentiable. Integers stay as they are."""
    return _whole(floor_op, x)


@method
def ceil(x: Tensor) -> Tensor:
    """The smallest whole number that is not below x; not differentiable. Integers stay as they are."""
    return _whole(ceil_op, x)


@method
def round(x: Tensor, decimals: int = 0) -> Tensor:
    """The nearest number of so many decimals, of two the even one; not differentiable. Integers stay as they are."""
    scale = 10.0 ** checks.integer("round: decimals", decimals, -30, 30)
    return _whole(round_op, x) if decimals == 0 or x.dtype not in FLOATS else round_op(x * scale) / scale


@method
def clamp(x: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """x limited to [min, max], numbers or tensors.

    Of numbers as bounds the gradient is 1 on them and 0 outside, as of `clip`; of tensors equal elements share it, as
    of `maximum` and `minimum`.
    """
    low, high = (None if hasattr(bound, "_data") else bound for bound in (min, max))
    y = clip(x, low, high)
    y = y if low is min else maximum(y, min)
    return y if high is max else minimum(y, max)


# --- questions about numbers -------------------------------------------------------------------------------------


@method
def isnan(x: Tensor) -> Tensor:
    """Is it not a number? Booleans."""
    return x != x


@method
def isinf(x: Tensor) -> Tensor:
    """Is it infinite, of either sign? Booleans."""
    return abs(x) == math.inf if x.dtype in FLOATS else x != x


@method
def isfinite(x: Tensor) -> Tensor:
    """Is it neither infinite nor NaN? Booleans."""
    return abs(x) < math.inf if x.dtype in FLOATS else x == x


@method
def isclose(x: Tensor, other: ArrayLike, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Tensor:
    """|x - other| <= atol + rtol * |other|, or both equal (also as infinities); equal_nan: NaN is equal to NaN.

    Halves are compared in float32, integers in float64, and an integer beside a float in the float's dtype.
    """
    rtol, atol = (checks.number(f"isclose: {n}", v, "[0, inf)") for n, v in (("rtol", rtol), ("atol", atol)))
    other = as_operand(other, x)
    a, b = x.detach(), other.detach()
    floats = {t.dtype for t in (a, b) if t.dtype in FLOATS}
    if len(floats) < 2:  # two are refused below
        wide = max(*floats, WIDE[0], key=FLOATS.index) if floats else WIDE[1]
        a, b = a.astype(wide), b.astype(wide)
    near = (a == b) + ((abs(a - b) <= atol + rtol * abs(b)) * isfinite(b))
    return near + isnan(a) * isnan(b) if checks.flag("isclose: equal_nan", equal_nan) else near


@method
def allclose(x: Tensor, other: ArrayLike, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    """Are all elements close? See `isclose`; a Python bool."""
    return bool(isclose(x, other, rtol, atol, equal_nan).all())


@method
def equal(x: Tensor, other: ArrayLike) -> bool:
    """Have both one shape and equal elements? A Python bool."""
    other = as_operand(other, x)
    return x.shape == other.shape and bool(eq(x.detach(), other.detach()).all())


# --- logic ---------------------------------------------------------------------------------------------------------


def _truth(x: Tensor) -> Tensor:
    return x if x.dtype.kind == "b" else x != 0


@method
def logical_not(x: Tensor) -> Tensor:
    """True where x is 0 or False."""
    return x == (constant(x, np.array(False)) if x.dtype.kind == "b" else 0)


@method
def logical_and(x: Tensor, other: ArrayLike) -> Tensor:
    """True where both are other than 0."""
    return _truth(x) * _truth(as_operand(other, x))


@method
def logical_or(x: Tensor, other: ArrayLike) -> Tensor:
    """True where one is other than 0, or both."""
    return _truth(x) + _truth(as_operand(other, x))


@method
def logical_xor(x: Tensor, other: ArrayLike) -> Tensor:
    """True where one of both is other than 0."""
    return ne(_truth(x), _truth(as_operand(other, x)))


def of_booleans(name: str, *operands: Tensor) -> None:
    """The operators & | ^ ~ take booleans. Raises DtypeError for others."""
    for x in operands:
        if x.dtype.kind != "b":
            raise DtypeError(f"{name}: expected booleans, got {x.dtype}; write (x > 0) {name} (y > 0)")


# --- masks, and integers as classes --------------------------------------------------------------------------------


@method
def masked_fill(x: Tensor, mask: ArrayLike, value: Any) -> Tensor:
    """x with `value` where mask (boolean, it broadcasts) is true."""
    mask = as_operand(mask, x)
    if mask.dtype.kind != "b":
        raise DtypeError(f"masked_fill: expected a boolean mask, got {mask.dtype}")
    value = as_operand(value, x)
    if value.ndim:
        raise ShapeError(f"masked_fill: expected one number, got shape {value.shape}; use sn.where(mask, values, x)")
    if x.dtype not in FLOATS and value.dtype.kind not in {"b": "b"}.get(x.dtype.kind, "iub"):
        raise DtypeError(f"masked_fill: expected a number for {x.dtype}, got {value.dtype}; use .float()")
    return where(mask, value, x)


@method
def masked_select(x: Tensor, mask: ArrayLike) -> Tensor:
    """The elements where mask (boolean, of x's shape) is true, as a vector: x[mask]."""
    mask = as_operand(mask, x)
    if mask.dtype.kind != "b" or mask.shape != x.shape:
        raise ShapeError(f"masked_select: expected booleans of shape {x.shape}, got {mask.dtype} {mask.shape}")
    return index(x, mask)


@method
def one_hot(x: Tensor, num_classes: int = -1) -> Tensor:
    """int64 rows with a 1 at the number x[...] and 0 elsewhere; num_classes -1: as many as the largest needs."""
    if x.dtype.kind not in "iu":
        raise DtypeError(f"one_hot: expected integers, got {x.dtype}")
    n = checks.integer("one_hot: num_classes", num_classes, -1, 2**31)
    if n == -1:
        n = int(x.max(keepdims=False).item()) + 1 if math.prod(x.shape) else 0
    numbers = reshape_op(row_numbers("one_hot", x, n, x), shape=(*x.shape, 1))
    return eq(numbers, constant(x, np.arange(n))).astype(np.int64)


# --- results whose shape depends on the numbers: NumPy finds them, and there is no gradient --------------------------


@method
def nonzero(x: Tensor) -> Tensor:
    """int64 (count, ndim): where x is other than 0, in C order."""
    return constant(x, np.argwhere(x.detach().numpy()))


@method
def unique(x: Tensor, return_counts: bool = False) -> Any:
    """The distinct elements in ascending order; return_counts: and how often each one occurs (int64)."""
    numbers = x.detach().numpy()
    wide = numbers.astype(np.float32) if x.dtype in HALVES else numbers  # NumPy sorts NaN of bfloat16 anywhere
    values, counts = np.unique(wide, return_counts=True)
    values = values.astype(x.dtype)
    if not checks.flag("unique: return_counts", return_counts):
        return constant(x, values)
    return constant(x, values), constant(x, counts)


@method
def bincount(x: Tensor, minlength: int = 0) -> Tensor:
    """int64 (n,): how often each number occurs in a vector of integers >= 0; n: at least minlength."""
    minlength = checks.integer("bincount: minlength", minlength, 0, 2**31)
    if x.dtype.kind not in "iu" or x.ndim != 1:
        raise DtypeError(f"bincount: expected a vector of integers, got {x.dtype} {x.shape}")
    numbers = x.detach().numpy()
    if numbers.size and numbers.min() < 0:
        raise DtypeError(f"bincount: expected integers >= 0, got {numbers.min()}")
    return constant(x, np.bincount(numbers, minlength=minlength).astype(np.int64))
