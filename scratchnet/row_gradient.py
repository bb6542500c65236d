"""Gradients by rows: `Tensor.grad` of a table of which a backward pass read few rows, where `sparse=True` asks for it.

A table of a million rows, of which a batch reads a thousand, has a gradient that is 0 in all other rows. A RowGradient
holds the rows that occur, so that neither the pass nor the optimizer's step walks over the whole table. Its numbers
have the bits of the dense gradient: rows that occur several times are added up in the same order, from zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import tracing
from .errors import DeviceError, IndexOutOfRangeError, ShapeError, UnknownAttributeError

Tensor = Any  # the class stands above
WHAT = "a gradient by rows (sparse=True)"  # that a recorded step is refused for


class RowGradient:
    """A gradient (n, dim) that is 0 in all rows but some. It never changes; `to_dense` makes a Tensor of it.

    rows: int64 (m,), numbers of the rows that occur, ascending, each once. values: a Tensor (m, dim).
    Raises DeviceError for values on a GPU, IndexOutOfRangeError for rows that do not ascend in [0, n), ShapeError for
    values of another number of rows.
    """

    __slots__ = ("_rows", "_values", "n")

    def __init__(self, rows: np.ndarray, values: Tensor, n: int):
        if not values._device.is_host:
            raise DeviceError(
                f"sparse=True: expected a table on the host, got one on {values.device!r}; use sparse=False there, and "
                "zero_grad() before a table moves"
            )
        tracing.current().refuse(WHAT)
        if len(rows) and (rows[0] < 0 or rows[-1] >= n or (rows[1:] <= rows[:-1]).any()):  # an update would lose one
            got = f"{len(rows)} from {rows.min()} to {rows.max()}"
            raise IndexOutOfRangeError(f"RowGradient: expected rows that ascend in [0, {n}), each once, got {got}")
        if values.shape[:1] != rows.shape:
            raise ShapeError(f"RowGradient: expected {rows.shape} rows of values, got {values.shape[:1]}")
        self._rows, self._values, self.n = rows.view(), values, n
        self._rows.flags.writeable = False

    @property
    def rows(self) -> np.ndarray:
        """A step that is recorded is refused, as a replay would not look at them."""
        tracing.current().refuse(WHAT)
        return self._rows

    @property
    def values(self) -> Tensor:
        return self._values

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n, *self.values.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype

    @property
    def _data(self) -> np.ndarray:
        return self.values._data

    def to_dense(self) -> Tensor:
        """A Tensor of the whole shape."""
        return self._folded(self.rows, self._data, self.n)

    def numpy(self) -> np.ndarray:
        """An array of the whole shape."""
        return self.to_dense().numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def map(self, function: Callable[[Tensor], Tensor]) -> RowGradient:
        """The same rows with function(values); of a function that leaves 0 as it is."""
        return RowGradient(self.rows, function(self.values), self.n)

    def cleared(self) -> RowGradient:
        """A gradient of no rows: all of it is 0."""
        return RowGradient(self.rows[:0], self.values[:0], self.n)

    def _plus(self, other: RowGradient) -> RowGradient:
        rows, places = np.unique(np.concatenate((self.rows, other.rows)), return_inverse=True)
        values = self._folded(places, np.concatenate((self._data, other._data)), len(rows))
        return RowGradient(rows, values, self.n)

    def _folded(self, places: np.ndarray, values: np.ndarray, n: int) -> Tensor:
        """A Tensor (n, dim): row i is the sum of the values whose place is i, in order."""
        out = np.empty((n, *values.shape[1:]), values.dtype)
        self.values._device.scatter_rows(np.ascontiguousarray(values), places, out)
        return self.values._wrap(out, self.values._device)

    def __getattr__(self, name: str) -> Any:
        raise UnknownAttributeError(
            f"grad: expected rows, values, shape, dtype, map, numpy() or to_dense() of a gradient by rows, got {name}"
        )

    def __repr__(self) -> str:
        return f"RowGradient({len(self.rows)} rows of shape {self.shape})"


def total(a: Any, b: Any) -> Any:
    """a + b, gradients of one tensor: by rows if both are, else dense."""
    if not (isinstance(a, RowGradient) or isinstance(b, RowGradient)):
        return a + b
    return a._plus(b) if type(a) is type(b) else dense(a) + dense(b)


def dense(g: Any) -> Tensor:
    """A gradient as a Tensor of the whole shape."""
    return g.to_dense() if isinstance(g, RowGradient) else g
