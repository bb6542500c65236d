"""The table of ops: what each row of scratchnet's op table is in ONNX.

An entry is a function (writer, entry, *names of the inputs) -> the name of the output. Gradients have no entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ...errors import ConfigError
from .trace import Entry, Size
from .writer import Writer

Row = Callable[..., str]
OPS: dict[str, Row] = {}


def op(name: str) -> Callable[[Row], Row]:
    """A decorator that adds a function to the table."""

    def add(row: Row) -> Row:
        OPS[name] = row
        return row

    return add


def _same(name: str, of_booleans: str = "") -> Row:
    """The op of ONNX with the same inputs, and perhaps another one for booleans."""

    def row(w: Writer, e: Entry, *x: str) -> str:
        if of_booleans and e.inputs[0].array.dtype == bool:
            return w.node(of_booleans, *x)
        return w.node(name, *x)

    return row


OPS |= {
    name: _same(theirs)
    for name, theirs in {
        "neg": "Neg", "exp": "Exp", "log": "Log", "sin": "Sin", "cos": "Cos", "sqrt": "Sqrt", "deviation": "Sqrt",
        "abs": "Abs", "sign": "Sign", "floor": "Floor", "ceil": "Ceil", "round": "Round", "tanh": "Tanh",
        "sigmoid": "Sigmoid", "relu": "Relu", "erf": "Erf", "softplus": "Softplus", "sub": "Sub", "div": "Div",
        "pow": "Pow", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual", "eq": "Equal",
        "where": "Where", "linear": "Gemm",
    }.items()
}  # fmt: skip
OPS |= {
    "add": _same("Add", "Or"),
    "mul": _same("Mul", "And"),
    "maximum": _same("Max", "Or"),
    "minimum": _same("Min", "And"),
    "ne": lambda w, e, *x: w.node("Not", w.node("Equal", *x)),
    "silu": lambda w, e, x: w.node("Mul", x, w.node("Sigmoid", x)),
    "log2": lambda w, e, x: w.node("Div", w.node("Log", x), w.number(e, math.log(2))),
    "log10": lambda w, e, x: w.node("Div", w.node("Log", x), w.number(e, math.log(10))),
    "softmax": lambda w, e, x: w.node("Softmax", x, axis=-1),
    "log_softmax": lambda w, e, x: w.node("LogSoftmax", x, axis=-1),
    "logsumexp": lambda w, e, x: w.node("ReduceLogSumExp", x, axes=[-1], keepdims=0),
    "permute": lambda w, e, x: w.node("Transpose", x, perm=e.params["axes"]),
    "broadcast_to": lambda w, e, x: w.node("Expand", x, w.dims(e.params["shape"])),
    "take_rows": lambda w, e, x, index: w.node("Gather", x, index, axis=0),
    "cat": lambda w, e, *x: w.node("Concat", *x, axis=e.params["axis"]),
}


@op("log1p")
def log1p(w: Writer, e: Entry, x: str) -> str:
    """log(1 + x) = x * log(u) / (u - 1) with u = 1 + x rounded: exact also where x is small (Kahan)."""
    one = w.number(e, 1)
    u = w.node("Add", x, one)
    near, far = w.node("Equal", u, one), w.node("Log", u)
    scaled = w.node("Div", w.node("Mul", far, x), w.node("Where", near, one, w.node("Sub", u, one)))
    is_large = w.node("Equal", u, w.number(e, math.inf))  # infinity / infinity is NaN
    return w.node("Where", near, x, w.node("Where", is_large, far, scaled))


@op("expm1")
def expm1(w: Writer, e: Entry, x: str) -> str:
    """exp(x) - 1 = (u - 1) * x / log(u) with u = exp(x) rounded (Kahan); the simple form where |x| > 1/2."""
    one = w.number(e, 1)
    u = w.node("Exp", x)
    simple = w.node("Sub", u, one)
    small = w.node("Clip", x, w.number(e, -0.5), w.number(e, 0.5))
    v = w.node("Exp", small)
    none = w.node("Equal", v, one)
    scaled = w.node("Div", w.node("Mul", w.node("Sub", v, one), small), w.node("Where", none, one, w.node("Log", v)))
    is_far = w.node("Greater", w.node("Abs", x), w.number(e, 0.5))
    return w.node("Where", is_far, simple, w.node("Where", none, x, scaled))


@op("gelu")
def gelu(w: Writer, e: Entry, x: str) -> str:
    """x / 2 * (1 + erf(x / sqrt(2))): Gelu itself is of opset 20."""
    erf = w.node("Erf", w.node("Mul", x, w.number(e, math.sqrt(0.5))))
    return w.node("Mul", w.node("Mul", x, w.number(e, 0.5)), w.node("Add", erf, w.number(e, 1)))


@op("clip")
def clip(w: Writer, e: Entry, x: str) -> str:
    low, high = e.params["low"], e.params["high"]
    bounds = ["" if n in (-math.inf, math.inf) else w.number(e, n) for n in (low, high)]
    return w.node("Clip", x, *bounds)


@op("bounded_log")
def bounded_log(w: Writer, e: Entry, x: str) -> str:
    return w.node("Max", w.node("Log", x), w.number(e, -100))


@op("cast")
def cast(w: Writer, e: Entry, x: str) -> str:
    if e.params["dtype"] == e.inputs[0].array.dtype:
        return w.node("Identity", x)
    return w.node("Cast", x, to=w.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(e.params["dtype"])))


# --- shapes -----------------------------------------------------------------------------------------------------------


@op("reshape")
def reshape(w: Writer, e: Entry, x: str) -> str:
    y = w.reshape(x, e.params["shape"])
    if x in w.pooled:
        w.pooled[y] = w.pooled[x]
    return y


@op("getitem")
def getitem(w: Writer, e: Entry, x: str) -> str:
    """Slice, then the axes that an integer takes away, then the new ones."""
    key, shape = e.params["key"], e.inputs[0].shape
    taken = sum(part is not None and part is not Ellipsis for part in key)
    cuts: dict[int, tuple[Any, Any, Any]] = {}
    gone, new, axis, place = [], [], 0, 0
    for part in key:
        if part is Ellipsis:
            axis, place = axis + len(shape) - taken, place + len(shape) - taken
        elif part is None:
            new.append(place)
            place += 1
        elif isinstance(part, slice):
            cut = _cut(part)
            if cut is not None:
                cuts[axis] = cut
            axis, place = axis + 1, place + 1
        else:
            whole = isinstance(part, Size)
            stop = Size(part.per_batch, part.fixed + 1) if whole else part + 1 if part != -1 else _END
            cuts[axis] = part if whole else int(part), stop, 1
            gone.append(axis)
            axis += 1
    if cuts:
        starts, stops, steps = zip(*cuts.values(), strict=True)
        x = w.node("Slice", x, w.dims(starts), w.dims(stops), w.integers([*cuts]), w.integers(steps))
    x = w.node("Squeeze", x, w.integers(gone)) if gone else x
    x = w.node("Unsqueeze", x, w.integers(new)) if new else x
    return x if cuts or gone or new else w.node("Identity", x)


_END = 2**62


def _cut(part: slice) -> tuple[Any, Any, Any] | None:
    """(start, stop, step) of a slice; None of one that takes all."""
    step = 1 if part.step is None else part.step
    if (part.start, part.stop, step) == (None, None, 1):
        return None
    first, last = (0, _END) if step > 0 else (_END, -_END)
    return first if part.start is None else part.start, last if part.stop is None else part.stop, step


@op("place")
def place(w: Writer, e: Entry, x: str) -> str:
    """Pad, which is what `sn.pad` asks for."""
    key, shape = e.params["key"], e.params["shape"]
    if key[-1] is not Ellipsis or not all(isinstance(k, slice) and k.step in (None, 1) for k in key[:-1]):
        raise unknown(e, "an op that puts a tensor into a larger one")
    before = [k.start or 0 for k in key[:-1]]
    own = e.inputs[0].shape
    after = [_minus(_minus(n, b), m) for n, b, m in zip(shape, before, own, strict=True)]
    return w.node("Pad", x, w.dims([*before, *after]), w.number(e, e.params["value"]))


def _minus(a: Any, b: Any) -> Any:
    (p, q), (r, s) = (n if isinstance(n, Size) else Size(0, n) for n in (a, b))
    return Size(p - r, q - s) if p != r else q - s


@op("take_in_rows")
def take_in_rows(w: Writer, e: Entry, x: str, index: str) -> str:
    if index in w.pooled:  # the elements of windows that are the largest
        return w.reshape(w.pooled[index], e.outputs[0].shape)
    return w.node("GatherElements", x, index, axis=1)


# --- reductions -------------------------------------------------------------------------------------------------------


def _reduced(name: str) -> Row:
    def row(w: Writer, e: Entry, x: str) -> str:
        axes, keepdims = e.params["axes"], int(e.params["keepdims"])
        if not axes:
            return w.node("Identity", x)
        if e.inputs[0].array.dtype != e.outputs[0].array.dtype:
            x = w.node("Cast", x, to=w.onnx.helper.np_dtype_to_tensor_dtype(e.outputs[0].array.dtype))
        if name == "ReduceSum":  # the others take axes as an attribute up to opset 17
            return w.node(name, x, w.integers(axes), keepdims=keepdims)
        return w.node(name, x, axes=axes, keepdims=keepdims)

    return row


OPS |= {name: _reduced(f"Reduce{name.capitalize()}") for name in ("sum", "mean", "max", "min")}


@op("argmax")
def argmax(w: Writer, e: Entry, x: str) -> str:
    axes, keepdims = e.params["axes"], int(e.params["keepdims"])
    if len(axes) == 1:
        return w.node("ArgMax", x, axis=axes[0], keepdims=keepdims)
    y = w.node("ArgMax", w.node("Reshape", x, w.integers([-1])), axis=0, keepdims=0)
    return w.reshape(y, e.outputs[0].shape)


@op("argsort")
def argsort(w: Writer, e: Entry, x: str) -> str:
    n = w.dims(e.inputs[0].shape[-1:])
    return w.node("TopK", x, n, outputs=2, axis=-1, largest=0, sorted=1)[1]


@op("standardize")
def standardize(w: Writer, e: Entry, x: str) -> str:
    d = w.node("Sub", x, w.node("ReduceMean", x, axes=[1], keepdims=1))
    variance = w.node("ReduceMean", w.node("Mul", d, d), axes=[1], keepdims=1)
    return w.node("Div", d, w.node("Sqrt", w.node("Add", variance, w.number(e, e.params["eps"]))))


@op("channel_affine")
def channel_affine(w: Writer, e: Entry, x: str, moments: str, weight: str, bias: str) -> str:
    """Batch norm by given moments, (2, channels)."""
    mean, variance = w.node("Split", moments, outputs=2, axis=0)
    statistics = [w.node("Squeeze", t, w.integers([0])) for t in (mean, variance)]
    return w.node("BatchNormalization", x, weight, bias, *statistics, epsilon=e.params["eps"])


# --- products and windows ---------------------------------------------------------------------------------------------


@op("matmul")
def matmul(w: Writer, e: Entry, a: str, b: str) -> str:
    pair = []
    for name, ref, option in zip((a, b), e.inputs, ("transpose_a", "transpose_b"), strict=True):
        n = len(ref.shape)
        turned = [*range(n - 2), n - 1, n - 2]
        pair.append(w.node("Transpose", name, perm=turned) if e.params.get(option) else name)
    return w.node("MatMul", *pair)


def _pads(lengths: Any, size: Any, window: Any, stride: Any, before: Any, dilation: Any) -> list[int]:
    """The zeros before and after each axis, so many that the windows give this size."""
    after = [
        max((outputs - 1) * step + apart * (k - 1) + 1 - n - zeros, 0)
        for n, outputs, k, step, zeros, apart in zip(lengths, size, window, stride, before, dilation, strict=True)
    ]
    return [*before, *after]


@op("conv2d")
def conv2d(w: Writer, e: Entry, *x: str) -> str:
    p, window = e.params, e.inputs[1].shape[2:]
    pads = _pads(e.inputs[0].shape[2:], p["size"], window, p["stride"], p["padding"], p["dilation"])
    options = {"strides": p["stride"], "dilations": p["dilation"], "group": p["groups"]}
    return w.node("Conv", *x, kernel_shape=window, pads=pads, **options)


@op("conv2d_input")
def conv_transpose2d(w: Writer, e: Entry, *x: str) -> str:
    p, window = e.params, e.inputs[1].shape[2:]
    usual = [
        (n - 1) * step - 2 * zeros + apart * (k - 1) + 1
        for n, step, zeros, apart, k in zip(
            e.inputs[0].shape[2:], p["stride"], p["padding"], p["dilation"], window, strict=True
        )
    ]
    extra = [n - m for n, m in zip(p["size"], usual, strict=True)]
    options = {"strides": p["stride"], "dilations": p["dilation"], "group": p["groups"], "output_padding": extra}
    return w.node("ConvTranspose", *x, kernel_shape=window, pads=[*p["padding"], *p["padding"]], **options)


@op("max_pool2d")
def max_pool2d(w: Writer, e: Entry, x: str) -> str:
    """The places of the largest in their planes; whoever takes what stands there gets what MaxPool gives."""
    p = e.params
    pads = _pads(e.inputs[0].shape[2:], p["size"], p["window"], p["stride"], p["padding"], p["dilation"])
    options = {"kernel_shape": p["window"], "strides": p["stride"], "dilations": p["dilation"], "pads": pads}
    values, index = w.node("MaxPool", x, outputs=2, **options)
    y = w.node("Mod", index, w.integers([math.prod(e.inputs[0].shape[2:])]))
    w.pooled[y], w.shapes[values] = values, (*e.inputs[0].shape[:2], *p["size"])
    return y


@op("avg_pool2d")
def avg_pool2d(w: Writer, e: Entry, x: str) -> str:
    """AveragePool; where windows reach over the end, runtimes differ, so zeros are added and the mean corrected."""
    p, lengths = e.params, e.inputs[0].shape[2:]
    window, stride, before = p["window"], p["stride"], p["padding"]
    options = {"kernel_shape": window, "strides": stride}
    pads = _pads(lengths, p["size"], window, stride, before, (1, 1))
    if all(after <= zeros for zeros, after in zip(before, pads[2:], strict=True)):
        return w.node("AveragePool", x, **options, pads=pads, count_include_pad=int(p["counts_padding"]))
    padded = w.node("Pad", x, w.integers([0, 0, *before, 0, 0, *pads[2:]]), w.number(e, 0))
    counts = np.ones((), e.inputs[0].array.dtype)
    for n, outputs, k, step, zeros in zip(lengths, p["size"], window, stride, before, strict=True):
        start = np.arange(outputs) * step - zeros
        low, high = (-zeros, n + zeros) if p["counts_padding"] else (0, n)
        counts = counts[..., None] * (np.minimum(start + k, high) - np.maximum(start, low))
    corrected = w.constant(math.prod(window) / counts, e.inputs[0].array.dtype)
    return w.node("Mul", w.node("AveragePool", padded, **options), corrected)


def unknown(e: Entry, what: str, remedy: str = "") -> ConfigError:
    """What to raise for what ONNX cannot say."""
    return ConfigError(
        f"onnx.export: {e.path or 'the model'}: expected ops that the file can hold, got {what}"
        f"{f'; {remedy}' if remedy else ''}"
    )


REMEDIES = {
    "dropout": "call F.dropout(x, p, self.training), which leaves x alone in evaluation",
    "batch_norm": "a BatchNorm layer has running statistics, which evaluation uses",
    "cross_entropy": "export the model without its loss",
    "recurrent_run": "the layers GRU, LSTM, RNN and their cells can be written, what onnx.load made of a file cannot",
    "recurrent": "the layers GRU, LSTM, RNN and their cells can be written, what onnx.load made of a file cannot",
    "add_rows": "the layer EmbeddingBag, of a matrix of numbers, can be written",
}


def write(w: Writer, e: Entry) -> None:
    """Adds the nodes of one op."""
    w.values[e.outputs[0].name] = OPS[e.name](w, e, *map(w.name, e.inputs))


def check(entries: Iterable[Entry]) -> None:
    """Raises ConfigError for an op that is not in the table."""
    for e in entries:
        if isinstance(e.what, str) and e.what not in OPS:
            raise unknown(e, f"the op {e.name}", REMEDIES.get(e.name, "compute it outside of the model"))
