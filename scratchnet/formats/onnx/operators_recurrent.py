"""Recurrent operators of ONNX: GRU, LSTM and RNN, as loops of ours; see operators.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import functions as sn
from ...errors import CheckpointError
from ...nn.sequences.functions import reached, recurrence
from ...tensor import Tensor, as_tensor
from .operators import only, operator

# The cell of ours, its activations, and where in ONNX's order of gates those of ours stand.
CELLS = {
    "GRU": ("gru", ["Sigmoid", "Tanh"], (1, 0, 2)),  # z r h there
    "LSTM": ("lstm", ["Sigmoid", "Tanh", "Tanh"], (0, 2, 3, 1)),  # i o f c there
    "RNN": ("rnn_tanh", ["Tanh"], (0,)),
}


def _ordered(t: Tensor, order: tuple[int, ...], width: int) -> Tensor:
    """The rows of each gate in our order."""
    return sn.cat([t[k * width : (k + 1) * width] for k in order]) if len(order) > 1 else t


@operator(*CELLS)
def recurrent(x, w, r, b=None, lengths=None, h=None, c=None, *, name, direction="forward", **options: Any):
    x, w, r = as_tensor(x), as_tensor(w, x), as_tensor(r, x)
    cell, activations, order = CELLS[name]
    steps, n, _ = x.shape
    width = r.shape[2]
    sides = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
    reverse = sides[only("direction", direction, *sides)]
    allowed = {"activations": activations * len(reverse), "layout": 0, "input_forget": 0}
    allowed |= {"linear_before_reset": 1} if name == "GRU" else {}
    if name == "RNN" and options.get("activations") == ["Relu"] * len(reverse):
        cell = "rnn_relu"
        del options["activations"]
    size = options.pop("hidden_size", width)
    for option, value in options.items():
        only(option, value, *([allowed[option]] if option in allowed else []))
    if name == "GRU" and "linear_before_reset" not in options:
        raise CheckpointError("expected a GRU with linear_before_reset=1, as PyTorch's is, found one without")
    if size != width or len(w) != len(reverse) or len(r) != len(w):
        raise CheckpointError(f"expected weights of {len(reverse)} directions, found others")
    alive = reached(name, None if lengths is None else as_tensor(lengths).astype(np.int64), steps, x, n)
    states = [h, c] if name == "LSTM" else [h]
    outputs, ends = [], []
    for side, backwards in enumerate(reverse):
        zeros = as_tensor(np.zeros((n, width), x.dtype), x)
        begin = sn.stack([zeros if s is None else as_tensor(s, x)[side] for s in states])
        rows = len(order) * width
        biases = (None, None) if b is None else (as_tensor(b, x)[side, :rows], as_tensor(b, x)[side, rows:])
        weights = [None if t is None else _ordered(t, order, width) for t in (w[side], r[side], *biases)]
        run = recurrence(cell, x, begin, tuple(weights), alive, backwards)
        y = run[:, 0]
        outputs.append(y if lengths is None else sn.where(alive.unsqueeze(2), y, 0.0))
        ends.append(run[0 if backwards else -1])
    return (sn.stack(outputs, 1), *sn.stack(ends, 1).unbind(0))
