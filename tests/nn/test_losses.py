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
    "nll_loss": (sn.nn.NLLLoss, scipy.special.log_softmax(LOGITS, axis=1), LABELS),
    "mse_loss": (sn.nn.MSELoss, X, TARGET),
    "l1_loss": (sn.nn.L1Loss, X, TARGET),
    "huber_loss": (sn.nn.HuberLoss, X, TARGET),
    "smooth_l1_loss": (sn.nn.SmoothL1Loss, X, TARGET),
    "binary_cross_entropy_with_logits": (sn.nn.BCEWithLogitsLoss, X, TARGET),
    "binary_cross_entropy": (sn.nn.BCELoss, RNG.uniform(0.01, 0.99, (3, 4)), TARGET),
    "kl_div": (sn.nn.KLDivLoss, X, TARGET),
}
every = pytest.mark.parametrize("name", LOSSES)


def cross_entropy(logits, labels, smoothing=0.0):
    target = np.eye(logits.shape[1])[labels] * (1 - smoothing) + smoothing / logits.shape[1]
    return -(target * scipy.special.log_softmax(logits, axis=1)).sum(1)


def bce(logits, target):
    return -(target * scipy.special.log_expit(logits) + (1 - target) * scipy.special.log_expit(-logits))


def huber(x, target, delta=1.0):
    return scipy.special.huber(delta, x - target)


FORMULAS = {
    "cross_entropy": cross_entropy,
    "nll_loss": lambda x, target: -x[np.arange(len(x)), target],
    "mse_loss": lambda x, target: (x - target) ** 2,
    "l1_loss": lambda x, target: np.abs(x - target),
    "huber_loss": huber,
    "smooth_l1_loss": huber,  # with delta = beta = 1 they are one
    "binary_cross_entropy_with_logits": bce,
    "binary_cross_entropy": lambda p, target: -scipy.special.xlogy(target, p) - scipy.special.xlogy(1 - target, 1 - p),
    "kl_div": lambda x, target: scipy.special.xlogy(target, target) - target * x,
}


@pytest.mark.parametrize("reduction", REDUCED)
@every
def test_losses_match_their_formulas(name, reduction, device):
    loss, x, target = LOSSES[name]
    expected = REDUCED[reduction](FORMULAS[name](x, target))
    for got in (
        loss(reduction=reduction)(x, target),
        getattr(F, name)(sn.Tensor(x), sn.Tensor(target), reduction=reduction),
    ):
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
    loss = sn.nn.CrossEntropyLoss(reduction="none", label_smoothing=smoothing)
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
        (LOGITS[0], LABELS[:1], sn.ShapeError),
        (1.0, 0, sn.ShapeError),
        (LOGITS[:, :0], LABELS, sn.ShapeError),
        (LOGITS, np.eye(4, dtype=int)[LABELS], sn.ShapeError),
        (LOGITS.astype(int), LABELS, sn.DtypeError),
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
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    loss.sum().backward()
    np.testing.assert_allclose(loss.detach().numpy(), [0, 0, 800, 800, np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(logits.grad.numpy(), [0, 0, 1, -1, 0], atol=1e-7)


@pytest.mark.parametrize("options", [{}, {"pos_weight": np.float32(2)}])
def test_bce_of_logits_keeps_the_digits_of_a_small_loss(options, device):
    x, target = np.array([8, 30, -8, -30], np.float32), np.array([1, 1, 0, 0], np.float32)
    loss = F.binary_cross_entropy_with_logits(x, target, reduction="none", **options).numpy()
    factor = np.where(target == 1, options.get("pos_weight", 1), 1)
    np.testing.assert_allclose(loss, factor * np.log1p(np.exp(-np.abs(x.astype(np.float64)))), rtol=1e-6)


def test_bce_has_the_right_gradients_at_zero():
    """Where formulas with |x| or max(x, 0) have a kink: a fresh model with zero weights stands exactly there."""
    gradcheck(lambda x: F.binary_cross_entropy_with_logits(x, np.array([0.0, 0.3, 1.0])), [np.zeros(3)], order=3)


def test_bce_takes_integer_and_boolean_targets(device):
    expected = bce(X, (TARGET > 0.5).astype(float)).mean()
    for target in (TARGET > 0.5, (TARGET > 0.5).astype(np.int64)):
        got = F.binary_cross_entropy_with_logits(X, target)
        np.testing.assert_allclose(got.item(), expected, rtol=1e-12)


PAIRWISE = [name for name in LOSSES if name not in ("cross_entropy", "nll_loss")]


@pytest.mark.parametrize("name", PAIRWISE)
def test_shapes_that_only_broadcast_are_refused(name):
    with pytest.raises(sn.ShapeError, match=rf"^{name}: expected predictions and targets of one shape"):
        getattr(F, name)(np.zeros((4, 1)), np.zeros(4))


@pytest.mark.parametrize("name", PAIRWISE)
def test_dtypes_that_do_not_fit_are_refused(name):
    for x, target in ((X, TARGET.astype(np.float32)), (np.zeros(3, np.int64), np.zeros(3))):
        with pytest.raises(sn.DtypeError, match="float"):
            getattr(F, name)(x, target)


# (loss, options, formula): what options make of an element
OPTIONS = {
    "huber": (sn.nn.HuberLoss(reduction="none", delta=0.3), X, TARGET, lambda: huber(X, TARGET, 0.3)),
    "smooth l1": (sn.nn.SmoothL1Loss(reduction="none", beta=0.3), X, TARGET, lambda: huber(X, TARGET, 0.3) / 0.3),
    "smooth l1, beta 0": (sn.nn.SmoothL1Loss(reduction="none", beta=0), X, TARGET, lambda: np.abs(X - TARGET)),
    "bce, weight": (
        sn.nn.BCEWithLogitsLoss([1.0, 2.0, 0.5, 3.0], reduction="none"), X, TARGET,
        lambda: bce(X, TARGET) * [1.0, 2.0, 0.5, 3.0],
    ),
    "bce, positive weight": (
        sn.nn.BCEWithLogitsLoss(pos_weight=[1.0, 2.0, 0.5, 3.0], reduction="none"), X, TARGET,
        lambda: -(
            np.array([1.0, 2.0, 0.5, 3.0]) * TARGET * scipy.special.log_expit(X)
            + (1 - TARGET) * scipy.special.log_expit(-X)
        ),
    ),
    "bce of probabilities, weight": (
        sn.nn.BCELoss([[2.0], [0.0], [1.0]], reduction="none"), scipy.special.expit(X), TARGET,
        lambda: bce(X, TARGET) * [[2.0], [0.0], [1.0]],
    ),
    "kl, log target": (
        sn.nn.KLDivLoss(reduction="none", log_target=True), X, np.log(TARGET),
        lambda: TARGET * (np.log(TARGET) - X),
    ),
    "kl, a batch": (
        sn.nn.KLDivLoss(reduction="batchmean"), X, TARGET,
        lambda: (scipy.special.xlogy(TARGET, TARGET) - TARGET * X).sum() / 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("loss", "x", "target", "formula"), OPTIONS.values(), ids=OPTIONS)
def test_options_change_a_loss_by_its_formula(loss, x, target, formula, device):
    with sn.default_device(device):
        np.testing.assert_allclose(loss.to(device)(x, target).numpy(), formula(), rtol=1e-6)
        gradcheck(lambda x: loss(x, target), [x], order=2)


def test_bce_of_probabilities_is_finite_and_steep_at_0_and_1(device):
    """The values and gradients of torch.nn.functional.binary_cross_entropy."""
    p = sn.Tensor([0.0, 1.0, 0.0, 1.0], requires_grad=True)
    loss = F.binary_cross_entropy(p, [1.0, 0.0, 0.0, 1.0], reduction="none")
    loss.sum().backward()
    assert loss.detach().numpy().tolist() == [100, 100, 0, 0]
    np.testing.assert_allclose(p.grad.numpy(), [-1e12, 1e12, 1, -1], rtol=1e-6)
    assert np.isnan(F.binary_cross_entropy([1.5], [1.0]).item())


def test_kl_div_takes_0_log_0_for_0(device):
    assert F.kl_div(np.log([0.5, 0.5]), np.array([0.0, 1.0]), reduction="sum").item() == pytest.approx(np.log(2))


# --- classes: weights, ignored labels, probabilities, more axes -------------------------------------------------------

WEIGHT = np.array([0.5, 2.0, 1.0, 3.0])
DEEP = RNG.standard_normal((2, 4, 3, 5))
DEEP_LABELS = RNG.integers(0, 4, (2, 3, 5))
PROBABILITIES = scipy.special.softmax(RNG.standard_normal((5, 4)), axis=1)


def classes_loss(log_p, labels, weight=None, ignored=None, smoothing=0.0):
    """The formula of torch.nn.CrossEntropyLoss a row, and the weight of each: log_p (n, C), labels (n,)."""
    weight = np.ones(log_p.shape[1]) if weight is None else weight
    counted = np.ones(len(labels)) if ignored is None else labels != ignored
    labels = np.where(counted, labels, 0)
    nll = -(log_p * weight)[np.arange(len(labels)), labels] * counted
    even = -(log_p * weight).mean(1) * counted
    return (1 - smoothing) * nll + smoothing * even, weight[labels] * counted


@pytest.mark.parametrize("rows", [(7,), (2, 3), ()])
def test_a_mean_of_cross_entropies_has_the_bits_of_the_mean_of_its_rows(rows):
    rng = np.random.default_rng(1)
    shape = (*rows[:1], 5, *rows[1:])
    numbers, labels = rng.standard_normal(shape).astype(np.float32), sn.Tensor(rng.integers(0, 5, rows))
    found, expected = (sn.Tensor(numbers, requires_grad=True) for _ in range(2))
    mean, by_rows = F.cross_entropy(found, labels), F.cross_entropy(expected, labels, reduction="none").mean()
    mean.backward()
    by_rows.backward()
    np.testing.assert_array_equal(mean.detach().numpy(), by_rows.detach().numpy())
    np.testing.assert_array_equal(found.grad.numpy(), expected.grad.numpy())


@pytest.mark.parametrize("reduction", REDUCED)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("ignored", [None, 1, -100])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["", "weighted"])
def test_classes_have_weights_and_labels_may_be_ignored(weight, ignored, smoothing, reduction, device):
    labels = np.where(np.arange(5) == 3, -100, LABELS) if ignored == -100 else LABELS
    rows, weights = classes_loss(scipy.special.log_softmax(LOGITS, axis=1), labels, weight, ignored, smoothing)
    expected = {"mean": rows.sum() / weights.sum(), "sum": rows.sum(), "none": rows}[reduction]
    options = {"weight": weight, "ignore_index": ignored, "reduction": reduction}
    loss = sn.nn.CrossEntropyLoss(**options, label_smoothing=smoothing).to(device)
    np.testing.assert_allclose(loss(LOGITS, labels).numpy(), expected, rtol=1e-12)
    if not smoothing:
        log_p = scipy.special.log_softmax(LOGITS, axis=1)
        np.testing.assert_allclose(sn.nn.NLLLoss(**options).to(device)(log_p, labels).numpy(), expected, rtol=1e-12)
    if device == "cpu":
        gradcheck(lambda x: loss(x, labels), [LOGITS], order=2)


@pytest.mark.parametrize("reduction", REDUCED)
def test_logits_may_have_more_axes_or_one(reduction, device):
    log_p = scipy.special.log_softmax(DEEP, axis=1)
    rows, weights = classes_loss(np.moveaxis(log_p, 1, -1).reshape(30, 4), DEEP_LABELS.ravel(), WEIGHT, 2)
    expected = {"mean": rows.sum() / weights.sum(), "sum": rows.sum(), "none": rows.reshape(2, 3, 5)}[reduction]
    options = {"weight": WEIGHT, "ignore_index": 2, "reduction": reduction}
    np.testing.assert_allclose(F.cross_entropy(DEEP, DEEP_LABELS, **options).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(F.nll_loss(log_p, DEEP_LABELS, **options).numpy(), expected, rtol=1e-12)
    got = F.cross_entropy(LOGITS[0], 3, reduction=reduction)
    np.testing.assert_allclose(got.numpy(), -scipy.special.log_softmax(LOGITS[0])[3], rtol=1e-12)
    assert got.shape == ()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["", "weighted"])
def test_the_target_may_be_probabilities(weight, smoothing, device):
    spread = PROBABILITIES * (1 - smoothing) + smoothing / 4
    rows = -(scipy.special.log_softmax(LOGITS, axis=1) * spread * (1 if weight is None else weight)).sum(1)
    loss = sn.nn.CrossEntropyLoss(weight, label_smoothing=smoothing).to(device)
    np.testing.assert_allclose(loss(LOGITS, PROBABILITIES).numpy(), rows.mean(), rtol=1e-12)
    deep = np.moveaxis(np.stack([LOGITS, LOGITS]), 2, 1), np.moveaxis(np.stack([PROBABILITIES] * 2), 2, 1)  # (2, 4, 5)
    np.testing.assert_allclose(loss(*deep).numpy(), rows.mean(), rtol=1e-12)
    if device == "cpu":
        gradcheck(lambda x, p: loss(x, p), [LOGITS, PROBABILITIES], order=2)


def test_the_mean_of_nothing_is_nan_as_in_pytorch(device):
    assert np.isnan(F.cross_entropy(LOGITS, np.full(5, 7), ignore_index=7).item())
    assert F.cross_entropy(LOGITS, np.full(5, 7), ignore_index=7, reduction="sum").item() == 0


@pytest.mark.parametrize(
    "loss", [F.nll_loss, F.cross_entropy, lambda *a, **k: F.cross_entropy(*a, **k, label_smoothing=0.1)]
)
@pytest.mark.parametrize("row", [[-np.inf, 0.5], [np.inf, 1.0], [np.nan, np.nan]])
def test_a_row_that_is_ignored_may_hold_anything(loss, row):
    x = sn.tensor([[0.5, 1.0], row], requires_grad=True)
    value = loss(x, np.array([1, 9]), ignore_index=9)
    assert value.item() == loss(x[:1], np.array([1])).item()
    value.backward()
    assert np.isfinite(x.grad.numpy()[0]).all()
    assert x.grad.numpy()[1].tolist() == [0, 0]


def test_labels_of_small_dtypes_may_be_ignored(device):
    labels = np.array([0, 255, 1, 1, 2], np.uint8)
    expected = F.cross_entropy(LOGITS[[0, 2, 3, 4]], labels[[0, 2, 3, 4]]).item()
    assert F.cross_entropy(LOGITS, labels, ignore_index=255).item() == pytest.approx(expected, rel=1e-12)
    for unused in (-(2**63), 2**63 - 1):
        assert F.cross_entropy(LOGITS[:1], labels[:1], ignore_index=unused).item() > 0
    assert F.cross_entropy(LOGITS[:1], labels[:1], ignore_index=-100).item() == pytest.approx(
        cross_entropy(LOGITS[:1], [0]).item(), rel=1e-12
    )


def test_weights_of_float64_serve_logits_of_float32_and_move_with_the_loss():
    loss = sn.nn.CrossEntropyLoss(WEIGHT)
    assert loss(LOGITS.astype(np.float32), LABELS).dtype == np.float32
    assert [*loss.state_dict()] == ["weight"] and loss.to("numpy").weight.device == "numpy"
    assert repr(loss) == "CrossEntropyLoss(weight=[4])"
    assert repr(sn.nn.CrossEntropyLoss()) == "CrossEntropyLoss()"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: F.cross_entropy(LOGITS, LABELS, weight=WEIGHT[:3]), sn.ShapeError, r"weight: .*\(4,\), got \(3,\)"),
        (lambda: F.cross_entropy(LOGITS, PROBABILITIES, ignore_index=1), sn.ConfigError, "got probabilities"),
        (lambda: F.cross_entropy(LOGITS, LABELS * 0 - 100), sn.IndexOutOfRangeError, "got -100"),
        (lambda: F.cross_entropy(LOGITS, LABELS, ignore_index=1.0), sn.ConfigError, "ignore_index: expected"),
        (lambda: F.nll_loss(LOGITS, PROBABILITIES), sn.ShapeError, "nll_loss"),
        (lambda: F.cross_entropy(LOGITS, np.eye(4, dtype=int)[LABELS]), sn.ShapeError, r"rows take labels.argmax\(1\)"),
        (lambda: F.cross_entropy(LOGITS, LABELS * 1.0), sn.DtypeError, r"labels.astype\('int64'\) makes"),
        (lambda: F.nll_loss(LOGITS, LABELS, weight=WEIGHT[:3]), sn.ShapeError, r"weight: .*\(4,\), got \(3,\)"),
        (lambda: sn.nn.CrossEntropyLoss("sum"), sn.ConfigError, "write reduction='sum'"),
        (lambda: sn.nn.BCEWithLogitsLoss(["a"]), sn.DtypeError, "numbers"),
        (lambda: F.binary_cross_entropy(TARGET, TARGET, weight=np.ones((5, 3, 4))), sn.ShapeError, "weight: expected"),
    ],
)  # fmt: skip
def test_options_of_a_loss_that_do_not_fit_are_refused(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


CASES = [
    lambda x, y: F.cross_entropy(x, y, weight=WEIGHT, ignore_index=1, label_smoothing=0.2),
    lambda x, y: F.nll_loss(x, y, ignore_index=-100),
    lambda x, y: F.cross_entropy(x, x.detach().softmax()),
    lambda x, y: F.huber_loss(x, x.detach() * 0.5) + F.l1_loss(x, x * 0.1) + F.smooth_l1_loss(x, x * 3, beta=0.2),
    lambda x, y: F.binary_cross_entropy(x.sigmoid(), (x > 0).astype("float64")) + F.kl_div(x, x.detach().softmax()),
]


@pytest.mark.parametrize("loss", CASES)
def test_a_recorded_loss_is_the_plain_one(loss):
    def step(x, y):
        p.zero_grad()
        value = loss(x * p, y)
        value.backward()
        return value, p.grad

    p = sn.nn.Parameter(np.ones(4))
    recorded = sn.jit(step)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        x, y = rng.standard_normal((6, 4)), rng.integers(0, 4, 6)
        got = [t.detach().numpy().copy() for t in recorded(sn.Tensor(x), sn.Tensor(y))]
        expected = [t.detach().numpy() for t in step(sn.Tensor(x), sn.Tensor(y))]
        assert [a.tobytes() for a in got] == [b.tobytes() for b in expected]


# --- options ---------------------------------------------------------------------------------------------------------


@every
def test_an_unknown_reduction_is_refused_at_construction(name):
    with pytest.raises(sn.ConfigError, match=r"expected one of mean, sum, none.* got 'average'"):
        LOSSES[name][0](reduction="average")


def test_label_smoothing_outside_0_and_1_is_refused():
    for bad in (-0.1, 1.5, "a"):
        with pytest.raises(sn.ConfigError, match="label_smoothing"):
            sn.nn.CrossEntropyLoss(label_smoothing=bad)
