"""Elementwise ops: one row each, the derivative beside the function."""

import math

from .table import binary, broadcast_shape, compact, define, unary

# --- one input: vjp(g, y, x) ------------------------------------------------------------------------------------

neg = unary("neg", lambda g, y, x: -g, floating=False)
exp = unary("exp", lambda g, y, x: g * y)
log = unary("log", lambda g, y, x: g / x)
sqrt = unary("sqrt", lambda g, y, x: g * 0.5 / y)
abs = unary("abs", lambda g, y, x: g * sign(x), floating=False)
sign = unary("sign", None, floating=False)
tanh = unary("tanh", lambda g, y, x: tanh_grad(g, y))
sigmoid = unary("sigmoid", lambda g, y, x: sigmoid_grad(g, y))
relu = unary("relu", lambda g, y, x: relu_grad(g, y))
erf = unary("erf", lambda g, y, x: g * (2 / math.sqrt(math.pi)) * exp(-x * x))
gelu = unary("gelu", lambda g, y, x: gelu_grad(g, x))
softplus = unary("softplus", lambda g, y, x: g * sigmoid(x))
clip = unary("clip", lambda g, y, x, low, high: g * ((x >= low) * (x <= high)), floating=False)

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

add = binary("add", lambda g, y, a, b: g, lambda g, y, a, b: g)
sub = binary("sub", lambda g, y, a, b: g, lambda g, y, a, b: -g)
mul = binary("mul", lambda g, y, a, b: g * b, lambda g, y, a, b: g * a)
div = binary("div", lambda g, y, a, b: g / b, lambda g, y, a, b: -g * y / b, floating=True)


def _pow_vjp_base(g, y, a, b):
    flat = b == 0  # x ** 0 is flat, at x = 0 too, where x ** -1 and its derivatives are not finite
    return g * where(flat, 0.0, b * a ** where(flat, 1.0, b - 1))


def _pow_vjp_exponent(g, y, a, b):
    return g * where((a == 0) * (b >= 0), 0.0, y * log(a))  # 0 ** b is flat in b > 0, where log(0) is not finite


pow = binary("pow", _pow_vjp_base, _pow_vjp_exponent)


def _larger_share(g, winner, loser):
    """The part of g that goes to `winner`: all where it wins, half where both are equal (as in PyTorch)."""
    return g * (winner > loser) + g * (winner == loser) * 0.5


maximum = binary("maximum", lambda g, y, a, b: _larger_share(g, a, b), lambda g, y, a, b: _larger_share(g, b, a))
minimum = binary("minimum", lambda g, y, a, b: _larger_share(g, b, a), lambda g, y, a, b: _larger_share(g, a, b))

lt, le, gt, ge, eq, ne = (binary(name, dtype=bool) for name in ("lt", "le", "gt", "ge", "eq", "ne"))


def _where(device, condition, a, b):
    out = device.empty(broadcast_shape("where", condition, a, b), a.dtype)
    device.where(*(compact(device, array) for array in (condition, a, b)), out)
    return out


where = define(
    "where",
    _where,
    None,
    lambda g, y, condition, a, b: where(condition, g, 0.0),
    lambda g, y, condition, a, b: where(condition, 0.0, g),
    promotes=(1, 2),
)


# The mask is a function of p and the key (see Generator.key), so backward draws it again instead of keeping it.
dropout = unary("dropout", lambda g, y, x, **params: dropout(g, **params))


def _cast(device, x, dtype):
    out = device.empty(x.shape, dtype)
    device.copy(x, out)
    return out


cast = define("cast", _cast, lambda g, y, x, dtype: cast(g, dtype=x.dtype))
