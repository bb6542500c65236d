"""Arithmetic of bfloat16 and float16, for every row of the op table by one rule: inputs are widened to float32, the row
computes, and its result is rounded to the nearest, ties to even.

So sums are float32, whatever is inside a row is rounded once, and a device needs no half kernels but conversions.
Derivatives obey the same rule: g, y and the inputs are widened, the row's VJP computes in float32, and its gradient is
rounded. A record keeps the half arrays.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from .kernels.signatures import FLOATS, HALVES
from .ops import cast
from .ops.table import VJP, AnyNumber, Op, Tensor
from .row_gradient import RowGradient

FLOAT32 = FLOATS[0]


@lru_cache(1024)  # more than the table has; ops of the user's own come and go
def in_float32(op: Op) -> Op:
    """The row for halves; the row itself, if it only moves elements."""
    if op.is_view or op.moves:
        return op

    def forward(device: Any, *arrays: Any, **params: Any) -> Any:
        half = next(x.dtype for x in arrays if x.dtype in HALVES)
        y = op.forward(device, *[_converted(device, x, FLOAT32) if x.dtype in HALVES else x for x in arrays], **params)
        return _converted(device, y, half) if y.dtype == FLOAT32 else y

    def shared(g: Tensor, y: Tensor, *inputs: Tensor, **params: Any) -> tuple:
        wide = [widened(t) for t in (g, y, *inputs)]
        return wide, {} if op.shared is None else {"shared": op.shared(*wide, **params)}

    def vjp(i: int, function: VJP) -> VJP:
        def rounded(g: Tensor, y: Tensor, *inputs: Tensor, shared: tuple, **params: Any) -> Any:
            wide, own = shared
            return _rounded(function(*wide, **params, **own), inputs[i].dtype)

        return rounded

    def any_vjp(i: int, g: Tensor, y: Tensor, *inputs: Tensor, **params: Any) -> Any:
        return vjp(i, op.vjps[i])(g, y, *inputs, **params)  # type: ignore[arg-type]

    vjps: Any = AnyNumber(any_vjp)
    if isinstance(op.vjps, tuple):
        vjps = tuple(None if f is None else vjp(i, f) for i, f in enumerate(op.vjps))
    forward.__module__ = op.forward.__module__  # jit calls what is the user's again
    return replace(op, forward=forward, vjps=vjps, shared=shared)


def widened(t: Tensor) -> Tensor:
    """A tensor of halves as float32, others as they are."""
    return cast(t, dtype=FLOAT32) if t._data.dtype in HALVES else t


def _rounded(g: Any, dtype: np.dtype) -> Any:
    def to_half(t: Tensor) -> Tensor:
        return cast(t, dtype=dtype) if t._data.dtype != dtype else t

    return g.map(to_half) if isinstance(g, RowGradient) else to_half(g)


def _converted(device: Any, x: Any, dtype: np.dtype) -> Any:
    out = device.empty(x.shape, dtype)
    device.copy(x, out)
    return out
