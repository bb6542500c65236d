"""Recurrent cells: what is left of a step when its products are done, in one pass. An item is a row of the batch.

A row is a chain of loops over its elements, which stay in L1. Each loop has so few arrays that LLVM tells them apart
when it runs, and so vectorises it; one loop for all gates would have too many.
"""

from ...native.compile import jit
from ...native.loops import ranged
from .elementwise import SCALARS
from .exponential import tanh

sigmoid = SCALARS["sigmoid"]
relu_of, relu_grad, tanh_grad = SCALARS["relu"], SCALARS["relu_grad"], SCALARS["tanh_grad"]


@jit
def _sigmoid_of_sum(x, h, out):
    for j in range(out.size):
        out[j] = sigmoid(x[j] + h[j])


@jit
def _tanh_of_sum(x, h, out):
    for j in range(out.size):
        out[j] = tanh(x[j] + h[j])


@jit
def _copy(x, out):
    for j in range(out.size):
        out[j] = x[j]


@jit
def _keep(row, before, out, states):
    """A row that is not alive."""
    for slot in range(out.shape[0]):
        if slot < states:
            _copy(before[slot, row], out[slot, row])
        else:
            out[slot, row, :] = 0


@jit
def _rnn(lo, hi, x, h, before, alive, out, relu):
    for row in range(lo, hi):
        if not alive[row]:
            _keep(row, before, out, 1)
        elif relu:
            own, other, result = x[row, 0], h[row, 0], out[0, row]
            for j in range(result.size):
                result[j] = relu_of(own[j] + other[j])
        else:
            _tanh_of_sum(x[row, 0], h[row, 0], out[0, row])


@jit
def _new_of_gru(x, r, h, out):
    for j in range(out.size):
        out[j] = tanh(x[j] + r[j] * h[j])


@jit
def _between(new, z, old, out):
    for j in range(out.size):
        out[j] = new[j] + z[j] * (old[j] - new[j])


@jit
def _gru(lo, hi, x, h, before, alive, out):
    for row in range(lo, hi):
        if not alive[row]:
            _keep(row, before, out, 1)
            continue
        _sigmoid_of_sum(x[row, 0], h[row, 0], out[1, row])
        _sigmoid_of_sum(x[row, 1], h[row, 1], out[2, row])
        _new_of_gru(x[row, 2], out[1, row], h[row, 2], out[3, row])
        _between(out[3, row], out[2, row], before[0, row], out[0, row])
        _copy(h[row, 2], out[4, row])


@jit
def _cell_of_lstm(f, old, i, g, out):
    for j in range(out.size):
        out[j] = f[j] * old[j] + i[j] * g[j]


@jit
def _times_tanh(o, c, out):
    for j in range(out.size):
        out[j] = o[j] * tanh(c[j])


@jit
def _lstm(lo, hi, x, h, before, alive, out):
    for row in range(lo, hi):
        if not alive[row]:
            _keep(row, before, out, 2)
            continue
        _sigmoid_of_sum(x[row, 0], h[row, 0], out[2, row])
        _sigmoid_of_sum(x[row, 1], h[row, 1], out[3, row])
        _tanh_of_sum(x[row, 2], h[row, 2], out[4, row])
        _sigmoid_of_sum(x[row, 3], h[row, 3], out[5, row])
        _cell_of_lstm(out[3, row], before[1, row], out[2, row], out[4, row], out[1, row])
        _times_tanh(out[5, row], out[1, row], out[0, row])


# --- backward ---------------------------------------------------------------------------------------------------------


@jit
def _sum_of_three(a, b, c, out):
    for j in range(out.size):
        out[j] = a[j] + b[j] + c[j]


@jit
def _sum_of_two(a, b, out):
    for j in range(out.size):
        out[j] = a[j] + b[j]


@jit
def _through_sigmoid(d, factor, y, out):
    """out = d * factor * the slope of sigmoid where it is y."""
    for j in range(out.size):
        out[j] = d[j] * factor[j] * y[j] * (1 - y[j])


@jit
def _through_tanh(d, factor, y, out):
    for j in range(out.size):
        out[j] = d[j] * factor[j] * (1 - y[j] * y[j])


@jit
def _rnn_grad(lo, hi, g, carry, back, around, alive, d_x, d_state, relu):
    for row in range(lo, hi):
        total, result, y = d_state[0, row], d_x[row, 0], around[1, 0, row]
        _sum_of_three(g[0, row], carry[0, row], back[row], total)
        if not alive[row]:
            result[:] = 0
            continue
        if relu:
            for j in range(result.size):
                result[j] = relu_grad(total[j], y[j])
        else:
            for j in range(result.size):
                result[j] = tanh_grad(total[j], y[j])
        total[:] = 0


@jit
def _new_of_gru_grad(d, z, n, out):
    for j in range(out.size):
        out[j] = d[j] * (1 - z[j]) * (1 - n[j] * n[j])


@jit
def _update_of_gru_grad(d, old, n, z, out):
    for j in range(out.size):
        out[j] = d[j] * (old[j] - n[j]) * z[j] * (1 - z[j])


@jit
def _scale(x, out):
    for j in range(out.size):
        out[j] *= x[j]


@jit
def _product(a, b, out):
    for j in range(out.size):
        out[j] = a[j] * b[j]


@jit
def _gru_grad(lo, hi, g, carry, back, around, alive, d_x, d_h, d_state):
    for row in range(lo, hi):
        total, r, z, n = d_state[0, row], around[1, 1, row], around[1, 2, row], around[1, 3, row]
        _sum_of_three(g[0, row], carry[0, row], back[row], total)
        if not alive[row]:
            d_x[row, :, :] = 0
            d_h[row, :, :] = 0
            continue
        _new_of_gru_grad(total, z, n, d_x[row, 2])
        _through_sigmoid(d_x[row, 2], around[1, 4, row], r, d_x[row, 0])
        _update_of_gru_grad(total, around[0, 0, row], n, z, d_x[row, 1])
        _copy(d_x[row, 0], d_h[row, 0])
        _copy(d_x[row, 1], d_h[row, 1])
        _product(d_x[row, 2], r, d_h[row, 2])
        _scale(z, total)


@jit
def _tanh_of(x, out):
    for j in range(out.size):
        out[j] = tanh(x[j])


@jit
def _add_through_output(d, o, t, out):
    for j in range(out.size):
        out[j] += d[j] * o[j] * (1 - t[j] * t[j])


@jit
def _lstm_grad(lo, hi, g, carry, back, around, alive, d_x, d_state):
    for row in range(lo, hi):
        d, d_c, t = d_state[0, row], d_state[1, row], d_x[row, 0]
        i, f, new, o = around[1, 2, row], around[1, 3, row], around[1, 4, row], around[1, 5, row]
        _sum_of_three(g[0, row], carry[0, row], back[row], d)
        _sum_of_two(g[1, row], carry[1, row], d_c)
        if not alive[row]:
            d_x[row, :, :] = 0
            continue
        _tanh_of(around[1, 1, row], t)  # the place of the gradient of i, which comes last
        _add_through_output(d, o, t, d_c)
        _through_sigmoid(d, t, o, d_x[row, 3])
        _through_sigmoid(d_c, around[0, 1, row], f, d_x[row, 1])
        _through_tanh(d_c, i, new, d_x[row, 2])
        _through_sigmoid(d_c, new, i, d_x[row, 0])
        _scale(f, d_c)
        d[:] = 0


def _cell(template, name, weight):
    run = ranged(template, name, writes=(4,), whole=(2, 4), weight=weight)

    def kernel(x, h, before, alive, out, *numbers):
        n, gates, width = x.shape
        run(n, gates * width, x, h, before, alive, out, *numbers)

    return kernel


def _cell_grad(template, name, written):
    state = 5 + written  # where d_state stands
    run = ranged(template, name, writes=tuple(range(5, state + 1)), whole=(0, 1, 3, state), weight=4)

    def kernel(*arguments):
        n, gates, width = arguments[5].shape
        run(n, gates * width, *arguments)

    return kernel


KERNELS = {
    "rnn_cell": _cell(_rnn, "rnn_cell", 8),
    "gru_cell": _cell(_gru, "gru_cell", 8),
    "lstm_cell": _cell(_lstm, "lstm_cell", 8),
    "rnn_cell_grad": _cell_grad(_rnn_grad, "rnn_cell_grad", 2),
    "gru_cell_grad": _cell_grad(_gru_grad, "gru_cell_grad", 3),
    "lstm_cell_grad": _cell_grad(_lstm_grad, "lstm_cell_grad", 2),
}
