"""The layers and losses as plain functions, under the names of torch.nn.functional.

Inputs may be tensors or arrays. Each is a composition of ops, so gradients of any order come for free.
"""

import math

import numpy as np

from .. import checks, ops, random
from ..errors import ConfigError, DeviceError, DtypeError, GradientError, IndexOutOfRangeError, ShapeError
from ..functions import log_softmax, one_hot, relu, sigmoid, silu, softmax, tanh
from ..grad_mode import no_grad
from ..ops.operands import assign
from ..tensor import FLOATS, ArrayLike, Tensor, as_tensor
from .activations import (
    elu,
    gelu,
    hardtanh,
    leaky_relu,
    logsigmoid,
    mish,
    prelu,
    relu6,
    selu,
    softplus,
    softsign,
)
from .losses import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    huber_loss,
    kl_div,
    l1_loss,
    mse_loss,
    nll_loss,
    smooth_l1_loss,
)
from .sequences.functions import attention_weights
from .windows import (
    adaptive_avg_pool2d,
    avg_pool1d,
    avg_pool2d,
    conv1d,
    conv2d,
    conv_transpose2d,
    max_pool1d,
    max_pool2d,
    pad,
    planes,
)

__all__ = [
    "adaptive_avg_pool2d",
    "avg_pool1d",
    "avg_pool2d",
    "batch_norm",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "conv1d",
    "conv2d",
    "conv_transpose2d",
    "cross_entropy",
    "dropout",
    "dropout1d",
    "dropout2d",
    "elu",
    "embedding",
    "embedding_bag",
    "gelu",
    "hardtanh",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log_softmax",
    "logsigmoid",
    "max_pool1d",
    "max_pool2d",
    "mish",
    "mse_loss",
    "nll_loss",
    "one_hot",
    "pad",
    "prelu",
    "relu",
    "relu6",
    "scaled_dot_product_attention",
    "selu",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "softmax",
    "softplus",
    "softsign",
    "tanh",
]

# --- layers --------------------------------------------------------------------------------------------------------


def linear(x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None) -> Tensor:
    """x (..., in) @ weight (in, out) + bias (out,) -> (..., out)."""
    x = as_tensor(x, weight, bias)
    return ops.linear(x, as_tensor(weight, x), None if bias is None else as_tensor(bias, x))


def dropout(x: ArrayLike, p: float = 0.5, training: bool = True) -> Tensor:
    """x with each element set to 0 with probability p, and the others times 1 / (1 - p); x itself if not training.

    The mask comes from one stream of the current random generator. Raises ConfigError for p outside [0, 1].
    """
    x, p = as_tensor(x), checks.number("dropout: p", p, "[0, 1]")
    if not checks.flag("dropout: training", training) or p == 0:
        return x
    if p == 1:  # 1 / (1 - p) does not exist
        return ops.where(as_tensor(np.zeros(x.shape, bool), x), x, 0.0)
    return ops.dropout(x, p=p, key=random.current().key())


def dropout1d(x: ArrayLike, p: float = 0.5, training: bool = True) -> Tensor:
    """dropout of whole channels of x (n, c, length); see dropout2d."""
    return _channel_dropout("dropout1d", 1, x, p, training)


def dropout2d(x: ArrayLike, p: float = 0.5, training: bool = True) -> Tensor:
    """x (n, c, h, w) with each channel of each image set to 0 with probability p, and the others times 1 / (1 - p).

    Neighbouring pixels know each other, so that dropping one hides nothing (Tompson et al. 2015).
    Raises ShapeError, and ConfigError for p outside [0, 1].
    """
    return _channel_dropout("dropout2d", 2, x, p, training)


def _channel_dropout(name: str, axes: int, x: ArrayLike, p: float, training: bool) -> Tensor:
    x, p = planes(name, axes, x), checks.number(f"{name}: p", p, "[0, 1]")
    if not checks.flag(f"{name}: training", training) or p == 0:
        return x
    ones = as_tensor(np.ones((*x.shape[:2], *[1] * axes), x.dtype), x)
    kept = dropout(ones, p)
    return ops.where(kept > 0, x * kept, 0.0)  # 0 also where x is infinite


def layer_norm(
    x: ArrayLike,
    normalized_shape: tuple[int, ...],
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, with mean and variance over the last axes (Ba et al. 2016).

    normalized_shape: the lengths of those axes, and the shape of weight and bias.
    """
    x, eps = as_tensor(x, weight, bias), checks.number("layer_norm: eps", eps, "[0, inf)")
    shape = checks.lengths("layer_norm: normalized_shape", normalized_shape, 1)
    if not shape or x.shape[-len(shape) :] != shape:
        raise ShapeError(f"layer_norm: expected x (..., {', '.join(map(str, shape))}), got {x.shape}")
    y = ops.standardize(x.reshape(-1 if x.size else 0, math.prod(shape), 1), eps).reshape(x.shape)
    return _affine("layer_norm", y, weight, bias, shape, shape)


def batch_norm(
    x: ArrayLike,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias a channel: x (N, C, ...) (Ioffe and Szegedy 2015).

    training: mean and variance of the batch; the running ones move by `momentum` towards them, in place (the
        variance towards the unbiased one, as in PyTorch). Otherwise the running ones are used, if given.

    Raises ShapeError for another shape of x, or for one value a channel in training.
    """
    x = as_tensor(x, running_mean, weight, bias)
    if x.ndim < 2:
        raise ShapeError(f"batch_norm: expected x (N, C, ...), got {x.shape}")
    if x.ndim > 3:  # images are sequences of as many elements
        flat = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
        return batch_norm(flat, running_mean, running_var, weight, bias, training, momentum, eps).reshape(x.shape)
    axes, channels = ((0,), (0, 2))[x.ndim - 2], (x.shape[1],)
    column = (x.shape[1], 1)[: x.ndim - 1]  # a value a channel, as it broadcasts against x
    eps, training = checks.number("batch_norm: eps", eps, "[0, inf)"), checks.flag("batch_norm: training", training)
    momentum = checks.number("batch_norm: momentum", momentum, "[0, 1]")
    for t in (running_mean, running_var):
        if t is None:
            continue
        if not isinstance(t, Tensor):
            checks.refuse("batch_norm", "running statistics as tensors", t, DtypeError, "make them by sn.Tensor(...)")
        if t.shape != channels:
            raise ShapeError(f"batch_norm: expected running statistics {channels}, got {t.shape}")
    n = x.size // max(x.shape[1], 1)
    if training and n < 2:
        raise ShapeError(f"batch_norm: expected more than one value a channel in training, got x {x.shape}")
    x = x if x.dtype in FLOATS else x.astype(np.float32)
    if not training and running_mean is not None and running_var is not None:
        if x.ndim == 3 and n:
            weight, bias = _of_channels("batch_norm", x, weight, 1), _of_channels("batch_norm", x, bias, 0)
            return ops.channel_affine(x, ops.stack([running_mean, running_var]), weight, bias, eps=eps)
        y = (x - running_mean.reshape(column)) / (running_var.reshape(column) + eps).sqrt()
        return _affine("batch_norm", y, weight, bias, channels, column)
    if x.ndim == 3 and n:
        weight, bias = _of_channels("batch_norm", x, weight, 1), _of_channels("batch_norm", x, bias, 0)
        with no_grad():
            moments = ops.channel_moments(x)
        y, mean, variance = ops.batch_norm(x, weight, bias, moments=moments, eps=eps), moments[0], moments[1]
    else:
        y = ops.standardize(x.reshape(1, n, x.shape[1]), eps).reshape(x.shape) if x.ndim == 2 else x
        y = _affine("batch_norm", y, weight, bias, channels, column)
        if training:
            with no_grad():
                mean, variance = x.mean(axes), x.var(axes, ddof=0)
    if training:
        with no_grad():
            _move(running_mean, mean, momentum)
            _move(running_var, variance * (n / (n - 1)), momentum)
    return y


def _of_channels(name: str, x: Tensor, values: ArrayLike | None, default: float) -> Tensor:
    """Weight or bias of the channels of x, or `default` for each."""
    shape = (x.shape[1],)
    t = as_tensor(np.full(shape, default, x.dtype) if values is None else values, x)
    if t.shape != shape:
        raise ShapeError(f"{name}: expected weight and bias {shape}, got {t.shape}")
    return t


def _affine(
    name: str,
    y: Tensor,
    weight: ArrayLike | None,
    bias: ArrayLike | None,
    shape: tuple[int, ...],
    broadcast: tuple[int, ...],
) -> Tensor:
    """y * weight + bias, both of `shape` and seen as `broadcast`."""
    for t in (weight, bias):
        if t is not None and (came := as_tensor(t, y).shape) != shape:
            raise ShapeError(f"{name}: expected weight and bias {shape}, got {came}")
    if weight is not None:
        y = y * as_tensor(weight, y).reshape(broadcast)
    return y if bias is None else y + as_tensor(bias, y).reshape(broadcast)


def _move(running: Tensor | None, target: Tensor, momentum: float) -> None:
    """running = (1 - momentum) * running + momentum * target, in place."""
    if running is None:
        return
    with no_grad():
        moved = running * (1 - momentum) + target.reshape(running.shape) * momentum
    assign(running, moved)


def embedding(indices: ArrayLike, weight: ArrayLike, padding_idx: int | None = None, sparse: bool = False) -> Tensor:
    """Rows of weight (n, dim) by number: indices (...) of integers in [0, n) -> (..., dim).

    padding_idx: a row that gets no gradient.
    sparse: let `weight.grad` be a RowGradient, which holds the rows that occur; optimizers then update those alone.
        Such a weight is a leaf on the host, and a recorded step refuses it.
    Raises DtypeError for indices that are not integers, IndexOutOfRangeError for one outside [0, n).
    """
    weight, numbers, padding = _of_table("embedding", indices, weight, padding_idx)
    if _is_sparse("embedding", weight, sparse):
        return ops.take_rows(weight, numbers, sparse=-1 if padding is None else padding)
    rows = ops.take_rows(weight, numbers)
    return rows if padding is None else ops.where((numbers == padding).unsqueeze(-1), rows.detach(), rows)


BAGS = ("sum", "mean", "max")


def embedding_bag(
    indices: ArrayLike,
    weight: ArrayLike,
    offsets: ArrayLike | None = None,
    mode: str = "mean",
    per_sample_weights: ArrayLike | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
    sparse: bool = False,
) -> Tensor:
    """The sum, mean or largest (by column) of some rows of weight (n, dim), which are never put in memory: (bags, dim).

    indices: integers in [0, n). (bags, length): a row is a bag. (m,): bag b begins at offsets[b], and ends where the
        next one begins; with include_last_offset the last offset is the end of the last bag, and no bag of its own.
    per_sample_weights: factors of the rows, of the shape of indices; for mode "sum".
    padding_idx: a number that counts for nothing, and whose row gets no gradient.
    sparse: as for embedding; not for mode "max".

    A bag without rows gives 0. Rows are added in the order of the indices.
    Raises DtypeError for indices that are not integers, IndexOutOfRangeError for one outside [0, n) or offsets that do
    not ascend from 0 to at most m, ShapeError or ConfigError for arguments that do not fit each other.
    """
    name = "embedding_bag"
    checks.one_of(f"{name}: mode", mode, BAGS)
    if per_sample_weights is not None and mode != "sum":
        raise ConfigError(f"{name}: expected mode 'sum' with per_sample_weights, got {mode!r}")
    if checks.flag(f"{name}: sparse", sparse) and mode == "max":
        raise ConfigError(f"{name}: expected mode 'sum' or 'mean' with sparse=True, got 'max'")
    weight, numbers, padding = _of_table(name, indices, weight, padding_idx)
    has_end = checks.flag(f"{name}: include_last_offset", include_last_offset)
    sizes = _bag_sizes(name, numbers.shape, offsets, has_end)
    scale = np.ones(numbers.shape, weight.dtype) if per_sample_weights is None else per_sample_weights
    scale = as_tensor(scale, weight)
    if scale.shape != numbers.shape:
        raise ShapeError(f"{name}: expected per_sample_weights {numbers.shape}, as indices, got {scale.shape}")
    numbers, scale, bags = numbers.reshape(numbers.size), scale.reshape(numbers.size), len(sizes)
    bag = as_tensor(np.repeat(np.arange(bags), sizes), weight)
    if padding is not None:
        bag = ops.where(numbers == padding, bags, bag)  # one more bag, which is thrown away
    if mode == "max" and numbers.size:
        row = ops.argmax_rows(weight, numbers, bag, n=bags + 1)[:bags]
        element = row.maximum(0) * weight.shape[1] + as_tensor(np.arange(weight.shape[1]), weight)
        return ops.where(row >= 0, ops.take_rows(weight.reshape(weight.size), element), 0)
    by_rows = {"sparse": -1 if padding is None else padding} if _is_sparse(name, weight, sparse) else {}
    total = ops.add_rows(weight, numbers, bag, scale, n=bags + 1, **by_rows)[:bags]
    if mode != "mean":
        return total
    one, first = as_tensor(np.ones((1, 1), weight.dtype), weight), as_tensor(np.zeros(numbers.size, np.int64), weight)
    return total / ops.add_rows(one, first, bag, scale, n=bags + 1)[:bags].maximum(1)


def _of_table(
    name: str, indices: ArrayLike, weight: ArrayLike, padding_idx: int | None
) -> tuple[Tensor, Tensor, int | None]:
    """A table (n, dim), numbers of its rows and that of the padding, checked."""
    weight = as_tensor(weight)
    if weight.ndim != 2:
        raise ShapeError(f"{name}: expected weight (n, dim), got {weight.shape}")
    if not isinstance(indices, Tensor):
        indices = Tensor(indices, device=weight.device)
    numbers = as_tensor(ops.checked_index(name, indices, len(weight), from_end=False), weight)  # -1 hides a mistake
    if padding_idx is None:
        return weight, numbers, None
    padding = checks.integer(f"{name}: padding_idx", padding_idx)
    return weight, numbers, int(ops.checked_index(f"{name}: padding_idx", [padding], len(weight))[0])


def _is_sparse(name: str, weight: Tensor, sparse: bool) -> bool:
    """Is the gradient to be one by rows?"""
    if not checks.flag(f"{name}: sparse", sparse):
        return False
    if not weight.is_leaf:
        raise GradientError(f"{name}: expected a leaf as weight with sparse=True, got the result of an op")
    if weight.device == "cuda":
        raise DeviceError(f"{name}: expected weight on the host with sparse=True, got 'cuda'; use sparse=False there")
    return True


def _bag_sizes(name: str, shape: tuple[int, ...], offsets: ArrayLike | None, has_end: bool) -> np.ndarray:
    """How many of the indices, of this shape, each bag has."""
    if len(shape) == 2 and offsets is None:
        return np.full(shape[0], shape[1])
    if len(shape) != 1 or offsets is None:
        what = "(bags, length) without offsets, or (m,) with offsets"
        raise ShapeError(f"{name}: expected indices {what}, got {shape} {'without' if offsets is None else 'with'}")
    begins = offsets.detach().numpy() if isinstance(offsets, Tensor) else checks.array(f"{name}: offsets", offsets)
    if begins.dtype.kind not in "iu":
        raise DtypeError(f"{name}: expected offsets of integers, got {begins.dtype}")
    if begins.ndim != 1 or (has_end and not begins.size):
        raise ShapeError(f"{name}: expected offsets of one dimension, got {begins.shape}")
    ends = np.append(begins, [] if has_end else shape[0]).astype(np.int64)
    sizes = np.diff(ends)
    if ends[0] or ends[-1] != shape[0] or (sizes < 0).any():
        to, came = "" if has_end else "at most ", checks.shown(begins.tolist())
        raise IndexOutOfRangeError(f"{name}: expected offsets that ascend from 0 to {to}{shape[0]}, got {came}")
    return sizes


def scaled_dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    attn_mask: ArrayLike | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """softmax(query @ key.T * scale + mask) @ value -> (..., steps, features) (Vaswani et al. 2017).

    attn_mask, which broadcasts to (..., steps, keys): booleans say which keys a step sees, floats are added.
    is_causal: step i sees the keys 0 to i. A step that sees no key, or of whose mask all floats are -inf, gives 0.
    dropout_p: the probability that a weight is dropped; 0 outside of training. scale: 1 / sqrt(width) unless given.
    Raises ShapeError, DtypeError, ConfigError.
    """
    name = "scaled_dot_product_attention"
    query = as_tensor(query, key, value)
    key, value = as_tensor(key, query), as_tensor(value, query)
    is_causal = checks.flag(f"{name}: is_causal", is_causal)
    dropout_p = checks.number(f"{name}: dropout_p", dropout_p, "[0, 1]")
    if is_causal and attn_mask is not None:
        checks.refuse(f"{name}: attn_mask", "None with is_causal=True", attn_mask, remedy="give one of them")
    if scale is not None:
        scale = checks.number(f"{name}: scale", scale)
    if min(key.ndim, value.ndim) < 2 or value.shape[-2] != key.shape[-2]:
        shapes = f"{key.shape} and {value.shape}"
        raise ShapeError(f"{name}: expected key (..., keys, width), value (..., keys, features), got {shapes}")
    weights = attention_weights(name, query, key, attn_mask, is_causal, scale)
    return dropout(weights, dropout_p) @ value
