"""Recurrent layers: a whole sequence in one direction, x (steps, n, gates, width), as one row of the op table.

x is what the inputs add to each gate; weight (gates * width, width) and bias (gates * width,) make of h what it adds;
state (states, n, width) is where the sequence begins. A step is a product and a cell's kernel, forward and backward;
the gradient of the weights is one product over all steps. `alive` (steps, n): where it is False, a row keeps its state.

`recurrent_run` computes all that backward needs: who has it hands it over as `run`, and it is not computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..grad_mode import is_recording
from .elementwise import relu_grad, sigmoid, sigmoid_grad, tanh, tanh_grad, where_op
from .movement import cat, getitem, reshape_op, stack
from .products import linear, matmul_op
from .table import Op, Tensor, contiguous, define


class Cell(NamedTuple):
    """kernel(x, h, before, alive, out, *numbers), and that of its backward pass; see kernels/reference_cells.py.

    gates, slots, states: how many x has, out has, and out begins with. shares: do x and h get one gradient?
    gradient(d, x, h, before): the kernel of backward as ops, for derivatives of derivatives.
    """

    kernel: str
    gates: int
    slots: int
    states: int
    shares: bool
    gradient: Callable[..., Any]
    numbers: tuple[bool, ...] = ()


def _rnn(d, x, h, before, relu=False):
    s = x[0] + h[0]
    gate = relu_grad(d[0], s) if relu else tanh_grad(d[0], tanh(s))
    return [gate], [gate], [d[0] * 0.0]


def _gru(d, x, h, before):
    r, z = sigmoid(x[0] + h[0]), sigmoid(x[1] + h[1])
    n = tanh(x[2] + r * h[2])
    new = tanh_grad(d[0] * (1.0 - z), n)
    reset, update = sigmoid_grad(new * h[2], r), sigmoid_grad(d[0] * (before[0] - n), z)
    return [reset, update, new], [reset, update, new * r], [d[0] * z]


def _lstm(d, x, h, before):
    i, f, o = (sigmoid(x[k] + h[k]) for k in (0, 1, 3))
    g = tanh(x[2] + h[2])
    t = tanh(f * before[1] + i * g)
    d_c = d[1] + tanh_grad(d[0] * o, t)
    d_i, d_f, d_o = sigmoid_grad(d_c * g, i), sigmoid_grad(d_c * before[1], f), sigmoid_grad(d[0] * t, o)
    gates = [d_i, d_f, tanh_grad(d_c * i, g), d_o]
    return gates, gates, [d[0] * 0.0, d_c * f]


CELLS = {
    "rnn_tanh": Cell("rnn_cell", 1, 1, 1, True, _rnn, (False,)),
    "rnn_relu": Cell("rnn_cell", 1, 1, 1, True, partial(_rnn, relu=True), (True,)),
    "gru": Cell("gru_cell", 3, 5, 1, False, _gru),
    "lstm": Cell("lstm_cell", 4, 6, 2, True, _lstm),
}


def _order(steps: int, reverse: bool) -> range:
    return range(steps - 1, -1, -1) if reverse else range(steps)


def _run(device, x, weight, bias, state, alive, cell, reverse):
    """(steps + 1, slots, n, width): the state at the beginning, and the slots of each step as they follow."""
    kind, (steps, n, gates, width) = CELLS[cell], x.shape
    x, bias, alive, across = (contiguous(device, a) for a in (x, bias, alive, weight.T))
    run = device.empty((steps + 1, kind.slots, n, width), x.dtype)
    device.fill(run[0], 0)
    device.copy(state, run[0, : kind.states])
    h = device.empty((n, gates * width), x.dtype)  # (n, width) @ (width, gates * width)
    advance = getattr(device, kind.kernel)
    for number, t in enumerate(_order(steps, reverse)):
        device.linear(run[number, 0], across, bias, h)
        advance(x[t], h.reshape(n, gates, width), run[number], alive[t], run[number + 1], *kind.numbers)
    return run


def _states(device, x, weight, bias, state, alive, cell, reverse, run: Any = None):
    known = _run(device, x, weight, bias, state, alive, cell, reverse) if run is None else run._data
    steps, n, _, width = x.shape
    out = device.empty((steps, CELLS[cell].states, n, width), x.dtype)
    states = known[1:, : CELLS[cell].states]
    device.copy(states[::-1] if reverse else states, out)
    return out


def _parts(cut: Callable[..., Any], cell: str, shape: tuple[int, ...]) -> list[Any]:
    """What `recurrent_grad` returns side by side, for x of a shape: the gradients of x, of what h adds, of the state.

    cut(begin, end, shape): a part of it.
    """
    kind = CELLS[cell]
    shapes = [shape] * (1 if kind.shares else 2) + [(kind.states, shape[1], shape[3])]
    begins = np.cumsum([0, *(int(np.prod(s)) for s in shapes)]).tolist()
    parts = [cut(begin, end, s) for begin, end, s in zip(begins, begins[1:], shapes, strict=False)]
    return [parts[0], *parts] if kind.shares else parts


def _grad(device, g, x, weight, bias, state, alive, cell, reverse, run: Any = None):
    kind, (steps, n, gates, width) = CELLS[cell], x.shape
    g, x, weight, alive = (contiguous(device, a) for a in (g, x, weight, alive))
    known = _run(device, x, weight, bias, state, alive, cell, reverse) if run is None else run._data
    size = x.size * (1 if kind.shares else 2) + kind.states * n * width
    out = device.empty((size,), x.dtype)
    d_x, d_h, d_state = _parts(lambda begin, end, shape: out[begin:end].reshape(shape), cell, x.shape)
    carry, spare = (device.empty(d_state.shape, x.dtype) for _ in range(2))
    back = device.empty((n, width), x.dtype)
    device.fill(carry, 0)
    device.fill(back, 0)
    retreat = getattr(device, f"{kind.kernel}_grad")
    for number, t in reversed(list(enumerate(_order(steps, reverse)))):
        of_gates = (d_x[t],) if kind.shares else (d_x[t], d_h[t])
        retreat(g[t], carry, back, known[number : number + 2], alive[t], *of_gates, spare, *kind.numbers)
        device.matmul(d_h[t].reshape(n, gates * width), weight, back, False, False)
        carry, spare = spare, carry
    device.copy(carry, d_state)
    device.add(carry[0], back, d_state[0])
    return out


def _at(x: Tensor, *key: Any) -> Tensor:
    return getitem(x, key=(*key, Ellipsis))


def _grad_as_ops(g, y, x, weight, bias, state, alive, cell, reverse):
    """What `recurrent_grad` computes, as ops that can be differentiated again."""
    kind, (steps, n, gates, width) = CELLS[cell], x.shape
    order, parts = _order(steps, reverse), ([None] * steps, [None] * steps)
    carry: list[Any] = [None] * kind.states
    for number in reversed(range(steps)):
        t = order[number]
        known = state if number == 0 else _at(y, order[number - 1])
        before = [_at(known, s) for s in range(kind.states)]
        h = reshape_op(linear(before[0], weight.T, bias), shape=(n, gates, width))
        d = [_at(g, t, s) if c is None else _at(g, t, s) + c for s, c in enumerate(carry)]
        of_gates = [[_at(a, slice(None), k) for k in range(gates)] for a in (_at(x, t), h)]
        d_x, d_h, d_state = kind.gradient(d, *of_gates, before)
        goes_on = reshape_op(_at(alive, t), shape=(n, 1))
        for part, grads in zip(parts, (d_x, d_h), strict=True):
            part[t] = stack([where_op(goes_on, grad, 0.0) for grad in grads], 1)
        carry = [where_op(goes_on, *pair) for pair in zip(d_state, d, strict=True)]
        carry[0] = carry[0] + matmul_op(reshape_op(parts[1][t], shape=(n, gates * width)), weight)
    return stack(parts[0]), stack(parts[1]), stack(carry)


def _shared(g, y, x, weight, bias, state, alive, cell, reverse, run=None):
    """The gradients of x, of what h adds, and of the state."""
    if is_recording():
        return _grad_as_ops(g, y, x, weight, bias, state, alive, cell, reverse)
    packed = recurrent_grad(g, x, weight, bias, state, alive, cell=cell, reverse=reverse, run=run)
    return _parts(lambda begin, end, shape: reshape_op(_at(packed, slice(begin, end)), shape=shape), cell, x.shape)


def _rows(x: Tensor) -> Tensor:
    """(steps, n, ...) as a matrix."""
    return reshape_op(x, shape=(x.shape[0] * x.shape[1], x.size // max(1, x.shape[0] * x.shape[1])))


def _weight_vjp(g, y, x, weight, bias, state, alive, shared, reverse, **_):
    first, rest = _at(state, slice(0, 1)), _at(y, slice(1, None) if reverse else slice(-1), 0)
    before = cat([rest, first] if reverse else [first, rest])
    return matmul_op(_rows(before), _rows(shared[1]), transpose_a=True).T  # faster than the product that needs no .T


# These two are called by `recurrent` alone, where nothing is recorded: derivatives are those of functions of x.
recurrent_run = Op("recurrent_run", _run, (None,) * 5, promotes=(0, 1, 2, 3), floating=True)
recurrent_grad = Op("recurrent_grad", _grad, (None,) * 6, promotes=(0, 1, 2, 3, 4), floating=True)
recurrent_op = define(
    "recurrent",  # (steps, states, n, width): the states after each step
    _states,
    lambda g, y, *_, shared, **at: shared[0],
    _weight_vjp,
    lambda g, y, *_, shared, **at: _rows(shared[1]),  # summed over the rows by the backward pass
    lambda g, y, *_, shared, **at: shared[2],
    None,
    shared=_shared,
    promotes=(0, 1, 2, 3),
    floating=True,
)


def recurrent(*inputs: Tensor, cell: str, reverse: bool) -> Tensor:
    """x, weight, bias, state, alive -> the states after each step (steps, states, n, width)."""
    run = recurrent_run(*inputs, cell=cell, reverse=reverse)
    return recurrent_op(*inputs, cell=cell, reverse=reverse, run=run)
