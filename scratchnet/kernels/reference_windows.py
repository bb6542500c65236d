"""The reference device's windows: convolution and pooling as plain NumPy. What holds for reference.py holds here.

One loop over the elements of a window takes all outputs at once: the arithmetic is that of a sliding window, and which
elements of x an element of the window meets are two slices.
"""

import numpy as np

# --- convolution: x (n, c, h, w), weight (o, c / groups, kh, kw), out (n, o, oh, ow) ---------------------------------
# out[n, o, y, x] = sum over c, r, s of x[n, c, y * stride + r * dilation - padding, ...] * weight[o, c, r, s], x being
# 0 outside. Pairs are (height, width); padding is that before the first row and column, and what follows the last ones
# is as much as out needs. A channel of `out` reads the channels of x of its group. (PyTorch's conv2d.)


def _windows(shape, counts, offset, stride, padding):
    """Along one axis each: (of the outputs, of the inputs that window element `offset` lands on), as slices."""
    pairs = []
    for n, count, at, step, before in zip(shape, counts, offset, stride, padding, strict=True):
        first = -(min(at - before, 0) // step)  # the first output whose element lies inside
        stop = max(first, min(count, (n - 1 + before - at) // step + 1))
        begin = first * step + at - before
        pairs.append((slice(first, stop), slice(begin, begin + (stop - first) * step, step)))
    (out_y, y), (out_x, x) = pairs
    return (..., out_y, out_x), (..., y, x)


def _taps(weight, dilation):
    """(number, offset in x) of each element of a window."""
    return [((r, s), (r * dilation[0], s * dilation[1])) for r, s in np.ndindex(*weight.shape[2:])]


def conv2d(x, weight, bias, out, stride, padding, dilation, groups):
    """The above + bias[o]; a bias of one element is added everywhere."""
    out[...] = bias[:, None, None]
    for a, b, c in _groups(groups, x, weight, out):
        for (r, s), offset in _taps(weight, dilation):
            to, at = _windows(x.shape[2:], out.shape[2:], offset, stride, padding)
            c[to] += np.einsum("nchw,oc->nohw", a[at], b[:, :, r, s])


def conv2d_input(g, weight, out, stride, padding, dilation, groups):
    """out = the gradient with respect to x (n, c, h, w) of the sum of g * conv2d(x, weight): the transpose."""
    out[...] = 0
    for a, b, c in _groups(groups, g, weight, out):
        for (r, s), offset in _taps(weight, dilation):
            at, to = _windows(out.shape[2:], g.shape[2:], offset, stride, padding)
            c[to] += np.einsum("nohw,oc->nchw", a[at], b[:, :, r, s])


def conv2d_weight(g, x, out, stride, padding, dilation, groups):
    """out = the gradient with respect to weight (o, c / groups, kh, kw) of the sum of g * conv2d(x, weight)."""
    for a, b, c in _groups(groups, g, out, x):
        for (r, s), offset in _taps(out, dilation):
            to, at = _windows(x.shape[2:], g.shape[2:], offset, stride, padding)
            b[:, :, r, s] = np.einsum("nohw,nchw->oc", a[to], c[at])


def _groups(groups, x, weight, y):
    """The parts of x, weight and y that belong together."""
    parts = (np.split(a, groups, axis) for a, axis in ((x, 1), (weight, 0), (y, 1)))
    return zip(*parts, strict=True)


# --- pooling: of planes x (n, h, w) -> out (n, oh, ow); window, stride and padding are pairs -------------------------


def max_pool2d(x, out, window, stride, padding, dilation):
    """out (int64) = y * w + x of the largest element of each window; the first of equals, a NaN before all."""
    (_, h, w), best = x.shape, np.zeros(out.shape, x.dtype)
    number = np.arange(h * w).reshape(h, w)
    out[...] = -1
    for r, s in np.ndindex(*window):
        to, at = _windows((h, w), out.shape[1:], (r * dilation[0], s * dilation[1]), stride, padding)
        value, largest = x[at], best[to]
        better = (value > largest) | (out[to] < 0) | ((value != value) & (largest == largest))
        out[to] = np.where(better, number[at[1:]], out[to])
        best[to] = np.where(better, value, largest)


def avg_pool2d(x, out, window, stride, padding, counts_padding):
    """out = the sum of each window / its size; `counts_padding`: with the zeros around x, else the elements of x alone.

    A window that begins inside and reaches beyond the padding counts as far as that.
    """
    out[...] = 0
    for offset in np.ndindex(*window):
        to, at = _windows(x.shape[1:], out.shape[1:], offset, stride, padding)
        out[to] += x[at]
    out /= _sizes(x, out, window, stride, padding, counts_padding)


def avg_pool2d_grad(g, out, window, stride, padding, counts_padding):
    """out (n, h, w) = the gradient with respect to x of the sum of g * avg_pool2d(x): the transpose."""
    out[...] = 0
    g = g / _sizes(out, g, window, stride, padding, counts_padding)
    for offset in np.ndindex(*window):
        at, to = _windows(out.shape[1:], g.shape[1:], offset, stride, padding)
        out[to] += g[at]


def _sizes(x, out, window, stride, padding, counts_padding):
    """How many elements each window has: (oh, ow)."""
    along = []
    for n, count, k, step, before in zip(x.shape[1:], out.shape[1:], window, stride, padding, strict=True):
        low, high = (-before, n + before) if counts_padding else (0, n)
        begin = np.arange(count) * step - before
        along.append(np.minimum(begin + k, high) - np.maximum(begin, low))
    return np.outer(*along).astype(x.dtype)


def take_in_rows(x, index, out):
    """out[i, j] = x[i, index[i, j]]: x (rows, n), index (rows, m) int64 in [0, n), out (rows, m)."""
    out[...] = np.take_along_axis(x, index, axis=1)


def scatter_in_rows(g, index, out):
    """out[i, k] = sum of g[i, j] over index[i, j] == k, in order of j: g (rows, m), out (rows, n)."""
    out[...] = 0
    np.add.at(out, (np.arange(len(g))[:, None], index), g)


# --- rows that are folded by number: x (n, inner) -> out (k, inner) ---------------------------------------------------


def add_rows(x, source, target, scale, out):
    """out[t] = sum of scale[i] * x[source[i]] over target[i] == t, in order of i: x (n, inner), out (k, inner).

    source, target: (m,) int64 in [0, n) and [0, k); scale (m,). The product of a sparse matrix (k, n) and x.
    """
    out[...] = 0
    np.add.at(out, target, scale[:, None] * x[source])


def argmax_rows(x, source, target, out):
    """out[t, j] (int64) = source[i] of the largest x[source[i], j] over target[i] == t; -1 if there is none.

    Of equals the first; a NaN counts as the largest. Shapes as in add_rows.
    """
    out[...] = -1
    columns = np.arange(x.shape[1])
    for s, t in zip(source, target, strict=True):
        value, best = x[s], x[out[t], columns]
        out[t, (out[t] < 0) | (value > best) | ((value != value) & (best == best))] = s


# --- batch norm: x, g (n, c, l), moments (2, c): mean and variance of each channel -----------------------------------


def channel_moments(x, out):
    """out[0, c] = mean of x[:, c], out[1, c] = its variance, divided by n * l >= 1."""
    np.mean(x, axis=(0, 2), out=out[0])
    np.var(x, axis=(0, 2), out=out[1])


def batch_norm(x, moments, weight, bias, out, eps):
    """out = (x - mean) / sqrt(variance + eps) * weight + bias, by channel (Ioffe and Szegedy 2015)."""
    out[...] = _standardized(x, moments, eps) * weight[:, None] + bias[:, None]


def batch_norm_sums(g, x, moments, out, eps):
    """out[0, c] = sum of g * (x - mean) / sqrt(variance + eps), out[1, c] = sum of g: gradients of weight and bias."""
    np.sum(g * _standardized(x, moments, eps), axis=(0, 2), out=out[0])
    np.sum(g, axis=(0, 2), out=out[1])


def batch_norm_grad(g, x, moments, weight, sums, out, eps):
    """out = weight / sqrt(variance + eps) * (g - (sums[1] + y * sums[0]) / (n * l)), y = x standardized: towards x."""
    count = x.dtype.type(x.shape[0] * x.shape[2])
    scale = weight / np.sqrt(moments[1] + x.dtype.type(eps))
    out[...] = scale[:, None] * (g - (sums[1][:, None] + _standardized(x, moments, eps) * sums[0][:, None]) / count)


def _standardized(x, moments, eps):
    mean, variance = moments[:, :, None]
    return (x - mean) / np.sqrt(variance + x.dtype.type(eps))
