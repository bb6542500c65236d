"""Matrix products and the classification loss: the ops that carry a network's arithmetic."""

from __future__ import annotations

import math

import numpy as np

from ..errors import DtypeError, ShapeError
from ..kernels import order_of
from ..kernels.signatures import HALVES
from ..precisions import check_device, is_rounded, options_of
from .movement import reshape_op
from .operands import ArrayLike, as_operand
from .reductions import mean_grad, mean_op, softmax_grad, softmax_op, sum, sum_op
from .table import Tensor, contiguous, define, method


def _stored(device, x: np.ndarray) -> tuple[np.ndarray, bool]:
    """A matrix as (rows in memory, transposed?): a transposed view is used as it lies, without a copy."""
    if x.flags.f_contiguous and not x.flags.c_contiguous:
        return x.T, True
    return contiguous(device, x), False


def _product(device, a, b, out, kernel):
    (a, transpose_a), (b, transpose_b) = _stored(device, a), _stored(device, b)
    if kernel == "matmul":
        device.matmul(a, b, out, transpose_a, transpose_b)
    else:  # one kernel for one product and for many
        getattr(device, kernel)(*(x.reshape(1, *x.shape) for x in (a, b, out)), transpose_a, transpose_b)


def _stacked(device, x: np.ndarray) -> tuple[np.ndarray, bool]:
    """The same of many matrices, as (count, rows, columns)."""
    turned = x.swapaxes(-1, -2)
    transposed = turned.flags.c_contiguous and not x.flags.c_contiguous
    rows = turned if transposed else contiguous(device, x)
    return rows.reshape(math.prod(x.shape[:-2]), *rows.shape[-2:]), transposed


def is_asked(op, device, dtype, precision):
    """Is a precision asked for that an op can read operands of this dtype in? Raises ConfigError, DtypeError."""
    check_device(op, precision, [device.name])
    if precision is None or dtype.kind != "f":
        return False
    if dtype != np.float32:
        raise DtypeError(f"{op}: expected float32 with precision {precision!r}, got {dtype}; use .astype('float32')")
    return True


def _reads(device, dtype, sides, precision):
    """The precision in which a product of sides (m, k, n) reads its operands; None: as they are."""
    if not is_asked("matmul", device, dtype, precision):
        return None
    if not is_rounded(precision, None, *sides):  # a small one does not ask for the way of this CPU
        return None
    order = order_of(precision, (device.name,)) if device.is_host else None
    return precision if is_rounded(precision, order, *sides) else None


# (..., m, k) @ (..., k, n), after transposing
def _matmul(device, a, b, transpose_a=False, transpose_b=False, precision=None):
    a, b = a.swapaxes(-1, -2) if transpose_a else a, b.swapaxes(-1, -2) if transpose_b else b
    rounded = precision and _reads(device, a.dtype, (*a.shape[-2:], b.shape[-1]), precision)
    one, many = (f"matmul_{rounded}",) * 2 if rounded else ("matmul", "batched_matmul")
    if a.ndim == b.ndim == 2:
        out = device.empty((a.shape[0], b.shape[1]), a.dtype)
        _product(device, a, b, out, one)
        return out
    try:
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        raise ShapeError(f"matmul: expected leading axes that broadcast, got {a.shape} @ {b.shape}") from None
    out = device.empty((*batch, a.shape[-2], b.shape[-1]), a.dtype)
    if a.shape[:-2] == b.shape[:-2]:
        (a, transpose_a), (b, transpose_b) = _stacked(device, a), _stacked(device, b)
        getattr(device, many)(a, b, out.reshape(len(a), *out.shape[-2:]), transpose_a, transpose_b)
        return out
    a, b = np.broadcast_to(a, batch + a.shape[-2:]), np.broadcast_to(b, batch + b.shape[-2:])
    for i in np.ndindex(*batch):
        _product(device, a[i], b[i], out[i], one)
    return out


# y = a @ b: g @ b.T; y = a.T @ b: b @ g.T
def _matmul_vjp_a(g, y, a, b, transpose_a=False, transpose_b=False, **precision):
    if transpose_a:
        return matmul_op(b, g, transpose_a=transpose_b, transpose_b=True, **precision)
    return matmul_op(g, b, transpose_b=not transpose_b, **precision)


# y = a @ b: a.T @ g; y = a @ b.T: g.T @ a
def _matmul_vjp_b(g, y, a, b, transpose_a=False, transpose_b=False, **precision):
    if transpose_b:
        return matmul_op(g, a, transpose_a=True, transpose_b=transpose_a, **precision)
    return matmul_op(a, g, transpose_a=not transpose_a, **precision)


matmul_op = define("matmul", _matmul, _matmul_vjp_a, _matmul_vjp_b)


@method
def matmul(x: Tensor, other: ArrayLike) -> Tensor:
    """Matrix product, as `@`, by NumPy's rules: vectors count as one row or column, leading axes broadcast."""
    a, b = x, as_operand(other, x)
    if not a.ndim or not b.ndim:
        raise ShapeError(f"matmul: expected at least one dimension each, got shapes {a.shape} and {b.shape}")
    left = reshape_op(a, shape=(1, a.shape[0])) if a.ndim == 1 else a
    right = reshape_op(b, shape=(b.shape[0], 1)) if b.ndim == 1 else b
    if left.shape[-1] != right.shape[-2]:
        raise ShapeError(f"matmul: expected (..., m, k) @ (..., k, n), got {a.shape} @ {b.shape}")
    y = matmul_op(left, right, **options_of("matmul"))
    if a.ndim == 1:
        y = reshape_op(y, shape=y.shape[:-2] + y.shape[-1:])
    return reshape_op(y, shape=y.shape[:-1]) if b.ndim == 1 else y


ROWS = {"axes": (0,), "keepdims": False}  # over the rows


def _linear(device, x, weight, bias):
    out = device.empty((len(x), weight.shape[1]), x.dtype)
    device.linear(contiguous(device, x), contiguous(device, weight), contiguous(device, bias), out)
    return out


linear_op = define(
    "linear",
    _linear,
    lambda g, y, x, weight, bias: matmul_op(g, weight, transpose_b=True),
    lambda g, y, x, weight, bias: matmul_op(x, g, transpose_a=True),
    lambda g, y, x, weight, bias: sum_op(g, **ROWS),
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in) @ weight (in, out) + bias (out,) in one pass -> (..., out)."""
    shape, of_weight = x.shape, weight.shape
    if len(of_weight) != 2 or not shape or shape[-1] != of_weight[0]:
        raise ShapeError(f"linear: expected x (..., in) and weight (in, out), got {shape} and {of_weight}")
    if bias is not None and bias.shape != of_weight[1:]:
        raise ShapeError(f"linear: expected bias {of_weight[1:]}, got {bias.shape}")
    precision = options_of("matmul")
    rows = x if len(shape) == 2 else reshape_op(x, shape=(math.prod(shape[:-1]), shape[-1]))
    dtype = np.dtype(np.float32) if x.dtype in HALVES else x.dtype
    if bias is None or (precision and _reads(x._device, dtype, (*rows.shape, of_weight[1]), **precision)):
        y = matmul_op(rows, weight, **precision)
        y = y if bias is None else y + bias
    else:
        y = linear_op(rows, weight, bias)
    return y if len(shape) == 2 else reshape_op(y, shape=(*shape[:-1], of_weight[1]))


# --- cross-entropy: softmax and negative log-likelihood in one pass, logits (rows, n), labels (rows,); or its mean ----


def _cross_entropy(device, logits, labels, mean=False):
    out = device.empty(labels.shape, logits.dtype)
    device.cross_entropy(contiguous(device, logits), contiguous(device, labels), out)
    return mean_op.forward(device, out, **ROWS) if mean else out


def _cross_entropy_vjp(g, y, logits, labels, mean=False):
    return cross_entropy_grad(mean_grad(g, shape=labels.shape, **ROWS) if mean else g, logits, labels)


def _cross_entropy_grad(device, g, logits, labels):
    out = device.empty(logits.shape, logits.dtype)
    device.cross_entropy_grad(*(contiguous(device, array) for array in (g, logits, labels)), out)
    return out


def _column(g):
    return reshape_op(g, shape=(*g.shape, 1))


def _one_hot_minus_softmax_vjp(h, z, g, logits, labels):
    """z = g * (softmax(logits) - one_hot): its gradient with respect to g is the row sum of h times the bracket."""
    ones = (labels == labels).astype(g.dtype)
    return sum(h * cross_entropy_grad(ones, logits, labels), -1)


cross_entropy_op = define(
    "cross_entropy",
    _cross_entropy,
    _cross_entropy_vjp,
    None,
    promotes=(0,),
    floating=True,
)
cross_entropy_grad = define(
    "cross_entropy_grad",
    _cross_entropy_grad,
    _one_hot_minus_softmax_vjp,
    lambda h, z, g, logits, labels: softmax_grad(h * _column(g), softmax_op(logits)),
    None,
    promotes=(0, 1),
)
