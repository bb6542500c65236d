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
from .trace import Entry
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


def takes(module: Module, args: tuple) -> bool:
    """Is a call of this module one node?"""
    if type(module) is nn.EmbeddingBag and np.ndim(args[0]) != 2:
        return False
    return type(module) in LAYERS and "forward" not in vars(module) and len(args) == 1


def write(w: Writer, e: Entry) -> None:
    """Adds the nodes of one layer."""
    w.values[e.outputs[0].name] = LAYERS[type(e.what)](w, e.what, e, *map(w.name, e.inputs))
