"""Metrics of classifiers, from logits and labels, and of rankings; plain NumPy, because nothing trains on them."""

from typing import Any

import numpy as np

from . import checks
from .errors import DtypeError, IndexOutOfRangeError, NonFiniteError, ShapeError
from .tensor import FLOATS, Tensor


def accuracy(logits: Any, labels: Any) -> float:
    """The share of rows whose largest logit is the label's (the first one, if several are as large).

    logits: (rows, classes); labels: (rows,) integers in [0, classes); at least one row.
    Raises ShapeError, DtypeError, IndexOutOfRangeError, or NonFiniteError for a NaN, which has no rank.
    """
    logits, labels = _checked("accuracy", logits, labels)
    return float((logits.argmax(axis=1) == labels).mean())


def top_k_accuracy(logits: Any, labels: Any, k: int = 5) -> float:
    """The share of rows whose label is among the k largest logits (equal ones rank by class number).

    Arguments and errors as for `accuracy`; ConfigError for k outside [1, classes].
    """
    logits, labels = _checked("top_k_accuracy", logits, labels)
    k = checks.integer("top_k_accuracy: k", k, 1, logits.shape[1])
    return float((_best(logits, k) == labels[:, None]).any(axis=1).mean())


def confusion_matrix(logits: Any, labels: Any) -> np.ndarray:
    """counts (classes, classes) int64: counts[i, j] rows have label i and the largest logit at j.

    Arguments and errors as for `accuracy`.
    """
    return _counts("confusion_matrix", logits, labels)


def _counts(name: str, logits: Any, labels: Any) -> np.ndarray:
    logits, labels = _checked(name, logits, labels)
    counts = np.zeros((logits.shape[1],) * 2, np.int64)
    np.add.at(counts, (labels, logits.argmax(axis=1)), 1)
    return counts


def precision_recall_f1(logits: Any, labels: Any) -> dict[str, np.ndarray]:
    """Of each class, (classes,) float64: {"precision", "recall", "f1"}, and {"support"}, its rows, int64.

    precision = TP / (TP + FP), recall = TP / (TP + FN), f1 = 2 TP / (2 TP + FP + FN), of rows for which the class is
    predicted (P) rightly (T) or not (F), or missed (FN). NaN where nothing is to divide: the precision of a class
    that is never predicted, the recall of one that never occurs (scikit-learn puts 0 there, and warns).
    Arguments and errors as for `accuracy`. (van Rijsbergen 1979, chapter 7)
    """
    counts = _counts("precision_recall_f1", logits, labels)
    hits, predicted, support = np.diagonal(counts).astype(np.float64), counts.sum(axis=0), counts.sum(axis=1)
    with np.errstate(invalid="ignore"):
        shares = {"precision": hits / predicted, "recall": hits / support, "f1": 2 * hits / (predicted + support)}
    return shares | {"support": support}


def recall_at_k(scores: Any, relevant: Any, k: int = 10) -> float:
    """The share of a row's relevant items that are among its k largest scores, on average over rows that have any.

    scores: (rows, items) real numbers, -inf for items that are out of the question, which may not be relevant;
    relevant: (rows, items) bool. Equal scores rank by item number. Raises ShapeError, DtypeError, NonFiniteError, or
    ConfigError for k outside [1, items].
    """
    found, relevant = _ranked("recall_at_k", scores, relevant, k)
    return float((found.sum(axis=1) / relevant.sum(axis=1)).mean())


def ndcg_at_k(scores: Any, relevant: Any, k: int = 10) -> float:
    """Normalised discounted cumulative gain: a relevant item at rank r = 1, ..., k counts 1 / log2(r + 1); a row's sum
    is divided by that of the best order (Jarvelin and Kekalainen 2002).

    Arguments and errors as for `recall_at_k`.
    """
    found, relevant = _ranked("ndcg_at_k", scores, relevant, k)
    gains = 1 / np.log2(np.arange(2, found.shape[1] + 2))
    best = np.cumsum(gains)[np.minimum(relevant.sum(axis=1), found.shape[1]) - 1]
    return float(((found * gains).sum(axis=1) / best).mean())


def _ranked(name: str, scores: Any, relevant: Any, k: Any) -> tuple[np.ndarray, np.ndarray]:
    """(found (rows, k): is the item at each rank relevant?, relevant), of the rows with a relevant item."""
    scores, relevant = (
        x.detach().numpy() if isinstance(x, Tensor) else checks.array(name, x) for x in (scores, relevant)
    )
    if scores.ndim != 2 or not scores.size or relevant.shape != scores.shape:
        raise ShapeError(
            f"{name}: expected scores and relevant (rows, items), not empty, got {scores.shape} and {relevant.shape}"
        )
    if not _are_real(scores) or relevant.dtype != bool:
        raise DtypeError(f"{name}: expected real scores and relevant as bool, got {scores.dtype} and {relevant.dtype}")
    k = checks.integer(f"{name}: k", k, 1, scores.shape[1])
    if np.isnan(scores).any():
        raise NonFiniteError(f"{name}: expected scores that can be ranked, got NaN")
    if (out := (scores == -np.inf) & relevant).any():
        row, item = np.argwhere(out)[0]
        raise NonFiniteError(f"{name}: expected a score for each relevant item, got -inf for item {item} of row {row}")
    some = relevant.any(axis=1)
    if not some.any():
        raise ShapeError(f"{name}: expected a row with a relevant item, got none")
    return np.take_along_axis(relevant[some], _best(scores[some], k), axis=1), relevant[some]


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Where the k largest of each row are, largest first, equal ones in order: (rows, k). In the scores' own type, as
    float64 would make equal what large integers are not."""
    last = scores.shape[1] - 1
    return last - np.argsort(scores[:, ::-1], axis=1, kind="stable")[:, : -k - 1 : -1]


class Mean:
    """The running mean of what comes in pieces: `mean.update(batch_loss, n=len(batch))`, then `mean.value`."""

    def __init__(self) -> None:
        self.total, self.n = 0.0, 0

    def update(self, value: float, n: int = 1) -> None:
        """Adds the mean `value` of n more items. Raises ConfigError for n < 0."""
        n = checks.integer("Mean: n", n, 0)
        if isinstance(value, bool) or not isinstance(value, int | float | np.number | Tensor):
            checks.refuse("Mean", "a number", value)
        self.total += float(value) * n
        self.n += n

    @property
    def value(self) -> float:
        """The mean so far. Raises ShapeError if there was nothing."""
        if not self.n:
            raise ShapeError("Mean: expected at least one item, got none")
        return self.total / self.n


def _are_real(numbers: np.ndarray) -> bool:
    """Integers, or floats of a tensor's types in any order of bytes?"""
    return numbers.dtype.kind in "iu" or numbers.dtype.newbyteorder("=") in FLOATS


def _checked(name: str, logits: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    logits, labels = (x.detach().numpy() if isinstance(x, Tensor) else checks.array(name, x) for x in (logits, labels))
    if logits.ndim != 2 or not logits.size or labels.shape != logits.shape[:1]:
        raise ShapeError(
            f"{name}: expected logits (rows, classes), labels (rows,), not empty, got {logits.shape} and {labels.shape}"
        )
    if not _are_real(logits) or labels.dtype.kind not in "iu":
        raise DtypeError(f"{name}: expected real logits and integer labels, got {logits.dtype} and {labels.dtype}")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        bad = labels[(labels < 0) | (labels >= logits.shape[1])][0]
        raise IndexOutOfRangeError(f"{name}: expected labels in [0, {logits.shape[1]}), got {bad}")
    if np.isnan(logits).any():
        raise NonFiniteError(f"{name}: expected logits that can be ranked, got NaN")
    return logits, labels
