"""NumPy's functions of tensors: np.exp(t), np.sum(t, axis=0) and their kin are the ops of the same meaning.

A ufunc that is no op is refused. Other functions take the numbers of tensors that want no gradient, and return arrays.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from . import checks, ops
from .errors import DtypeError
from .ops.operands import TensorBase, as_operand
from .ops.table import Tensor

METHODS = ops.METHODS

# ufunc: op. Those of the same name stand in the string.
UFUNCS = {
    name: name
    for name in [
        "exp",
        "log",
        "log2",
        "log10",
        "log1p",
        "expm1",
        "sqrt",
        "sin",
        "cos",
        "tan",
        "tanh",
        "sign",
        "floor",
        "ceil",
        "square",
        "reciprocal",
        "maximum",
        "minimum",
        "isnan",
        "isinf",
        "isfinite",
        "logical_not",
        "logical_and",
        "logical_or",
        "logical_xor",
        "matmul",
    ]
} | {
    "absolute": "abs",
    "fabs": "abs",
    "negative": "neg",
    "rint": "round",
    "add": "add",
    "subtract": "sub",
    "multiply": "mul",
    "divide": "div",
    "power": "pow",
    "less": "lt",
    "less_equal": "le",
    "greater": "gt",
    "greater_equal": "ge",
    "equal": "eq",
    "not_equal": "ne",
}


def array_ufunc(self: Tensor, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
    """array * tensor and np.exp(tensor) are tensors; NumPy's other functions of elements would lose the record."""
    name = UFUNCS.get(ufunc.__name__)
    if name is None or method != "__call__" or options:
        what = f"np.{ufunc.__name__}" + f".{method}" * (method != "__call__")
        same = f"sn.{name} or " if name else ""
        checks.refuse(what, "arrays", self, DtypeError, f"{same}x.detach().numpy() does it")
    if name in ("lt", "le", "gt", "ge", "eq", "ne"):  # NumPy has made an array of a scalar that it compares
        inputs = tuple([x[()] if isinstance(x, np.ndarray) else x for x in inputs])
    left, *right = inputs
    return METHODS[name](left if isinstance(left, TensorBase) else as_operand(left, self), *right)


def _along(name: str) -> Callable[..., Any]:
    """A function of an array and axes, by NumPy's words and meaning."""
    has_keepdims = "keepdims" in inspect.signature(METHODS[name]).parameters
    if name in ("var", "std"):
        return lambda a, axis=None, *, ddof=0, keepdims=False: METHODS[name](a, axis=axis, ddof=ddof, keepdims=keepdims)
    if has_keepdims:
        return lambda a, axis=None, *, keepdims=False: METHODS[name](a, axis=axis, keepdims=keepdims)
    return lambda a, axis=-1: METHODS[name](a, axis=axis)


def _running(name: str) -> Callable[..., Any]:
    return lambda a, axis=None: METHODS[name](a.ravel() if axis is None else a, 0 if axis is None else axis)


def _norm(x: Tensor, *, axis: Any = None, keepdims: bool = False) -> Tensor:
    return METHODS["norm"](x, 2, axis=axis, keepdims=keepdims)


# Our functions with the parameters of NumPy's. A call with others, such as out=, takes the numbers.
FUNCTIONS: dict[Any, Callable[..., Any]] = {
    **{
        getattr(np, n): _along(n)
        for n in ["sum", "mean", "prod", "any", "all", "max", "min", "amax", "amin", "argmax", "argmin", "var", "std"]
    },
    **{getattr(np, n): _along(n) for n in ("sort", "argsort")},
    **{getattr(np, n): _running(n) for n in ("cumsum", "cumprod")},
    **{getattr(np, n): METHODS[n] for n in ("outer", "trace", "diag")},
    np.diagonal: lambda a, offset=0, axis1=0, axis2=1: METHODS["diagonal"](a, offset, axis1, axis2),
    np.linalg.norm: _norm,
    np.dot: lambda a, b: METHODS["matmul" if a.ndim and b.ndim else "mul"](a, b),
    np.einsum: lambda equation, *operands: ops.einsum(equation, operands),
    np.where: lambda condition, a, b: METHODS["where"](condition, a, b),
    np.clip: lambda a, a_min=None, a_max=None: METHODS["clamp"](a, a_min, a_max),
    np.round: lambda a, decimals=0: METHODS["round"](a, decimals),
    np.reshape: lambda a, shape: METHODS["reshape"](a, shape),
    np.ravel: lambda a: METHODS["ravel"](a),
    np.transpose: lambda a, axes=None: METHODS["permute"](a, tuple(range(a.ndim))[::-1] if axes is None else axes),
    np.squeeze: lambda a, axis=None: METHODS["squeeze"](a, axis),
    np.expand_dims: lambda a, axis: METHODS["unsqueeze"](a, axis),
    np.swapaxes: lambda a, axis1, axis2: METHODS["transpose"](a, axis1, axis2),
    np.moveaxis: lambda a, source, destination: METHODS["movedim"](a, source, destination),
    np.broadcast_to: lambda array, shape: METHODS["broadcast_to"](array, shape),
    np.flip: lambda m, axis=None: METHODS["flip"](m, axis),
    np.roll: lambda a, shift, axis=None: METHODS["roll"](a, shift, axis),
    np.tril: lambda m, k=0: METHODS["tril"](m, k),
    np.triu: lambda m, k=0: METHODS["triu"](m, k),
    np.concatenate: lambda arrays, axis=0: ops.cat(list(arrays), axis),
    np.stack: lambda arrays, axis=0: ops.stack(list(arrays), axis),
}


def array_function(self: Tensor, function: Callable, types: Any, args: tuple, kwargs: dict) -> Any:
    """Our function of the same meaning, or NumPy's of the numbers, which refuses a tensor that requires grad."""
    if function in (np.shape, np.ndim, np.size) and args and args[0] is self:  # these do not look at the numbers
        return function(self._data, *args[1:], **kwargs)
    if (ours := FUNCTIONS.get(function)) is not None:
        try:
            inspect.signature(ours).bind(*args, **kwargs)
        except TypeError:
            pass  # more than our function takes
        else:
            given, words = _with_tensors(args, self), {name: _with_tensors(x, self) for name, x in kwargs.items()}
            return ours(*given, **words)
    return function(*_without_tensors(args), **_without_tensors(kwargs))


def _with_tensors(x: Any, like: Tensor) -> Any:
    """x with tensors in place of arrays."""
    if isinstance(x, np.ndarray):
        return as_operand(x, like)
    return type(x)([_with_tensors(item, like) for item in x]) if type(x) in (tuple, list) else x


def _without_tensors(x: Any) -> Any:
    """x with arrays in place of tensors; GradientError for one that requires grad."""
    if isinstance(x, TensorBase):
        return x.numpy()  # type: ignore[attr-defined]
    if isinstance(x, dict):
        return {name: _without_tensors(item) for name, item in x.items()}
    return type(x)([_without_tensors(item) for item in x]) if type(x) in (tuple, list) else x
