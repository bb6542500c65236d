"""Recurrent cells: a thread has an element of a row, and computes all of its gates.

`size` elements lie between two slots, and `width` between two gates of a row.
"""

from functools import cache

import numpy as np

from .compile import Kernel, cuda, kernel, launch
from .grids import in_row
from .scalars import scalars


@cache
def rnn_loop(dtype: np.dtype, threads: int) -> Kernel:
    functions = scalars(dtype)
    relu_of, tanh = functions["relu"], functions["tanh"]

    @kernel(threads)
    def loop(x, h, before, alive, out, size, width, relu):
        for at in range(cuda.grid(1), size, cuda.gridsize(1)):
            if alive[at // width]:
                gate = x[at] + h[at]
                out[at] = relu_of(gate) if relu else tanh(gate)
            else:
                out[at] = before[at]

    return loop


@cache
def gru_loop(dtype: np.dtype, threads: int) -> Kernel:
    functions, ZERO = scalars(dtype), dtype.type(0)
    sigmoid, tanh = functions["sigmoid"], functions["tanh"]

    @kernel(threads)
    def loop(x, h, before, alive, out, size, width):
        for at in range(cuda.grid(1), size, cuda.gridsize(1)):
            row = at // width
            if alive[row]:
                own = at + 2 * row * width
                r, z = sigmoid(x[own] + h[own]), sigmoid(x[own + width] + h[own + width])
                h_n = h[own + 2 * width]
                n = tanh(x[own + 2 * width] + r * h_n)
                out[at], out[size + at], out[2 * size + at] = n + z * (before[at] - n), r, z
                out[3 * size + at], out[4 * size + at] = n, h_n
            else:
                out[at] = before[at]
                for slot in range(1, 5):
                    out[slot * size + at] = ZERO

    return loop


@cache
def lstm_loop(dtype: np.dtype, threads: int) -> Kernel:
    functions, ZERO = scalars(dtype), dtype.type(0)
    sigmoid, tanh = functions["sigmoid"], functions["tanh"]

    @kernel(threads)
    def loop(x, h, before, alive, out, size, width):
        for at in range(cuda.grid(1), size, cuda.gridsize(1)):
            row = at // width
            if alive[row]:
                own = at + 3 * row * width
                i, f = sigmoid(x[own] + h[own]), sigmoid(x[own + width] + h[own + width])
                g = tanh(x[own + 2 * width] + h[own + 2 * width])
                o = sigmoid(x[own + 3 * width] + h[own + 3 * width])
                c = f * before[size + at] + i * g
                out[at], out[size + at], out[2 * size + at] = o * tanh(c), c, i
                out[3 * size + at], out[4 * size + at], out[5 * size + at] = f, g, o
            else:
                out[at], out[size + at] = before[at], before[size + at]
                for slot in range(2, 6):
                    out[slot * size + at] = ZERO

    return loop


@cache
def rnn_grad_loop(dtype: np.dtype, threads: int) -> Kernel:
    functions, ZERO = scalars(dtype), dtype.type(0)
    relu_grad, tanh_grad = functions["relu_grad"], functions["tanh_grad"]

    @kernel(threads)
    def loop(g, carry, back, around, alive, d_x, d_state, size, width, relu):
        for at in range(cuda.grid(1), size, cuda.gridsize(1)):
            d = g[at] + carry[at] + back[at]
            if alive[at // width]:
                d_x[at] = relu_grad(d, around[size + at]) if relu else tanh_grad(d, around[size + at])
                d_state[at] = ZERO
            else:
                d_x[at], d_state[at] = ZERO, d

    return loop


@cache
def gru_grad_loop(dtype: np.dtype, threads: int) -> Kernel:
    ZERO, ONE = dtype.type(0), dtype.type(1)

    @kernel(threads)
    def loop(g, carry, back, around, alive, d_x, d_h, d_state, size, width):
        for at in range(cuda.grid(1), size, cuda.gridsize(1)):
            row = at // width
            own = at + 2 * row * width
            d = g[at] + carry[at] + back[at]
            if alive[row]:
                r, z, n = around[6 * size + at], around[7 * size + at], around[8 * size + at]
                d_n = d * (ONE - z) * (ONE - n * n)
                d_r = d_n * around[9 * size + at] * r * (ONE - r)
                d_z = d * (around[at] - n) * z * (ONE - z)
                d_x[own], d_x[own + width], d_x[own + 2 * width] = d_r, d_z, d_n
                d_h[own], d_h[own + width], d_h[own + 2 * width] = d_r, d_z, d_n * r
                d_state[at] = d * z
            else:
                for gate in range(3):
                    d_x[own + gate * width] = ZERO
                    d_h[own + gate * width] = ZERO
                d_state[at] = d

    return loop


@cache
def lstm_grad_loop(dtype: np.dtype, threads: int) -> Kernel:
    tanh, ZERO, ONE = scalars(dtype)["tanh"], dtype.type(0), dtype.type(1)

    @kernel(threads)
    def loop(g, carry, back, around, alive, d_x, d_state, size, width):
        for at in range(cuda.grid(1), size, cuda.gridsize(1)):
            row = at // width
            own = at + 3 * row * width
            d, d_c = g[at] + carry[at] + back[at], g[size + at] + carry[size + at]
            if alive[row]:
                i, f = around[8 * size + at], around[9 * size + at]
                new, o, t = around[10 * size + at], around[11 * size + at], tanh(around[7 * size + at])
                d_c += d * o * (ONE - t * t)
                d_x[own] = d_c * new * i * (ONE - i)
                d_x[own + width] = d_c * around[size + at] * f * (ONE - f)
                d_x[own + 2 * width] = d_c * i * (ONE - new * new)
                d_x[own + 3 * width] = d * t * o * (ONE - o)
                d_state[at], d_state[size + at] = ZERO, d_c * f
            else:
                for gate in range(4):
                    d_x[own + gate * width] = ZERO
                d_state[at], d_state[size + at] = d, d_c

    return loop


def _over_elements(make, written, rows):
    """The kernel whose argument `rows` is (n, gates, width). written: the number of its arrays."""

    def run(*arguments):
        n, _, width = arguments[rows].shape
        if n * width:
            blocks, threads = in_row(n * width)
            loop = make(arguments[0].dtype, threads)
            launch(loop, blocks, threads, *arguments[:written], n * width, width, *arguments[written:])

    return run


KERNELS = {
    "rnn_cell": _over_elements(rnn_loop, 5, 0),
    "gru_cell": _over_elements(gru_loop, 5, 0),
    "lstm_cell": _over_elements(lstm_loop, 5, 0),
    "rnn_cell_grad": _over_elements(rnn_grad_loop, 7, 5),
    "gru_cell_grad": _over_elements(gru_grad_loop, 8, 5),
    "lstm_cell_grad": _over_elements(lstm_grad_loop, 7, 5),
}
