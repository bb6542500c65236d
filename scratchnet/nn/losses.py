"""The losses as modules: they hold the options and call the function of functional.py."""

from .. import checks
from ..tensor import ArrayLike, Tensor
from . import functional as F
from .module import Module


class CrossEntropyLoss(Module):
    """-log softmax(logits)[label]: logits (rows, classes), labels (rows,) integers; see functional.cross_entropy."""

    def __init__(self, reduction: str = "mean", label_smoothing: float = 0.0):
        self.reduction = checks.one_of("reduction", reduction, F.REDUCTIONS)
        self.label_smoothing = checks.number("CrossEntropyLoss: label_smoothing", label_smoothing, "[0, 1]")

    def forward(self, logits: ArrayLike, labels: ArrayLike) -> Tensor:
        return F.cross_entropy(logits, labels, self.reduction, self.label_smoothing)


class MSELoss(Module):
    """(x - target) ** 2, both of one shape."""

    def __init__(self, reduction: str = "mean"):
        self.reduction = checks.one_of("reduction", reduction, F.REDUCTIONS)

    def forward(self, x: ArrayLike, target: ArrayLike) -> Tensor:
        return F.mse_loss(x, target, self.reduction)


class BCEWithLogitsLoss(Module):
    """Binary cross-entropy of sigmoid(logits) with targets in [0, 1], both of one shape, without overflow."""

    def __init__(self, reduction: str = "mean"):
        self.reduction = checks.one_of("reduction", reduction, F.REDUCTIONS)

    def forward(self, logits: ArrayLike, target: ArrayLike) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, target, self.reduction)
