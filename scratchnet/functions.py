"""The functions of the public face: `sn.exp(x)` is `x.exp()` for anything that can become a Tensor; and `sn.grad(f)`.

What is public follows from the op table (ops/table.py). `grad` stands here, and not beside the backward pass, because
it makes tensors of its arguments.
"""

from __future__ import annotations

import builtins  # this module has functions `any` and `all` of its own
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checks, ops
from .autograd import backpropagate, history, initial_gradient
from .errors import ConfigError, ShapeError
from .grad_mode import is_recording, recording
from .row_gradient import dense
from .tensor import FLOATS, ArrayLike, Tensor, as_tensor
from .words import in_both


def _function(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(method)
    def function(x: ArrayLike, *args, **kwargs) -> Tensor:
        return method(as_tensor(x, *args), *args, **kwargs)

    return function


globals().update({name: _function(method) for name, method in ops.METHODS.items()})

if TYPE_CHECKING:

    def __getattr__(name): ...  # mypy 2.4 fails on one with types


# --- joining ---------------------------------------------------------------------------------------------------------


@in_both
def cat(tensors: Sequence[ArrayLike], axis: int = 0) -> Tensor:
    """Joins tensors along an axis that they have; all other lengths must agree."""
    return ops.cat(_tensors("cat", tensors), axis)


@in_both
def stack(tensors: Sequence[ArrayLike], axis: int = 0) -> Tensor:
    """Joins tensors of one shape along a new axis."""
    return ops.stack(_tensors("stack", tensors), axis)


def hstack(tensors: Sequence[ArrayLike]) -> Tensor:
    """Joins tensors side by side: along axis 1, vectors along axis 0; numbers are vectors of one element."""
    given = [t if t.ndim else t.reshape(1) for t in _tensors("hstack", tensors)]
    return ops.cat(given, 1 if given[0].ndim > 1 else 0)


def vstack(tensors: Sequence[ArrayLike]) -> Tensor:
    """Joins tensors one below the other, along axis 0; vectors and numbers are rows of a matrix."""
    given = _tensors("vstack", tensors)
    return ops.cat([t if t.ndim > 1 else t.reshape(1, -1 if t.size else 0) for t in given], 0)


def meshgrid(*tensors: ArrayLike, indexing: str = "ij") -> tuple[Tensor, ...]:
    """For each vector a tensor of the shape of all: y[i, j, ...] = x[i] of the first, x[j] of the second, and so on.

    indexing: "ij", or "xy", in which the first two axes are exchanged, as plots want it. The results are views.
    """
    checks.one_of("meshgrid: indexing", indexing, ("ij", "xy"))
    given = _tensors("meshgrid", tensors)
    for t in given:
        if t.ndim != 1:
            raise ShapeError(f"meshgrid: expected vectors, got shape {t.shape}")
    shape = tuple([len(t) for t in given])
    columns = [t.reshape(*(len(t) if i == j else 1 for j in range(len(given)))) for i, t in enumerate(given)]
    grids = [column.broadcast_to(shape) for column in columns]
    return tuple([t.transpose(0, 1) if indexing == "xy" and len(given) > 1 else t for t in grids])


def einsum(equation: str, *operands: ArrayLike) -> Tensor:
    """Sums of products by Einstein's notation: einsum("ij,jk->ik", a, b) is a @ b; "..." stands for leading axes.

    Axes whose letter is not in the result are summed over; a letter that stands twice in an operand takes the diagonal;
    without an arrow the result has the letters that stand once, in the order of the alphabet. Operands are joined from
    left to right, each time by one matrix product. Raises ShapeError.
    """
    return ops.einsum(equation, _tensors("einsum", operands[0] if _is_list(operands) else operands))


def _is_list(operands: tuple[Any, ...]) -> bool:
    return len(operands) == 1 and isinstance(operands[0], tuple | list)


def is_tensor(x: Any) -> bool:
    """Is x a Tensor?"""
    return isinstance(x, Tensor)


def _tensors(name: str, tensors: Sequence[ArrayLike]) -> list[Tensor]:
    tensors = checks.items(name, tensors, "a list of tensors")
    if not tensors:
        raise ShapeError(f"{name}: expected at least one tensor, got none")
    return [as_tensor(t, *tensors) for t in tensors]


# --- gradients of functions ------------------------------------------------------------------------------------------


def grad(f: Callable[..., Tensor], argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """The function that returns the gradient of f, whose result must have one element.

    argnums: which positional argument(s) to differentiate; several give a tuple. Arguments may be tensors, arrays,
    numbers, or lists, tuples and dictionaries of them: then the gradients come in the same. `grad(grad(f))` is the
    second derivative. Leaves that f uses otherwise keep their `.grad`.
    """
    with_value = value_and_grad(f, argnums)
    return lambda *args, **kwargs: with_value(*args, **kwargs)[1]


def value_and_grad(f: Callable[..., Tensor], argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """Like `grad`, but the function returns (f's value, gradient)."""
    checks.function("grad", f)
    several = isinstance(argnums, tuple | list)
    numbers_of = [checks.integer("grad: argnums", i, 0) for i in (argnums if several else (argnums,))]  # type: ignore

    def with_value(*args, **kwargs):
        inputs, variables = list(args), []

        def variable(value: ArrayLike) -> Tensor:
            variables.append(_variable(as_tensor(value)))
            return variables[-1]

        for i in numbers_of:
            if i >= len(inputs):
                raise ConfigError(f"grad: expected argument {i} by position, got {len(inputs)} arguments by position")
            inputs[i] = _mapped(inputs[i], variable)
        create_graph = is_recording()
        with recording(True):
            y = f(*inputs, **kwargs)
            if not isinstance(y, Tensor) or y.size != 1:
                came = f"shape {y.shape}" if isinstance(y, Tensor) else type(y).__name__
                raise ShapeError(f"grad: expected a function whose result is one element, got {came}")
            found = {}
            if y.requires_grad:
                found = backpropagate(
                    [(y, initial_gradient(y, None))], variables, retain_graph=True, create_graph=create_graph
                )
        keys = [id(v._node or v) for v in variables]
        gradients = [dense(found[k][1]) if k in found else v.detach() * 0 for k, v in zip(keys, variables, strict=True)]
        for v in variables:
            v.requires_grad = not v.is_leaf  # nobody outside can ask for the gradient of a leaf made here
        y, *gradients = (t if create_graph and _is_wanted(t) else t.detach() for t in (y, *gradients))
        left = iter(gradients)
        like = [_mapped(inputs[i], lambda _: next(left)) for i in numbers_of]
        return y, tuple(like) if several else like[0]

    return with_value


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same dictionaries, lists and tuples with `change` of each tensor, array or number in them.

    A list or tuple of numbers alone is an array.
    """
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple) and _is_tree(value):
        items = [_mapped(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return change(value)


def _is_tree(value: Any) -> bool:
    """Does a list or tuple hold tensors or arrays, however deep? If not, it is itself what becomes an array."""
    if isinstance(value, list | tuple):
        return builtins.any(map(_is_tree, value))
    return isinstance(value, Tensor | np.ndarray | dict)


def _is_wanted(y: Tensor) -> bool:
    """True if y's record leads to a leaf that requires grad."""
    return builtins.any(t.requires_grad for t, node in history(y) if node is None)


def _variable(x: Tensor) -> Tensor:
    """A tensor of its own with x's value: the point at which `grad` stops. It hangs on x if x is recorded."""
    if x.dtype not in FLOATS:
        x = x.astype(np.float32)
    if x.requires_grad:
        return ops.reshape_op(x, shape=x.shape)
    v = x.detach()
    v.requires_grad = True
    return v


concat = concatenate = cat

__all__ = [
    "cat", "concat", "concatenate", "einsum", "hstack", "is_tensor", "meshgrid", "stack", "vstack", *ops.METHODS,
]  # fmt: skip
