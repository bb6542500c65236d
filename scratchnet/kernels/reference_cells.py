"""The reference device's recurrent cells: one step of a batch as plain NumPy. What holds for reference.py holds here.

x and h (n, gates, width) are what the input and the state before add to each gate, by products that are done already.
`before` and `out` (slots, n, width) are all that is kept of a step: first the states, then what backward needs. A row
that is not `alive` (n,) keeps its states, and the rest of its slots is 0: its sequence is over, or has not begun.
"""

import numpy as np

from .reference import sigmoid


def _gate(x):
    out = np.empty_like(x)
    sigmoid(x, out)
    return out


def _keep(before, alive, out, states):
    """Rows that are not alive."""
    rest = ~alive
    out[:, rest] = 0
    out[:states, rest] = before[:states, rest]


def rnn_cell(x, h, before, alive, out, relu):
    """out = (h,), h = tanh(x + h), or relu of it (Elman 1990)."""
    gate = x[:, 0] + h[:, 0]
    out[0] = np.maximum(gate, 0) if relu else np.tanh(gate)
    _keep(before, alive, out, 1)


def gru_cell(x, h, before, alive, out):
    """out = (h, r, z, n, h_n): r, z = sigmoid(x + h), n = tanh(x_n + r * h_n), h = n + z * (h before - n).

    Gates in this order: r, z, n. Cho et al. 2014, with r behind the product, as in cuDNN and PyTorch.
    """
    r, z = _gate(x[:, 0] + h[:, 0]), _gate(x[:, 1] + h[:, 1])
    n = np.tanh(x[:, 2] + r * h[:, 2])
    for slot, value in enumerate((n + z * (before[0] - n), r, z, n, h[:, 2])):
        out[slot] = value
    _keep(before, alive, out, 1)


def lstm_cell(x, h, before, alive, out):
    """out = (h, c, i, f, g, o): i, f, o = sigmoid(x + h), g = tanh(x + h), c = f * c before + i * g, h = o * tanh(c).

    Gates in this order: i, f, g, o. Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000.
    """
    i, f, o = (_gate(x[:, k] + h[:, k]) for k in (0, 1, 3))
    g = np.tanh(x[:, 2] + h[:, 2])
    c = f * before[1] + i * g
    for slot, value in enumerate((o * np.tanh(c), c, i, f, g, o)):
        out[slot] = value
    _keep(before, alive, out, 2)


# --- backward: the gradient of the states (states, n, width) is the sum of three. `g` comes from what reads the states,
# `carry` from the step behind by way of its elements, `back` (n, width), of h alone, by way of its product. around
# (2, slots, n, width): the slots before and after the step. d_x, d_h: the gradients of x and h; d_state: of the states
# before, without the product's share. A row that is not alive hands on the sum.


def _upstream(g, carry, back):
    sums = g + carry
    sums[0] += back
    return sums


def _pass(sums, alive, d_state, *of_gates):
    rest = ~alive
    d_state[:, rest] = sums[:, rest]
    for d in of_gates:
        d[rest] = 0


def rnn_cell_grad(g, carry, back, around, alive, d_x, d_state, relu):
    sums, after = _upstream(g, carry, back), around[1]
    d_x[:, 0] = np.where(after[0] > 0, sums[0], 0) if relu else sums[0] * (1 - after[0] * after[0])
    d_state[...] = 0
    _pass(sums, alive, d_state, d_x)


def gru_cell_grad(g, carry, back, around, alive, d_x, d_h, d_state):
    sums, (before, (_, r, z, n, h_n)) = _upstream(g, carry, back), around
    (d,) = sums
    d_n = d * (1 - z) * (1 - n * n)
    d_x[:, 0] = d_h[:, 0] = d_n * h_n * r * (1 - r)
    d_x[:, 1] = d_h[:, 1] = d * (before[0] - n) * z * (1 - z)
    d_x[:, 2], d_h[:, 2] = d_n, d_n * r
    d_state[0] = d * z
    _pass(sums, alive, d_state, d_x, d_h)


def lstm_cell_grad(g, carry, back, around, alive, d_x, d_state):
    sums, (before, (_, c, i, f, new, o)) = _upstream(g, carry, back), around
    d, d_c = sums
    t = np.tanh(c)
    d_c = d_c + d * o * (1 - t * t)
    d_x[:, 0] = d_c * new * i * (1 - i)
    d_x[:, 1] = d_c * before[1] * f * (1 - f)
    d_x[:, 2] = d_c * i * (1 - new * new)
    d_x[:, 3] = d * t * o * (1 - o)
    d_state[0], d_state[1] = 0, d_c * f
    _pass(sums, alive, d_state, d_x)
