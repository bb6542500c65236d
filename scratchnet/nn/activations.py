"""The activations: each is a function, as in torch.nn.functional, and the layer that holds its options and calls it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .. import checks, functions, ops
from ..errors import ShapeError
from ..functions import log_softmax, relu, sigmoid, silu, softmax, tanh
from ..tensor import ArrayLike, Tensor, as_tensor
from .module import FunctionModule, Module, Parameter

ACTIVATIONS: dict[str, type[Activation]] = {}  # by the name that MLP and train.py --activation take


class Activation(FunctionModule):
    """Base of the layers that change each element by itself."""

    def __init_subclass__(cls, function: Callable[..., Tensor] | None = None):
        super().__init_subclass__(function)
        if function is not None:
            ACTIVATIONS[function.__name__] = cls


class InPlace(Activation):
    """Base of those that PyTorch can compute in place, to save memory; here x itself stays as it was."""

    def __init__(self, inplace: bool = False):
        self.inplace = checks.flag(f"{type(self).__name__}: inplace", inplace)


# --- without options --------------------------------------------------------------------------------------------------


class ReLU(InPlace, function=relu):
    """max(x, 0)."""


class Tanh(Activation, function=tanh):
    """tanh(x)."""


class Sigmoid(Activation, function=sigmoid):
    """1 / (1 + exp(-x))."""


class SiLU(InPlace, function=silu):
    """x * sigmoid(x) (Elfwing, Uchibe and Doya 2018)."""


def logsigmoid(x: ArrayLike) -> Tensor:
    """log(sigmoid(x)), without overflow."""
    return -functions.softplus(-as_tensor(x))


class LogSigmoid(Activation, function=logsigmoid):
    """log(sigmoid(x)), without overflow."""


def softsign(x: ArrayLike) -> Tensor:
    """x / (1 + |x|)."""
    x = as_tensor(x)
    return x / (x.abs() + 1.0)


class Softsign(Activation, function=softsign):
    """x / (1 + |x|)."""


def mish(x: ArrayLike) -> Tensor:
    """x * tanh(softplus(x)) (Misra 2019)."""
    x = as_tensor(x)
    return x * functions.softplus(x).tanh()


class Mish(InPlace, function=mish):
    """x * tanh(softplus(x)) (Misra 2019)."""


def relu6(x: ArrayLike) -> Tensor:
    """min(max(x, 0), 6); the gradient is 0 on both bounds."""
    return hardtanh(x, 0.0, 6.0)


class ReLU6(InPlace, function=relu6):
    """min(max(x, 0), 6)."""


SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805  # mean 0 and variance 1 are a fixed point


def selu(x: ArrayLike) -> Tensor:
    """scale * elu(x, alpha), with which mean 0 and variance 1 stay so from layer to layer (Klambauer et al. 2017)."""
    return elu(x, SELU_ALPHA) * SELU_SCALE


class SELU(InPlace, function=selu):
    """1.0507 * elu(x, 1.6733) (Klambauer et al. 2017)."""


# --- with options -----------------------------------------------------------------------------------------------------


def gelu(x: ArrayLike, approximate: str = "none") -> Tensor:
    """x * Phi(x), Phi the normal distribution function (Hendrycks and Gimpel 2016).

    approximate: "none", or "tanh" for x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3))).
    """
    if checks.one_of("gelu: approximate", approximate, ("none", "tanh")) == "none":
        return functions.gelu(x)
    x = as_tensor(x)
    return x * 0.5 * ((x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)).tanh() + x * 0.5


class GELU(Activation, function=gelu):
    """x * Phi(x), the exact form, or with approximate="tanh" the older one."""

    def __init__(self, approximate: str = "none"):
        self.approximate = checks.one_of("GELU: approximate", approximate, ("none", "tanh"))


def leaky_relu(x: ArrayLike, negative_slope: float = 0.01) -> Tensor:
    """x above 0, negative_slope * x elsewhere (Maas, Hannun and Ng 2013)."""
    x = as_tensor(x)
    return ops.where(x > 0, x, x * checks.number("leaky_relu: negative_slope", negative_slope))


class LeakyReLU(Activation, function=leaky_relu):
    """x above 0, negative_slope * x elsewhere."""

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False):
        self.negative_slope = checks.number("LeakyReLU: negative_slope", negative_slope)
        self.inplace = checks.flag("LeakyReLU: inplace", inplace)


def elu(x: ArrayLike, alpha: float = 1.0) -> Tensor:
    """x above 0, alpha * (exp(x) - 1) elsewhere (Clevert, Unterthiner and Hochreiter 2016)."""
    x = as_tensor(x)
    below = ops.where(x > 0, 0.0, x)  # exp(x) - 1 of a large x would overflow
    return ops.where(x > 0, x, functions.expm1(below) * checks.number("elu: alpha", alpha))


class ELU(Activation, function=elu):
    """x above 0, alpha * (exp(x) - 1) elsewhere."""

    def __init__(self, alpha: float = 1.0, inplace: bool = False):
        self.alpha = checks.number("ELU: alpha", alpha)
        self.inplace = checks.flag("ELU: inplace", inplace)


def softplus(x: ArrayLike, beta: float = 1.0) -> Tensor:
    """log(1 + exp(beta * x)) / beta, without overflow. Exact everywhere, so there is no threshold to set."""
    beta = checks.number("softplus: beta", beta, "(0, inf)")
    return functions.softplus(x) if beta == 1 else functions.softplus(as_tensor(x) * beta) / beta


class Softplus(Activation, function=softplus):
    """log(1 + exp(beta * x)) / beta, without overflow."""

    def __init__(self, beta: float = 1.0):
        self.beta = checks.number("Softplus: beta", beta, "(0, inf)")


def hardtanh(x: ArrayLike, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """min(max(x, min_val), max_val); the gradient is 0 on both bounds, as in PyTorch, where that of `clip` is 1."""
    x = as_tensor(x)
    low, high = _bounds("hardtanh", min_val, max_val)
    return ops.where((x > low) * (x < high), x, x.detach().clip(low, high))


def _bounds(name: str, min_val: float, max_val: float) -> tuple[float, float]:
    low = checks.number(f"{name}: min_val", min_val)
    return low, checks.number(f"{name}: max_val", max_val, f"({low}, inf)")


class Hardtanh(Activation, function=hardtanh):
    """min(max(x, min_val), max_val)."""

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False):
        self.min_val, self.max_val = _bounds("Hardtanh", min_val, max_val)
        self.inplace = checks.flag("Hardtanh: inplace", inplace)


# --- with parameters, or over an axis ---------------------------------------------------------------------------------


def prelu(x: ArrayLike, weight: ArrayLike) -> Tensor:
    """x above 0, weight * x elsewhere (He et al. 2015): weight of one element, or one a channel, the axis 1 of x."""
    x = as_tensor(x, weight)
    weight = as_tensor(weight, x)
    channels = x.shape[1] if x.ndim > 1 else 1
    if weight.ndim > 1 or weight.size not in (1, channels):
        raise ShapeError(f"prelu: expected a weight of shape (1,) or ({channels},), got {weight.shape}")
    column = weight.reshape(weight.size, *[1] * max(x.ndim - 2, 0)) if weight.size > 1 else weight.reshape(())
    return ops.where(x > 0, x, ops.where(x > 0, 0.0, x) * column)  # an infinity of x leaves the slope's gradient alone


class PReLU(Module):
    """x above 0, weight * x elsewhere: a learned slope, or one for each channel, the axis 1 of x (He et al. 2015)."""

    def __init__(self, num_parameters: int = 1, init: float = 0.25):
        self.num_parameters = checks.integer("PReLU: num_parameters", num_parameters, 1, 2**31 - 1)
        slope = checks.number("PReLU: init", init)
        self.weight = Parameter(np.full(self.num_parameters, slope, np.float32))

    def forward(self, x: ArrayLike) -> Tensor:
        return prelu(x, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"


class Softmax(FunctionModule, function=lambda x, dim=-1: softmax(x, dim)):
    """exp(x) / sum(exp(x)) along one axis, the last unless given. Losses that take logits need none before them."""

    def __init__(self, dim: int = -1):
        self.dim = checks.integer("Softmax: dim", dim)


class LogSoftmax(FunctionModule, function=lambda x, dim=-1: log_softmax(x, dim)):
    """log(softmax(x)) along one axis, the last unless given; NLLLoss goes with it."""

    def __init__(self, dim: int = -1):
        self.dim = checks.integer("LogSoftmax: dim", dim)
