"""Batch norm of x (n, c, l): three rows, each of which is the derivative of another, to any order.

All depend on the mean and the variance of each channel of x. Who knows them already hands them over as `moments`, and
derivatives are those of functions of x all the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .movement import permute_op, reshape_op
from .reductions import standardize_grad_vjp_x, sum
from .table import Tensor, contiguous, define


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
