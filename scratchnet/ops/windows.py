"""Sliding windows: convolution and pooling of images (n, channels, h, w).

Convolution has three rows. <g, conv2d(x, weight)> is a number that is linear in each of g, x and weight; conv2d,
conv2d_input and conv2d_weight are its gradients with respect to g, x and weight. So the derivatives of each are the two
others, to any order. Their parameter `size` is the height and width of what they compute.
"""

from __future__ import annotations

import math

import numpy as np

from .movement import reshape_op
from .reductions import sum
from .table import contiguous, define

# --- convolution: x (n, c, h, w), weight (o, c / groups, kh, kw), g and y (n, o, oh, ow) -----------------------------


def _convolution(kernel: str, shape):
    """shape(*arrays, groups): (number of images or filters, channels) of the result."""

    def forward(device, *arrays, size, stride, padding, dilation, groups):
        out = device.empty((*shape(*arrays[:2], groups), *size), arrays[0].dtype)
        given = [contiguous(device, x) for x in arrays]
        if kernel == "conv2d" and len(given) == 2:
            given.append(np.zeros(1, out.dtype))  # a bias of one element is added everywhere
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
