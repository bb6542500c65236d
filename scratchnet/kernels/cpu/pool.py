"""Pooling of planes, and the gather and scatter along rows that carry max pooling's values and gradients."""

from ...native.compile import jit
from ...native.loops import ranged


@jit
def _max_pool2d(lo, hi, x, out, window, stride, padding, dilation):
    height, width = x.shape[1:]
    for plane in range(lo, hi):
        source, target = x[plane], out[plane]
        for y in range(target.shape[0]):
            down = y * stride[0] - padding[0]
            for i in range(target.shape[1]):
                right = i * stride[1] - padding[1]
                best, at = x.dtype.type(0), -1
                for r in range(window[0]):
                    row = down + r * dilation[0]
                    if row < 0 or row >= height:
                        continue
                    for s in range(window[1]):
                        column = right + s * dilation[1]
                        if column < 0 or column >= width:
                            continue
                        value = source[row, column]
                        if at < 0 or value > best or (value != value and best == best):
                            best, at = value, row * width + column
                target[y, i] = at


@jit
def _max_pool_2x2(lo, hi, x, out):
    """Windows of 2 x 2 side by side: no bound to check, no branch to miss."""
    width = x.shape[2]
    for plane in range(lo, hi):
        for y in range(out.shape[1]):
            upper, lower, target = x[plane, 2 * y], x[plane, 2 * y + 1], out[plane, y]
            first = 2 * y * width
            for i in range(target.size):
                a, b, c, d = upper[2 * i], upper[2 * i + 1], lower[2 * i], lower[2 * i + 1]
                b_wins = (b > a) | ((b != b) & (a == a))
                d_wins = (d > c) | ((d != d) & (c == c))
                top, bottom = b if b_wins else a, d if d_wins else c
                below = (bottom > top) | ((bottom != bottom) & (top == top))
                target[i] = first + 2 * i + (width + d_wins if below else b_wins + 0)


@jit
def _bounds(i, window, stride, padding, size):
    """Of window i along one axis: its elements inside of x, and its length with the padding around them."""
    begin = i * stride - padding
    end = min(begin + window, size + padding)
    return max(begin, 0), min(end, size), end - begin


@jit
def _avg_pool2d(lo, hi, x, out, window, stride, padding, counts_padding):
    for plane in range(lo, hi):
        for y in range(out.shape[1]):
            y0, y1, rows = _bounds(y, window[0], stride[0], padding[0], x.shape[1])
            for i in range(out.shape[2]):
                x0, x1, columns = _bounds(i, window[1], stride[1], padding[1], x.shape[2])
                total = x.dtype.type(0)
                for row in range(y0, y1):
                    for column in range(x0, x1):
                        total += x[plane, row, column]
                size = rows * columns if counts_padding else (y1 - y0) * (x1 - x0)
                out[plane, y, i] = total / x.dtype.type(size)


@jit
def _avg_pool2d_grad(lo, hi, g, out, window, stride, padding, counts_padding):
    for plane in range(lo, hi):
        for row in out[plane]:
            row[:] = 0
        for y in range(g.shape[1]):
            y0, y1, rows = _bounds(y, window[0], stride[0], padding[0], out.shape[1])
            for i in range(g.shape[2]):
                x0, x1, columns = _bounds(i, window[1], stride[1], padding[1], out.shape[2])
                size = rows * columns if counts_padding else (y1 - y0) * (x1 - x0)
                share = g[plane, y, i] / g.dtype.type(size)
                for row in range(y0, y1):
                    for column in range(x0, x1):
                        out[plane, row, column] += share


@jit
def _take_in_rows(lo, hi, x, index, out):
    for i in range(lo, hi):
        source, numbers, target = x[i], index[i], out[i]
        for j in range(target.size):
            target[j] = source[numbers[j]]


@jit
def _scatter_in_rows(lo, hi, g, index, out):
    for i in range(lo, hi):
        source, numbers, target = g[i], index[i], out[i]
        target[:] = 0
        for j in range(source.size):
            target[numbers[j]] += source[j]


_run_max = ranged(_max_pool2d, "max_pool2d", writes=(1,), weight=8)
_run_max_2x2 = ranged(_max_pool_2x2, "max_pool_2x2", writes=(1,), weight=4)
_run_avg = ranged(_avg_pool2d, "avg_pool2d", writes=(1,), weight=4)
_run_avg_grad = ranged(_avg_pool2d_grad, "avg_pool2d_grad", writes=(1,), weight=4)
_run_take = ranged(_take_in_rows, "take_in_rows", writes=(2,), weight=2)
_run_scatter = ranged(_scatter_in_rows, "scatter_in_rows", writes=(2,), weight=2)


def max_pool2d(x, out, window, stride, padding, dilation):
    cost = out[:1].size * window[0] * window[1]
    side_by_side = window == stride == (2, 2) and padding == (0, 0) and dilation == (1, 1)
    if side_by_side and all(2 * outputs <= n for outputs, n in zip(out.shape[1:], x.shape[1:], strict=True)):
        _run_max_2x2(len(out), cost, x, out)
    else:
        _run_max(len(out), cost, x, out, window, stride, padding, dilation)


def avg_pool2d(x, out, window, stride, padding, counts_padding):
    _run_avg(len(out), out[:1].size * window[0] * window[1], x, out, window, stride, padding, counts_padding)


def avg_pool2d_grad(g, out, window, stride, padding, counts_padding):
    _run_avg_grad(len(out), g[:1].size * window[0] * window[1], g, out, window, stride, padding, counts_padding)


def take_in_rows(x, index, out):
    _run_take(len(out), out.shape[1], x, index, out)


def scatter_in_rows(g, index, out):
    _run_scatter(len(out), g.shape[1] + out.shape[1], g, index, out)


KERNELS = {
    "max_pool2d": max_pool2d,
    "avg_pool2d": avg_pool2d,
    "avg_pool2d_grad": avg_pool2d_grad,
    "take_in_rows": take_in_rows,
    "scatter_in_rows": scatter_in_rows,
}
