"""Layers of images (N, C, H, W) and of sequences (N, C, L): convolution, pooling, normalisation a channel."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import checks
from ..errors import ConfigError, ShapeError
from ..tensor import ArrayLike, Tensor, as_tensor
from . import functional as F
from . import init
from .layers import BatchNorm1d, Dropout
from .module import Module, Parameter
from .windows import LONGEST, adaptive_size, along_axes, padding_option, planes


class _Convolution(Module):
    """Base. Weight and bias start as U(-b, b), b = 1 / sqrt(elements of a filter), as in PyTorch; float32."""

    axes = 2

    def _set(
        self, in_channels: Any, out_channels: Any, kernel_size: Any, stride: Any, dilation: Any, groups: Any
    ) -> None:
        name = type(self).__name__
        self.in_channels, self.out_channels, self.groups = (
            checks.integer(f"{name}: {what}", n, 1, LONGEST)
            for what, n in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups))
        )
        for what, n in (("in_channels", self.in_channels), ("out_channels", self.out_channels)):
            if n % self.groups:
                raise ConfigError(f"{name}: expected {what} that {self.groups} groups divide, got {n}")
        self.kernel_size, self.stride, self.dilation = (
            along_axes(f"{name}: {what}", n, self.axes, 1)
            for what, n in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation))
        )

    def _make(self, first: int, second: int, bias: Any) -> None:
        has_bias = checks.flag(f"{type(self).__name__}: bias", bias)
        shape = checks.elements(f"{type(self).__name__}: weight", (first, second // self.groups, *self.kernel_size))
        self.weight = Parameter(np.empty(shape, np.float32))
        self.bias = Parameter(np.empty(self.out_channels, np.float32)) if has_bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weight and bias anew."""
        bound = 1 / math.sqrt(math.prod(self.weight.shape[1:]))
        init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        shown = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}
        given = [
            f"{what}={getattr(self, what)}"
            for what, usual in shown.items()
            if getattr(self, what, None) not in (None, (usual,) * self.axes)
        ]
        groups, bias = f"groups={self.groups}" * (self.groups > 1), "bias=False" * (self.bias is None)
        start = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        return ", ".join(filter(None, [start, *given, groups, bias]))


class Conv2d(_Convolution):
    """Each output is a filter's product with the window of x (N, C, H, W) at its place; see functional.conv2d.

    weight (out_channels, in_channels / groups, kh, kw), bias (out_channels,). padding: also "same" or "valid".
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
    ):
        self._set(in_channels, out_channels, kernel_size, stride, dilation, groups)
        self.padding = padding_option(f"{type(self).__name__}: padding", padding, self.axes)
        if self.padding == "same" and max(self.stride) > 1:
            raise ConfigError(f"{type(self).__name__}: expected stride 1 with padding 'same', got stride {self.stride}")
        self._make(self.out_channels, self.in_channels, bias)

    def forward(self, x: ArrayLike) -> Tensor:
        function = F.conv2d if self.axes == 2 else F.conv1d
        return function(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Conv1d(Conv2d):
    """The same for sequences (N, C, L): weight (out_channels, in_channels / groups, k)."""

    axes = 1


class ConvTranspose2d(_Convolution):
    """The transpose of Conv2d, which makes images larger; see functional.conv_transpose2d.

    weight (in_channels, out_channels / groups, kh, kw), bias (out_channels,).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
    ):
        self._set(in_channels, out_channels, kernel_size, stride, dilation, groups)
        self.padding, self.output_padding = (
            along_axes(f"ConvTranspose2d: {what}", n, 2, 0)
            for what, n in (("padding", padding), ("output_padding", output_padding))
        )
        for added, step, apart in zip(self.output_padding, self.stride, self.dilation, strict=True):
            if added >= max(step, apart):
                checks.refuse("ConvTranspose2d: output_padding", "less than stride or dilation", output_padding)
        self._make(self.in_channels, self.out_channels, bias)

    def forward(self, x: ArrayLike) -> Tensor:
        return F.conv_transpose2d(
            x, self.weight, self.bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )


class _Pooling(Module):
    """Base of the poolings, over windows along `axes` axes."""

    axes = 2

    def _set(self, kernel_size: Any, stride: Any, padding: Any, ceil_mode: Any) -> None:
        name = type(self).__name__
        self.kernel_size = along_axes(f"{name}: kernel_size", kernel_size, self.axes, 1)
        self.stride = self.kernel_size if stride is None else along_axes(f"{name}: stride", stride, self.axes, 1)
        self.padding = along_axes(f"{name}: padding", padding, self.axes, 0)
        self.ceil_mode = checks.flag(f"{name}: ceil_mode", ceil_mode)
        if any(zeros > k // 2 for zeros, k in zip(self.padding, self.kernel_size, strict=True)):
            checks.refuse(f"{name}: padding", f"at most half of kernel_size {self.kernel_size}", padding)

    def extra_repr(self) -> str:
        usual = {"dilation": (1,) * self.axes, "ceil_mode": False, "count_include_pad": True}
        others = [
            f", {what}={getattr(self, what)}" for what, value in usual.items() if getattr(self, what, value) != value
        ]
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}" + "".join(others)


class MaxPool2d(_Pooling):
    """The largest element of each window of x (N, C, H, W); see functional.max_pool2d."""

    _function = staticmethod(F.max_pool2d)

    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
    ):
        self._set(kernel_size, stride, padding, ceil_mode)
        self.dilation = along_axes(f"{type(self).__name__}: dilation", dilation, self.axes, 1)

    def forward(self, x: ArrayLike) -> Tensor:
        return self._function(x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)


class MaxPool1d(MaxPool2d):
    """The largest element of each window of x (N, C, L)."""

    axes, _function = 1, staticmethod(F.max_pool1d)


class AvgPool2d(_Pooling):
    """The mean of each window of x (N, C, H, W); see functional.avg_pool2d."""

    _function = staticmethod(F.avg_pool2d)

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ):
        self._set(kernel_size, stride, padding, ceil_mode)
        self.count_include_pad = checks.flag(f"{type(self).__name__}: count_include_pad", count_include_pad)

    def forward(self, x: ArrayLike) -> Tensor:
        return self._function(x, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)


class AvgPool1d(AvgPool2d):
    """The mean of each window of x (N, C, L)."""

    axes, _function = 1, staticmethod(F.avg_pool1d)


class AdaptiveAvgPool2d(Module):
    """Means of x (N, C, H, W) -> (N, C, *output_size), whatever H and W are; None keeps an axis."""

    def __init__(self, output_size: Any):
        self.output_size = adaptive_size("AdaptiveAvgPool2d", output_size)

    def forward(self, x: ArrayLike) -> Tensor:
        return F.adaptive_avg_pool2d(x, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class ZeroPad2d(Module):
    """x (N, C, H, W) with zeros around it. padding: one number, or (left, right, top, bottom); see functional.pad."""

    _mode = "constant"

    def __init__(self, padding: Any):
        self.padding = along_axes(f"{type(self).__name__}: padding", padding, 4, 0)

    def forward(self, x: ArrayLike) -> Tensor:
        return F.pad(planes(type(self).__name__, 2, x), self.padding, self._mode)

    def extra_repr(self) -> str:
        return f"{self.padding}"


class ReflectionPad2d(ZeroPad2d):
    """The same with what lies on the other side of the border, which is not repeated."""

    _mode = "reflect"


class ReplicationPad2d(ZeroPad2d):
    """The same with the element at the border."""

    _mode = "replicate"


class Dropout2d(Dropout):
    """In training, drops whole channels of x (N, C, H, W) with probability p; see functional.dropout2d."""

    _function = staticmethod(F.dropout2d)


class Dropout1d(Dropout):
    """In training, drops whole channels of x (N, C, L) with probability p."""

    _function = staticmethod(F.dropout1d)


class BatchNorm2d(BatchNorm1d):
    """Mean 0 and variance 1 a channel, then weight and bias: x (N, C, H, W); the rest as in BatchNorm1d."""

    def forward(self, x: ArrayLike) -> Tensor:
        x = as_tensor(x)
        if x.ndim != 4:
            raise ShapeError(f"BatchNorm2d: expected x (N, C, H, W), got {x.shape}")
        return super().forward(x)
