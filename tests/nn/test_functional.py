"""The functions behind the layers against NumPy and SciPy formulas, and their gradients against differences."""

import itertools
from functools import partial

import numpy as np
import pytest
import scipy.special
import scipy.stats

import scratchnet as sn
from scratchnet.nn import functional as F
from scratchnet.random import Generator, using
from scratchnet.testing import gradcheck

RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 4))
WEIGHT, BIAS = RNG.standard_normal((4, 3)), RNG.standard_normal(3)
SCALE, SHIFT = RNG.standard_normal(4), RNG.standard_normal(4)

ELEMENTWISE = {
    "relu": lambda x: np.where(x > 0, x, 0),
    "tanh": np.tanh,
    "sigmoid": scipy.special.expit,
    "gelu": lambda x: x * scipy.stats.norm.cdf(x),
    "softmax": lambda x: scipy.special.softmax(x, axis=-1),
    "log_softmax": lambda x: scipy.special.log_softmax(x, axis=-1),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_activations_match_scipy(name, device):
    np.testing.assert_allclose(getattr(F, name)(X).numpy(), ELEMENTWISE[name](X), rtol=1e-12)
    y = getattr(F, name)(X.astype(np.float32))
    assert y.dtype == np.float32
    np.testing.assert_allclose(y.numpy(), ELEMENTWISE[name](X), rtol=1e-5, atol=1e-6)


# --- linear ----------------------------------------------------------------------------------------------------------


def test_linear_is_x_times_weight_plus_bias(device):
    np.testing.assert_allclose(F.linear(X, WEIGHT, BIAS).numpy(), X @ WEIGHT + BIAS, rtol=1e-12)
    np.testing.assert_allclose(F.linear(X, WEIGHT).numpy(), X @ WEIGHT, rtol=1e-12)
    stack = RNG.standard_normal((2, 3, 4))
    np.testing.assert_allclose(F.linear(stack, WEIGHT, BIAS).numpy(), stack @ WEIGHT + BIAS, rtol=1e-12)
    assert F.linear(X[0], WEIGHT, BIAS).shape == (3,)


def test_linear_has_the_right_gradients():
    gradcheck(F.linear, [X, WEIGHT, BIAS], order=2)


def test_linear_refuses_shapes_that_do_not_fit():
    for args in ((X, WEIGHT.T), (X, WEIGHT, SCALE), (X[0, 0], WEIGHT), (X, BIAS)):
        with pytest.raises(sn.ShapeError, match=r"^linear: expected .*got"):
            F.linear(*args)


# --- dropout ---------------------------------------------------------------------------------------------------------

ONES = np.ones((100, 99), np.float32)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_a_share_and_scales_it(p, device):
    with using(Generator(1)):
        y = F.dropout(ONES, p).numpy()
    kept = y != 0
    np.testing.assert_array_equal(y[kept], np.float32(1 / (1 - p)))
    assert abs(kept.mean() - (1 - p)) < 4 * np.sqrt(p * (1 - p) / ONES.size)  # 4 standard deviations
    for axis in (0, 1):  # no stripes
        spread = np.sqrt(p * (1 - p) / ONES.shape[axis])
        assert abs(kept.mean(axis) - (1 - p)).max() < 5 * spread


def test_dropout_masks_depend_on_seed_and_stream_alone(device):
    def mask(generator):
        with using(generator):
            return F.dropout(ONES).numpy() != 0

    first = mask(Generator(1))
    np.testing.assert_array_equal(mask(Generator(1)), first)
    for other in (Generator(2), Generator(1, stream=1)):
        share = (mask(other) == first).mean()
        assert abs(share - 0.5) < 0.03  # as two independent coins
    generator = Generator(1)
    mask(generator)
    np.testing.assert_array_equal(mask(generator), mask(Generator(1, stream=1)))


def test_dropout_masks_are_those_of_the_reference_device():
    masks = []
    for name in ("numpy", "cpu"):
        with sn.default_device(name), using(Generator(2**63 + 5, stream=2**64 - 1)):
            masks.append(F.dropout(ONES, 0.3).numpy())
    np.testing.assert_array_equal(*masks)


def test_dropout_sends_gradients_through_the_same_mask(device):
    x = sn.Tensor(ONES, requires_grad=True)
    with using(Generator(3)):
        y = F.dropout(x, 0.25)
    with using(Generator(4)):  # whatever happens between forward and backward
        F.dropout(x, 0.5)
        y.backward(2 * ONES)
    np.testing.assert_array_equal(x.grad.numpy(), 2 * y.detach().numpy())


def test_dropout_of_everything_is_zero_and_so_is_its_gradient(device):
    x = sn.Tensor([1.0, np.inf, -2.0], requires_grad=True)
    y = F.dropout(x, 1.0)
    y.backward(np.ones(3, np.float32))
    np.testing.assert_array_equal(y.detach().numpy(), 0)
    np.testing.assert_array_equal(x.grad.numpy(), 0)


def test_dropout_of_nothing_or_in_evaluation_is_the_input_itself():
    x = sn.Tensor(ONES)
    assert F.dropout(x, 0.0) is x
    assert F.dropout(x, 0.5, training=False) is x


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), "half", None])
def test_dropout_refuses_p_outside_0_and_1(p):
    with pytest.raises(sn.ConfigError, match=r"dropout: p: expected a number in \[0, 1\]"):
        F.dropout(ONES, p)


# --- layer norm ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4,), (6, 4)])
def test_layer_norm_standardises_the_last_axes(shape, device):
    axes = tuple(range(-len(shape), 0))
    x, scale, shift = 3 + 2 * RNG.standard_normal((5, 6, 4)), RNG.standard_normal(shape), RNG.standard_normal(shape)
    expected = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-3)
    np.testing.assert_allclose(F.layer_norm(x, shape, eps=1e-3).numpy(), expected, rtol=1e-11, atol=1e-13)
    y = F.layer_norm(x, shape, scale, shift, eps=1e-3).numpy()
    np.testing.assert_allclose(y, expected * scale + shift, rtol=1e-11, atol=1e-13)


def test_layer_norm_has_the_right_gradients():
    gradcheck(lambda x, w, b: F.layer_norm(x, (4,), w, b), [X, SCALE, SHIFT], order=2)


def test_layer_norm_refuses_shapes_that_do_not_fit():
    for args in ((X, (3,)), (X, ()), (X, (4,), BIAS), (X, (4,), SCALE, BIAS)):
        with pytest.raises(sn.ShapeError, match=r"^layer_norm: expected .*got"):
            F.layer_norm(*args)


# --- batch norm ------------------------------------------------------------------------------------------------------


def running(n=4):
    return sn.nn.Buffer(RNG.standard_normal(n)), sn.nn.Buffer(RNG.uniform(0.5, 2, n))


@pytest.mark.parametrize(("shape", "axes"), [((6, 4), (0,)), ((6, 4, 5), (0, 2)), ((1, 4, 5), (0, 2))])
def test_batch_norm_in_training_standardises_channels_and_moves_the_statistics(shape, axes, device):
    x, column = 3 + 2 * RNG.standard_normal(shape), (4, 1)[: len(shape) - 1]
    mean, var = running()
    old_mean, old_var = mean.numpy().copy(), var.numpy().copy()
    y = F.batch_norm(x, mean, var, SCALE, SHIFT, training=True, momentum=0.3, eps=1e-3).numpy()
    expected = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-3)
    np.testing.assert_allclose(y, expected * SCALE.reshape(column) + SHIFT.reshape(column), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(mean.numpy(), 0.7 * old_mean + 0.3 * x.mean(axes), rtol=1e-12)
    np.testing.assert_allclose(var.numpy(), 0.7 * old_var + 0.3 * x.var(axes, ddof=1), rtol=1e-12)


@pytest.mark.parametrize("shape", [(6, 4), (1, 4), (6, 4, 5)])
def test_batch_norm_in_evaluation_uses_the_running_statistics(shape, device):
    x, column = RNG.standard_normal(shape), (4, 1)[: len(shape) - 1]
    mean, var = running()
    old_mean, old_var = mean.numpy().copy(), var.numpy().copy()
    y = F.batch_norm(x, mean, var, SCALE, SHIFT).numpy()
    expected = (x - old_mean.reshape(column)) / np.sqrt(old_var.reshape(column) + 1e-5)
    np.testing.assert_allclose(y, expected * SCALE.reshape(column) + SHIFT.reshape(column), rtol=1e-11, atol=1e-12)
    np.testing.assert_array_equal(mean.numpy(), old_mean)
    np.testing.assert_array_equal(var.numpy(), old_var)


def test_batch_norm_without_running_statistics_uses_the_batch():
    y = F.batch_norm(X, None, None).numpy()
    np.testing.assert_allclose(y, (X - X.mean(0)) / np.sqrt(X.var(0) + 1e-5), rtol=1e-11)


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 2)])
def test_batch_norm_has_the_right_gradients_in_training(shape):
    def f(x, weight, bias):
        return F.batch_norm(x, *running(), weight, bias, training=True)

    gradcheck(f, [RNG.standard_normal(shape), SCALE, SHIFT], order=2)


def test_batch_norm_has_the_right_gradients_in_evaluation():
    statistics = running()
    gradcheck(lambda x, w, b: F.batch_norm(x, *statistics, w, b), [X, SCALE, SHIFT], order=2)


def test_batch_norm_refuses_shapes_that_do_not_fit():
    mean, var = running()
    bad = [(X[0], mean, var), (X[None, None], mean, var), (X, *running(3)), (X, mean, var, BIAS)]
    for args in bad:
        with pytest.raises(sn.ShapeError, match=r"^batch_norm: expected .*got"):
            F.batch_norm(*args)
    with pytest.raises(sn.ShapeError, match="more than one value a channel"):
        F.batch_norm(X[:1], mean, var, training=True)


# --- embedding -------------------------------------------------------------------------------------------------------

TABLE, INDICES = RNG.standard_normal((5, 3)), np.array([[0, 4, 4], [2, 0, 4]])


def test_embedding_takes_rows(device):
    for indices in (INDICES, sn.Tensor(INDICES), INDICES.astype(np.uint8), INDICES.tolist()):
        np.testing.assert_array_equal(F.embedding(indices, TABLE).numpy(), TABLE[INDICES])
    assert F.embedding(np.zeros((0,), np.int64), TABLE).shape == (0, 3)
    assert F.embedding(2, TABLE).shape == (3,)


def test_embedding_adds_the_gradients_of_repeated_rows(device):
    weight = sn.Tensor(TABLE, requires_grad=True)
    g = RNG.standard_normal((2, 3, 3))
    F.embedding(INDICES, weight).backward(g)
    expected = np.zeros((5, 3))
    np.add.at(expected, INDICES, g)
    np.testing.assert_allclose(weight.grad.numpy(), expected, rtol=1e-12)


def test_embedding_has_the_right_gradients():
    gradcheck(lambda w: F.embedding(INDICES, w).tanh(), [TABLE], order=2)


@pytest.mark.parametrize("padding_idx", [4, -1])
def test_the_padding_row_gets_no_gradient_and_the_others_keep_theirs(padding_idx):
    weight = sn.Tensor(TABLE, requires_grad=True)
    y = F.embedding(INDICES, weight, padding_idx)
    np.testing.assert_array_equal(y.detach().numpy(), TABLE[INDICES])
    y.sum().backward()
    np.testing.assert_array_equal(weight.grad.numpy(), np.array([2, 0, 1, 0, 0])[:, None] * np.ones(3))


@pytest.mark.parametrize(
    ("indices", "error"),
    [([5], sn.IndexOutOfRangeError), ([-1], sn.IndexOutOfRangeError), ([0.5], sn.DtypeError), ([True], sn.DtypeError)],
)
def test_embedding_refuses_indices_outside_the_table(indices, error):
    with pytest.raises(error, match=r"^embedding: expected .*got"):
        F.embedding(np.array(indices), TABLE)


def test_embedding_refuses_a_table_that_is_no_matrix_and_a_padding_row_outside_it():
    with pytest.raises(sn.ShapeError, match="embedding: expected weight"):
        F.embedding([0], BIAS)
    with pytest.raises(sn.IndexOutOfRangeError, match="padding_idx"):
        F.embedding([0], TABLE, padding_idx=5)


# --- embedding bag ---------------------------------------------------------------------------------------------------

BAGS = {
    "rows": (INDICES, None, False),
    "offsets": (INDICES.ravel(), [0, 1, 1, 6], False),
    "end": (np.zeros(0, int), [0, 0, 0], True),
}
BAGS["last"] = np.append(INDICES.ravel(), 3), sn.Tensor([0, 4, 4, 7]), True
FOLDS = {"sum": np.sum, "mean": np.mean, "max": np.max}


def bags_of(indices, offsets, has_end):
    """The indices in each bag."""
    if offsets is None:
        return list(indices)
    ends = [*np.asarray(offsets).tolist(), *[len(indices)] * (not has_end)]
    return [np.array(indices[lo:hi], int) for lo, hi in itertools.pairwise(ends)]


@pytest.mark.parametrize("padding_idx", [None, 4, -3])
@pytest.mark.parametrize("kind", BAGS)
@pytest.mark.parametrize("mode", FOLDS)
def test_an_embedding_bag_folds_the_rows_of_each_bag(mode, kind, padding_idx, device):
    indices, offsets, has_end = BAGS[kind]
    padding = None if padding_idx is None else padding_idx % 5
    table = np.where(np.arange(5)[:, None] == padding, np.nan, TABLE)  # what counts for nothing is not read
    y = F.embedding_bag(indices, table, offsets, mode, None, has_end, padding_idx)
    bags = [bag[bag != padding] for bag in bags_of(indices, offsets, has_end)]
    expected = [FOLDS[mode](table[bag], axis=0) if len(bag) else np.zeros(3) for bag in bags]
    np.testing.assert_allclose(y.numpy(), np.reshape(expected, (-1, 3)), rtol=1e-14)


@pytest.mark.parametrize("padding_idx", [None, 4])
@pytest.mark.parametrize("kind", ["rows", "offsets"])
@pytest.mark.parametrize("mode", FOLDS)
def test_embedding_bags_have_the_right_gradients(mode, kind, padding_idx):
    indices, offsets, _ = BAGS[kind]
    gradcheck(lambda w: F.embedding_bag(indices, w, offsets, mode, None, False, padding_idx).tanh(), [TABLE], order=2)
    if mode == "sum":
        weights = RNG.standard_normal(indices.shape)
        bag = partial(F.embedding_bag, indices, offsets=offsets, mode="sum", padding_idx=padding_idx)
        gradcheck(lambda w, scale: bag(w, per_sample_weights=scale).tanh(), [TABLE, weights], order=2)


def test_the_weights_of_a_bag_scale_its_rows():
    y = F.embedding_bag([[0, 1]], TABLE, mode="sum", per_sample_weights=np.array([[2.0, -1.0]]))
    np.testing.assert_allclose(y.numpy()[0], 2 * TABLE[0] - TABLE[1], rtol=1e-15)


def test_of_equal_rows_the_first_one_of_a_bag_gets_the_gradient_and_a_nan_is_the_largest():
    table = np.array([[1.0], [1.0], [0.0], [np.nan], [np.nan]])
    weight = sn.Tensor(table, requires_grad=True)
    F.embedding_bag([[2, 1, 0], [0, 4, 3]], weight, mode="max").sum().backward()
    assert weight.grad.numpy().ravel().tolist() == [0, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (([[0]], TABLE, [0]), sn.ShapeError, r"got \(1, 1\) with$"),
        (([0], TABLE), sn.ShapeError, r"got \(1,\) without$"),
        (([0], TABLE, [1]), sn.IndexOutOfRangeError, r"offsets that ascend from 0 to at most 1, got \[1\]"),
        (([0, 1], TABLE, [0, 2, 1]), sn.IndexOutOfRangeError, "offsets that ascend"),
        (([0, 1], TABLE, [0, 3]), sn.IndexOutOfRangeError, "offsets that ascend"),
        (([0, 1], TABLE, [0, 1], "sum", None, True), sn.IndexOutOfRangeError, "ascend from 0 to 2"),
        (([0], TABLE, np.zeros(0, int)), sn.IndexOutOfRangeError, "offsets that ascend"),
        ((np.zeros(0, int), TABLE, np.zeros(0, int), "sum", None, True), sn.ShapeError, "offsets of one dimension"),
        (([0], TABLE, [0.0]), sn.DtypeError, "offsets of integers"),
        (([[5]], TABLE), sn.IndexOutOfRangeError, r"integers in \[0, 5\)"),
        (([[-1]], TABLE), sn.IndexOutOfRangeError, r"integers in \[0, 5\)"),
        (([[0]], TABLE, None, "mean", [[1.0]]), sn.ConfigError, "mode 'sum' with per_sample_weights, got 'mean'"),
        (([[0]], TABLE, None, "sum", np.ones(1)), sn.ShapeError, r"per_sample_weights \(1, 1\)"),
        (([[0]], TABLE, None, "average"), sn.ConfigError, "sum, mean, max"),
        (([[0]], TABLE[0]), sn.ShapeError, "weight"),
    ],
)
def test_an_embedding_bag_refuses_what_does_not_fit(arguments, error, match):
    with pytest.raises(error, match=f"^embedding_bag:.* expected .*{match}"):
        F.embedding_bag(*arguments)


# --- inputs ----------------------------------------------------------------------------------------------------------


def test_arrays_go_to_the_device_of_the_tensors_beside_them():
    weight, statistics = sn.Tensor(np.ones((4, 3)), device="numpy"), sn.Tensor(np.ones(4), device="numpy")
    assert F.linear(X, weight).device == "numpy"
    assert F.batch_norm(X, statistics, statistics).device == "numpy"
    assert F.layer_norm(X, (4,), statistics).device == "numpy"
    assert F.embedding(INDICES, sn.Tensor(TABLE, device="numpy"), 0).device == "numpy"


def test_bytes_become_float32_and_two_float_types_are_refused():
    weight = WEIGHT.astype(np.float32)
    image = np.arange(8, dtype=np.uint8).reshape(2, 4)
    np.testing.assert_allclose(F.linear(image, weight).numpy(), image @ weight, rtol=1e-5)
    with pytest.raises(sn.DtypeError, match="one float dtype"):
        F.linear(X, weight)
