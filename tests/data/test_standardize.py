"""Standardize: the textbook mean and standard deviation, whatever the chunks; constant features; state."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import scratchnet as sn
from scratchnet.data import PiecewiseLinear, Standardize, TensorDataset, random_split, standardize
from scratchnet.errors import DataError, ShapeError

RNG = np.random.default_rng(0)
X = RNG.normal(1000, [[1, 10, 0.1]], (50, 3))


@pytest.mark.parametrize("per_feature, axis", [(True, 0), (False, None)])
@pytest.mark.parametrize("chunk", [1, 7, 50, 4096])
def test_fit_measures_what_numpy_measures_whatever_the_chunk(monkeypatch, chunk, per_feature, axis):
    monkeypatch.setattr(standardize, "CHUNK", chunk)
    s = Standardize.fit(X, per_feature=per_feature)
    np.testing.assert_allclose(s.mean, X.mean(axis=axis), rtol=1e-14)
    np.testing.assert_allclose(s.std, X.std(axis=axis), rtol=1e-12)


def test_standardized_data_has_mean_0_and_std_1():
    z = Standardize.fit(X)(X)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(z.std(axis=0), 1, rtol=1e-10)


def test_fit_sees_the_training_part_alone_and_after_scaling():
    images = RNG.integers(0, 256, (20, 4), np.uint8)
    train, rest = random_split(TensorDataset(images, np.arange(20), scale=1 / 255), [15, 5])
    s = Standardize.fit(train)
    pixels = images[train.positions] / 255
    np.testing.assert_allclose(s.mean, pixels.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(s.std, pixels.std(axis=0), rtol=1e-6)
    x, y = rest.map(s)[:]
    assert x.dtype == np.float32 and y.tolist() == rest.positions.tolist()
    expected = (images[rest.positions] / 255 - pixels.mean(axis=0)) / pixels.std(axis=0)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(constant=st.floats(-1e12, 1e12), n=st.integers(1, 40), per_feature=st.booleans())
def test_a_feature_that_never_changes_becomes_0(constant, n, per_feature):
    x = np.full((n, 2), constant)
    s = Standardize.fit(x, per_feature=per_feature)
    assert (s.std == 1).all()
    np.testing.assert_allclose(s(x), 0, atol=1e-3)


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=6),
        elements=st.floats(-9, 9, width=32),
    )
)
def test_a_batch_keeps_type_shape_and_memory(x):
    before = x.copy()
    z = Standardize.fit(x)(x)
    assert z.dtype == np.float32 and z.shape == x.shape
    np.testing.assert_array_equal(x, before)
    assert not np.shares_memory(z, x)
    assert np.isfinite(z).all()


def test_a_feature_whose_std_float32_cannot_hold_stays_finite():
    x = np.array([[1e-40], [2e-40]], np.float32)
    np.testing.assert_allclose(Standardize.fit(x)(x), 0, atol=1e-30)


def test_integers_come_out_as_float32():
    assert Standardize(1.0, 2.0)(np.array([[1, 3]])).tolist() == [[0.0, 1.0]]
    assert Standardize(1.0, 2.0)(np.array([[1, 3]])).dtype == np.float32


FAR = {
    "seconds since 1970": RNG.integers(1_700_000_000, 1_700_000_600, (200, 1)),
    "numbers that float32 just holds": (2**24 + 2 * RNG.integers(0, 20, (200, 1))).astype(np.float32),
    "a warm room": (300 + 1e-3 * RNG.normal(size=(200, 1))).astype(np.float32),
    "halves": (1000 + RNG.integers(0, 3, (200, 1))).astype(np.float16),
    "no mean but a far outlier": np.append(RNG.normal(size=199), 1e9)[:, None].astype(np.float32),
}


@pytest.mark.parametrize("kind", ["array", "tensor", "data set"])
@pytest.mark.parametrize("case", FAR)
def test_features_far_from_0_keep_their_digits(case, kind):
    x = FAR[case]
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(axis=0)) / wide.std(axis=0)
    s = Standardize.fit(x)
    z = {
        "array": lambda: s(x),
        "tensor": lambda: s(sn.Tensor(x)).numpy(),
        "data set": lambda: TensorDataset(x).map(s)[:][0],
    }[kind]()
    digits = np.finfo(z.dtype).eps
    np.testing.assert_allclose(z, expected, rtol=4 * digits, atol=8 * digits)


def test_the_state_moves_to_another_instance():
    s, other = Standardize.fit(X), Standardize()
    other.load_state_dict(s.state_dict())
    np.testing.assert_array_equal(other(X), s(X))
    other.state_dict()["mean"][:] = 0
    np.testing.assert_array_equal(other(X), s(X))


BAD_STATES = {
    "a missing std": ({"mean": 0.0}, DataError, r"mean and std, got a dict of 'mean'"),
    "a foreign key": ({"mean": 0.0, "std": 1.0, "var": 1.0}, DataError, "mean and std, got"),
    "other shapes": ({"mean": np.zeros(2), "std": np.ones(3)}, ShapeError, r"one shape, got \(2,\) and \(3,\)"),
    "std 0": ({"mean": 0.0, "std": 0.0}, DataError, r"stds of at least 1.2e-38"),
    "NaN": ({"mean": np.nan, "std": 1.0}, DataError, "finite means"),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_a_bad_state_is_refused_and_changes_nothing(case):
    state, error, message = BAD_STATES[case]
    s = Standardize(3.0, 2.0)
    with pytest.raises(error, match=message):
        s.load_state_dict(state)
    assert (s.mean, s.std) == (3.0, 2.0)


def test_rows_of_another_width_are_refused():
    with pytest.raises(ShapeError, match=r"expected rows of shape \(3,\), got \(1,\)"):
        Standardize.fit(X)(np.zeros((4, 1)))


def test_no_rows_cannot_be_measured():
    with pytest.raises(DataError, match="at least one row"):
        Standardize.fit(np.zeros((0, 3)))


# --- PiecewiseLinear --------------------------------------------------------------------------------------------------


def test_each_bin_says_how_far_a_value_got_through_it():
    bins = PiecewiseLinear([0, 0, 1], [0, 2, -1], [2, 10, 1])
    found = bins(np.float64([[1, 0], [6, 1], [-3, 5], [1e300, -9]]))
    assert found.dtype == np.float32
    assert found.tolist() == [[0.5, 0, 0.5], [1, 0.5, 1], [0, 0, 1], [1, 1, 0]]


def test_edges_are_quantiles_of_the_values_and_of_the_different_values():
    rare = np.float32([0] * 97 + [1, 5, 9])  # the quantiles of its values alone are 0 and 9
    bins = PiecewiseLinear.fit(np.column_stack([rare, np.arange(100) % 2, np.full(100, 7)]), bins=3)
    edges = [list(zip(bins.low[bins.column == c], bins.high[bins.column == c], strict=True)) for c in range(3)]
    assert edges == [[(0, 1), (1, 5), (5, 9)], [(0, 1)], [(7, 14)]]
    halves = PiecewiseLinear.fit(np.arange(101.0)[:, None], bins=2)
    assert halves.low.tolist() == [0, 50] and halves.high.tolist() == [50, 100]
    x = np.float32([[0, 1, 7]])
    assert bins(x).tolist() == [[0, 0, 0, 1, 0]]


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_bins_of_numbers_that_float32_does_not_tell_apart(dtype):
    seconds = np.arange(1_700_000_000, 1_700_000_101, dtype=dtype)[:, None]
    bins = PiecewiseLinear.fit(seconds, bins=2)
    assert (bins.low - seconds[0]).tolist() == [0, 50] and (bins.high - seconds[0]).tolist() == [50, 100]
    np.testing.assert_allclose(bins(seconds).sum(axis=1), np.arange(101) / 50, rtol=1e-6)
    assert np.isfinite(bins(seconds.astype(np.float32))).all()


def test_bins_keep_their_state_and_refuse_another():
    bins = PiecewiseLinear.fit(X, bins=5)
    again = PiecewiseLinear(**bins.state_dict())
    assert again(X).tobytes() == bins(X).tobytes()
    with pytest.raises(DataError, match="bins of finite, positive width"):
        PiecewiseLinear([0], [1], [1])
    with pytest.raises(ShapeError, match=r"one length, got .1,., .2,., .1,."):
        PiecewiseLinear([0], [1, 2], [3])
    with pytest.raises(ShapeError, match=r"expected rows of 3 columns, got .2, 2."):
        bins(X[:2, :2])
    with pytest.raises(ShapeError, match=r"expected features .n, columns., got .50,."):
        PiecewiseLinear.fit(X[:, 0])
    with pytest.raises(DataError, match="at least one row, got none"):
        PiecewiseLinear.fit(X[:0])
    with pytest.raises(ShapeError, match=r"columns\), got \(\d+, 0\)"):
        PiecewiseLinear.fit(X[:, :0])
