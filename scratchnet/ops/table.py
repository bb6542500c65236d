"""The op table. An op is one row: a name, a forward in terms of kernels, and one vector-Jacobian product an input.

Rows are written with `unary`, `binary` and `define` in the modules beside this one. A VJP is written in
terms of ops on tensors, so it can be differentiated again. This package never imports Tensor: calling an
op asks its first input, which is a tensor, to apply it.

A row with a docstring is public: tensors have it as a method, x.NAME(), and the package as a function, sn.NAME(x).
So do the functions marked with `method`: they check what they are given before they call a row, whose own name then
ends in _op.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from ..errors import ShapeError
from .operands import ArrayLike

VJP = Callable[..., Any]
Function = TypeVar("Function", bound=Callable[..., Any])
Tensor = Any  # the class stands above, in tensor.py


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One differentiable function.

    forward(device, *arrays, **params) -> array: a new array, or a view of an input if `is_view`.
    vjps[i](g, y, *inputs, **params) -> gradient with respect to input i, given the gradient g of the output y;
        None if the output does not depend smoothly on that input. Gradients of broadcast inputs are summed to
        the input's shape by the backward pass, so that no row has to.
    promotes: the inputs that must share one dtype (None: all); a Python number takes it.
    floating: integers become float32 first, as the result is a real number.
    moves: it only moves elements, or converts them: halves as they are, others go by way of float32 (half.py).
    is_view: the output shares the first input's memory where it can.
    shared: what the VJPs of all inputs need, computed once for them; they are given it as the parameter `shared`.
    """

    name: str
    forward: Callable[..., np.ndarray]
    vjps: Sequence[VJP | None] | AnyNumber
    promotes: tuple[int, ...] | None = None
    floating: bool = False
    moves: bool = False
    is_view: bool = False
    shared: VJP | None = None

    def __call__(self, x, *inputs, **params):
        return x._apply(self, x, *inputs, **params)


class AnyNumber:
    """The VJPs of an op of any number of inputs: one function, which takes first the input that it is asked for."""

    def __init__(self, vjp: VJP):
        self.vjp = vjp

    def __getitem__(self, i: int) -> VJP:
        return partial(self.vjp, i)


OPS: dict[str, Op] = {}
METHODS: dict[str, Callable[..., Tensor]] = {}  # what is public, by name: functions whose first argument is a tensor


def method(function: Function) -> Function:
    """A decorator that makes a function public, under its own name."""
    METHODS[function.__name__] = function
    return function


def define(name: str, forward: Callable[..., np.ndarray], *vjps: VJP | None, **options) -> Op:
    """Adds a row to the table."""
    if name in OPS:
        raise KeyError(f"op {name!r} is in the table already")
    OPS[name] = Op(name, forward, options.pop("vjps", vjps), **options)
    return OPS[name]


def unary(name: str, vjp: VJP | None, doc: str = "", floating: bool = True) -> Op:
    """A row for y[i] = f(x[i]), whose kernel has the op's name; vjp(g, y, x, **params)."""

    def forward(device, x, **params):
        x = contiguous(device, x)
        out = device.empty(x.shape, x.dtype)
        getattr(device, name)(x, out, **params)
        return out

    def function(x: Tensor) -> Tensor:
        return x._apply(op, x)

    op = define(name, forward, vjp, floating=floating)
    return _published(op, function, doc)


def binary(name: str, *vjps: VJP | None, doc: str = "", dtype: type | None = None, floating: bool = False) -> Op:
    """A row for y = f(a, b) with broadcasting, whose kernel has the op's name; dtype: of the output, if not a's."""

    def forward(device, a, b):
        out = device.empty(broadcast_shape(name, a, b), dtype or a.dtype)
        getattr(device, name)(compact(device, a), compact(device, b), out)
        return out

    def function(x: Tensor, other: ArrayLike) -> Tensor:
        return x._apply(op, x, other)

    op = define(name, forward, *(vjps or (None, None)), floating=floating)
    return _published(op, function, doc)


def _published(op: Op, function: Callable[..., Tensor], doc: str) -> Op:
    if doc:
        function.__name__ = function.__qualname__ = op.name
        function.__doc__ = doc
        method(function)
    return op


def broadcast_shape(name: str, *arrays: np.ndarray) -> tuple[int, ...]:
    """The shape that the arrays broadcast to. Raises ShapeError if they do not."""
    shape = arrays[0].shape
    if len(arrays) == 2 and arrays[1].shape == shape:
        return shape
    try:
        return np.broadcast(*[a if isinstance(a, np.ndarray) else a.layout for a in arrays]).shape
    except ValueError:
        shapes = " and ".join(str(a.shape) for a in arrays)
        raise ShapeError(f"{name}: expected shapes that broadcast together, got {shapes}") from None


def contiguous(device, x: np.ndarray) -> np.ndarray:
    """x itself if its elements lie in C order without gaps, else a copy that does."""
    if x.flags.c_contiguous:
        return x
    out = device.empty(x.shape, x.dtype)
    device.copy(x, out)
    return out


def compact(device, x: np.ndarray) -> np.ndarray:
    """x contiguous, where an axis that only repeats one element (stride 0) is cut to length 1.

    So a broadcast view costs nothing: the kernel broadcasts it again.
    """
    if not x.flags.c_contiguous and 0 in x.strides:
        x = x[tuple(slice(1) if stride == 0 else slice(None) for stride in x.strides)]
    return contiguous(device, x)
