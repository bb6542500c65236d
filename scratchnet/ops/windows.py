"""Images (n, channels, h, w): convolution, pooling, and batch norm.

Convolution has three rows. <g, conv2d(x, weight)> is a number that is linear in each of g, x and weight; conv2d,
conv2d_input and conv2d_weight are its gradients with respect to g, x and weight. So the derivatives of each are the two
others, to any order. Their parameter `size` is the height and width of what they compute.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..precisions import is_rounded
from .movement import permute_op, reshape_op, stack
from .products import is_asked
from .reductions import standardize_grad_vjp_x, sum
from .table import Tensor, contiguous, define

# --- convolution: x (n, c, h, w), weight (o, c / groups, kh, kw), g and y (n, o, oh, ow) -----------------------------


def _is_rounded(device, dtype, weight, y, groups, precision) -> bool:
    """Are operands read in the precision? On a GPU, if the product of a group, (filters, terms) @ (terms, places), has
    sides that are worth it: all three rows of a layer have the same.
    """
    if not is_asked("conv2d", device, dtype, precision) or device.is_host:
        return False
    return is_rounded(precision, "conv2d", weight[0] // groups, math.prod(weight[1:]), y[0] * math.prod(y[2:]))


def _convolution(kernel: str, shape):
    """shape(*arrays, groups): (number of images or filters, channels) of the result."""

    def forward(device, *arrays, size, stride, padding, dilation, groups, precision=None):
        out = device.empty((*shape(*arrays[:2], groups), *size), arrays[0].dtype)
        given = [contiguous(device, x) for x in arrays]
        if kernel == "conv2d" and len(given) == 2:
            given.append(np.zeros(1, out.dtype))  # a bias of one element is added everywhere
        weight = out if kernel == "conv2d_weight" else arrays[1]
        y = out if kernel == "conv2d" else arrays[0]
        if _is_rounded(device, out.dtype, weight.shape, y.shape, groups, precision):
            getattr(device, f"{kernel}_rounded")(*given, out, stride, padding, dilation, groups, precision)
        else:
            getattr(device, kernel)(*given, out, stride, padding, dilation, groups)
        return out

    return forward


conv2d = define(
    "conv2d",  # with or without a bias (o,)
    _convolution("conv2d", lambda x, weight, groups: (len(x), len(weight))),
    lambda g, y, x, weight, *bias, size, **at: conv2d_input(g, weight, size=x.shape[2:], **at),
    lambda g, y, x, weight, *bias, size, **at: conv2d_weight(g, x, size=weight.shape[2:], **at),
    lambda g, *_, **at: sum(sum(reshape_op(g, shape=(*g.shape[:2], math.prod(g.shape[2:]))), 2), 0),
    floating=True,
)
conv2d_input = define(
    "conv2d_input",
    _convolution("conv2d_input", lambda g, weight, groups: (len(g), groups * weight.shape[1])),
    lambda h, z, g, weight, size, **at: conv2d(h, weight, size=g.shape[2:], **at),
    lambda h, z, g, weight, size, **at: conv2d_weight(g, h, size=weight.shape[2:], **at),
    floating=True,
)
conv2d_weight = define(
    "conv2d_weight",
    _convolution("conv2d_weight", lambda g, x, groups: (g.shape[1], x.shape[1] // groups)),
    lambda h, z, g, x, size, **at: conv2d(x, h, size=g.shape[2:], **at),
    lambda h, z, g, x, size, **at: conv2d_input(g, h, size=x.shape[2:], **at),
    floating=True,
)

# --- pooling: of each plane ------------------------------------------------------------------------------------------


def _pooling(kernel: str, dtype=None):
    def forward(device, x, size, **window):
        out = device.empty((*x.shape[:2], *size), dtype or x.dtype)
        planes = math.prod(x.shape[:2])
        getattr(device, kernel)(
            contiguous(device, x).reshape(planes, *x.shape[2:]), out.reshape(planes, *size), *window.values()
        )
        return out

    return forward


max_pool2d = define("max_pool2d", _pooling("max_pool2d", np.int64), None)  # where the largest are
avg_pool2d = define(
    "avg_pool2d",
    _pooling("avg_pool2d"),
    lambda g, y, x, size, **window: avg_pool2d_grad(g, size=x.shape[2:], **window),
    floating=True,
)
avg_pool2d_grad = define(
    "avg_pool2d_grad",
    _pooling("avg_pool2d_grad"),
    lambda h, z, g, size, **window: avg_pool2d(h, size=g.shape[2:], **window),
    floating=True,
)

# --- along rows: x (rows, n), index (rows, m) int64, already known to lie in [0, n) ----------------------------------


def _in_rows(kernel: str):
    def forward(device, x, index, n=None):
        out = device.empty(index.shape if n is None else (len(index), n), x.dtype)
        getattr(device, kernel)(contiguous(device, x), contiguous(device, index), out)
        return out

    return forward


take_in_rows = define(
    "take_in_rows",
    _in_rows("take_in_rows"),
    lambda g, y, x, index: scatter_in_rows(g, index, n=x.shape[1]),
    None,
    promotes=(0,),
)
scatter_in_rows = define(
    "scatter_in_rows",
    _in_rows("scatter_in_rows"),
    lambda h, z, g, index, n: take_in_rows(h, index),
    None,
    promotes=(0,),
)

# --- batch norm of x (n, c, l): three rows, each of which is the derivative of another ---------------------------
# All depend on the mean and the variance of each channel of x. Who knows them already hands them over as `moments`, and
# derivatives are those of functions of x all the same.


def _moments(device, x):
    out = device.empty((2, x.shape[1]), x.dtype)
    device.channel_moments(contiguous(device, x), out)
    return out


def _column(x: Tensor) -> Tensor:
    return reshape_op(x, shape=(x.size, 1))


channel_moments = define(
    "channel_moments",  # (2, c): means, variances
    _moments,
    lambda h, m, x: (_column(h[0]) + _column(h[1]) * 2.0 * (x - _column(m[0]))) / (x.size // x.shape[1]),
    floating=True,
)


def _forward(kernel: str, shape=lambda x: x.shape):
    """The kernel (g, x, moments, weight..., out, eps) or without g, as the row has inputs."""

    def forward(device, *arrays, moments: Any = None, sums: Any = None, eps):
        given = [contiguous(device, a) for a in arrays]
        at = 0 if kernel == "batch_norm" else 1
        x = given[at]
        known = _moments(device, x) if moments is None else moments._data
        given.insert(at + 1, known)
        if kernel == "batch_norm_grad":
            if sums is None:
                totals = device.empty(known.shape, x.dtype)
                device.batch_norm_sums(*given[:3], totals, eps)
            given.append(totals if sums is None else sums._data)
        out = device.empty(shape(x), x.dtype)
        getattr(device, kernel)(*given, out, eps)
        return out

    return forward


batch_norm = define(
    "batch_norm",  # x (n, c, l), weight (c,), bias (c,)
    _forward("batch_norm"),
    lambda g, y, x, weight, bias, shared, **at: batch_norm_grad(g, x, weight, sums=shared, **at),
    lambda g, y, x, weight, bias, shared, **at: shared[0],
    lambda g, y, x, weight, bias, shared, **at: shared[1],
    shared=lambda g, y, x, weight, bias, **at: batch_norm_sums(g, x, **at),
    floating=True,
)
batch_norm_sums = define(
    "batch_norm_sums",  # (2, c): the gradients of weight and bias
    _forward("batch_norm_sums", lambda x: (2, x.shape[1])),
    lambda h, z, g, x, **at: batch_norm(x, h[0], h[1], **at),
    lambda h, z, g, x, **at: batch_norm_grad(g, x, h[0], **at),
    floating=True,
)


def _by_moments(device, *arrays, eps):
    out = device.empty(arrays[0].shape, arrays[0].dtype)
    device.batch_norm(*[contiguous(device, a) for a in arrays], out, eps)
    return out


def _root(moments, eps):
    return (moments[1] + eps).sqrt()


def _affine_vjp_moments(g, y, x, moments, weight, bias, eps):
    scale = weight / _root(moments, eps)
    apart = sum(g * (x - _column(moments[0])), (0, 2)) / (moments[1] + eps)
    return stack([-scale * sum(g, (0, 2)), -0.5 * scale * apart])


channel_affine = define(
    "channel_affine",  # batch norm of x (n, c, l) by moments (2, c) that are not its own, weight (c,), bias (c,)
    _by_moments,
    lambda g, y, x, moments, weight, bias, eps: g * _column(weight / _root(moments, eps)),
    _affine_vjp_moments,
    lambda g, y, x, moments, weight, bias, eps: sum(g * (x - _column(moments[0])), (0, 2)) / _root(moments, eps),
    lambda g, y, x, moments, weight, bias, eps: sum(g, (0, 2)),
    floating=True,
)


def _columns(x: Tensor) -> Tensor:
    """x (n, c, l) as (1, n * l, c)."""
    n, c, length = x.shape
    return reshape_op(permute_op(x, axes=(0, 2, 1)), shape=(1, n * length, c))


def _grad_vjp_x(h, z, g, x, weight, eps, **known):
    """z = weight * standardize_grad(g, x), of the columns."""
    scaled = h * _column(weight)
    found = standardize_grad_vjp_x(_columns(scaled), None, _columns(g), _columns(x), eps)
    return permute_op(reshape_op(found, shape=(x.shape[0], x.shape[2], x.shape[1])), axes=(0, 2, 1))


def _grad_vjp_weight(h, z, g, x, weight, **at):
    one = weight._wrap(weight._device.from_host(np.ones(weight.shape, weight.dtype)), weight._device)
    return sum(h * batch_norm_grad(g, x, one, **at), (0, 2))


batch_norm_grad = define(
    "batch_norm_grad",
    _forward("batch_norm_grad"),
    lambda h, z, g, x, weight, eps, moments=None, sums=None: batch_norm_grad(h, x, weight, moments=moments, eps=eps),
    _grad_vjp_x,
    _grad_vjp_weight,
    floating=True,
)
