"""Gradients of functions: `grad`, `value_and_grad` of any order, and the search for the op that made a NaN."""

from collections.abc import Callable
from typing import Any

import numpy as np

from . import ops
from .errors import ShapeError
from .tensor import FLOATS, Tensor, as_tensor, backpropagate, initial_gradient, is_recording, recording


def grad(f: Callable[..., Tensor], argnums: int | tuple[int, ...] = 0) -> Callable[..., Any]:
    """The function that returns the gradient of f, whose result must have one element.

    argnums: which positional argument(s) to differentiate; a tuple gives a tuple. Arguments may be tensors, arrays
    or numbers. `grad(grad(f))` is the second derivative. Leaves that f uses otherwise keep their `.grad`.
    """
    with_value = value_and_grad(f, argnums)
    return lambda *args, **kwargs: with_value(*args, **kwargs)[1]


def value_and_grad(f: Callable[..., Tensor], argnums: int | tuple[int, ...] = 0) -> Callable[..., Any]:
    """Like `grad`, but the function returns (f's value, gradient)."""
    numbers_of = argnums if isinstance(argnums, tuple) else (argnums,)

    def with_value(*args, **kwargs):
        args = list(args)
        outer = is_recording()
        for i in numbers_of:
            args[i] = _variable(as_tensor(args[i]))
        variables = [args[i] for i in numbers_of]
        with recording(True):
            y = f(*args, **kwargs)
            if not isinstance(y, Tensor) or y.size != 1:
                came = f"shape {y.shape}" if isinstance(y, Tensor) else type(y).__name__
                raise ShapeError(f"grad: expected a function whose result is one element, got {came}")
            found = {}
            if y.requires_grad:
                nested = outer and any(not v.is_leaf or v.requires_grad for v in variables)
                found = backpropagate(y, initial_gradient(y, None), variables, retain_graph=True, create_graph=nested)
        gradients = tuple(
            found[id(v._node or v)][1] if id(v._node or v) in found else v.detach() * 0 for v in variables
        )
        return y, gradients if isinstance(argnums, tuple) else gradients[0]

    return with_value


def _variable(x: Tensor) -> Tensor:
    """A tensor of its own with x's value: the point at which `grad` stops. It hangs on x if x is recorded."""
    if x.dtype not in FLOATS:
        x = x.astype(np.float32)
    if x.requires_grad:
        return ops.reshape(x, shape=x.shape)
    v = x.detach()
    v.requires_grad = True
    return v


def first_nonfinite(y: Tensor) -> str | None:
    """The name of the first op in y's record whose result is not finite although its inputs are; "an input" if
    a leaf is not finite already; None if all is finite."""
    nodes, stack = {}, [y]
    while stack:
        t = stack.pop()
        if t._node is None:
            if t.dtype.kind == "f" and not np.isfinite(t._data).all():
                return "an input"
        elif t._node.order not in nodes and t._node.inputs is not None:
            nodes[t._node.order] = t._node
            stack.extend(t._node.inputs)
    bad = (order for order in sorted(nodes) if not np.isfinite(nodes[order].out).all())
    return next((nodes[order].op.name for order in bad), None)
