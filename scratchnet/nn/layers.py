"""The layers: each holds parameters and options, and calls the function of functional.py that does the work."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import checks
from ..errors import ConfigError, IndexOutOfRangeError, ShapeError
from ..tensor import ArrayLike, Tensor, as_tensor
from . import functional as F
from . import init
from .activations import ACTIVATIONS
from .containers import Sequential
from .module import Buffer, Module, Parameter

LARGEST = 2**31 - 1  # length of an axis


def _sizes(name: str, **sizes: Any) -> tuple[int, ...]:
    """Lengths as Python integers. Raises ConfigError, which names the one that is not an integer above 0."""
    return tuple([checks.integer(f"{name}: {what}", size, 1, LARGEST) for what, size in sizes.items()])


def _empty(*shape: int) -> Parameter:
    return Parameter(np.empty(checks.elements("a parameter", shape), np.float32))


class Linear(Module):
    """x (..., in) @ weight (in, out) + bias (out,) -> (..., out).

    Weight and bias start as U(-1 / sqrt(in), 1 / sqrt(in)), as in PyTorch; float32.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        self.in_features, self.out_features = _sizes("Linear", in_features=in_features, out_features=out_features)
        self.weight = _empty(self.in_features, self.out_features)
        self.bias = _empty(self.out_features) if checks.flag("Linear: bias", bias) else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weight and bias anew."""
        bound = 1 / math.sqrt(self.in_features)
        init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound)

    def forward(self, x: ArrayLike) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Identity(Module):
    """x itself. Arguments are taken and forgotten, so that it can stand for any layer, as in PyTorch."""

    def __init__(self, *arguments: Any, **named: Any):
        pass

    def forward(self, x: ArrayLike) -> Tensor:
        return as_tensor(x)


class Dropout(Module):
    """In training, sets each element to 0 with probability p and scales the others by 1 / (1 - p)."""

    _function = staticmethod(F.dropout)

    def __init__(self, p: float = 0.5):
        self.p = checks.number(f"{type(self).__name__}: p", p, "[0, 1]")

    def forward(self, x: ArrayLike) -> Tensor:
        return self._function(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class LayerNorm(Module):
    """Mean 0 and variance 1 over the last axes, then weight and bias, which start as 1 and 0.

    normalized_shape: the lengths of those axes, or one length.
    """

    _fixed = ("elementwise_affine",)

    def __init__(self, normalized_shape: int | tuple[int, ...], eps: float = 1e-5, elementwise_affine: bool = True):
        shape = normalized_shape if isinstance(normalized_shape, tuple | list) else (normalized_shape,)
        if not shape:
            checks.refuse("LayerNorm: normalized_shape", "at least one length", shape)
        self.normalized_shape = tuple([checks.integer("LayerNorm: normalized_shape", n, 1, LARGEST) for n in shape])
        self.eps = checks.number("LayerNorm: eps", eps, "[0, inf)")
        affine = checks.flag("LayerNorm: elementwise_affine", elementwise_affine)
        self.weight = Parameter(np.ones(self.normalized_shape, np.float32)) if affine else None
        self.bias = Parameter(np.zeros(self.normalized_shape, np.float32)) if affine else None

    def forward(self, x: ArrayLike) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.weight is not None}"


class BatchNorm1d(Module):
    """Mean 0 and variance 1 a channel, then weight and bias: x (N, C) or (N, C, L).

    In training the statistics are those of the batch, and running_mean and running_var move towards them by
    `momentum`; in evaluation the running ones are used.
    """

    _fixed = ("affine",)

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True):
        (self.num_features,) = shape = _sizes("BatchNorm1d", num_features=num_features)
        self.eps = checks.number("BatchNorm1d: eps", eps, "[0, inf)")
        self.momentum = checks.number("BatchNorm1d: momentum", momentum, "[0, 1]")
        affine = checks.flag("BatchNorm1d: affine", affine)
        self.weight = Parameter(np.ones(shape, np.float32)) if affine else None
        self.bias = Parameter(np.zeros(shape, np.float32)) if affine else None
        self.running_mean = Buffer(np.zeros(shape, np.float32))
        self.running_var = Buffer(np.ones(shape, np.float32))

    def forward(self, x: ArrayLike) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )

    def extra_repr(self) -> str:
        affine = self.weight is not None
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={affine}"


class Embedding(Module):
    """Rows of weight (num_embeddings, embedding_dim) by number: integers (...) -> (..., embedding_dim).

    The rows start as N(0, 1). padding_idx: a row that starts as 0 and is not trained; -1 is the last one.
    sparse: a gradient by rows, so that an optimizer updates those that occur alone; see functional.embedding.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None, sparse: bool = False):
        name = type(self).__name__
        self.num_embeddings, self.embedding_dim = _sizes(
            name, num_embeddings=num_embeddings, embedding_dim=embedding_dim
        )
        if padding_idx is not None:
            n = self.num_embeddings
            if not -n <= checks.integer(f"{name}: padding_idx", padding_idx) < n:
                raise IndexOutOfRangeError(f"{name}: expected padding_idx in [{-n}, {n}), got {padding_idx}")
            padding_idx %= n
        self.padding_idx, self.sparse = padding_idx, checks.flag(f"{name}: sparse", sparse)
        self.weight = _empty(self.num_embeddings, self.embedding_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the rows anew."""
        init.normal_(self.weight)
        if self.padding_idx is not None:
            self.weight._device.fill(self.weight._data[self.padding_idx], 0)

    def forward(self, indices: ArrayLike) -> Tensor:
        return F.embedding(indices, self.weight, self.padding_idx, self.sparse)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}{self._options(padding_idx=None, sparse=False)}"

    def _options(self, **usual: Any) -> str:
        """Those options that are not as usual."""
        return "".join(f", {name}={own}" for name, value in usual.items() if (own := getattr(self, name)) != value)


class EmbeddingBag(Embedding):
    """The sum, mean or largest of rows of weight (num_embeddings, embedding_dim): bags of integers -> (bags, dim).

    Arguments and inputs as of functional.embedding_bag; weight as of Embedding.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        mode: str = "mean",
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        sparse: bool = False,
    ):
        self.mode = checks.one_of("EmbeddingBag: mode", mode, F.BAGS)
        self.include_last_offset = checks.flag("EmbeddingBag: include_last_offset", include_last_offset)
        super().__init__(num_embeddings, embedding_dim, padding_idx, sparse)
        if self.sparse and self.mode == "max":
            raise ConfigError("EmbeddingBag: expected mode 'sum' or 'mean' with sparse=True, got 'max'")

    def forward(  # type: ignore[override]
        self, indices: ArrayLike, offsets: ArrayLike | None = None, per_sample_weights: ArrayLike | None = None
    ) -> Tensor:
        options = self.mode, per_sample_weights, self.include_last_offset, self.padding_idx, self.sparse
        return F.embedding_bag(indices, self.weight, offsets, *options)

    def extra_repr(self) -> str:
        options = self._options(sparse=False, include_last_offset=False, padding_idx=None)
        return f"{self.num_embeddings}, {self.embedding_dim}, mode={self.mode!r}{options}"


class Flatten(Module):
    """The axes from start_dim to end_dim as one: (N, a, b) -> (N, a * b)."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1):
        self.start_dim = checks.integer("Flatten: start_dim", start_dim)
        self.end_dim = checks.integer("Flatten: end_dim", end_dim)

    def forward(self, x: ArrayLike) -> Tensor:
        x = as_tensor(x)
        start, end = (axis + x.ndim if axis < 0 else axis for axis in (self.start_dim, self.end_dim))
        if not 0 <= start <= end < x.ndim:
            raise ShapeError(f"Flatten: expected axes {self.start_dim} to {self.end_dim}, got x {x.shape}")
        return x.reshape(*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :])

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class MLP(Sequential):
    """A multi-layer perceptron: linear layers of the given sizes, with an activation and dropout between them.

    >>> MLP(784, 128, 10)        # linear1 (784, 128), relu1, linear2 (128, 10): the last layer gives logits

    activation: one of ACTIVATIONS. dropout: the probability; 0 leaves the layers out.
    """

    _fixed = ("activation", "dropout")

    def __init__(self, *sizes: int, activation: str = "relu", dropout: float = 0.0):
        remedy = "write MLP(*sizes)" if any(isinstance(size, list | tuple) for size in sizes) else ""
        sizes = tuple([checks.integer("MLP: a size", size, 1, LARGEST, remedy=remedy) for size in sizes])
        if len(sizes) < 2:
            raise ConfigError(f"MLP: expected at least an input and an output size, got {sizes}")
        checks.one_of("MLP: activation", activation, ACTIVATIONS)
        dropout = checks.number("MLP: dropout", dropout, "[0, 1]")
        layers: dict[str, Module] = {}
        for i in range(1, len(sizes)):
            layers[f"linear{i}"] = Linear(sizes[i - 1], sizes[i])
            if i == len(sizes) - 1:
                break
            layers[f"{activation}{i}"] = ACTIVATIONS[activation]()
            if dropout:
                layers[f"dropout{i}"] = Dropout(dropout)
        super().__init__(layers)
