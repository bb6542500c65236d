"""The table of layers: those that ONNX has as one node, which says more than the ops that they consist of.

An entry is a function (writer, layer, entry, *names of the inputs) -> the name of the output. It holds for exactly this
class: a subclass, whose `forward` may do anything, is traced op by op, and so is every class that is not here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ... import nn
from ...nn import Module
from ...tensor import Tensor
from .trace import Entry, tensors_in
from .writer import Writer

Row = Callable[..., str]


def _name(w: Writer, e: Entry, layer: Module, parameter: str, default: float, shape: Any) -> str:
    """The name of a parameter of the layer, or a constant in its place."""
    t = getattr(layer, parameter)
    if t is None:
        return w.constant(np.full(shape, default), e.inputs[0].array.dtype)
    return w.weight(t)


def _linear(w: Writer, m: Any, e: Entry, x: str) -> str:
    if m.bias is not None and len(e.inputs[0].shape) == 2:
        return w.node("Gemm", x, w.weight(m.weight), w.weight(m.bias))
    y = w.node("MatMul", x, w.weight(m.weight))
    return y if m.bias is None else w.node("Add", y, w.weight(m.bias))


def _batch_norm(w: Writer, m: Any, e: Entry, x: str) -> str:
    weight, bias = _name(w, e, m, "weight", 1, m.num_features), _name(w, e, m, "bias", 0, m.num_features)
    statistics = w.weight(m.running_mean), w.weight(m.running_var)
    return w.node("BatchNormalization", x, weight, bias, *statistics, epsilon=m.eps, momentum=1 - m.momentum)


def _layer_norm(w: Writer, m: Any, e: Entry, x: str) -> str:
    shape = m.normalized_shape
    weight, bias = _name(w, e, m, "weight", 1, shape), _name(w, e, m, "bias", 0, shape)
    return w.node("LayerNormalization", x, weight, bias, axis=-len(shape), epsilon=m.eps)


def _conv1d(w: Writer, m: Any, e: Entry, x: str) -> str:
    reach = m.dilation[0] * (m.kernel_size[0] - 1)
    named = {"same": [reach // 2, reach - reach // 2], "valid": [0, 0]}
    pads = named[m.padding] if isinstance(m.padding, str) else [m.padding[0], m.padding[0]]
    options = {"kernel_shape": m.kernel_size, "strides": m.stride, "dilations": m.dilation, "group": m.groups}
    bias = [] if m.bias is None else [w.weight(m.bias)]
    return w.node("Conv", x, w.weight(m.weight), *bias, **options, pads=pads)


def _prelu(w: Writer, m: Any, e: Entry, x: str) -> str:
    slope, axes = w.weight(m.weight), len(e.inputs[0].shape)
    if m.num_parameters > 1 and axes > 2:
        slope = w.node("Reshape", slope, w.integers([m.num_parameters, *[1] * (axes - 2)]))
    return w.node("PRelu", x, slope)


def _clip(w: Writer, m: Any, e: Entry, x: str) -> str:
    low, high = (0, 6) if type(m) is nn.ReLU6 else (m.min_val, m.max_val)
    return w.node("Clip", x, w.number(e, low), w.number(e, high))


def _embedding_bag(w: Writer, m: Any, e: Entry, index: str) -> str:
    """Bags of one length, as rows."""
    rows = w.node("Gather", w.weight(m.weight), index, axis=0)
    reduced = {"sum": "ReduceSum", "mean": "ReduceMean", "max": "ReduceMax"}[m.mode]
    one = w.integers([1])

    def over(name: str, x: str) -> str:
        return w.node(name, x, one, keepdims=0) if name == "ReduceSum" else w.node(name, x, axes=[1], keepdims=0)

    if m.padding_idx is None:
        return over(reduced, rows)
    dtype = m.weight.dtype
    counts = w.node("Not", w.node("Equal", index, w.constant(m.padding_idx, np.int64)))
    counts = w.node("Unsqueeze", counts, w.integers([-1]))  # (bags, length, 1)
    kept = w.node("Where", counts, rows, w.constant(-np.inf if m.mode == "max" else 0, dtype))
    number = over("ReduceSum", w.node("Cast", counts, to=w.onnx.helper.np_dtype_to_tensor_dtype(dtype)))
    if m.mode == "max":  # of no rows 0
        return w.node(
            "Where", w.node("Greater", number, w.constant(0, dtype)), over(reduced, kept), w.constant(0, dtype)
        )
    total = over("ReduceSum", kept)
    return total if m.mode == "sum" else w.node("Div", total, w.node("Max", number, w.constant(1, dtype)))


# The op of ONNX, and where in PyTorch's order of gates those of ONNX stand.
GRU, LSTM, RNN = ("GRU", (1, 0, 2)), ("LSTM", (0, 3, 1, 2)), ("RNN", (0,))  # r z n as z r h; i f g o as i o f c
RECURRENT: dict[type, tuple[str, tuple[int, ...]]] = {
    **{nn.GRU: GRU, nn.LSTM: LSTM, nn.RNN: RNN},
    **{nn.GRUCell: GRU, nn.LSTMCell: LSTM, nn.RNNCell: RNN},
}


def _parameters(w: Writer, m: Any, suffixes: list[str]) -> list[str]:
    """Weights and biases, one row a direction; nodes reorder the gates, so that parameters keep names and values."""
    width, (_, order) = m.hidden_size, RECURRENT[type(m)]

    def gates(name: str) -> str:
        parts = [
            w.node("Slice", name, w.integers([k * width]), w.integers([k * width + width]), w.integers([0]))
            for k in order
        ]
        return _joined(w, parts)

    def rows(*parts: str) -> str:
        every = [_joined(w, [gates(w.weight(getattr(m, part + suffix))) for part in parts]) for suffix in suffixes]
        return _joined(w, [w.node("Unsqueeze", own, w.integers([0])) for own in every])

    return [rows("weight_ih"), rows("weight_hh"), rows("bias_ih", "bias_hh") if m.bias else ""]


def _joined(w: Writer, parts: list[str]) -> str:
    return w.node("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]


def _options(m: Any, op: str, directions: int) -> dict[str, Any]:
    options = {"hidden_size": m.hidden_size, "direction": "bidirectional" if directions > 1 else "forward"}
    options |= {"linear_before_reset": 1} if op == "GRU" else {}
    return options | ({"activations": [m._cell[4:].capitalize()] * directions} if op == "RNN" else {})


def _cell(w: Writer, m: Any, e: Entry) -> tuple[str, ...]:
    """A layer over a sequence of one step."""
    op, _ = RECURRENT[type(m)]
    x, *begin = [w.node("Unsqueeze", name, w.integers([0])) for name in map(w.name, e.inputs)]
    outputs = 3 if op == "LSTM" else 2
    _, *ends = w.node(op, x, *_parameters(w, m, [""]), "", *begin, outputs=outputs, **_options(m, op, 1))
    return tuple([w.node("Squeeze", end, w.integers([0])) for end in ends])


def _recurrent(w: Writer, m: Any, e: Entry) -> tuple[str, ...]:
    """One node a layer."""
    op, _ = RECURRENT[type(m)]
    width, directions = m.hidden_size, 2 if m.bidirectional else 1
    given = iter(map(w.name, e.inputs))
    x = next(given)
    begin = [next(given) for _ in ("hc" if op == "LSTM" else "h")] if "hx" in e.params else []
    lengths = w.node("Cast", next(given), to=w.onnx.TensorProto.INT32) if "lengths" in e.params else ""
    x = w.node("Transpose", x, perm=[1, 0, 2]) if m.batch_first else x
    ends: list[list[str]] = [[] for _ in ("hc" if op == "LSTM" else "h")]
    for layer in range(m.num_layers):
        first = [w.integers([layer * directions]), w.integers([(layer + 1) * directions]), w.integers([0])]
        start = [w.node("Slice", state, *first) for state in begin]
        y, *last = w.node(
            op, x, *_parameters(w, m, m._suffixes(layer)), lengths, *start,
            outputs=1 + len(ends), **_options(m, op, directions),
        )  # fmt: skip
        for end, state in zip(ends, last, strict=True):
            end.append(state)
        # (steps, directions, n, width) -> (steps, n, directions * width)
        x = w.node("Reshape", w.node("Transpose", y, perm=[0, 2, 1, 3]), w.integers([0, 0, directions * width]))
    x = w.node("Transpose", x, perm=[1, 0, 2]) if m.batch_first else x
    return x, *[_joined(w, end) for end in ends]


OF_STATES: dict[type, Callable[..., tuple[str, ...]]] = {
    **dict.fromkeys((nn.GRU, nn.LSTM, nn.RNN), _recurrent),
    **dict.fromkeys((nn.GRUCell, nn.LSTMCell, nn.RNNCell), _cell),
}
LAYERS: dict[type, Row] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv1d,
    nn.EmbeddingBag: _embedding_bag,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.Dropout: lambda w, m, e, x: w.node("Dropout", x, w.constant(m.p, np.float32)),
    nn.PReLU: _prelu,
    nn.ReLU6: _clip,
    nn.Hardtanh: _clip,
    nn.LeakyReLU: lambda w, m, e, x: w.node("LeakyRelu", x, alpha=m.negative_slope),
    nn.ELU: lambda w, m, e, x: w.node("Elu", x, alpha=m.alpha),
    nn.SELU: lambda w, m, e, x: w.node("Selu", x),
    nn.Softsign: lambda w, m, e, x: w.node("Softsign", x),
    nn.Softmax: lambda w, m, e, x: w.node("Softmax", x, axis=m.dim),
    nn.LogSoftmax: lambda w, m, e, x: w.node("LogSoftmax", x, axis=m.dim),
}


def _all_tensors(given: dict[str, Any]) -> bool:
    """Is the one argument a tensor? What else it may be, the trace sees as ops."""
    first = next(iter(given.values()), None)
    return len(given) == 1 and isinstance(first[0] if isinstance(first, tuple) else first, Tensor)


TAKEN: dict[type, Callable[[dict[str, Any]], bool]] = {
    **dict.fromkeys(LAYERS, _all_tensors),
    nn.EmbeddingBag: lambda given: _all_tensors(given) and given["indices"].ndim == 2,
    **dict.fromkeys(
        RECURRENT, lambda given: all(len(tensors_in([x])) in (1, 2) for x in given.values() if x is not None)
    ),
}


def write(w: Writer, e: Entry) -> None:
    """Adds the nodes of one layer."""
    if (of_states := OF_STATES.get(type(e.what))) is not None:
        names = of_states(w, e.what, e)
    else:
        names = (LAYERS[type(e.what)](w, e.what, e, *map(w.name, e.inputs)),)
    w.values.update(zip((ref.name for ref in e.outputs), names, strict=True))
