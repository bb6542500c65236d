"""Softmax and cross-entropy: a block takes a long row, or many short ones, and reads them once, then from the cache.

It computes the row's maximum, then the sum of exp(x - maximum), then the result: only this last pass differs between
kernels. Neighbouring threads read neighbouring elements.
"""

from collections.abc import Callable
from functools import cache, partial

import numba
import numpy as np

from . import tuning
from .compile import Kernel, cuda, device, exp, kernel, launch, log
from .folds import folding, folding_lanes, neutral


@cache
def _ends(dtype: np.dtype, threads: int) -> dict[str, Callable]:
    """name -> helper: the last pass over a row of x, given its maximum and the sum of exp(x - maximum).

    g and labels are read only by kernels that have them.
    """
    ZERO, ONE = dtype.type(0), dtype.type(1)

    def softmax(g, x, labels, out, row, n, own, top, total):
        for i in range(row * n + own, row * n + n, threads):
            out[i] = exp(x[i] - top) / total

    def log_softmax(g, x, labels, out, row, n, own, top, total):
        shift = log(total)
        for i in range(row * n + own, row * n + n, threads):
            out[i] = x[i] - top - shift

    def logsumexp(g, x, labels, out, row, n, own, top, total):
        if own == 0:
            out[row] = log(total) + top

    def cross_entropy(g, x, labels, out, row, n, own, top, total):
        if own == 0:
            out[row] = log(total) - (x[row * n + labels[row]] - top)

    def cross_entropy_grad(g, x, labels, out, row, n, own, top, total):
        scale, label = g[row], labels[row]
        for i in range(own, n, threads):
            one = ONE if i == label else ZERO
            out[row * n + i] = (exp(x[row * n + i] - top) / total - one) * scale

    def loss_and_grad(g, x, labels, out, row, n, own, top, total):
        """g: the losses, which it writes, and the gradient of each of them."""
        label, scale = labels[row], g[1][row]
        if own == 0:
            g[0][row] = log(total) - (x[row * n + label] - top)
        for i in range(own, n, threads):
            one = ONE if i == label else ZERO
            out[row * n + i] = (exp(x[row * n + i] - top) / total - one) * scale

    def loss_and_mean_grad(g, x, labels, out, row, n, own, top, total):
        """g: the losses, and two numbers whose quotient is the gradient of each of them."""
        label, scale = labels[row], g[1][0] / g[2][0]
        if own == 0:
            g[0][row] = log(total) - (x[row * n + label] - top)
        for i in range(own, n, threads):
            one = ONE if i == label else ZERO
            out[row * n + i] = (exp(x[row * n + i] - top) / total - one) * scale

    ends = softmax, log_softmax, logsumexp, cross_entropy, cross_entropy_grad, loss_and_grad, loss_and_mean_grad
    return {end.__name__: device(end) for end in ends}


def _folding(name: str, dtype: np.dtype, lanes: int, threads: int, warp: int, shuffles: bool) -> Callable:
    """The fold over the threads of a row."""
    if lanes < threads:
        return folding_lanes(name, dtype, lanes, shuffles)
    return folding(name, dtype, threads, 1, warp, shuffles)


@cache
def exponential_rows(name: str, dtype: np.dtype, lanes: int, threads: int, warp: int, shuffles: bool) -> Kernel:
    """lanes: threads of a row. All threads of a block take part in all folds, also those beyond the last row."""
    fold_max, fold_sum = (_folding(fold, dtype, lanes, threads, warp, shuffles) for fold in ("max", "sum"))
    end, kind, LOWEST, ZERO = _ends(dtype, lanes)[name], numba.from_dtype(dtype), neutral("max", dtype), dtype.type(0)
    HAS_LIMIT, ROWS = name == "logsumexp", threads // lanes  # a row of -inf gives -inf, not NaN

    @kernel(threads)
    def loop(g, x, labels, out, n):
        shared = cuda.shared.array(threads, kind)
        own, lane, rows = cuda.threadIdx.x, cuda.threadIdx.x % lanes, x.size // n
        for first in range(cuda.blockIdx.x * ROWS, rows, cuda.gridDim.x * ROWS):
            row = first + own // lanes
            end_of_row = row * n + n if row < rows else 0
            top = LOWEST
            for i in range(row * n + lane, end_of_row, lanes):
                top = top if (top >= x[i]) | (top != top) else x[i]
            top = fold_max(top, own, shared)
            if HAS_LIMIT:
                top = top if top - top == ZERO else ZERO
            total = ZERO
            for i in range(row * n + lane, end_of_row, lanes):
                total += exp(x[i] - top)
            total = fold_sum(total, own, shared)
            if row < rows:
                end(g, x, labels, out, row, n, lane, top, total)

    return loop


@cache
def softmax_grad_rows(dtype: np.dtype, lanes: int, threads: int, warp: int, shuffles: bool) -> Kernel:
    fold_sum = _folding("sum", dtype, lanes, threads, warp, shuffles)
    kind, ZERO, ROWS = numba.from_dtype(dtype), dtype.type(0), threads // lanes

    @kernel(threads)
    def loop(g, y, out, n):
        shared = cuda.shared.array(threads, kind)
        own, lane, rows = cuda.threadIdx.x, cuda.threadIdx.x % lanes, out.size // n
        for first in range(cuda.blockIdx.x * ROWS, rows, cuda.gridDim.x * ROWS):
            row = first + own // lanes
            end_of_row = row * n + n if row < rows else 0
            total = ZERO
            for i in range(row * n + lane, end_of_row, lanes):
                total += g[i] * y[i]
            total = fold_sum(total, own, shared)
            for i in range(row * n + lane, end_of_row, lanes):
                out[i] = y[i] * (g[i] - total)

    return loop


def _by_rows(make: Callable[..., Kernel], x, *arrays) -> None:
    """Launches a kernel whose blocks take rows of x: one of many elements, or as many short ones as they have room."""
    rows, n = x.shape
    if rows and n:
        numbers = tuning.current()
        threads = lanes = numbers.threads
        if n <= numbers.small_rows:
            lanes = min(1 << (n - 1).bit_length(), numbers.warp)
        loop = make(x.dtype, lanes, threads, numbers.warp, numbers.shuffles)
        launch(loop, min(-(-rows // (threads // lanes)), numbers.blocks), threads, *arrays, n)


def _exponential(name: str, g, x, labels, out) -> None:
    _by_rows(partial(exponential_rows, name), x, g, x, labels, out)


def loss_and_grad(losses, gradient, x, labels, out):
    """cross_entropy and cross_entropy_grad. gradient: an array of them, or two whose quotient is each of them."""
    name = "loss_and_grad" if len(gradient) == 1 else "loss_and_mean_grad"
    _exponential(name, (losses, *gradient), x, labels, out)


KERNELS = {
    "softmax": lambda x, out: _exponential("softmax", x, x, x, out),
    "softmax_grad": lambda g, y, out: _by_rows(softmax_grad_rows, y, g, y, out),
    "logsumexp": lambda x, out: _exponential("logsumexp", x, x, x, out),
    "log_softmax": lambda x, out: _exponential("log_softmax", x, x, x, out),
    "cross_entropy": lambda x, labels, out: _exponential("cross_entropy", x, x, labels, out),
    "cross_entropy_grad": lambda g, x, labels, out: _exponential("cross_entropy_grad", g, x, labels, out),
}
