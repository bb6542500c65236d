"""An op of the user's own: a function of arrays, with its derivatives as functions of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import checks
from .autograd import apply
from .errors import DtypeError, ShapeError
from .ops.operands import ArrayLike
from .ops.table import VJP, Op
from .tensor import Tensor, as_tensor


def op(forward: Callable[..., np.ndarray], *vjps: VJP | None, name: str | None = None) -> Callable[..., Tensor]:
    """A differentiable function of tensors, made of one of NumPy arrays.

    forward(*arrays, **params) -> an array, of the inputs' float dtype if they are floats; it must not change them.
    vjps: one an input: vjp(g, y, *inputs, **params) -> the gradient of that input, by ops on tensors, where g is that
        of the output y; None where there is none. Gradients of inputs that broadcast are summed for you.

        cube = sn.op(lambda x: x**3, lambda g, y, x: g * 3 * x * x)

    Gradients of any order follow. `scratchnet.testing.gradcheck(cube, [x])` checks them. A step of `sn.jit` calls
    `forward` in each replay. Raises ConfigError, or, when called, ShapeError or DtypeError for what it returns.
    """
    checks.function("op: forward", forward)
    for vjp in vjps:
        if vjp is not None:
            checks.function("op: a vjp", vjp)
    called = name if name is not None else getattr(forward, "__name__", "op")
    checks.instance("op: name", called, str, "a name")

    def run(device: Any, *arrays: Any, **params: Any) -> Any:
        y = forward(*[device.to_host(x) for x in arrays], **params)
        if not isinstance(y, np.ndarray | np.generic):
            checks.refuse(f"{called}: forward", "an array as a result", y, DtypeError)
        if arrays[0].dtype.kind == "f" == y.dtype.kind and y.dtype != arrays[0].dtype:
            raise DtypeError(f"{called}: expected a result of {arrays[0].dtype}, as its input is, got {y.dtype}")
        return device.from_host(np.array(y))  # memory of its own

    run.__module__ = getattr(forward, "__module__", None) or "__main__"  # a recorded step calls it again
    row = Op(called, run, vjps)

    def function(*inputs: ArrayLike, **params: Any) -> Tensor:
        if len(inputs) != len(vjps):
            raise ShapeError(f"{called}: expected {len(vjps)} inputs, one for each derivative, got {len(inputs)}")
        like = next((x for x in inputs if isinstance(x, Tensor)), None)
        return apply(row, *[as_tensor(x, like) for x in inputs], **params)

    function.__name__ = function.__qualname__ = called
    function.__doc__ = forward.__doc__
    return function
