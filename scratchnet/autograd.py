"""Gradients of functions: `grad`, `value_and_grad` of any order, and the search for the op that made a NaN."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import ops
from .errors import ShapeError
from .tensor import FLOATS, Node, Tensor, as_tensor, backpropagate, initial_gradient, is_recording, recording


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
        inputs = list(args)
        for i in numbers_of:
            inputs[i] = _variable(as_tensor(inputs[i]))
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
        return y, tuple(gradients) if isinstance(argnums, tuple) else gradients[0]

    return with_value


def _is_wanted(y: Tensor) -> bool:
    """True if y's record leads to a leaf that requires grad."""
    return any(t.requires_grad for t, node in _ancestors(y) if node is None)


def _ancestors(y: Tensor) -> Iterator[tuple[Tensor, Node | None]]:
    """y and the tensors in its record, each node once, with the node that made it."""
    seen, stack = set(), [y]
    while stack:
        t = stack.pop()
        node = t._node
        if node is None:
            yield t, None
        elif id(node) not in seen and node.inputs is not None:
            seen.add(id(node))
            yield t, node
            stack.extend(node.inputs)


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
    nodes = []
    for t, node in _ancestors(y):
        if node is not None:
            nodes.append(node)
        elif t.dtype.kind == "f" and not np.isfinite(t._device.to_host(t._data)).all():
            return "an input"
    nodes.sort(key=lambda node: node.order)
    return next((node.op.name for node in nodes if not np.isfinite(node.device.to_host(node.out)).all()), None)
