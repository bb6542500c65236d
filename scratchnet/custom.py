"""An op of the user's own: a function of arrays, with its derivatives as functions of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from . import checks
from .autograd import apply
from .errors import DtypeError, ShapeError
from .kernels import TABLES
from .ops.operands import ArrayLike, checked_dtype
from .ops.table import VJP, Op
from .tensor import Tensor, as_tensor


def op(
    forward: Callable[..., np.ndarray],
    *vjps: VJP | None,
    name: str | None = None,
    kernels: Mapping[str, Callable[..., Any]] | None = None,
) -> Callable[..., Tensor]:
    """A differentiable function of tensors, made of one of NumPy arrays.

    forward(*arrays, **params) -> an array, of the inputs' float dtype if they are floats; it must not change them.
    vjps: one an input: vjp(g, y, *inputs, **params) -> the gradient of that input, by ops on tensors, where g is that
        of the output y; None where there is none. It has the input's dtype, and its shape or one that it broadcasts to:
        such gradients are summed for you.
    kernels: {device: function} that is called in the place of forward there: {"cpu": one compiled by Numba}. On "cuda"
        it gets and returns Numba's arrays of the GPU, new memory; without one, arrays travel to the host and back.

        cube = sn.op(lambda x: x**3, lambda g, y, x: g * 3 * x * x)

    Gradients of any order follow. `scratchnet.testing.gradcheck(cube, [x])` checks them. A step of `sn.jit` calls
    `forward` or the kernel in each replay. A notebook's cell that calls `op` may run again: nothing is registered.
    Raises ConfigError, or, when called, ShapeError or DtypeError for what they return.
    """
    checks.function("op: forward", forward)
    for vjp in vjps:
        if vjp is not None:
            checks.function("op: a vjp", vjp)
    called = name if name is not None else getattr(forward, "__name__", "op")
    checks.instance("op: name", called, str, "a name")
    kernels = {} if kernels is None else dict(checks.instance("op: kernels", kernels, Mapping, "a dict, or None"))
    for device, kernel in kernels.items():
        checks.one_of("op: kernels", device, TABLES)
        checks.function(f"op: kernels: {device}", kernel)

    def run(device: Any, *arrays: Any, **params: Any) -> Any:
        kernel = kernels.get(device.name)
        change, call = (device.for_numba, kernel) if kernel else (device.to_host, forward)
        y = call(*map(change, arrays), **params)
        is_of_host = kernel is None or device.is_host
        if not (isinstance(y, np.ndarray | np.generic) if is_of_host else hasattr(y, "__cuda_ndarray__")):
            what = f"{called}: kernel of {device.name}" if kernel else f"{called}: forward"
            checks.refuse(what, f"an array {'' if is_of_host else 'of Numba '}as a result", y, DtypeError)
        if arrays[0].dtype.kind == "f" == y.dtype.kind and y.dtype != arrays[0].dtype:
            raise DtypeError(f"{called}: expected a result of {arrays[0].dtype}, as its input is, got {y.dtype}")
        checked_dtype(called, y.dtype)
        return device.from_host(np.array(y) if is_of_host else y)  # memory of its own

    run.__module__ = getattr(forward, "__module__", None) or "__main__"  # a recorded step calls it again
    row = Op(called, run, tuple(vjp and _checked(called, i, vjp) for i, vjp in enumerate(vjps)))

    def function(*inputs: ArrayLike, **params: Any) -> Tensor:
        if len(inputs) != len(vjps):
            raise ShapeError(f"{called}: expected {len(vjps)} inputs, one for each derivative, got {len(inputs)}")
        like = next((x for x in inputs if isinstance(x, Tensor)), None)
        return apply(row, *[as_tensor(x, like) for x in inputs], **params)

    function.__name__ = function.__qualname__ = called
    function.__doc__ = forward.__doc__
    return function


def _checked(called: str, i: int, vjp: VJP) -> VJP:
    """The vjp of input i, whose result must be a gradient of that input."""

    def checked(g: Tensor, y: Tensor, *inputs: Tensor, **params: Any) -> Tensor:
        found, x = vjp(g, y, *inputs, **params), inputs[i]
        if not isinstance(found, Tensor):
            remedy = "ops on tensors make one, and sn.tensor of an array"
            checks.refuse(f"{called}: the vjp of input {i}", "a tensor", found, DtypeError, remedy)
        if found.dtype != x.dtype:
            raise DtypeError(f"{called}: expected a gradient of {x.dtype} for input {i}, got {found.dtype}")
        fits = zip(x.shape[::-1], found.shape[::-1], strict=False)
        if found.ndim < x.ndim or any(n not in (1, m) for n, m in fits):
            expected = f"a gradient of shape {x.shape}, or one that it broadcasts to, for input {i}"
            raise ShapeError(f"{called}: expected {expected}, got {found.shape}")
        return found

    return checked
