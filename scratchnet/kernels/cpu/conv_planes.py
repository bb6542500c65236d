"""Depthwise convolution: a plane of x makes a plane of out, so there is no matrix to multiply, and no patch to copy.

What lies outside of x takes no part in a sum. To a matrix product it is zeros, and zero times infinity is NaN: these
loops stand in for them where a weight, or a gradient, is not finite.
"""

from ...native.compile import jit
from .conv_patches import inside

FEW = 4  # pairs of a plane of x and one of out in a group: with more, tiles are faster


def is_by_planes(shape):
    return shape.groups > 1 and shape.channels * shape.filters <= FEW


@jit
def correlate_planes(lo, hi, x, weight, bias, out, shape):
    """Images lo to hi of out: each row of a plane is a sum of rows of x, an element of the filter at a time."""
    area, size, outputs = shape.kh * shape.kw, shape.height * shape.width, shape.rows * shape.columns
    for image in range(lo, hi):
        for o in range(shape.groups * shape.filters):
            planes = (image * shape.groups + o // shape.filters) * shape.channels * size
            for y in range(shape.rows):
                begin = (image * shape.groups * shape.filters + o) * outputs + y * shape.columns
                line = out[begin : begin + shape.columns]
                line[:] = bias[o % bias.size]
                for k in range(shape.channels * area):
                    factor, element = weight[o * shape.channels * area + k], k % area
                    at = y * shape.stride_h + element // shape.kw * shape.dilation_h - shape.top
                    if 0 <= at < shape.height:
                        right = element % shape.kw * shape.dilation_w - shape.left
                        x0, x1 = inside(0, shape.columns, right, shape.stride_w, shape.width)
                        first = planes + k // area * size + at * shape.width + x0 * shape.stride_w + right
                        _add_row(line[x0:x1], x[first : first + (x1 - x0 - 1) * shape.stride_w + 1], factor, shape)


@jit(reduction=True)
def is_finite(x):
    """Is every element of x (n,) finite?"""
    total = x.dtype.type(0)
    for i in range(x.size):
        total += x[i] * x.dtype.type(0)
    return total == 0


@jit
def mend_gradients(lo, hi, g, x, out, shape):
    """Groups lo to hi, computed anew where one is NaN: it may be that of an infinite g times a zero outside of x."""
    size = shape.filters * shape.channels * shape.kh * shape.kw
    for group in range(lo, hi):
        if not is_finite(out[group * size : (group + 1) * size]):
            plane_gradients(group, group + 1, g, x, out, shape)


@jit(inline=True)
def _add_row(line, source, factor, shape):
    if shape.stride_w == 1:
        for i in range(line.size):
            line[i] += factor * source[i]
    else:
        for i in range(line.size):
            line[i] += factor * source[i * shape.stride_w]


@jit(reduction=True)
def _dot(a, b, step):
    total = a.dtype.type(0)
    if step == 1:
        for i in range(a.size):
            total += a[i] * b[i]
    else:
        for i in range(a.size):
            total += a[i] * b[i * step]
    return total


@jit
def plane_gradients(lo, hi, g, x, out, shape):
    """Groups lo to hi of the weight's gradient: products of rows, added up in float64 in the order of the batch."""
    area, size, outputs = shape.kh * shape.kw, shape.height * shape.width, shape.rows * shape.columns
    images = g.size // (shape.groups * shape.filters * outputs)
    for o in range(lo * shape.filters, hi * shape.filters):
        for k in range(shape.channels * area):
            element, total = k % area, 0.0
            right = element % shape.kw * shape.dilation_w - shape.left
            x0, x1 = inside(0, shape.columns, right, shape.stride_w, shape.width)
            for image in range(images):
                plane = ((image * shape.groups + o // shape.filters) * shape.channels + k // area) * size
                for y in range(shape.rows):
                    at = y * shape.stride_h + element // shape.kw * shape.dilation_h - shape.top
                    if 0 <= at < shape.height and x0 < x1:
                        begin = (image * shape.groups * shape.filters + o) * outputs + y * shape.columns
                        first = plane + at * shape.width + x0 * shape.stride_w + right
                        row = x[first : first + (x1 - x0 - 1) * shape.stride_w + 1]
                        total += _dot(g[begin + x0 : begin + x1], row, shape.stride_w)
            out[o * shape.channels * area + k] = total
