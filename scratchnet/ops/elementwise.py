"""Elementwise ops: one row each, the derivative beside the function."""

from __future__ import annotations

import math

import numpy as np

from .. import checks
from ..errors import ConfigError, DtypeError
from .operands import FLOATS, ArrayLike, TensorBase, as_operand
from .table import Tensor, binary, broadcast_shape, compact, define, method, unary

# --- one input: vjp(g, y, x) ------------------------------------------------------------------------------------

neg = unary("neg", lambda g, y, x: -g, "-x.", floating=False)
exp = unary("exp", lambda g, y, x: g * y, "e to the power of each element.")
log = unary("log", lambda g, y, x: g / x, "Natural logarithm; -inf at 0, NaN below.")
log1p = unary("log1p", lambda g, y, x: g / (x + 1.0), "log(1 + x), exact to the last digits near 0.")
log2 = unary("log2", lambda g, y, x: g / (x * math.log(2)), "Logarithm to base 2.")
log10 = unary("log10", lambda g, y, x: g / (x * math.log(10)), "Logarithm to base 10.")
expm1 = unary("expm1", lambda g, y, x: g * (y + 1.0), "exp(x) - 1, exact to the last digits near 0.")
sin = unary("sin", lambda g, y, x: g * cos(x), "Sine of an angle in radians.")
cos = unary("cos", lambda g, y, x: -g * sin(x), "Cosine of an angle in radians.")
sqrt = unary("sqrt", lambda g, y, x: g * 0.5 / y, "Square root; NaN below 0.")
abs = unary("abs", lambda g, y, x: g * sign(x), "Absolute value; gradient 0 at 0.", floating=False)
sign = unary("sign", None, "-1, 0 or 1; not differentiable.", floating=False)
floor_op, ceil_op, round_op = (unary(name, None) for name in ("floor", "ceil", "round"))
tanh = unary("tanh", lambda g, y, x: tanh_grad(g, y), "Hyperbolic tangent.")
sigmoid = unary("sigmoid", lambda g, y, x: sigmoid_grad(g, y), "1 / (1 + exp(-x)), without overflow.")
relu = unary("relu", lambda g, y, x: relu_grad(g, y), "max(x, 0); gradient 0 at 0.")
erf = unary("erf", lambda g, y, x: g * (2 / math.sqrt(math.pi)) * exp(-x * x), "The error function.")
gelu = unary(
    "gelu",
    lambda g, y, x: gelu_grad(g, x),
    "x * Phi(x), Phi the normal distribution function (the exact form, not the tanh approximation).",
)
softplus = unary("softplus", lambda g, y, x: g * sigmoid(x), "log(1 + exp(x)), without overflow.")
silu = unary("silu", lambda g, y, x: g * sigmoid(x) * (x - y + 1.0), "x * sigmoid(x).")
clip_op = unary("clip", lambda g, y, x, low, high: g * ((x >= low) * (x <= high)), floating=False)


def _bounded_log(device, x):
    y, out = log.forward(device, x), device.empty(x.shape, x.dtype)
    device.clip(y, out, -100.0, np.inf)
    return out


# Of a probability: at least -100, and steep but finite at 0, where PyTorch's binary cross-entropy is so, too.
bounded_log = define("bounded_log", _bounded_log, lambda g, y, x: g / maximum(x, 1e-12), floating=True)

# --- gradients of activations, as ops of their own: one pass over memory, and differentiable again --------------

tanh_grad = binary("tanh_grad", lambda h, z, g, y: tanh_grad(h, y), lambda h, z, g, y: -2.0 * h * g * y)
sigmoid_grad = binary("sigmoid_grad", lambda h, z, g, y: sigmoid_grad(h, y), lambda h, z, g, y: h * g * (1.0 - 2.0 * y))
relu_grad = binary("relu_grad", lambda h, z, g, y: relu_grad(h, y), None)
gelu_grad = binary(
    "gelu_grad",
    lambda h, z, g, x: gelu_grad(h, x),
    lambda h, z, g, x: h * g * (2.0 - x * x) * exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi)),
)

# --- two inputs that broadcast: one vjp(g, y, a, b) each ----------------------------------------------------------

add = binary("add", lambda g, y, a, b: g, lambda g, y, a, b: g, doc="x + other, with broadcasting.")
sub = binary("sub", lambda g, y, a, b: g, lambda g, y, a, b: -g, doc="x - other, with broadcasting.")
mul = binary("mul", lambda g, y, a, b: g * b, lambda g, y, a, b: g * a, doc="x * other, with broadcasting.")
div = binary("div", lambda g, y, a, b: g / b, lambda g, y, a, b: -g * y / b, doc="x / other, in floats.", floating=True)


def _pow_vjp_base(g, y, a, b):
    flat = b == 0  # x ** 0 is flat, at x = 0 too, where x ** -1 and its derivatives are not finite
    return g * where_op(flat, 0.0, b * a ** where_op(flat, 1.0, b - 1))


def _pow_vjp_exponent(g, y, a, b):
    return g * where_op((a == 0) * (b >= 0), 0.0, y * log(a))  # 0 ** b is flat in b > 0, where log(0) is not finite


pow = binary("pow", _pow_vjp_base, _pow_vjp_exponent, doc="x ** other; x ** 0 is 1 and flat.")


def _larger_share(g, winner, loser):
    """The part of g that goes to `winner`: all where it wins, half where both are equal (as in PyTorch)."""
    return g * (winner > loser) + g * (winner == loser) * 0.5


maximum = binary(
    "maximum",
    lambda g, y, a, b: _larger_share(g, a, b),
    lambda g, y, a, b: _larger_share(g, b, a),
    doc="The larger of two, elementwise; equal elements share the gradient.",
)
minimum = binary(
    "minimum",
    lambda g, y, a, b: _larger_share(g, b, a),
    lambda g, y, a, b: _larger_share(g, a, b),
    doc="The smaller of two, elementwise; equal elements share the gradient.",
)

lt, le, gt, ge, eq, ne = (
    binary(name, dtype=bool, doc=f"x {sign} other, elementwise, as booleans.")
    for name, sign in {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}.items()
)


def _where(device, condition, a, b):
    out = device.empty(broadcast_shape("where", condition, a, b), a.dtype)
    device.where(*(compact(device, array) for array in (condition, a, b)), out)
    return out


where_op = define(
    "where",
    _where,
    None,
    lambda g, y, condition, a, b: where_op(condition, g, 0.0),
    lambda g, y, condition, a, b: where_op(condition, 0.0, g),
    promotes=(1, 2),
)


# The mask is a function of p and the key (see Generator.key), so backward draws it again instead of keeping it.
dropout = unary("dropout", lambda g, y, x, **params: dropout(g, **params))


def _cast(device, x, dtype):
    out = device.empty(x.shape, dtype)
    device.copy(x, out)
    return out


cast = define("cast", _cast, lambda g, y, x, dtype: cast(g, dtype=x.dtype), moves=True)


# --- the forms that people call -----------------------------------------------------------------------------------


@method
def clip(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """x limited to [low, high]; gradient 1 on the bounds, 0 outside. Raises ConfigError if low > high."""
    if x.dtype.kind == "b":
        raise DtypeError("clip: expected numbers, got bool")
    least, most = (-np.inf, np.inf) if x.dtype in FLOATS else (np.iinfo(x.dtype).min, np.iinfo(x.dtype).max)
    low, high = least if low is None else low, most if high is None else high
    for bound in (low, high):
        if not isinstance(bound, int | float | np.number) or isinstance(bound, bool):
            checks.refuse("clip: a bound", "a number or None", bound)
        as_operand(bound, x)  # DtypeError if it does not fit
    if not low <= high:
        raise ConfigError(f"clip: expected low <= high, got {low} and {high}")
    return clip_op(x, low=low, high=high)


@method
def where(condition: Tensor, a: ArrayLike, b: ArrayLike) -> Tensor:
    """a where condition (boolean) is true, else b; all three broadcast."""
    if condition.dtype != np.bool_:
        raise DtypeError(f"where: expected a boolean condition, got {condition.dtype}")
    like = a if isinstance(a, TensorBase) else b if isinstance(b, TensorBase) else as_operand(a, condition)
    return where_op(condition, as_operand(a, like), as_operand(b, like))
