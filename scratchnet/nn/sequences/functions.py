"""What the layers of sequences compute, as functions of tensors; functional.py hands on what is public."""

from __future__ import annotations

import numpy as np

from ... import ops
from ...errors import ShapeError
from ...tensor import ArrayLike, Tensor, as_tensor


def recurrence(
    cell: str, x: Tensor, state: Tensor, weights: tuple[Tensor | None, ...], alive: Tensor, reverse: bool = False
) -> Tensor:
    """One recurrent layer in one direction: the states after each step (steps, states, n, width).

    x (steps, n, in), state (states, n, width), alive (steps, n) of booleans. weights: weight_ih (gates * width, in),
    weight_hh (gates * width, width), and the biases (gates * width,) of both, or None.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    assert weight_ih is not None and weight_hh is not None
    steps, n, _ = x.shape
    width = weight_hh.shape[1]
    gates = ops.linear(x, weight_ih.T, bias_ih).reshape(steps, n, len(weight_hh) // width, width)
    if bias_hh is None:
        bias_hh = as_tensor(np.zeros(len(weight_hh), gates.dtype), x)
    return ops.recurrent(gates, weight_hh, bias_hh, state, alive, cell=cell, reverse=reverse)


def reached(name: str, lengths: ArrayLike | None, steps: int, like: Tensor, n: int) -> Tensor:
    """(steps, n) of booleans: has a sequence a step of this number? Without lengths all have.

    Raises ShapeError, DtypeError, or IndexOutOfRangeError for a length outside [0, steps].
    """
    if lengths is None:
        return as_tensor(np.ones((steps, n), bool), like)
    if not isinstance(lengths, Tensor):
        lengths = Tensor(lengths, device=like.device)
    if lengths.shape != (n,):
        raise ShapeError(f"{name}: lengths: expected shape {(n,)}, one number a sequence, got {lengths.shape}")
    numbers = ops.checked_index(f"{name}: lengths", lengths, steps + 1, from_end=False)
    return as_tensor(np.arange(steps)[:, None], like) < as_tensor(numbers, like)
