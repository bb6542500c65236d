"""Metrics of classifiers and rankings against counting by hand."""

import numpy as np
import pytest

import scratchnet as sn
from scratchnet.errors import ConfigError, DtypeError, NonFiniteError, ShapeError
from scratchnet.metrics import (
    Mean,
    accuracy,
    confusion_matrix,
    ndcg_at_k,
    precision_recall_f1,
    recall_at_k,
    top_k_accuracy,
)

LOGITS = np.array([[0.1, 0.9, 0.0], [2.0, 1.0, 0.5], [0.3, 0.2, 0.4], [1.0, 1.0, 0.0]], np.float32)
LABELS = np.array([1, 2, 0, 0])  # right, last, second, first of two equal ones
METRICS = (accuracy, top_k_accuracy, confusion_matrix, precision_recall_f1)


def test_accuracy_counts_rows_whose_first_largest_logit_is_the_label():
    assert accuracy(LOGITS, LABELS) == 2 / 4


@pytest.mark.parametrize(("k", "expected"), [(1, 2 / 4), (2, 3 / 4), (3, 1.0)])
def test_top_k_accuracy_counts_labels_among_the_k_largest(k, expected):
    assert top_k_accuracy(LOGITS, LABELS, k) == expected


def test_confusion_matrix_has_labels_as_rows_and_predictions_as_columns():
    counts = confusion_matrix(LOGITS[[0, 1, 1, 2, 3]], [1, 2, 2, 0, 0])
    np.testing.assert_array_equal(counts, [[1, 0, 1], [0, 1, 0], [2, 0, 0]])
    assert counts.dtype == np.int64


def test_tensors_and_arrays_of_any_real_dtype_are_taken():
    logits = sn.Tensor(LOGITS, requires_grad=True)
    assert accuracy(logits, sn.Tensor(LABELS)) == 0.5
    assert top_k_accuracy(np.array([[200, 3, 100]], np.uint8), np.array([2], np.uint8), 2) == 1.0
    assert accuracy([[0.0, np.inf]], [1]) == 1.0
    assert accuracy(LOGITS.astype(">f4"), LABELS.astype(">i2")) == 0.5
    assert ndcg_at_k(LOGITS.astype(">f8"), LOGITS == 2.0, 1) == 1.0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("logits", "labels", "error"),
    [
        (LOGITS, LABELS[:3], sn.ShapeError),
        (LOGITS[0], LABELS, sn.ShapeError),
        (LOGITS[:0], LABELS[:0], sn.ShapeError),
        (LOGITS, LABELS + 1, sn.IndexOutOfRangeError),
        (LOGITS, LABELS - 1, sn.IndexOutOfRangeError),
        (LOGITS, LABELS.astype(float), sn.DtypeError),
        (LOGITS.astype(str), LABELS, sn.DtypeError),
        (LOGITS * np.nan, LABELS, sn.NonFiniteError),
    ],
)
def test_bad_input_is_refused_in_one_line(metric, logits, labels, error):
    with pytest.raises(error, match=rf"^{metric.__name__}: expected .*") as caught:
        metric(logits, labels)
    assert "\n" not in str(caught.value)
    if error is sn.IndexOutOfRangeError:
        assert str(caught.value).endswith(f"expected labels in [0, 3), got {3 if labels.max() == 3 else -1}")


@pytest.mark.parametrize("k", [0, 4, 1.0, True])
def test_top_k_refuses_k_outside_the_classes(k):
    with pytest.raises(sn.ConfigError, match=r"k: expected an integer from 1 to 3"):
        top_k_accuracy(LOGITS, LABELS, k)


def test_mean_weighs_its_pieces():
    mean = Mean()
    mean.update(2.0, n=3)
    mean.update(sn.Tensor(10.0))
    assert mean.value == 4.0


def test_mean_of_nothing_is_refused():
    with pytest.raises(sn.ShapeError, match="at least one"):
        _ = Mean().value
    with pytest.raises(sn.ConfigError, match="n: expected an integer >= 0"):
        Mean().update(1.0, n=-1)


def test_precision_recall_and_f1_are_the_counts_of_each_class():
    """Three classes, and one that neither occurs nor is predicted; figures by hand, and scikit-learn 1.7's."""
    predicted = np.array([0, 0, 1, 1, 1, 2, 0, 1])
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    found = precision_recall_f1(np.eye(4)[predicted], labels)
    np.testing.assert_allclose(found["precision"], [2 / 3, 2 / 4, 1 / 1, np.nan])
    np.testing.assert_allclose(found["recall"], [2 / 3, 2 / 2, 1 / 3, np.nan])
    np.testing.assert_allclose(found["f1"], [2 / 3, 2 * 0.5 / 1.5, 2 * (1 / 3) / (4 / 3), np.nan])
    assert found["support"].tolist() == [3, 2, 3, 0]
    never = precision_recall_f1(np.eye(2)[[0, 0]], [0, 1])
    assert np.isnan(never["precision"][1]) and never["recall"][1] == never["f1"][1] == 0


# --- rankings ---------------------------------------------------------------------------------------------------------

SCORES = np.float32([[9, 5, 7, 1, -np.inf], [1, 2, 3, 4, 5], [3, 3, 3, 3, 3]])
RELEVANT = np.array([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [0, 0, 1, 1, 1]], bool)


def test_recall_and_ndcg_are_their_formulas_by_hand():
    # row 0 ranks 0 2 1 3 4, of which 1 and 3 are relevant; row 1 has none; row 2 ranks by number
    assert recall_at_k(SCORES, RELEVANT, k=3) == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert recall_at_k(SCORES, RELEVANT, k=5) == 1.0
    first = (1 / np.log2(4)) / (1 + 1 / np.log2(3))
    second = (1 / np.log2(4)) / (1 + 1 / np.log2(3) + 1 / np.log2(4))
    assert ndcg_at_k(SCORES, RELEVANT, k=3) == pytest.approx((first + second) / 2)
    assert ndcg_at_k(RELEVANT.astype(np.float32), RELEVANT, k=2) == 1.0
    assert ndcg_at_k(sn.Tensor(SCORES), RELEVANT, k=1) == 0.0
    ranks = np.arange(12.0)[::-1][None]  # of twelve items the tenth and the eleventh; k is 10
    assert recall_at_k(ranks, (ranks == 2) | (ranks == 1)) == 1 / 2
    assert ndcg_at_k(ranks, ranks == 2) == pytest.approx(1 / np.log2(11)) and ndcg_at_k(ranks, ranks == 1) == 0


def test_a_ranking_agrees_with_a_sum_over_ranks():
    rng = np.random.default_rng(0)
    scores, relevant = rng.normal(size=(20, 9)), rng.random((20, 9)) < 0.3
    recalls, gains = [], []
    for row, wanted in zip(scores, relevant, strict=True):
        if wanted.any():
            order = sorted(range(9), key=lambda i: -row[i])[:4]
            recalls.append(sum(wanted[i] for i in order) / wanted.sum())
            best = sum(1 / np.log2(r + 2) for r in range(min(4, wanted.sum())))
            gains.append(sum(wanted[i] / np.log2(r + 2) for r, i in enumerate(order)) / best)
    assert recall_at_k(scores, relevant, 4) == pytest.approx(np.mean(recalls))
    assert ndcg_at_k(scores, relevant, 4) == pytest.approx(np.mean(gains))


def test_large_integers_rank_as_they_are_though_float64_makes_them_equal():
    scores = np.array([[2**53, 2**53 + 1], [5, 5]])
    assert top_k_accuracy(scores, [1, 0], 1) == accuracy(scores, [1, 0]) == 1.0
    assert top_k_accuracy(scores.astype(np.uint64) + np.uint64(2**63), [1, 0], 1) == 1.0
    assert recall_at_k(scores, np.eye(2, dtype=bool)[::-1], 1) == 1.0
    assert top_k_accuracy(np.array([[-(2**63), 0]]), [1], 1) == 1.0  # whose negative is itself


@pytest.mark.parametrize("metric", [recall_at_k, ndcg_at_k])
def test_rankings_that_are_none_are_refused(metric):
    for scores, relevant, k, kind in (
        (SCORES, RELEVANT[:2], 1, ShapeError),
        (SCORES, np.zeros_like(RELEVANT), 1, ShapeError),
        (SCORES, RELEVANT.astype(int), 1, DtypeError),
        (SCORES, RELEVANT, 6, ConfigError),
        (SCORES * np.nan, RELEVANT, 1, NonFiniteError),
        (np.where(RELEVANT, -np.inf, 0), RELEVANT, 1, NonFiniteError),
    ):
        with np.errstate(invalid="ignore"), pytest.raises(kind, match=metric.__name__) as caught:
            metric(scores, relevant, k)
    assert str(caught.value).endswith("got -inf for item 1 of row 0")  # the first of five
