"""`load`: a net of Caffe as a module. Layers that have weights become ours, all are called in the order of the file."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from ... import functions as sn
from ...errors import CheckpointError, ScratchnetError, ShapeError
from ...nn import Buffer, Module, Parameter
from ...nn import functional as F
from ...ops import avg_pool2d
from ...tensor import Tensor, as_tensor
from .. import files
from .messages import OLD_TYPES, net_parameter

TEST = 1
DATA = {"Input", "Data", "ImageData", "HDF5Data", "MemoryData", "DummyData"}
PASSED_OVER = {"Accuracy", "Silence", "SoftmaxWithLoss", "EuclideanLoss"}  # of training nets: nobody reads their tops
MOST = 2**28  # elements of one value


def load(prototxt: str | os.PathLike, caffemodel: str | os.PathLike) -> Net:
    """The net that a prototxt describes, with the weights of a caffemodel, as a module that trains.

    Call it with one array or tensor for each input, in the file's order; it returns the values that no layer reads, one
    or a tuple. Pooling rounds up and averages as Caffe does. Parameters are named "LAYER.weight" and "LAYER.bias",
    the weight of an InnerProduct stays (out, in). Layers of the training phase alone, and losses, are left out.
    The module begins in evaluation mode.

    Raises CheckpointError, which names the layer, for files that are damaged or do not fit each other, or for a kind of
    layer that is not here; CheckpointNotFoundError.
    """
    text = files.read("caffe.load", prototxt)
    with files.named(prototxt):
        net = _parsed(text)
        layers = [layer for layer in _layers(net) if _is_of_prediction(layer)]
        model = Net(net, layers)
    blob = files.read("caffe.load", caffemodel)
    with files.named(caffemodel):
        model._fill(blob)
    return model


def _parsed(text: bytes) -> Any:
    from google.protobuf import text_format

    net = net_parameter()()
    try:
        text_format.Parse(text.decode("utf-8"), net, allow_unknown_field=True)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise CheckpointError(f"expected a prototxt: {str(error).splitlines()[0]:.120}") from None
    return net


def _weights(blob: bytes) -> dict[str, list[np.ndarray]]:
    from google.protobuf.message import DecodeError

    if blob.startswith(files.PICKLES):
        raise CheckpointError("expected a caffemodel, found a pickle or a zip")
    net = net_parameter()()
    try:
        net.ParseFromString(blob)
    except DecodeError:
        raise CheckpointError("expected a caffemodel, found bytes that are none: damaged or cut short") from None
    found: dict[str, list[np.ndarray]] = {}
    for layer in _layers(net):
        if layer.blobs:
            found[layer.name] = [_array(layer.name, b) for b in layer.blobs]
    return found


def _array(name: str, blob: Any) -> np.ndarray:
    values = blob.double_data if blob.double_data else blob.data
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else (blob.num, blob.channels, blob.height, blob.width)
    if min(shape, default=0) < 0 or math.prod(shape) != len(values):
        raise CheckpointError(f"{name}: expected {len(values)} numbers, as the file has, found the shape {shape!r:.80}")
    return np.array(values, np.float32).reshape(shape)


def _layers(net: Any) -> list[Any]:
    return [*net.layer, *net.layers]


def _kind(layer: Any) -> str:
    if isinstance(layer.type, str):
        return layer.type
    word = layer.DESCRIPTOR.fields_by_name["type"].enum_type.values_by_number[layer.type].name
    return OLD_TYPES[word][1]


def _is_of_prediction(layer: Any) -> bool:
    """Does Caffe run this layer in the phase TEST? Accuracy and losses are not needed for a prediction."""
    if layer.include and not any(not r.HasField("phase") or r.phase == TEST for r in layer.include):
        return False
    if any(r.HasField("phase") and r.phase == TEST for r in layer.exclude):
        return False
    return _kind(layer) not in PASSED_OVER


# --- the layers: a row makes a function of the options of one; weights are its parameters -----------------------------

Layer = Callable[..., Any]
LAYERS: dict[
    str, tuple[tuple[str, ...], Layer]
] = {}  # kind: names of its blobs, and (module, layer, *inputs) -> output


def kind(name: str, *blobs: str) -> Callable[[Layer], Layer]:
    """A decorator that adds a function to the table."""

    def add(function: Layer) -> Layer:
        LAYERS[name] = blobs, function
        return function

    return add


def _pair(what: str, p: Any, least: int, default: int) -> tuple[int, int]:
    """An option for height and width: as one number, as two, or as two fields."""
    single = getattr(p, "kernel_size" if what == "kernel" else what)
    values = (
        list(single)
        if hasattr(single, "__len__")
        else [single] * p.HasField("kernel_size" if what == "kernel" else what)
    )
    if p.HasField(f"{what}_h") or p.HasField(f"{what}_w"):
        values = [getattr(p, f"{what}_h"), getattr(p, f"{what}_w")]
    values = values * 2 if len(values) == 1 else values or [default, default]
    if len(values) != 2 or not all(least <= n <= 2**16 for n in values):
        raise CheckpointError(f"expected {what} of at least {least} for height and width, found {values}")
    return values[0], values[1]


def _filters(p: Any) -> dict[str, Any]:
    """Where the filters of a convolution lie, or of its transpose."""
    if len(p.dilation) > 1 or p.axis != 1:
        raise CheckpointError("expected one dilation, of images (n, c, h, w)")
    at = {"stride": _pair("stride", p, 1, 1), "padding": _pair("pad", p, 0, 0), "groups": p.group}
    return at | {"dilation": p.dilation[0] if p.dilation else 1}


@kind("Convolution", "weight", "bias")
def _convolution(m: Any, layer: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, m.weight, m.bias, **_filters(layer.convolution_param))


@kind("Deconvolution", "weight", "bias")
def _deconvolution(m: Any, layer: Any, x: Tensor) -> Tensor:
    return F.conv_transpose2d(x, m.weight, m.bias, **_filters(layer.convolution_param))


@kind("InnerProduct", "weight", "bias")
def _inner_product(m: Any, layer: Any, x: Tensor) -> Tensor:
    p = layer.inner_product_param
    rows = x.reshape(*x.shape[: p.axis], -1)
    y = rows @ (m.weight if p.transpose else m.weight.t())
    return y if m.bias is None else y + m.bias


@kind("Pooling")
def _pooling(m: Any, layer: Any, x: Tensor) -> Tensor:
    """Sizes are rounded up. Zeros of the padding count in a mean, as far as it reaches; what is beyond does not."""
    p = layer.pooling_param
    if p.pool == 2:
        raise CheckpointError("expected pool MAX or AVE, found STOCHASTIC")
    if p.global_pooling:
        return sn.amax(x, (2, 3), True) if p.pool == 0 else x.mean((2, 3), True)
    window, stride, zeros = _pair("kernel", p, 1, 0), _pair("stride", p, 1, 1), _pair("pad", p, 0, 0)
    up = p.round_mode == 0
    size = []
    for n, k, step, pad in zip(x.shape[2:], window, stride, zeros, strict=True):
        free = n + 2 * pad - k
        outputs = (-(-free // step) if up else free // step) + 1
        size.append(outputs - 1 if pad and (outputs - 1) * step >= n + pad else outputs)
        if (size[-1] - 1) * step >= n + pad or free < 0:
            raise CheckpointError(
                f"expected windows that begin inside of {x.shape}, found {window} at steps of {stride}"
            )
    if p.pool == 0:
        return F.max_pool2d(x, window, stride, zeros, ceil_mode=up)
    padded = sn.pad(x, [(0, 0), (0, 0), *[(pad, pad) for pad in zeros]])
    return avg_pool2d(padded, size=tuple(size), window=window, stride=stride, padding=(0, 0), counts_padding=False)


@kind("ReLU")
def _relu(m: Any, layer: Any, x: Tensor) -> Tensor:
    slope = layer.relu_param.negative_slope
    return F.leaky_relu(x, slope) if slope else x.relu()


@kind("PReLU", "weight")
def _prelu(m: Any, layer: Any, x: Tensor) -> Tensor:
    return F.prelu(x, m.weight.reshape(-1))


@kind("LRN")
def _lrn(m: Any, layer: Any, x: Tensor) -> Tensor:
    """x / (k + alpha / n * sum of squares) ** beta, over n neighbours: channels, or a window of each plane."""
    p = layer.lrn_param
    half = p.local_size // 2
    if not p.local_size % 2 or p.local_size > 2**10:
        raise CheckpointError(f"expected an odd local_size, found {p.local_size}")
    if p.norm_region == 1:
        return x * (F.avg_pool2d(x * x, p.local_size, 1, half) * p.alpha + 1.0) ** -p.beta
    squares = sn.pad(x * x, [(0, 0), (half, half), (0, 0), (0, 0)])
    total = squares[:, : x.shape[1]]
    for i in range(1, p.local_size):
        total = total + squares[:, i : i + x.shape[1]]
    return x * (total * (p.alpha / p.local_size) + p.k) ** -p.beta


@kind("BatchNorm", "running_mean", "running_var", "scale")
def _batch_norm(m: Any, layer: Any, x: Tensor) -> Tensor:
    """The running statistics are stored as sums, with what they are divided by."""
    factor = sn.where(m.scale == 0, 0.0, 1.0 / sn.where(m.scale == 0, 1.0, m.scale))
    column = [x.shape[1], *[1] * (x.ndim - 2)]
    mean, variance = (t.reshape(-1) * factor for t in (m.running_mean, m.running_var))
    return (x - mean.reshape(column)) / (variance.reshape(column) + layer.batch_norm_param.eps).sqrt()


@kind("Scale", "weight", "bias")
def _scale(m: Any, layer: Any, x: Tensor, *factor: Tensor) -> Tensor:
    axis = layer.scale_param.axis % x.ndim
    scale = factor[0] if factor else m.weight
    y = x * scale.reshape([*scale.shape, *[1] * (x.ndim - axis - scale.ndim)])
    return y if m.bias is None else y + m.bias.reshape([*m.bias.shape, *[1] * (x.ndim - axis - m.bias.ndim)])


@kind("Eltwise")
def _eltwise(m: Any, layer: Any, *x: Tensor) -> Tensor:
    p, y = layer.eltwise_param, x[0]
    if p.coeff and (p.operation != 1 or len(p.coeff) != len(x)):
        raise CheckpointError(f"expected {len(x)} coefficients of a sum, found {len(p.coeff)}")
    y = y * p.coeff[0] if p.coeff else y
    for i, other in enumerate(x[1:], 1):
        other = other * p.coeff[i] if p.coeff else other
        y = (y * other, y + other, sn.maximum(y, other))[p.operation]
    return y


@kind("Concat")
def _concat(m: Any, layer: Any, *x: Tensor) -> Tensor:
    p = layer.concat_param
    if sum(t.size for t in x) > MOST:
        raise CheckpointError(f"expected values of at most {MOST} elements")
    return sn.cat(x, p.concat_dim if p.HasField("concat_dim") else p.axis)


@kind("Slice")
def _slice(m: Any, layer: Any, x: Tensor) -> tuple[Tensor, ...]:
    p = layer.slice_param
    axis = p.slice_dim if p.HasField("slice_dim") else p.axis
    n, parts = x.shape[axis], len(layer.top)
    points = [0, *p.slice_point, n] if p.slice_point else [n * i // parts for i in range(parts + 1)]
    return tuple(x.split(list(np.diff(points).tolist()), axis))


@kind("Reshape")
def _reshape(m: Any, layer: Any, x: Tensor) -> Tensor:
    p = layer.reshape_param
    if p.axis or p.num_axes != -1:
        raise CheckpointError("expected a Reshape of all axes, found one of some")
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(p.shape.dim)])


@kind("Power")
def _power(m: Any, layer: Any, x: Tensor) -> Tensor:
    p = layer.power_param
    y = x * p.scale + p.shift
    return y if p.power == 1 else y**p.power


LAYERS |= {
    "Sigmoid": ((), lambda m, layer, x: x.sigmoid()),
    "TanH": ((), lambda m, layer, x: x.tanh()),
    "AbsVal": ((), lambda m, layer, x: x.abs()),
    "ELU": ((), lambda m, layer, x: F.elu(x, layer.elu_param.alpha)),
    "Softmax": ((), lambda m, layer, x: x.softmax(layer.softmax_param.axis)),
    "Dropout": ((), lambda m, layer, x: F.dropout(x, layer.dropout_param.dropout_ratio, m.training)),
    "Flatten": ((), lambda m, layer, x: x.flatten(layer.flatten_param.axis, layer.flatten_param.end_axis)),
    "Split": ((), lambda m, layer, x: (x,) * len(layer.top)),
}


class Weights(Module):
    """The parameters of one layer, None until they are there."""

    weight: Any = None
    bias: Any = None


class Net(Module):
    """A net of Caffe; `scratchnet.caffe.load` makes it. Call it with one tensor or array for each input."""

    def __init__(self, net: Any, layers: list[Any]):
        data = [layer for layer in layers if _kind(layer) in DATA]
        self._inputs = [*net.input, *(top for layer in data for top in layer.top[:1])]
        known, read = set(self._inputs), set()
        # the kind; the message as bytes, which can be sent to workers, and their field; the name of the module
        self._steps: list[tuple[str, tuple[bytes, str], str]] = []
        for i, layer in enumerate(layers):
            kind_ = _kind(layer)
            if kind_ in DATA:
                continue
            where = f"layer {layer.name!r:.60} ({kind_:.40})"
            if kind_ not in LAYERS:
                raise CheckpointError(f"{where}: expected one of {', '.join(LAYERS)}, found another kind")
            missing = [bottom for bottom in layer.bottom if bottom not in known]
            if missing or not layer.bottom or not layer.top:
                raise CheckpointError(f"{where}: expected bottoms that stand above, found {missing!r:.80}")
            read |= {*layer.bottom} - {*layer.top}
            known |= {*layer.top}
            name = layer.name if layer.name.isidentifier() and not hasattr(self, layer.name) else f"layer{i}"
            setattr(self, name, Weights())
            field = "layer" if isinstance(layer.type, str) else "layers"
            self._steps.append((kind_, (layer.SerializeToString(), field), name))
        if not self._steps or not self._inputs:
            raise CheckpointError(f"expected inputs and layers, found {len(self._inputs)} and {len(self._steps)}")
        tops = dict.fromkeys(top for _, blob, _ in self._steps for top in self._layer(blob).top)
        self._outputs = [top for top in tops if top not in read]
        self._names = {self._layer(blob).name: (kind_, blob, name) for kind_, blob, name in self._steps}
        if len(self._names) != len(self._steps):
            raise CheckpointError("expected layers of different names, found one twice")
        self.eval()

    @staticmethod
    def _layer(stored: tuple[bytes, str]) -> Any:
        blob, field = stored
        message = getattr(net_parameter()(), field).add()
        message.ParseFromString(blob)
        return message

    def _fill(self, blob: bytes) -> None:
        """Takes over the weights of a caffemodel: one for each layer that has some."""
        found = _weights(blob)
        for name, (kind_, message, attribute) in self._names.items():
            wanted, layer = LAYERS[kind_][0], self._layer(message)
            arrays = found.get(name, [])
            if kind_ == "Scale" and len(layer.bottom) == 2 and not arrays:
                continue
            least = len(wanted) - ("bias" in wanted)
            if not least <= len(arrays) <= len(wanted):
                raise CheckpointError(f"{name}: expected {len(wanted)} weights of {kind_}, found {len(arrays)}")
            module = getattr(self, attribute)
            for what, array in zip(wanted, arrays, strict=False):
                array = array.reshape(-1) if what in ("bias", "scale") else array
                if kind_ == "InnerProduct" and what == "weight":
                    array = array.reshape(array.shape[-2:])  # older files have four lengths
                setattr(module, what, (Buffer if kind_ == "BatchNorm" else Parameter)(array))

    def forward(self, *inputs: Any) -> Any:
        if len(inputs) != len(self._inputs):
            raise ShapeError(f"Net: expected {len(self._inputs)} inputs ({', '.join(self._inputs)}), got {len(inputs)}")
        like = next(self.parameters(), None)
        values = {name: as_tensor(x, like) for name, x in zip(self._inputs, inputs, strict=True)}
        for kind_, blob, name in self._steps:
            layer, module = self._layer(blob), getattr(self, name)
            try:
                y = LAYERS[kind_][1](module, layer, *(values[bottom] for bottom in layer.bottom))
            except (ScratchnetError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
                kind_of = type(error) if isinstance(error, ScratchnetError) else CheckpointError
                raise kind_of(f"layer {layer.name!r:.60} ({kind_}): {str(error).splitlines()[0]:.200}") from error
            values.update(zip(layer.top, y if isinstance(y, tuple) else (y,), strict=True))
        found = tuple(values[name] for name in self._outputs)
        return found[0] if len(found) == 1 else found
