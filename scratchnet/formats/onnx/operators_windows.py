"""Operators of ONNX on sequences (n, c, l) and images (n, c, h, w): convolution, pooling, norms; see operators.py."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ... import functions as sn
from ... import ops
from ...errors import CheckpointError
from ...nn import functional as F
from ...tensor import Tensor, as_tensor
from .operators import only, operator, room


class Windows(NamedTuple):
    """Where windows lie: one entry for each of two axes."""

    size: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilation: tuple[int, ...]


def _planes(x: Any, *others: Any) -> tuple[Tensor, ...]:
    """Sequences as images of height 1; the same of other tensors, such as filters."""
    given = as_tensor(x), *[as_tensor(t, x) for t in others]
    if any(t.ndim not in (3, 4) or t.ndim != given[0].ndim or not math.prod(t.shape[1:]) for t in given):
        raise CheckpointError(f"expected sequences (n, c, l) or images (n, c, h, w), found {[t.shape for t in given]}")
    return tuple(t.unsqueeze(2) if t.ndim == 3 else t for t in given)


def _windows(x: Tensor, window: Any, strides: Any, pads: Any, dilations: Any, auto_pad: str, ceil: int = 0) -> Windows:
    """x: as images. The options are those of the node, for one axis or two."""
    axes = len(window)
    lengths = x.shape[-axes:]
    strides, dilations, pads = strides or [1] * axes, dilations or [1] * axes, pads or [0] * 2 * axes
    if len(strides) != axes or len(dilations) != axes or len(pads) != 2 * axes or axes > 2:
        raise CheckpointError(f"expected options of {axes} axes, found {strides}, {dilations} and {pads}")
    if min((*strides, *dilations, *window)) < 1 or min(pads) < 0 or max((*strides, *dilations, *window, *pads)) > 2**20:
        raise CheckpointError(f"expected positive options, found {window}, {strides}, {dilations} and {pads}")
    only("auto_pad", auto_pad, "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
    before, after, size = list(pads[:axes]), list(pads[axes:]), []
    for i, (n, k, step, apart) in enumerate(zip(lengths, window, strides, dilations, strict=True)):
        reach = apart * (k - 1) + 1
        if auto_pad.startswith("SAME"):
            total = max((-(-n // step) - 1) * step + reach - n, 0)
            before[i] = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
            after[i] = total - before[i]
        free = n + before[i] + after[i] - reach
        outputs = -(-free // step) + 1 if ceil else free // step + 1
        if ceil and (outputs - 1) * step >= n + before[i]:
            outputs -= 1  # a window begins inside
        if free < 0 or outputs < 1:
            raise CheckpointError(f"expected windows that fit into {lengths}, found {window}")
        size.append(outputs)
    room(*x.shape[:2], *size)
    head = 2 - axes
    ones, zeros = (1,) * head, (0,) * head
    return Windows(
        (*ones, *size), (*ones, *window), (*ones, *strides), (*zeros, *before), (*zeros, *after), (*ones, *dilations)
    )


def _like(y: Tensor, x: Any) -> Tensor:
    """Images of height 1 as the sequences that x was."""
    return y.squeeze(2) if x.ndim == 3 else y


@operator("Conv")
def conv(x, w, b=None, *, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None, pads=None, strides=None):
    planes, weight = _planes(x, w)
    at = _windows(planes, w.shape[2:], strides, pads, dilations, auto_pad)
    if kernel_shape not in (None, list(w.shape[2:])) or group < 1 or weight.shape[1] * group != planes.shape[1]:
        raise CheckpointError(
            f"expected filters of {kernel_shape} and {group} groups for {planes.shape}, found {w.shape}"
        )
    if weight.shape[0] % group or (b is not None and b.shape != w.shape[:1]):
        raise CheckpointError(f"expected a bias {w.shape[:1]} and filters of {group} groups, found others")
    given = (planes, weight) if b is None else (planes, weight, as_tensor(b, planes))
    room(len(planes), weight.shape[0], *at.size)
    y = ops.conv2d(*given, size=at.size, stride=at.stride, padding=at.before, dilation=at.dilation, groups=group)
    return _like(y, x)


@operator("ConvTranspose")
def conv_transpose(
    x, w, b=None, *, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None, output_padding=None, pads=None,
    strides=None,
):  # fmt: skip
    only("auto_pad", auto_pad, "NOTSET")
    planes, weight = _planes(x, w)
    axes = w.ndim - 2
    strides, dilations, pads = strides or [1] * axes, dilations or [1] * axes, pads or [0] * 2 * axes
    extra = output_padding or [0] * axes
    if pads[:axes] != pads[axes:] or kernel_shape not in (None, list(w.shape[2:])):
        raise CheckpointError(f"expected filters {w.shape[2:]} and even pads, found {kernel_shape} and {pads}")
    lengths = [
        (n - 1) * step + apart * (k - 1) + more + 1
        for n, step, apart, k, more in zip(x.shape[2:], strides, dilations, w.shape[2:], extra, strict=True)
    ]
    room(len(planes), group * weight.shape[1], *lengths)
    one, none = [1] * (2 - axes), [0] * (2 - axes)
    y = F.conv_transpose2d(
        planes, weight, None if b is None else as_tensor(b, planes), [*one, *strides], [*none, *pads[:axes]],
        [*none, *extra], group, [*one, *dilations],
    )  # fmt: skip
    return _like(y, x)


@operator("MaxPool")
def max_pool(
    x,
    *,
    kernel_shape,
    auto_pad="NOTSET",
    ceil_mode=0,
    dilations=None,
    pads=None,
    storage_order=0,
    strides=None,
    outputs,
):
    only("storage_order", storage_order, 0)
    (planes,) = _planes(x)
    at = _windows(planes, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    for n, k, step, zeros, apart, count in zip(
        planes.shape[2:], at.window, at.stride, at.before, at.dilation, at.size, strict=True
    ):
        starts = np.arange(count) * step - zeros
        first = np.where(starts < 0, starts % apart, starts)  # the first element at or after 0
        if not ((first < n) & (first <= starts + apart * (k - 1))).all():
            raise CheckpointError(f"expected an element in each window, found pads {pads} for {kernel_shape}")
    index = ops.max_pool2d(
        planes, size=at.size, window=at.window, stride=at.stride, padding=at.before, dilation=at.dilation
    )
    rows = math.prod(planes.shape[:2])
    values = ops.take_in_rows(planes.reshape(rows, -1), index.reshape(rows, -1))
    y = _like(values.reshape(*planes.shape[:2], *at.size), x)
    if outputs == 1:
        return y
    first = np.arange(rows).reshape(*planes.shape[:2], 1, 1) * math.prod(planes.shape[2:])
    return y, _like(index + as_tensor(first, index), x)


@operator("AveragePool")
def average_pool(
    x, *, kernel_shape, auto_pad="NOTSET", ceil_mode=0, count_include_pad=0, dilations=None, pads=None, strides=None
):
    if dilations and max(dilations) > 1:
        raise CheckpointError(f"expected an average without dilation, found {dilations}")
    (planes,) = _planes(x)
    at = _windows(planes, kernel_shape, strides, pads, None, auto_pad, ceil_mode)
    before = at.before
    if count_include_pad:
        widths = [(0, 0), (0, 0), *zip(at.before, at.after, strict=True)]
        room(*[n + low + high for n, (low, high) in zip(planes.shape, widths, strict=True)])
        planes, before = sn.pad(planes, widths), (0, 0)
    y = ops.avg_pool2d(planes, size=at.size, window=at.window, stride=at.stride, padding=before, counts_padding=False)
    return _like(y, x)


@operator("GlobalAveragePool", "GlobalMaxPool")
def global_pool(x, *, name):
    x = as_tensor(x)
    axes = tuple(range(2, x.ndim))
    return x.mean(axes, True) if name == "GlobalAveragePool" else sn.amax(x, axes, True)


@operator("LRN")
def local_response(x, *, size, alpha=1e-4, beta=0.75, bias=1.0):
    x = as_tensor(x)
    before = (size - 1) // 2
    room(x.shape[0], x.shape[1] + size, *x.shape[2:])
    squares = sn.pad(x * x, [(0, 0), (before, size - 1 - before), *[(0, 0)] * (x.ndim - 2)])
    total = squares[:, : x.shape[1]]
    for i in range(1, min(size, x.shape[1] + size)):
        total = total + squares[:, i : i + x.shape[1]]
    return x / (total * (alpha / size) + bias) ** beta


# --- normalization ----------------------------------------------------------------------------------------------------


@operator("BatchNormalization")
def batch_norm(x, scale, bias, mean, variance, *, training, epsilon=1e-5, momentum=0.9, training_mode=0, spatial=1):
    only("spatial", spatial, 1), only("training_mode", training_mode, 0)
    x = as_tensor(x)
    return F.batch_norm(x, as_tensor(mean, x), as_tensor(variance, x), scale, bias, training, 1 - momentum, epsilon)


@operator("LayerNormalization")
def layer_norm(x, scale, bias=None, *, axis=-1, epsilon=1e-5, stash_type=1):
    only("stash_type", stash_type, 1)
    x = as_tensor(x)
    shape = x.shape[axis % x.ndim :]
    fits = [t is None or t.shape == shape for t in (scale, bias)]
    y = F.layer_norm(x, shape, scale if fits[0] else None, bias if all(fits) else None, epsilon)
    y = y if fits[0] else y * as_tensor(scale, x)
    return y if bias is None or all(fits) else y + as_tensor(bias, x)


@operator("InstanceNormalization", "GroupNormalization")
def group_norm(x, scale, bias, *, name, opset, epsilon=1e-5, num_groups=None, stash_type=1):
    x = as_tensor(x)
    n, c = x.shape[:2]
    groups = c if num_groups is None else num_groups
    if groups < 1 or c % groups or (num_groups is not None and opset < 21):
        raise CheckpointError(f"expected groups of {c} channels, of opset 21 or later, found {num_groups} of {opset}")
    y = F.layer_norm(x.reshape(n, groups, -1), (x.size // max(n * groups, 1),), eps=epsilon).reshape(x.shape)
    column = (c, *[1] * (x.ndim - 2))
    return y * as_tensor(scale, x).reshape(column) + as_tensor(bias, x).reshape(column)
