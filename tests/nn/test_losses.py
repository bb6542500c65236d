"""Losses against SciPy formulas, far from and near to overflow; their gradients of several orders; refusals."""

import numpy as np
import pytest
import scipy.special

import scratchnet as sn
from scratchnet.nn import functional as F
from scratchnet.testing import gradcheck

RNG = np.random.default_rng(0)
LOGITS, LABELS = RNG.standard_normal((5, 4)), np.array([0, 3, 1, 1, 2])
X, TARGET = RNG.standard_normal((3, 4)), RNG.uniform(0, 1, (3, 4))

REDUCED = {"mean": np.mean, "sum": np.sum, "none": lambda x: x}
LOSSES = {
    "cross_entropy": (sn.nn.CrossEntropyLoss, LOGITS, LABELS),
    "mse_loss": (sn.nn.MSELoss, X, TARGET),
    "binary_cross_entropy_with_logits": (sn.nn.BCEWithLogitsLoss, X, TARGET),
}
every = pytest.mark.parametrize("name", LOSSES)


def cross_entropy(logits, labels, smoothing=0.0):
    target = np.eye(logits.shape[1])[labels] * (1 - smoothing) + smoothing / logits.shape[1]
    return -(target * scipy.special.log_softmax(logits, axis=1)).sum(1)


def bce(logits, target):
    return -(target * scipy.special.log_expit(logits) + (1 - target) * scipy.special.log_expit(-logits))


FORMULAS = {
    "cross_entropy": cross_entropy,
    "mse_loss": lambda x, target: (x - target) ** 2,
    "binary_cross_entropy_with_logits": bce,
}


@pytest.mark.parametrize("reduction", REDUCED)
@every
def test_losses_match_their_formulas(name, reduction, device):
    loss, x, target = LOSSES[name]
    expected = REDUCED[reduction](FORMULAS[name](x, target))
    for got in (loss(reduction)(x, target), getattr(F, name)(sn.Tensor(x), sn.Tensor(target), reduction)):
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)
        assert got.shape == np.shape(expected)


@every
def test_float32_stays_float32(name):
    loss, x, target = LOSSES[name]
    target = target.astype(np.float32) if target.dtype.kind == "f" else target
    got = loss()(x.astype(np.float32), target)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got.item(), FORMULAS[name](x, target).mean(), rtol=1e-5)


@every
def test_losses_have_the_right_gradients(name):
    loss, x, target = LOSSES[name]
    if target.dtype.kind == "f":
        gradcheck(lambda x, target: loss()(x, target), [x, target], order=2)
    else:
        gradcheck(lambda x: loss()(x, target), [x], order=2)


# --- cross-entropy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.1, 1.0])
def test_label_smoothing_spreads_a_part_of_the_target_evenly(smoothing, device):
    loss = sn.nn.CrossEntropyLoss("none", label_smoothing=smoothing)
    np.testing.assert_allclose(loss(LOGITS, LABELS).numpy(), cross_entropy(LOGITS, LABELS, smoothing), rtol=1e-12)
    gradcheck(lambda x: loss(x, LABELS), [LOGITS])


def test_cross_entropy_survives_huge_logits(device):
    x = sn.Tensor([[1000.0, 0.0, -1000.0]], requires_grad=True)
    loss = F.cross_entropy(x, [1])
    loss.backward()
    assert loss.item() == 1000
    np.testing.assert_array_equal(x.grad.numpy(), [[1, -1, 0]])


@pytest.mark.parametrize(
    ("logits", "labels", "error"),
    [
        (LOGITS, LABELS[:3], sn.ShapeError),
        (LOGITS[0], LABELS[0], sn.ShapeError),
        (LOGITS, LABELS.astype(float), sn.DtypeError),
        (LOGITS, LABELS + 1, sn.IndexOutOfRangeError),
        (LOGITS, LABELS - 1, sn.IndexOutOfRangeError),
    ],
)
def test_cross_entropy_refuses_what_does_not_fit(logits, labels, error):
    with pytest.raises(error, match=r"^cross_entropy: expected .*got"):
        F.cross_entropy(logits, labels)


# --- the pairwise losses ---------------------------------------------------------------------------------------------


def test_bce_survives_huge_logits(device):
    x = np.array([800.0, -800, 800, -800, 0], np.float32)
    target = np.array([1, 0, 0, 1, 0.5], np.float32)
    logits = sn.Tensor(x, requires_grad=True)
    loss = F.binary_cross_entropy_with_logits(logits, target, "none")
    loss.sum().backward()
    np.testing.assert_allclose(loss.detach().numpy(), [0, 0, 800, 800, np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(logits.grad.numpy(), [0, 0, 1, -1, 0], atol=1e-7)


def test_bce_has_the_right_gradients_at_zero():
    """Where formulas with |x| or max(x, 0) have a kink: a fresh model with zero weights stands exactly there."""
    gradcheck(lambda x: F.binary_cross_entropy_with_logits(x, np.array([0.0, 0.3, 1.0])), [np.zeros(3)], order=3)


def test_bce_takes_integer_and_boolean_targets(device):
    expected = bce(X, (TARGET > 0.5).astype(float)).mean()
    for target in (TARGET > 0.5, (TARGET > 0.5).astype(np.int64)):
        got = F.binary_cross_entropy_with_logits(X, target)
        np.testing.assert_allclose(got.item(), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["mse_loss", "binary_cross_entropy_with_logits"])
def test_shapes_that_only_broadcast_are_refused(name):
    with pytest.raises(sn.ShapeError, match=rf"^{name}: expected predictions and targets of one shape"):
        getattr(F, name)(np.zeros((4, 1)), np.zeros(4))


@pytest.mark.parametrize("name", ["mse_loss", "binary_cross_entropy_with_logits"])
def test_dtypes_that_do_not_fit_are_refused(name):
    for x, target in ((X, TARGET.astype(np.float32)), (np.zeros(3, np.int64), np.zeros(3))):
        with pytest.raises(sn.DtypeError, match="float"):
            getattr(F, name)(x, target)


# --- options ---------------------------------------------------------------------------------------------------------


@every
def test_an_unknown_reduction_is_refused_at_construction(name):
    with pytest.raises(sn.ConfigError, match="expected one of mean, sum, none, got 'average'"):
        LOSSES[name][0]("average")


def test_label_smoothing_outside_0_and_1_is_refused():
    for bad in (-0.1, 1.5, "a"):
        with pytest.raises(sn.ConfigError, match="label_smoothing"):
            sn.nn.CrossEntropyLoss(label_smoothing=bad)
