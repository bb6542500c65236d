"""Recurrent cells: x, h (n, gates, width), before (slots, n, width), alive (n,). What holds for oracles holds here.

A cell is written for one row of the batch, with scipy's expit; `of_rows` puts rows together.
"""

import numpy as np

from . import special

expit = special("expit")


def of_rows(row, states):
    """row(x, h, before) -> slots, for each row that is alive."""

    def cell(x, h, before, alive, **numbers):
        out = np.zeros(before.shape, x.dtype)
        for i in range(len(x)):
            if alive[i]:
                out[:, i] = row(x[i], h[i], before[:, i], **numbers)
            else:
                out[:states, i] = before[:states, i]
        return out

    return cell


def _rnn(x, h, before, relu):
    s = x[0] + h[0]
    return [np.where(s < 0, 0, s) if relu else np.tanh(s)]


def _gru(x, h, before):
    r, z = expit(x[0] + h[0]), expit(x[1] + h[1])
    n = np.tanh(x[2] + r * h[2])
    return (1 - z) * n + z * before[0], r, z, n, h[2]


def _lstm(x, h, before):
    i, f, o = (expit(x[k] + h[k]) for k in (0, 1, 3))
    g = np.tanh(x[2] + h[2])
    c = f * before[1] + i * g
    return o * np.tanh(c), c, i, f, g, o


def _gate_size(x, h):
    """A relative error e of s = x + h is one of up to abs(s) * e of sigmoid(s)."""
    s = x + h
    return expit(s) * (1 + np.abs(s))


def _gru_size(x, h, before):
    r, z = _gate_size(x[0], h[0]), _gate_size(x[1], h[1])
    n = np.abs(x[2]) + r * np.abs(h[2])  # the slope of tanh is at most 1
    return n + z * (np.abs(before[0]) + n), r, z, n, np.abs(h[2])


def _lstm_size(x, h, before):
    i, f, o = (_gate_size(x[k], h[k]) for k in (0, 1, 3))
    g = np.abs(np.tanh(x[2] + h[2]))
    c = f * np.abs(before[1]) + i * g
    return o * c, c, i, f, g, o


rnn_cell, gru_cell, lstm_cell = of_rows(_rnn, 1), of_rows(_gru, 1), of_rows(_lstm, 2)
gru_cell_size, lstm_cell_size = of_rows(_gru_size, 1), of_rows(_lstm_size, 2)


def grad_of_rows(row, gates, d_h):
    """row(d, before, after, sign) -> (d_x, d_h, d_state); without d_h if that is no output."""

    def cell_grad(g, carry, back, around, alive, sign=-1, **numbers):
        d, (before, after) = g + carry, around
        d[0] += back
        n, width = back.shape
        d_x, d_hidden, d_state = np.zeros((n, gates, width), g.dtype), np.zeros((n, gates, width), g.dtype), d.copy()
        for i in np.flatnonzero(alive):
            d_x[i], d_hidden[i], d_state[:, i] = row(d[:, i], before[:, i], after[:, i], sign, **numbers)
        return (d_x, d_hidden, d_state) if d_h else (d_x, d_state)

    return cell_grad


def _rnn_grad(d, before, after, sign, relu):
    gate = d[0] * (after[0] > 0) if relu else d[0] * (1 + sign * after[0] ** 2)
    return [gate], [gate], [0 * gate]


def _gru_grad(d, before, after, sign):
    _, r, z, n, h_n = after
    new = d[0] * (1 + sign * z) * (1 + sign * n**2)
    reset, update = new * h_n * r * (1 + sign * r), d[0] * (before[0] + sign * n) * z * (1 + sign * z)
    return [reset, update, new], [reset, update, new * r], [d[0] * z]


def _lstm_grad(d, before, after, sign):
    _, c, i, f, g, o = after
    t = np.tanh(c)
    d_c = d[1] + d[0] * o * (1 + sign * t**2)
    d_x = [
        d_c * g * i * (1 + sign * i),
        d_c * before[1] * f * (1 + sign * f),
        d_c * i * (1 + sign * g**2),
        d[0] * t * o * (1 + sign * o),
    ]
    return d_x, d_x, [0 * d_c, d_c * f]


rnn_cell_grad = grad_of_rows(_rnn_grad, 1, False)
gru_cell_grad = grad_of_rows(_gru_grad, 3, True)
lstm_cell_grad = grad_of_rows(_lstm_grad, 4, False)


def all_added(oracle):
    """The oracle with every term replaced by its absolute value, and differences by sums."""
    return lambda *arrays, **numbers: oracle(*map(np.abs, arrays), sign=1, **numbers)
