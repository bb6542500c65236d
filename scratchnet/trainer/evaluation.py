"""What a model is worth: its mean loss over batches, and the share of labels that it finds, in evaluation mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..grad_mode import evaluating
from ..nn import Module
from ..parallel.shards import output_and_target, tensors_of
from ..precisions import precision
from ..tensor import Tensor


def evaluated(model: Module, loss: Callable[..., Tensor], batches: Iterable[Any], device: str) -> dict[str, float]:
    """{"loss"}, the mean over all batches together, and {"accuracy"} if the targets are class numbers.

    A loss that divides by the weights of labels (`Loss._weight_of`) is divided by those of all batches. A label that
    counts for nothing counts neither as right nor as wrong. A mean of nothing is NaN.
    """
    weigh, ignored = getattr(loss, "_weight_of", len), getattr(loss, "ignore_index", None)
    loss_sum, weights, correct, labels, classes = 0.0, 0.0, 0, 0, True
    with evaluating(model), precision("float32"):
        for batch in batches:
            output, target = output_and_target(model, tensors_of(batch, lambda array: Tensor(array, device=device)))
            if weight := weigh(target):
                loss_sum, weights = loss_sum + loss(output, target).item() * weight, weights + weight
            classes = classes and output.ndim == 2 and target.ndim == 1 and target.dtype.kind in "iu"
            if classes:
                expected = target.numpy()
                counted = np.full(len(expected), True) if ignored is None else expected != ignored
                labels += int(counted.sum())
                correct += int(((output.numpy().argmax(axis=1) == expected) & counted).sum())
    result = {"loss": share(loss_sum, weights)}
    return result | {"accuracy": share(correct, labels)} if classes else result


def share(part: float, whole: float) -> float:
    """part / whole; NaN of nothing."""
    return part / whole if whole else math.nan
