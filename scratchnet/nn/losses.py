"""The losses: each is a function, as in torch.nn.functional, and the module that holds its options and calls it.

Each is a composition of ops, so gradients of any order come for free. `reduction` is "mean", "sum", or "none" for the
loss of each element or row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import checks, ops
from ..errors import ConfigError, DtypeError, ShapeError
from ..functions import minimum, softplus
from ..tensor import FLOATS, ArrayLike, Tensor, as_tensor
from .module import Buffer, FunctionModule

# (loss, what each element weighs in the mean or None for 1 each)
REDUCTIONS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "mean": lambda loss, weights: loss.mean() if weights is None else loss.sum() / weights.sum(),
    "sum": lambda loss, weights: loss.sum(),
    "none": lambda loss, weights: loss,
}
OF_BATCHES = REDUCTIONS | {"batchmean": lambda loss, weights: loss.sum() / len(loss)}


def _reduced(loss: Tensor, reduction: str, weights: Tensor | None = None) -> Tensor:
    return REDUCTIONS[checks.one_of("reduction", reduction, REDUCTIONS)](loss, weights)


def _pair(name: str, x: ArrayLike, target: ArrayLike) -> tuple[Tensor, Tensor]:
    """Predictions and targets of one shape: broadcasting (n, 1) against (n,) would be a silent mistake."""
    x = as_tensor(x, target)
    if x.dtype not in FLOATS:
        raise DtypeError(f"{name}: expected floats as predictions, got {x.dtype}")
    target = as_tensor(target, x)
    if x.shape != target.shape:
        raise ShapeError(f"{name}: expected predictions and targets of one shape, got {x.shape} and {target.shape}")
    return x, target if target.dtype in FLOATS else target.astype(x.dtype)


def _constant(name: str, value: ArrayLike | None, like: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """An option that is an array and broadcasts to `shape`, in the dtype of `like`."""
    if value is None:
        return None
    value = as_tensor(value, like)
    try:
        fits = np.broadcast_shapes(value.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ShapeError(f"{name}: expected a shape that broadcasts to {shape}, got {value.shape}")
    return value.astype(like.dtype)


class Loss(FunctionModule):
    """Base of the losses."""

    reductions = REDUCTIONS
    weight: Any  # of losses of classes, as the next one
    ignore_index: int | None

    @property
    def has_weighted_mean(self) -> bool:
        """Is the mean not divided by the number of samples, but by the weights of their labels?"""
        of_labels = ("weight", "ignore_index") if "ignore_index" in self._options else ()
        return self.reduction == "mean" and any(getattr(self, name) is not None for name in of_labels)

    def __init__(self, reduction: str = "mean"):
        self.reduction = checks.one_of("reduction", reduction, self.reductions)

    def _weight_of(self, target: Tensor) -> float:
        """What the mean over a target is divided by: its rows, or the weights of their labels."""
        if not self.has_weighted_mean or target.dtype in FLOATS:
            return len(target)
        labels: Any = target.detach().numpy()
        if self.ignore_index is not None:
            labels = labels[labels != self.ignore_index]
        return labels.size if self.weight is None else float(self.weight.numpy()[labels].sum())


def _kept(name: str, value: ArrayLike | None) -> Buffer | None:
    """An option that is an array, as state of the module, which moves with it."""
    if value is None or isinstance(value, Buffer):
        return value
    if isinstance(value, str):
        checks.refuse(name, "numbers or None", value, remedy=f"write reduction={value!r}" * (value in REDUCTIONS))
    buffer = Buffer(value)
    if buffer.dtype.kind not in "iuf":
        raise DtypeError(f"{name}: expected numbers, got {buffer.dtype}")
    return buffer


# --- of numbers: x and target of one shape ----------------------------------------------------------------------------


def mse_loss(x: ArrayLike, target: ArrayLike, reduction: str = "mean") -> Tensor:
    """(x - target) ** 2, both of one shape."""
    x, target = _pair("mse_loss", x, target)
    difference = x - target
    return _reduced(difference * difference, reduction)


class MSELoss(Loss, function=mse_loss):
    """(x - target) ** 2, both of one shape."""


def l1_loss(x: ArrayLike, target: ArrayLike, reduction: str = "mean") -> Tensor:
    """|x - target|, both of one shape; the gradient is 0 where they are equal."""
    x, target = _pair("l1_loss", x, target)
    return _reduced((x - target).abs(), reduction)


class L1Loss(Loss, function=l1_loss):
    """|x - target|, both of one shape."""


def _huber(x: Tensor, target: Tensor, delta: float) -> Tensor:
    distance = (x - target).abs()
    near = minimum(distance, delta)
    return near * near * 0.5 + (distance - near) * delta


def huber_loss(x: ArrayLike, target: ArrayLike, reduction: str = "mean", delta: float = 1.0) -> Tensor:
    """d ** 2 / 2 where d = |x - target| <= delta, delta * (d - delta / 2) beyond (Huber 1964)."""
    x, target = _pair("huber_loss", x, target)
    return _reduced(_huber(x, target, checks.number("huber_loss: delta", delta, "(0, inf)")), reduction)


class HuberLoss(Loss, function=huber_loss):
    """d ** 2 / 2 where d = |x - target| <= delta, delta * (d - delta / 2) beyond."""

    def __init__(self, reduction: str = "mean", delta: float = 1.0):
        super().__init__(reduction)
        self.delta = checks.number("HuberLoss: delta", delta, "(0, inf)")


def smooth_l1_loss(x: ArrayLike, target: ArrayLike, reduction: str = "mean", beta: float = 1.0) -> Tensor:
    """d ** 2 / (2 * beta) where d = |x - target| < beta, d - beta / 2 beyond (Girshick 2015); beta 0 is the L1 loss."""
    if not checks.number("smooth_l1_loss: beta", beta, "[0, inf)"):
        return l1_loss(x, target, reduction)
    x, target = _pair("smooth_l1_loss", x, target)
    return _reduced(_huber(x, target, beta) / beta, reduction)


class SmoothL1Loss(Loss, function=smooth_l1_loss):
    """d ** 2 / (2 * beta) where d = |x - target| < beta, d - beta / 2 beyond."""

    def __init__(self, reduction: str = "mean", beta: float = 1.0):
        super().__init__(reduction)
        self.beta = checks.number("SmoothL1Loss: beta", beta, "[0, inf)")


# --- of probabilities -------------------------------------------------------------------------------------------------


def binary_cross_entropy_with_logits(
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    reduction: str = "mean",
    pos_weight: ArrayLike | None = None,
) -> Tensor:
    """-(target * log p + (1 - target) * log(1 - p)), p = sigmoid(logits); target in [0, 1], of the logits' shape.

    It is target * softplus(-logit) + (1 - target) * softplus(logit), so large logits neither overflow nor give log(0),
    and a small loss keeps its digits.
    weight: times each element; it broadcasts. pos_weight: times the part of the positive class, target * log p.
    """
    name = "binary_cross_entropy_with_logits"
    logits, target = _pair(name, logits, target)
    positive = _times(target, _constant(f"{name}: pos_weight", pos_weight, logits, logits.shape))
    loss = positive * softplus(-logits) + (1.0 - target) * softplus(logits)
    return _weighted(name, loss, weight, reduction)


def _weighted(name: str, loss: Tensor, weight: ArrayLike | None, reduction: str) -> Tensor:
    factor = _constant(f"{name}: weight", weight, loss, loss.shape)
    return _reduced(loss if factor is None else loss * factor, reduction)


class BCEWithLogitsLoss(Loss, function=binary_cross_entropy_with_logits):
    """Binary cross-entropy of sigmoid(logits) with targets in [0, 1], both of one shape, without overflow."""

    def __init__(self, weight: ArrayLike | None = None, reduction: str = "mean", pos_weight: ArrayLike | None = None):
        super().__init__(reduction)
        self.weight = _kept("BCEWithLogitsLoss: weight", weight)
        self.pos_weight = _kept("BCEWithLogitsLoss: pos_weight", pos_weight)


def binary_cross_entropy(
    p: ArrayLike, target: ArrayLike, weight: ArrayLike | None = None, reduction: str = "mean"
) -> Tensor:
    """-(target * log p + (1 - target) * log(1 - p)); p and target in [0, 1], of one shape.

    Logarithms are cut at -100, as in PyTorch, so that p = 0 and p = 1 have a loss. A p outside [0, 1] has the loss NaN.
    Of logits take binary_cross_entropy_with_logits, which keeps all digits.
    """
    p, target = _pair("binary_cross_entropy", p, target)
    loss = -(target * ops.bounded_log(p) + (1.0 - target) * ops.bounded_log(1.0 - p))
    return _weighted("binary_cross_entropy", loss, weight, reduction)


class BCELoss(Loss, function=binary_cross_entropy):
    """Binary cross-entropy of probabilities with targets in [0, 1], both of one shape."""

    def __init__(self, weight: ArrayLike | None = None, reduction: str = "mean"):
        super().__init__(reduction)
        self.weight = _kept("BCELoss: weight", weight)


def kl_div(x: ArrayLike, target: ArrayLike, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """target * (log target - x), of x = log q and target = p: the divergence of q from p (Kullback and Leibler 1951).

    0 * log 0 is 0. log_target: `target` holds log p. reduction: also "batchmean", the sum divided by the rows, which is
    the divergence a row; "mean" divides by the number of elements.
    """
    x, target = _pair("kl_div", x, target)
    if checks.flag("kl_div: log_target", log_target):
        loss = target.exp() * (target - x)
    else:
        loss = target * ops.where(target == 0, 1.0, target).log() - target * x
    return OF_BATCHES[checks.one_of("reduction", reduction, OF_BATCHES)](loss, None)


class KLDivLoss(Loss, function=kl_div):
    """target * (log target - x), of x = log q and target = p."""

    reductions = OF_BATCHES

    def __init__(self, reduction: str = "mean", log_target: bool = False):
        super().__init__(reduction)
        self.log_target = checks.flag("KLDivLoss: log_target", log_target)


# --- of classes -------------------------------------------------------------------------------------------------------


def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """-log softmax(logits)[label]: logits (N, C), labels (N,) of integers in [0, C); or (C,) and (), or (N, C, d1, ...)
    and (N, d1, ...).

    target: the labels, or floats of the logits' shape, the probabilities p of the classes: -sum of p * log softmax.
    weight: (C,), a factor for each class; the mean is the sum divided by the sum of the labels' weights.
    ignore_index: a label that counts for nothing, also not in the mean, which is NaN if all are ignored.
    label_smoothing: the part e of the target that is spread evenly over all classes (Szegedy et al. 2016):
        (1 - e) * loss + e * mean over classes of -log softmax(logits), with their weights.

    Raises ShapeError, DtypeError, IndexOutOfRangeError for a label, ConfigError for the options.
    """
    name = "cross_entropy"
    smoothing = checks.number(f"{name}: label_smoothing", label_smoothing, "[0, 1]")
    rows, target, shape = _rows(name, as_tensor(logits, target, weight), target)
    factors = _of_classes(name, weight, rows)
    even = smoothing / rows.shape[1]  # what each class gets of a target
    if target.dtype in FLOATS:
        if ignore_index is not None:
            raise ConfigError(f"{name}: expected labels with ignore_index, got probabilities of classes")
        spread = target * (1.0 - smoothing) + even if smoothing else target
        return _reduced(_shaped(_expected(rows, spread, factors), shape), reduction)
    rows, labels, counted, weights = _labels(name, target, rows, factors, ignore_index)
    is_mean = checks.one_of("reduction", reduction, REDUCTIONS) == "mean"
    if is_mean and weights is None and not smoothing:  # as most are
        return ops.cross_entropy_op(rows, labels, mean=True)
    loss = _times(ops.cross_entropy_op(rows, labels), weights)
    if smoothing:
        loss = loss * (1.0 - smoothing) + _times(_expected(rows, even, factors), counted)
    return _reduced(_shaped(loss, shape), reduction, weights)


def nll_loss(
    x: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """-x[label] of log-probabilities x: (N, C) and labels (N,), (C,) and (), or (N, C, d1, ...) and (N, d1, ...).

    nll_loss(log_softmax(z, 1), labels) is cross_entropy(z, labels). Options and errors are those of cross_entropy.
    """
    name = "nll_loss"
    rows, target, shape = _rows(name, as_tensor(x, target, weight), target)
    factors = _of_classes(name, weight, rows)
    rows, labels, _, weights = _labels(name, target, rows, factors, ignore_index)
    n, classes = rows.shape
    flat = as_tensor(labels, rows) + np.arange(n) * classes
    loss = _times(-ops.take_rows(rows.reshape(n * classes), flat), weights)
    return _reduced(_shaped(loss, shape), reduction, weights)


def _rows(name: str, x: Tensor, target: ArrayLike) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """x as (n, C), the target as (n,) labels or (n, C) probabilities, and the shape that the n rows had."""
    if x.dtype not in FLOATS:
        raise DtypeError(f"{name}: expected floats as predictions, got {x.dtype}")
    target = target if isinstance(target, Tensor) else Tensor(target, device=x.device)
    axis = min(1, x.ndim - 1)
    shape = x.shape[: max(axis, 0)] + x.shape[axis + 1 :]
    has_classes = target.shape == x.shape and x.ndim > 0
    is_label = target.shape == shape and x.ndim > 0
    is_probability = has_classes and target.dtype in FLOATS and name == "cross_entropy"
    if not (is_label or is_probability) or not x.shape[axis]:
        remedy = f"; of one-hot rows take labels.argmax({axis})" if has_classes else ""
        raise ShapeError(
            f"{name}: expected logits (rows, classes) and labels (rows,), got {x.shape} and {target.shape}{remedy}"
        )
    if is_label and target.dtype.kind not in "iu":
        checks.refuse(name, "integers as labels", target.dtype, DtypeError, "labels.astype('int64') makes them")
    if x.ndim == 2:
        return x, target, shape
    order, rows = [i for i in range(x.ndim) if i != axis] + [axis], (math.prod(shape), x.shape[axis])
    target = target.permute(*order).reshape(rows) if has_classes else target.reshape(rows[:1])
    return x.permute(*order).reshape(rows), target, shape


def _of_classes(name: str, weight: ArrayLike | None, rows: Tensor) -> Tensor | None:
    factors = _constant(f"{name}: weight", weight, rows, rows.shape[1:])
    if factors is not None and factors.shape != rows.shape[1:]:
        raise ShapeError(f"{name}: weight: expected one number a class, {rows.shape[1:]}, got {factors.shape}")
    return factors


def _labels(
    name: str, labels: Tensor, rows: Tensor, factors: Tensor | None, ignore_index: int | None
) -> tuple[Tensor, Any, Tensor | None, Tensor | None]:
    """Rows and labels with 0 where they are ignored; 1 for each that counts and 0 for the others; their weights.

    None stands for 1 everywhere.
    """
    counted = None
    if ignore_index is not None:
        labels = labels.astype("int64")
        is_counted = labels != _label(f"{name}: ignore_index", ignore_index)
        labels, counted = ops.where(is_counted, labels, 0), is_counted.astype(rows.dtype)
        rows = ops.where(is_counted.unsqueeze(-1), rows, 0.0)  # 0 times an infinity or NaN would be NaN
    checked = ops.checked_index(name, labels, rows.shape[1], from_end=False)
    return rows, checked, counted, counted if factors is None else _times(ops.take_rows(factors, checked), counted)


def _shaped(loss: Tensor, shape: tuple[int, ...]) -> Tensor:
    return loss if loss.shape == shape else loss.reshape(shape)


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor


def _expected(logits: Tensor, p: Tensor | float, factors: Tensor | None) -> Tensor:
    """-sum over the classes of p * weight * log softmax(logits), a row."""
    return -(_times(logits.log_softmax(), factors) * p).sum(-1)


class CrossEntropyLoss(Loss, function=cross_entropy):
    """-log softmax(logits)[label]: logits (N, C), labels (N,) integers; see functional.cross_entropy.

    weight: (C,), of the classes, kept as a buffer. A label of -100 is refused unless ignore_index=-100 is given.
    """

    def __init__(
        self,
        weight: ArrayLike | None = None,
        ignore_index: int | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ):
        super().__init__(reduction)
        self.weight = _kept("CrossEntropyLoss: weight", weight)
        self.ignore_index = _label("CrossEntropyLoss: ignore_index", ignore_index)
        self.label_smoothing = checks.number("CrossEntropyLoss: label_smoothing", label_smoothing, "[0, 1]")


class NLLLoss(Loss, function=nll_loss):
    """-x[label] of log-probabilities x (N, C), such as LogSoftmax gives, and labels (N,)."""

    def __init__(self, weight: ArrayLike | None = None, ignore_index: int | None = None, reduction: str = "mean"):
        super().__init__(reduction)
        self.weight = _kept("NLLLoss: weight", weight)
        self.ignore_index = _label("NLLLoss: ignore_index", ignore_index)


def _label(what: str, value: int | None) -> int | None:
    return None if value is None else checks.integer(what, value, -(2**63), 2**63 - 1)
