"""Convolution and pooling as plain functions, under the names of torch.nn.functional; functional.py hands them on.

Images are (n, channels, height, width), sequences (n, channels, length): these are images of height 1. An option is one
integer, or one for each axis.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import checks, ops
from ..errors import ConfigError, ShapeError
from ..precisions import options_of
from ..tensor import FLOATS, ArrayLike, Tensor, as_tensor

LONGEST = 2**31 - 1
AXES = {1: "(n, c, length)", 2: "(n, c, h, w)"}
FILTERS = {1: "(o, c / groups, k)", 2: "(o, c / groups, kh, kw)"}


def along_axes(what: str, value: Any, axes: int, least: int) -> tuple[int, ...]:
    """An option as one integer an axis. Raises ConfigError."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * axes
    if len(values) != axes:
        checks.refuse(what, f"an integer, or {axes} of them" if axes > 1 else "an integer", value)
    return tuple([checks.integer(what, n, least, LONGEST) for n in values])


def padding_option(what: str, value: Any, axes: int) -> str | tuple[int, ...]:
    """ "same", "valid", or one integer an axis."""
    return checks.one_of(what, value, ("same", "valid")) if isinstance(value, str) else along_axes(what, value, axes, 0)


# --- convolution -----------------------------------------------------------------------------------------------------


def conv1d(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """x (n, c, length), weight (o, c / groups, k) -> (n, o, outputs): conv2d of images of height 1."""
    return _convolved("conv1d", 1, x, weight, bias, stride, padding, dilation, groups)


def conv2d(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """out[n, o, y, x] = bias[o] + sum of x[n, c, y * stride + r * dilation - padding, ...] * weight[o, c, r, s].

    x (n, c, h, w), weight (o, c / groups, kh, kw), bias (o,) -> (n, o, oh, ow), where along each axis
    oh = (h + 2 * padding - dilation * (kh - 1) - 1) // stride + 1.

    padding: zeros on both sides; "valid" is none, "same" gives oh = h, for stride 1 (an odd zero comes last).
    groups: the channels of x and of out are cut into as many parts, and each part of out sees one of x.
    Raises ShapeError, DtypeError, ConfigError.
    """
    return _convolved("conv2d", 2, x, weight, bias, stride, padding, dilation, groups)


def conv_transpose2d(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """The transpose of conv2d: x (n, c, h, w), weight (c, o / groups, kh, kw), bias (o,) -> (n, o, oh, ow).

    Along each axis oh = (h - 1) * stride - 2 * padding + dilation * (kh - 1) + output_padding + 1; output_padding is
    below stride or dilation, and tells apart the sizes that conv2d would bring to the same h.
    Raises ShapeError, DtypeError, ConfigError.
    """
    name = "conv_transpose2d"
    x, weight, bias = _operands(name, 2, x, weight, bias)
    stride, dilation = along_axes(f"{name}: stride", stride, 2, 1), along_axes(f"{name}: dilation", dilation, 2, 1)
    padding, extra = (
        along_axes(f"{name}: {what}", value, 2, 0)
        for what, value in (("padding", padding), ("output_padding", output_padding))
    )
    groups = checks.integer(f"{name}: groups", groups, 1, LONGEST)
    if x.shape[1] != weight.shape[0] or x.shape[1] % groups:
        raise ShapeError(
            f"{name}: expected x (n, c, h, w) and weight (c, o / groups, kh, kw) of {groups} groups, "
            f"got {x.shape} and {weight.shape}"
        )
    for added, step, apart in zip(extra, stride, dilation, strict=True):
        if added >= max(step, apart):
            raise ConfigError(f"{name}: expected output_padding below stride or dilation, got {extra}")
    _check_bias(name, bias, groups * weight.shape[1])
    size = tuple(
        (n - 1) * step - 2 * zeros + apart * (k - 1) + added + 1
        for n, step, zeros, apart, k, added in zip(
            x.shape[2:], stride, padding, dilation, weight.shape[2:], extra, strict=True
        )
    )
    if min(size) < 1:
        raise ShapeError(f"{name}: expected less padding, so that an output is left, got {padding} for x {x.shape}")
    checks.elements(name, (len(x), groups * weight.shape[1], *size))
    at: Any = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    y = ops.conv2d_input(x, weight, size=size, **(at | options_of("conv2d")))
    return y if bias is None else y + bias.reshape(-1, 1, 1)


def _operands(name: str, axes: int, x: Any, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
    """The arguments as tensors of the right number of axes."""
    x = as_tensor(x, next((t for t in (weight, bias) if isinstance(t, Tensor)), None))
    weight = as_tensor(weight, x)
    if x.ndim != axes + 2 or weight.ndim != axes + 2:
        remedy = "; of a single one take x.unsqueeze(0)" if x.ndim == axes + 1 and weight.ndim == axes + 2 else ""
        raise ShapeError(
            f"{name}: expected x {AXES[axes]} and weight {FILTERS[axes]}, got {x.shape} and {weight.shape}{remedy}"
        )
    if 0 in weight.shape or 0 in x.shape[1:]:
        raise ShapeError(f"{name}: expected at least one channel and element, got {x.shape} and {weight.shape}")
    return x, weight, None if bias is None else as_tensor(bias, x)


def _check_bias(name: str, bias: Any, filters: int) -> None:
    if bias is not None and bias.shape != (filters,):
        raise ShapeError(f"{name}: expected bias {(filters,)}, got {bias.shape}")


def _convolved(name: str, axes: int, x, weight, bias, stride, padding, dilation, groups) -> Tensor:
    x, weight, bias = _operands(name, axes, x, weight, bias)
    stride = along_axes(f"{name}: stride", stride, axes, 1)
    dilation = along_axes(f"{name}: dilation", dilation, axes, 1)
    padding = padding_option(f"{name}: padding", padding, axes)
    groups = checks.integer(f"{name}: groups", groups, 1, LONGEST)
    if x.shape[1] != groups * weight.shape[1] or weight.shape[0] % groups:
        raise ShapeError(
            f"{name}: expected x {AXES[axes]} and weight {FILTERS[axes]} of {groups} groups, "
            f"got {x.shape} and {weight.shape}"
        )
    _check_bias(name, bias, weight.shape[0])
    if padding == "same" and max(stride) > 1:
        raise ConfigError(f"{name}: expected stride 1 with padding 'same', got stride {stride}")
    reach = tuple(apart * (k - 1) for apart, k in zip(dilation, weight.shape[2:], strict=True))
    if isinstance(padding, str):
        before = tuple(n // 2 if padding == "same" else 0 for n in reach)
        total = reach if padding == "same" else before
    else:
        before, total = padding, tuple(2 * n for n in padding)
    size = tuple(
        (n + zeros - far - 1) // step + 1 for n, zeros, far, step in zip(x.shape[2:], total, reach, stride, strict=True)
    )
    if min(size) < 1:
        window = tuple(far + 1 for far in reach)
        raise ShapeError(f"{name}: expected x with its padding to hold a window of {window}, got {x.shape}")
    checks.elements(name, (len(x), len(weight), *size))
    if axes == 1:
        x, weight = x.unsqueeze(2), weight.unsqueeze(2)
        size, stride, before, dilation = (1, *size), (1, *stride), (0, *before), (1, *dilation)
    inputs = (x, weight) if bias is None else (x, weight, bias)
    at: Any = {"stride": stride, "padding": before, "dilation": dilation, "groups": groups}
    y = ops.conv2d(*inputs, size=size, **(at | options_of("conv2d")))
    return y.squeeze(2) if axes == 1 else y


# --- padding ---------------------------------------------------------------------------------------------------------

PADDINGS: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}  # as NumPy calls them


def pad(x: ArrayLike, pad: Any, mode: str = "constant", value: float = 0.0) -> Tensor:
    """x with elements around it: pad = (before, after) of the last axis, then of the axis before it, and so on.

    mode: "constant" puts `value` there; "reflect" mirrors x at its first and last element, which are not repeated;
    "replicate" repeats them; "circular" goes on with the other end. Raises ShapeError, ConfigError, DtypeError.
    """
    x = as_tensor(x)
    checks.one_of("pad: mode", mode, ("constant", *PADDINGS))
    given = checks.items("pad: pad", pad, "a list of lengths")
    if len(given) % 2 or len(given) > 2 * x.ndim:
        checks.refuse("pad: pad", f"(before, after) of at most {x.ndim} axes, the last one first", pad, ShapeError)
    given = [checks.integer("pad: pad", n, 0, LONGEST, remedy="to cut, write x[...]") for n in given]
    pairs = [(0, 0)] * (x.ndim - len(given) // 2) + list(zip(given[::2], given[1::2], strict=True))[::-1]
    if mode == "constant":
        return x.pad(pairs, value)
    if value != 0:
        checks.refuse("pad: value", f"none with mode {mode!r}", value)
    checks.elements("pad", tuple(n + sum(pair) for n, pair in zip(x.shape, pairs, strict=True)))
    for axis, (n, pair) in enumerate(zip(x.shape, pairs, strict=True)):
        most = max(0, {"reflect": n - 1, "replicate": LONGEST if n else 0, "circular": n}[mode])
        if max(pair) > most:
            raise ShapeError(f"pad: expected at most {most} on a side of axis {axis} ({mode}), got {pair}")
        if max(pair):
            x = x.index_select(axis, np.pad(np.arange(n), pair, PADDINGS[mode]))
    return x


# --- pooling ---------------------------------------------------------------------------------------------------------


def max_pool1d(
    x: ArrayLike,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest element of each window of x (n, c, length) -> (n, c, outputs); see max_pool2d."""
    return _max_pooled("max_pool1d", 1, x, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool2d(
    x: ArrayLike,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest element of each window of x (n, c, h, w) -> (n, c, oh, ow); the first of equals gets the gradient.

    stride: kernel_size unless given. padding: of minus infinity, at most half of kernel_size. ceil_mode: a window that
    begins inside and ends outside of x and its padding counts too. NaN is the largest.
    Raises ShapeError, ConfigError.
    """
    return _max_pooled("max_pool2d", 2, x, kernel_size, stride, padding, dilation, ceil_mode)


def avg_pool1d(
    x: ArrayLike,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of x (n, c, length) -> (n, c, outputs); see avg_pool2d."""
    return _avg_pooled("avg_pool1d", 1, x, kernel_size, stride, padding, ceil_mode, count_include_pad)


def avg_pool2d(
    x: ArrayLike,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of x (n, c, h, w) -> (n, c, oh, ow); options as those of max_pool2d.

    count_include_pad: the zeros of the padding count as elements of a window.
    Raises ShapeError, ConfigError.
    """
    return _avg_pooled("avg_pool2d", 2, x, kernel_size, stride, padding, ceil_mode, count_include_pad)


def adaptive_avg_pool2d(x: ArrayLike, output_size: Any) -> Tensor:
    """x (n, c, h, w) -> (n, c, *output_size): output i is the mean of rows floor(i * h / oh) to ceil((i + 1) * h / oh).

    output_size: an integer, or two; None keeps that axis. Raises ShapeError, ConfigError.
    """
    name = "adaptive_avg_pool2d"
    x = planes(name, 2, x)
    wanted = adaptive_size(name, output_size)
    size = tuple(n if k is None else k for n, k in zip(x.shape[2:], wanted, strict=True))
    checks.elements(name, (*x.shape[:2], *size))
    window = tuple(n // k for n, k in zip(x.shape[2:], size, strict=True))
    if all(k * n == length for k, n, length in zip(size, window, x.shape[2:], strict=True)):
        return ops.avg_pool2d(x, size=size, window=window, stride=window, padding=(0, 0), counts_padding=False)
    n, c, h, w = x.shape
    along_w = _means(x.reshape(n * c * h, w), size[1]).reshape(n, c, h, size[1]).transpose(2, 3)
    return _means(along_w.reshape(n * c * size[1], h), size[0]).reshape(n, c, size[1], size[0]).transpose(2, 3)


def adaptive_size(name: str, value: Any) -> tuple[int | None, ...]:
    """output_size as two entries, each an integer or None."""
    values = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(values) != 2:
        checks.refuse(f"{name}: output_size", "an integer or None, or two of them", value)
    return tuple([None if n is None else checks.integer(f"{name}: output_size", n, 1, LONGEST) for n in values])


def _means(rows: Tensor, outputs: int) -> Tensor:
    """(n, length) -> (n, outputs): output i is the mean of its window alone, also beside an infinity or NaN."""
    length = rows.shape[1]
    i = np.arange(outputs)
    starts, stops = i * length // outputs, -(-(i + 1) * length // outputs)
    at = starts[:, None] + np.arange((stops - starts).max())
    windows = rows.index_select(1, np.minimum(at, length - 1).ravel()).reshape(len(rows), *at.shape)
    inside = as_tensor(at < stops[:, None], rows)
    return ops.where(inside, windows, 0).sum(-1) / as_tensor((stops - starts).astype(rows.dtype), rows)


def planes(name: str, axes: int, x: Any) -> Tensor:
    """x as (n, c, length) or (n, c, h, w), floats."""
    x = as_tensor(x)
    if x.ndim != axes + 2 or 0 in x.shape[1:]:
        remedy = "; of a single one take x.unsqueeze(0)" if x.ndim == axes + 1 else ""
        raise ShapeError(f"{name}: expected x {AXES[axes]} with elements, got {x.shape}{remedy}")
    return x if x.dtype in FLOATS else x.astype(np.float32)


def _pooling(name: str, x: Tensor, kernel_size, stride, padding, dilation, ceil_mode) -> dict[str, tuple[int, ...]]:
    """size, window, stride, padding and dilation of a pooling, for two axes."""
    axes = x.ndim - 2
    window = along_axes(f"{name}: kernel_size", kernel_size, axes, 1)
    stride = window if stride is None else along_axes(f"{name}: stride", stride, axes, 1)
    padding = along_axes(f"{name}: padding", padding, axes, 0)
    dilation = along_axes(f"{name}: dilation", dilation, axes, 1)
    ceil = checks.flag(f"{name}: ceil_mode", ceil_mode)
    size = []
    for n, k, step, zeros, apart in zip(x.shape[2:], window, stride, padding, dilation, strict=True):
        if zeros > k // 2:
            raise ConfigError(f"{name}: expected padding of at most half of kernel_size {window}, got {padding}")
        room = n + 2 * zeros - apart * (k - 1) - 1
        outputs = (room + (step - 1 if ceil else 0)) // step + 1
        if outputs < 1:
            raise ShapeError(f"{name}: expected x with its padding to hold a window of {window}, got {x.shape}")
        before = range(-zeros, min(0, outputs * step - zeros), step) if apart > 1 else ()  # where windows begin
        if any(-(start // apart) >= k or start % apart >= n for start in before):
            raise ShapeError(f"{name}: expected an element of x in each window, got {x.shape} and dilation {dilation}")
        size.append(outputs - 1 if (outputs - 1) * step >= n + zeros else outputs)  # a window begins inside
    checks.elements(name, (*x.shape[:2], *size))
    found = {"size": tuple(size), "window": window, "stride": stride, "padding": padding, "dilation": dilation}
    one = {"padding": (0,)}
    return {key: (*one.get(key, (1,)), *value) if axes == 1 else value for key, value in found.items()}


def _max_pooled(name: str, axes: int, x, kernel_size, stride, padding, dilation, ceil_mode) -> Tensor:
    x = planes(name, axes, x)
    at = _pooling(name, x, kernel_size, stride, padding, dilation, ceil_mode)
    index = ops.max_pool2d(x.unsqueeze(2) if axes == 1 else x, **at)
    rows = math.prod(x.shape[:2])
    values = ops.take_in_rows(x.reshape(rows, math.prod(x.shape[2:])), index.reshape(rows, math.prod(at["size"])))
    return values.reshape(*x.shape[:2], *at["size"][2 - axes :])


def _avg_pooled(name: str, axes: int, x, kernel_size, stride, padding, ceil_mode, count_include_pad) -> Tensor:
    x = planes(name, axes, x)
    at = _pooling(name, x, kernel_size, stride, padding, 1, ceil_mode)
    del at["dilation"]
    counts = checks.flag(f"{name}: count_include_pad", count_include_pad)
    y = ops.avg_pool2d(x.unsqueeze(2) if axes == 1 else x, **at, counts_padding=counts)
    return y.squeeze(2) if axes == 1 else y
