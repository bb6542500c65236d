"""The functions of the public face: `sn.exp(x)` is `x.exp()` for anything that can become a Tensor; and `sn.grad(f)`.

What is public follows from the op table (ops/table.py). `grad` stands here, and not beside the backward pass, because
it makes tensors of its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checks, ops
from .autograd import backpropagate, history, initial_gradient
from .errors import ConfigError, ShapeError
from .grad_mode import is_recording, recording
from .tensor import FLOATS, ArrayLike, Tensor, as_tensor


def _function(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(method)
    def function(x: ArrayLike, *args, **kwargs) -> Tensor:
        return method(as_tensor(x, *args), *args, **kwargs)

    return function


globals().update({name: _function(method) for name, method in ops.METHODS.items()})

if TYPE_CHECKING:

    def __getattr__(name): ...  # mypy 2.4 fails on one with types


# --- joining ---------------------------------------------------------------------------------------------------------


def cat(tensors: Sequence[ArrayLike], axis: int = 0) -> Tensor:
    """Joins tensors along an axis that they have; all other lengths must agree."""
    return ops.cat(_tensors("cat", tensors), axis)


def stack(tensors: Sequence[ArrayLike], axis: int = 0) -> Tensor:
    """Joins tensors of one shape along a new axis."""
    return ops.stack(_tensors("stack", tensors), axis)


def _tensors(name: str, tensors: Sequence[ArrayLike]) -> list[Tensor]:
    tensors = checks.items(name, tensors, "a list of tensors")
    if not tensors:
        raise ShapeError(f"{name}: expected at least one tensor, got none")
    return [as_tensor(t, *tensors) for t in tensors]


# --- gradients of functions ------------------------------------------------------------------------------------------


def grad(f: Callable[..., Tensor], argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """The function that returns the gradient of f, whose result must have one element.

    argnums: which positional argument(s) to differentiate; several give a tuple. Arguments may be tensors, arrays
    or numbers. `grad(grad(f))` is the second derivative. Leaves that f uses otherwise keep their `.grad`.
    """
    with_value = value_and_grad(f, argnums)
    return lambda *args, **kwargs: with_value(*args, **kwargs)[1]


def value_and_grad(f: Callable[..., Tensor], argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """Like `grad`, but the function returns (f's value, gradient)."""
    checks.function("grad", f)
    several = isinstance(argnums, tuple | list)
    numbers_of = [checks.integer("grad: argnums", i, 0) for i in (argnums if several else (argnums,))]  # type: ignore

    def with_value(*args, **kwargs):
        inputs = list(args)
        for i in numbers_of:
            if i >= len(inputs):
                raise ConfigError(f"grad: expected argument {i} by position, got {len(inputs)} arguments by position")
            inputs[i] = _variable(_differentiable(i, inputs[i]))
        variables = [inputs[i] for i in numbers_of]
        create_graph = is_recording()
        with recording(True):
            y = f(*inputs, **kwargs)
            if not isinstance(y, Tensor) or y.size != 1:
                came = f"shape {y.shape}" if isinstance(y, Tensor) else type(y).__name__
                raise ShapeError(f"grad: expected a function whose result is one element, got {came}")
            found = {}
            if y.requires_grad:
                found = backpropagate(
                    y, initial_gradient(y, None), variables, retain_graph=True, create_graph=create_graph
                )
        keys = [id(v._node or v) for v in variables]
        gradients = [found[k][1] if k in found else v.detach() * 0 for k, v in zip(keys, variables, strict=True)]
        for v in variables:
            v.requires_grad = not v.is_leaf  # nobody outside can ask for the gradient of a leaf made here
        y, *gradients = (t if create_graph and _is_wanted(t) else t.detach() for t in (y, *gradients))
        return y, tuple(gradients) if several else gradients[0]

    return with_value


def _differentiable(i: int, value: Any) -> Tensor:
    """Argument i as a tensor. Raises ConfigError for a container of them."""
    if isinstance(value, dict) or (isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value)):
        remedy = "give several as arguments, and argnums=(0, 1)"
        checks.refuse(f"grad: argument {i}", "a tensor, array or number", value, remedy=remedy)
    return as_tensor(value)


def _is_wanted(y: Tensor) -> bool:
    """True if y's record leads to a leaf that requires grad."""
    return any(t.requires_grad for t, node in history(y) if node is None)


def _variable(x: Tensor) -> Tensor:
    """A tensor of its own with x's value: the point at which `grad` stops. It hangs on x if x is recorded."""
    if x.dtype not in FLOATS:
        x = x.astype(np.float32)
    if x.requires_grad:
        return ops.reshape_op(x, shape=x.shape)
    v = x.detach()
    v.requires_grad = True
    return v


__all__ = ["cat", "stack", *ops.METHODS]
