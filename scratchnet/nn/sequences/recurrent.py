"""Recurrent layers under PyTorch's names: RNN, GRU and LSTM over whole sequences, and their cells for single steps.

Parameters have PyTorch's names and shapes: weight_ih_l0 (gates * hidden_size, in) and so on, the gates in its order.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from ... import checks, ops
from ...errors import ShapeError
from ...functions import stack
from ...tensor import ArrayLike, Tensor, as_tensor
from .. import functional as F
from .. import init
from ..layers import LARGEST
from ..module import Module, Parameter
from .functions import reached, recurrence

GATES = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}
PARTS = "weight_ih", "weight_hh", "bias_ih", "bias_hh"


class _Recurrent(Module):
    """Base. All parameters start as U(-1 / sqrt(hidden_size), 1 / sqrt(hidden_size)), as in PyTorch; float32."""

    _cell = "gru"
    weight_ih: Parameter
    weight_ih_l0: Parameter

    def _set(self, input_size: Any, hidden_size: Any, bias: Any) -> None:
        name = type(self).__name__
        self.input_size = checks.integer(f"{name}: input_size", input_size, 1, LARGEST)
        self.hidden_size = checks.integer(f"{name}: hidden_size", hidden_size, 1, LARGEST)
        self.bias = checks.flag(f"{name}: bias", bias)

    def _add(self, suffix: str, inputs: int) -> None:
        """The parameters of one layer in one direction."""
        rows = GATES[self._cell] * self.hidden_size
        shapes = (rows, inputs), (rows, self.hidden_size), (rows,), (rows,)
        for part, shape in zip(PARTS, shapes, strict=True):
            if self.bias or len(shape) == 2:
                setattr(self, part + suffix, Parameter(np.empty(shape, np.float32)))

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            init.uniform_(parameter, -bound, bound)

    def _weights(self, suffix: str) -> tuple[Any, ...]:
        return tuple([getattr(self, part + suffix, None) for part in PARTS])

    def _states(self, hx: Any, like: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
        """The states to begin with: h, of an LSTM h and c, each of this shape; zeros for None."""
        name, is_lstm = type(self).__name__, self._cell == "lstm"
        if hx is None:
            zeros = as_tensor(np.zeros(shape, like.dtype), like)
            return [zeros, zeros] if is_lstm else [zeros]
        if is_lstm and not (isinstance(hx, tuple | list) and len(hx) == 2):
            checks.refuse(f"{name}: hx", "a pair (h, c)", hx)
        states = [as_tensor(state, like) for state in (hx if is_lstm else (hx,))]
        for state in states:
            if state.shape != shape:
                raise ShapeError(f"{name}: hx: expected shape {shape}, got {state.shape}")
        return states


class _Layers(_Recurrent):
    """Base of the layers; see GRU."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ):
        name = type(self).__name__
        self._set(input_size, hidden_size, bias)
        self.num_layers = checks.integer(f"{name}: num_layers", num_layers, 1, LARGEST)
        self.batch_first = checks.flag(f"{name}: batch_first", batch_first)
        self.dropout = checks.number(f"{name}: dropout", dropout, "[0, 1]")
        self.bidirectional = checks.flag(f"{name}: bidirectional", bidirectional)
        if self.dropout and self.num_layers == 1:
            warnings.warn(
                f"{name}: dropout={dropout} acts between layers, and there is one; write num_layers=2, or dropout=0",
                stacklevel=2,
            )
        for layer in range(self.num_layers):
            for suffix in self._suffixes(layer):
                self._add(suffix, self.hidden_size * len(self._suffixes(0)) if layer else self.input_size)
        self.reset_parameters()

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"] if self.bidirectional else [f"_l{layer}"]

    def _outputs(self, x: ArrayLike, hx: Any, lengths: ArrayLike | None) -> tuple[Tensor, Tensor]:
        """The outputs, and the last states (states, num_layers * directions, n, hidden_size)."""
        name = type(self).__name__
        x = as_tensor(x, self.weight_ih_l0)
        if x.ndim != 3 or x.shape[2] != self.input_size or not x.shape[int(self.batch_first)]:
            remedy = "; of a single one take x.unsqueeze(0)" if x.ndim == 2 and self.batch_first else ""
            axes = "n, steps" if self.batch_first else "steps, n"
            raise ShapeError(
                f"{name}: expected x ({axes}, {self.input_size}) of at least one step, got {x.shape}{remedy}"
            )
        x = x.transpose(0, 1) if self.batch_first else x
        steps, n, _ = x.shape
        directions, alive = len(self._suffixes(0)), reached(name, lengths, steps, x, n)
        if lengths is not None:
            x = ops.where(alive.unsqueeze(2), x, 0.0)  # what stands behind a sequence may be NaN
        begin = stack(self._states(hx, x, (self.num_layers * directions, n, self.hidden_size)), 1)
        ends: list[Tensor] = []
        for layer in range(self.num_layers):
            x = F.dropout(x, self.dropout, self.training) if layer else x
            outputs = []
            for reverse, suffix in enumerate(self._suffixes(layer)):
                states = recurrence(self._cell, x, begin[len(ends)], self._weights(suffix), alive, bool(reverse))
                outputs.append(states[:, 0])
                ends.append(states[0 if reverse else -1])
            x = ops.cat(outputs, 2) if self.bidirectional else outputs[0]
            if lengths is not None:
                x = ops.where(alive.unsqueeze(2), x, 0.0)
        return (x.transpose(0, 1) if self.batch_first else x), stack(ends, 1)

    def extra_repr(self) -> str:
        usual = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        changed = [f", {what}={getattr(self, what)}" for what, value in usual.items() if getattr(self, what) != value]
        return f"{self.input_size}, {self.hidden_size}" + "".join(changed)


class GRU(_Layers):
    """Gated recurrent units: x (steps, n, input_size) -> (outputs (steps, n, hidden_size), last states h).

    r, z = sigmoid(W x + b + U h + c), n = tanh(W x + b + r * (U h + c)), h = (1 - z) * n + z * h, each with its own
    weights (Cho et al. 2014, with r behind the product, as in PyTorch).

    num_layers: each layer reads the outputs of the one below, in training with dropout between them.
    batch_first: x and the outputs are (n, steps, ...). bidirectional: a second layer reads from the end; its outputs
    stand behind the others, 2 * hidden_size in all.

    layer(x, hx=None, lengths=None). hx: the states to begin with (num_layers * directions, n, hidden_size), zeros
    unless given; the last states have that shape, too. lengths (n,): sequence i consists of its first lengths[i] steps.
    Outputs behind them are 0, the last states are those after its own last step, and the other direction begins there.
    Raises ShapeError, DtypeError, IndexOutOfRangeError for a length outside [0, steps].
    """

    def forward(self, x: ArrayLike, hx: Any = None, lengths: ArrayLike | None = None) -> tuple[Tensor, Tensor]:
        outputs, (h,) = self._outputs(x, hx, lengths)
        return outputs, h


class LSTM(_Layers):
    """Long short-term memory: x (steps, n, input_size) -> (outputs (steps, n, hidden_size), (h, c) at the end).

    i, f, o = sigmoid(W x + b + U h + d), g = tanh(W x + b + U h + d), c = f * c + i * g, h = o * tanh(c), each with its
    own weights (Hochreiter and Schmidhuber 1997, Gers et al. 2000). hx is a pair (h, c); the rest as in GRU.
    """

    _cell = "lstm"

    def forward(
        self, x: ArrayLike, hx: Any = None, lengths: ArrayLike | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        outputs, (h, c) = self._outputs(x, hx, lengths)
        return outputs, (h, c)


class RNN(_Layers):
    """h = tanh(W x + b + U h + c), or relu of it with nonlinearity="relu" (Elman 1990); the rest as in GRU."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ):
        self._cell = f"rnn_{checks.one_of('RNN: nonlinearity', nonlinearity, ('tanh', 'relu'))}"
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)

    def forward(self, x: ArrayLike, hx: Any = None, lengths: ArrayLike | None = None) -> tuple[Tensor, Tensor]:
        outputs, (h,) = self._outputs(x, hx, lengths)
        return outputs, h


class _Cell(_Recurrent):
    """Base of the cells; see GRUCell."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True):
        self._set(input_size, hidden_size, bias)
        self._add("", self.input_size)
        self.reset_parameters()

    def _after(self, x: ArrayLike, hx: Any) -> Tensor:
        """The next states (states, n, hidden_size)."""
        x = as_tensor(x, self.weight_ih)
        if x.ndim != 2 or x.shape[1] != self.input_size:
            raise ShapeError(f"{type(self).__name__}: expected x (n, {self.input_size}), got {x.shape}")
        state = stack(self._states(hx, x, (len(x), self.hidden_size)))
        return recurrence(self._cell, x.unsqueeze(0), state, self._weights(""), reached("", None, 1, x, len(x)))[0]

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}{'' if self.bias else ', bias=False'}"


class GRUCell(_Cell):
    """One step of a GRU: x (n, input_size), h (n, hidden_size), zeros unless given -> the next h."""

    def forward(self, x: ArrayLike, hx: ArrayLike | None = None) -> Tensor:
        return self._after(x, hx)[0]


class LSTMCell(_Cell):
    """One step of an LSTM: x (n, input_size), the pair (h, c), zeros unless given -> the next (h, c)."""

    _cell = "lstm"

    def forward(self, x: ArrayLike, hx: Any = None) -> tuple[Tensor, Tensor]:
        h, c = self._after(x, hx)
        return h, c


class RNNCell(_Cell):
    """One step of an RNN: x (n, input_size), h (n, hidden_size), zeros unless given -> the next h."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh"):
        self._cell = f"rnn_{checks.one_of('RNNCell: nonlinearity', nonlinearity, ('tanh', 'relu'))}"
        super().__init__(input_size, hidden_size, bias)

    def forward(self, x: ArrayLike, hx: ArrayLike | None = None) -> Tensor:
        return self._after(x, hx)[0]
