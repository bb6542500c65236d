"""The table of operators: what each op of ONNX is in ops of ours, so that a loaded model has gradients and trains.

An entry is a function of the node's inputs, whose keyword arguments are the attributes that it knows; any other one is
refused. Values are tensors, or, where they follow from shapes and constants alone, NumPy arrays: `ints` takes those
alone. Some functions also want `name`, `opset`, `training` (the mode of the module) or `outputs` (how many are wanted).
What older files write as an attribute and newer ones as an input is an input here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ... import functions as sn
from ... import nn
from ...errors import CheckpointError
from ...nn import functional as F
from ...tensor import FLOATS, Tensor, as_tensor

OPERATORS: dict[tuple[str, str], Callable[..., Any]] = {}  # by domain and name
LARGEST = 2**28  # elements of one value: a file of few bytes may ask for any number of them


def operator(*names: str, domain: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that adds a function to the table."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        OPERATORS.update({(domain, name): function for name in names})
        return function

    return add


# --- checks -----------------------------------------------------------------------------------------------------------


def ints(what: str, x: Any) -> list[int]:
    """A vector of integers that is known from shapes and constants."""
    if isinstance(x, np.ndarray) and x.dtype.kind in "iu":
        return [int(n) for n in x.ravel()]
    raise CheckpointError(f"expected {what} that follow from shapes and constants, found values of the input")


def number(what: str, x: Any) -> Any:
    """The one element of a constant."""
    if isinstance(x, np.ndarray) and x.size == 1:
        return x.item()
    raise CheckpointError(f"expected {what} as a constant of one element, found another value")


def room(*shape: int) -> tuple[int, ...]:
    """The shape of a result, which must not be a great deal larger than what people compute with."""
    if min(shape, default=0) < 0 or math.prod(shape) > LARGEST:
        raise CheckpointError(
            f"expected values of at most {LARGEST} elements, found the shape {shape}; use small batches"
        )
    return shape


def only(what: str, value: Any, *known: Any) -> Any:
    """value itself, one of those that are known."""
    if value not in known:
        raise CheckpointError(f"expected {what} of {', '.join(map(str, known))}, found {value!r:.60}")
    return value


def axis_of(axis: int, ndim: int) -> int:
    if not -ndim <= axis < ndim:
        raise CheckpointError(f"expected an axis of {ndim}, found {axis}")
    return axis % ndim


def _pair(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """Two operands on one device, whose result has room."""
    a, b = as_tensor(a, b), as_tensor(b, a)
    room(*np.broadcast_shapes(a.shape, b.shape))
    return a, b


# --- elementwise ------------------------------------------------------------------------------------------------------


def _unary(function: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda x: function(as_tensor(x))


def _binary(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda a, b: function(*_pair(a, b))


OPERATORS |= {
    ("", name): _unary(function)
    for name, function in {
        "Abs": sn.abs, "Neg": lambda x: -x, "Exp": sn.exp, "Log": sn.log, "Sqrt": sn.sqrt,
        "Sin": sn.sin, "Cos": sn.cos, "Tan": sn.tan, "Tanh": sn.tanh, "Sigmoid": sn.sigmoid,
        "Relu": sn.relu, "Erf": sn.erf, "Floor": sn.floor, "Ceil": sn.ceil, "Round": sn.round,
        "Sign": sn.sign, "Reciprocal": sn.reciprocal, "Softplus": sn.softplus, "Softsign": F.softsign,
        "Mish": F.mish, "Identity": lambda x: x, "Not": sn.logical_not, "IsNaN": sn.isnan,
        "HardSwish": lambda x: x * (x / 6 + 0.5).clip(0, 1),
    }.items()
}  # fmt: skip
OPERATORS |= {
    ("", name): _binary(function)
    for name, function in {
        "Add": lambda a, b: a + b, "Sub": lambda a, b: a - b, "Mul": lambda a, b: a * b, "Less": lambda a, b: a < b,
        "LessOrEqual": lambda a, b: a <= b, "Greater": lambda a, b: a > b, "GreaterOrEqual": lambda a, b: a >= b,
        "Equal": lambda a, b: a == b, "And": sn.logical_and, "Or": sn.logical_or, "Xor": sn.logical_xor,
    }.items()
}  # fmt: skip
OPERATORS |= {
    ("", "LeakyRelu"): lambda x, *, alpha=0.01: F.leaky_relu(as_tensor(x), alpha),
    ("", "Elu"): lambda x, *, alpha=1.0: F.elu(as_tensor(x), alpha),
    ("", "Selu"): lambda x, *, alpha=nn.activations.SELU_ALPHA, gamma=nn.activations.SELU_SCALE: (
        F.elu(as_tensor(x), alpha) * gamma
    ),
    ("", "Celu"): lambda x, *, alpha=1.0: F.elu(as_tensor(x) / alpha) * alpha,
    ("", "HardSigmoid"): lambda x, *, alpha=0.2, beta=0.5: (as_tensor(x) * alpha + beta).clip(0, 1),
    ("", "ThresholdedRelu"): lambda x, *, alpha=1.0: sn.where(as_tensor(x) > alpha, x, 0.0),
    ("", "PRelu"): lambda x, slope: sn.where(as_tensor(x) > 0, x, x * as_tensor(slope, x)),
    ("", "Gelu"): lambda x, *, approximate="none": F.gelu(
        as_tensor(x), only("approximate", approximate, "none", "tanh")
    ),
    ("", "Where"): lambda condition, a, b: sn.where(as_tensor(condition, a, b), *_pair(a, b)),
}


@operator("Div")
def div(a, b):
    a, b = _pair(a, b)
    if a.dtype in FLOATS or b.dtype in FLOATS:
        return a / b
    if not (b != 0).all().numpy():
        raise CheckpointError("expected divisors other than 0, found 0")
    x, y = a.numpy(), b.numpy()  # integers are cut towards 0
    return np.abs(x) // np.abs(y) * np.sign(x) * np.sign(y)


@operator("Mod")
def mod(a, b, *, fmod=0):
    a, b = _pair(a, b)
    dtype, is_signed = a.dtype, only("fmod", fmod, 0, 1) and a.dtype.kind != "u"
    if dtype in FLOATS:
        a, b = a.astype(np.float64), b.astype(np.float64)
    rest, by = (a.abs(), b.abs()) if is_signed else (a, b)
    for _ in range(2):  # the share of large integers is rounded; what is left after the first time is small
        rest = rest - (rest.astype(np.float64) / by.astype(np.float64)).floor().astype(rest.dtype) * by
    return (rest * a.sign() if is_signed else rest).astype(dtype)


@operator("Pow")
def power(a, b):
    a = as_tensor(a, b)
    if a.dtype not in FLOATS and b.dtype.kind not in "iu":
        return (a.astype(np.float64) ** as_tensor(b, a).astype(np.float64)).astype(a.dtype)
    exponent = (
        number("an exponent", b) if isinstance(b, np.ndarray) and b.size == 1 else as_tensor(b, a).astype(a.dtype)
    )
    return (a**exponent).astype(a.dtype)


@operator("Min", "Max", "Sum", "Mean")
def several(*x, name):
    y = as_tensor(x[0], *x)
    for other in x[1:]:
        y, other = _pair(y, other)
        y = {"Min": sn.minimum, "Max": sn.maximum}.get(name, sn.add)(y, other)
    return y / len(x) if name == "Mean" else y


@operator("Clip")
def clip(x, min=None, max=None):
    x = as_tensor(x)
    bounds = [None if b is None else number("a bound", b) for b in (min, max)]
    given = [b if b is None or abs(b) < 3.4e38 else None for b in bounds]  # older files write the largest float
    return x.clip(*given)


@operator("Cast")
def cast(x, *, to, saturate=1):
    return as_tensor(x).astype(dtype_of(to))


@operator("CastLike")
def cast_like(x, like):
    return as_tensor(x).astype(like.dtype)


# TensorProto's number of each dtype that a tensor may have
DTYPES = {1: "f4", 2: "u1", 3: "i1", 4: "u2", 5: "i2", 6: "i4", 7: "i8", 9: "?", 11: "f8", 12: "u4", 13: "u8"}
DTYPES |= {10: "float16", 16: "bfloat16"}
REFUSED = {8: "strings"}


def dtype_of(number: int) -> np.dtype:
    """The dtype with this number. Raises CheckpointError for one that tensors cannot have."""
    if number not in DTYPES:
        found = REFUSED.get(number, f"type {number}")
        raise CheckpointError(f"expected floats, integers or booleans, found {found}; convert the model first")
    return np.dtype(DTYPES[number])


# --- products ---------------------------------------------------------------------------------------------------------


@operator("Gemm")
def gemm(a, b, c=None, *, alpha=1.0, beta=1.0, transA=0, transB=0):
    a, b = as_tensor(a, b), as_tensor(b, a)
    a, b = a.t() if transA else a, b.t() if transB else b
    room(*a.shape[:1], *b.shape[1:])
    if alpha == beta == 1 and not transA and c is not None and c.ndim == 1 and a.ndim == b.ndim == 2:
        c = as_tensor(c, a)
        return F.linear(a, b, c if c.shape == b.shape[1:] else c.broadcast_to(b.shape[1:]))
    y = a @ b if alpha == 1 else a @ b * alpha
    return y if c is None else y + (as_tensor(c, y) if beta == 1 else as_tensor(c, y) * beta)


@operator("MatMul")
def matmul(a, b):
    a, b = as_tensor(a, b), as_tensor(b, a)
    if a.ndim and b.ndim:
        room(*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), *a.shape[-2:-1], *b.shape[1:][-1:])
    return a @ b


@operator("Einsum")
def einsum(*x, equation):
    lengths = (
        dict(
            pair
            for part, t in zip(equation.replace(" ", "").split("->")[0].split(","), x, strict=True)
            for pair in zip(part, t.shape, strict=True)
        )
        if "." not in equation
        else {}
    )
    room(*lengths.values())
    return sn.einsum(equation, *[as_tensor(t, *x) for t in x])


# --- reductions -------------------------------------------------------------------------------------------------------

REDUCTIONS = {
    "ReduceSum": sn.sum, "ReduceMean": sn.mean, "ReduceMax": sn.amax, "ReduceMin": sn.amin, "ReduceProd": sn.prod,
    "ReduceLogSumExp": sn.logsumexp,
    "ReduceL1": lambda x, axis, keep: x.abs().sum(axis, keep),
    "ReduceL2": lambda x, axis, keep: sn.norm(x, 2, axis, keep),
    "ReduceSumSquare": lambda x, axis, keep: (x * x).sum(axis, keep),
    "ReduceLogSum": lambda x, axis, keep: x.sum(axis, keep).log(),
}  # fmt: skip
REAL = {"ReduceMean", "ReduceLogSumExp", "ReduceL2", "ReduceLogSum"}  # of integers in float64, then cut


@operator(*REDUCTIONS)
def reduced(x, axes=None, *, name, keepdims=1, noop_with_empty_axes=0):
    x = as_tensor(x)
    given = None if axes is None else ints("axes", axes)
    if not given and noop_with_empty_axes:
        return x
    exact = x.astype(np.float64) if name in REAL and x.dtype not in FLOATS else x
    y = REDUCTIONS[name](exact, tuple(axis_of(a, x.ndim) for a in given) if given else None, bool(keepdims))
    return y.astype(x.dtype)


@operator("ArgMax", "ArgMin")
def extreme_place(x, *, name, axis=0, keepdims=1, select_last_index=0):
    only("select_last_index", select_last_index, 0)
    x = as_tensor(x)
    return (x.argmax if name == "ArgMax" else x.argmin)(axis_of(axis, x.ndim), bool(keepdims))


@operator("Softmax", "LogSoftmax")
def softmax(x, *, name, opset, axis=None):
    x = as_tensor(x)
    function = sn.softmax if name == "Softmax" else sn.log_softmax
    if opset >= 13:
        return function(x, axis_of(-1 if axis is None else axis, x.ndim))
    rows = flatten(x, axis=1 if axis is None else axis)  # older ones see x as rows
    return function(rows, -1).reshape(x.shape)


@operator("CumSum")
def cumsum(x, axis, *, exclusive=0, reverse=0):
    only("exclusive", exclusive, 0), only("reverse", reverse, 0)
    return as_tensor(x).cumsum(int(number("an axis", axis)))


@operator("TopK")
def topk(x, k, *, axis=-1, largest=1, sorted=1):
    return tuple(as_tensor(x).topk(int(number("k", k)), axis, bool(largest)))


@operator("Flatten")
def flatten(x, *, axis=1):
    x = as_tensor(x)
    axis = axis if axis == x.ndim else axis_of(axis, x.ndim)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("Dropout")
def dropout(x, ratio=None, training_mode=None, *, training, seed=None):
    given = 0.5 if ratio is None else number("a ratio", ratio)
    x = as_tensor(x)
    return F.dropout(x, float(given), training)
