"""Operators of ONNX's machine-learning domain that scikit-learn's models need; see operators.py. Their numbers are
attributes of nodes, so they are constants, which do not train."""

from __future__ import annotations

import numpy as np

from ... import functions as sn
from ...tensor import Tensor, as_tensor
from .operators import only, operator

LEARN = "ai.onnx.ml"


@operator("Scaler", domain=LEARN)
def scaler(x, *, offset, scale):
    """(x - offset) * scale"""
    x = as_tensor(x)
    offset, scale = (as_tensor(np.array(v, np.float32), x) for v in (offset, scale))
    return (x.astype(np.float32) - offset) * scale


@operator("Normalizer", domain=LEARN)
def normalizer(x, *, norm="MAX"):
    """Rows divided by the sum of their sizes, by their length, or by their largest element; by 1 where that is 0."""
    x = as_tensor(x)
    sizes = {"L1": x.abs().sum(1, True), "L2": sn.norm(x, 2, 1, True), "MAX": sn.amax(x, 1, True)}
    size = sizes[only("norm", norm, *sizes)]
    return x / sn.where(size == 0, 1.0, size)


def _scores(x, coefficients, intercepts, rows: int, transform: str) -> Tensor:
    weight = as_tensor(np.array(coefficients, np.float32).reshape(rows, -1), x)
    y = as_tensor(x).astype(np.float32) @ weight.t()
    y = y + as_tensor(np.array(intercepts, np.float32), x) if intercepts else y
    functions = {"NONE": lambda t: t, "LOGISTIC": sn.sigmoid, "SOFTMAX": lambda t: sn.softmax(t, -1)}
    return functions[only("post_transform", transform, *functions)](y)


@operator("LinearRegressor", domain=LEARN)
def linear_regressor(x, *, coefficients, intercepts=None, post_transform="NONE", targets=1):
    return _scores(x, coefficients, intercepts, targets, post_transform)


@operator("LinearClassifier", domain=LEARN)
def linear_classifier(
    x, *, coefficients, intercepts=None, classlabels_ints, multi_class=0, post_transform="NONE"
) -> tuple[Tensor, Tensor]:
    """(the label of the highest score, the scores), of one row of coefficients a class."""
    labels = np.array(classlabels_ints, np.int64)
    scores = _scores(x, coefficients, intercepts, len(labels), post_transform)
    return as_tensor(labels, scores)[scores.argmax(1)], scores
