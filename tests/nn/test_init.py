"""Initialisers: bounds, moments, and fans that follow the (in, out) layout of weights."""

import numpy as np
import pytest
import scipy.stats

import scratchnet as sn
from scratchnet.nn import init
from scratchnet.random import Generator, using

FAN_IN, FAN_OUT = 200, 50
DRAWS = {
    # name: (initialiser, distribution that SciPy knows)
    "uniform": (lambda t: init.uniform_(t, -2.0, 3.0), scipy.stats.uniform(-2, 5)),
    "uniform by default": (init.uniform_, scipy.stats.uniform(0, 1)),
    "normal": (lambda t: init.normal_(t, 1.0, 0.5), scipy.stats.norm(1, 0.5)),
    "normal by default": (init.normal_, scipy.stats.norm(0, 1)),
    "xavier uniform": (init.xavier_uniform_, "uniform", np.sqrt(6 / 250)),
    "xavier normal": (lambda t: init.xavier_normal_(t, gain=2.0), "normal", 2 * np.sqrt(2 / 250)),
    "kaiming uniform": (lambda t: init.kaiming_uniform_(t, nonlinearity="relu"), "uniform", np.sqrt(6 / 200)),
    "kaiming uniform by default": (init.kaiming_uniform_, "uniform", np.sqrt(6 / 200)),
    "kaiming uniform of Linear": (lambda t: init.kaiming_uniform_(t, a=np.sqrt(5)), "uniform", np.sqrt(1 / 200)),
    "kaiming normal": (lambda t: init.kaiming_normal_(t, nonlinearity="tanh"), "normal", 5 / 3 / np.sqrt(200)),
    "kaiming fan_out": (lambda t: init.kaiming_normal_(t, mode="fan_out"), "normal", np.sqrt(2 / 50)),
}


def distribution(kind, scale):
    return scipy.stats.norm(0, scale) if kind == "normal" else scipy.stats.uniform(-scale, 2 * scale)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", DRAWS)
def test_draws_follow_their_distribution(name, dtype):
    initialise, *rest = DRAWS[name]
    expected = rest[0] if len(rest) == 1 else distribution(*rest)
    t = sn.nn.Parameter(np.zeros((FAN_IN, FAN_OUT), dtype))
    with using(Generator(1)):
        assert initialise(t) is t
    values = t.detach().numpy()
    low, high = expected.support()
    assert values.dtype == dtype and low - 1e-6 <= values.min() and values.max() <= high + 1e-6
    assert scipy.stats.kstest(values.ravel(), expected.cdf).pvalue > 1e-3


@pytest.mark.parametrize("shape", [(40, 20, 3, 5), (300, 8, 5)])
@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
def test_fans_of_filters_count_the_elements_of_a_window(shape, mode):
    fan = {"fan_in": shape[1], "fan_out": shape[0]}[mode] * np.prod(shape[2:])
    with using(Generator(1)):
        values = init.kaiming_normal_(sn.Tensor(np.empty(shape)), mode=mode, nonlinearity="relu").numpy()
        both = init.xavier_uniform_(sn.Tensor(np.empty(shape))).numpy()
    assert scipy.stats.kstest(values.ravel(), scipy.stats.norm(0, np.sqrt(2 / fan)).cdf).pvalue > 1e-3
    bound = np.sqrt(6 / ((shape[0] + shape[1]) * np.prod(shape[2:])))
    assert scipy.stats.kstest(both.ravel(), distribution("uniform", bound).cdf).pvalue > 1e-3


def test_constants_fill():
    t = sn.Tensor(np.empty((2, 3)))
    for initialise, value in ((init.zeros_, 0), (init.ones_, 1), (lambda t: init.constant_(t, -2.5), -2.5)):
        np.testing.assert_array_equal(initialise(t).numpy(), np.full((2, 3), value))


def test_each_draw_takes_a_new_stream():
    a, b = sn.Tensor(np.empty(9)), sn.Tensor(np.empty(9))
    with using(Generator(1)):
        init.uniform_(a)
        init.uniform_(b)
    assert not np.array_equal(a.numpy(), b.numpy())
    with using(Generator(1, stream=1)):
        np.testing.assert_array_equal(init.uniform_(a).numpy(), b.numpy())


@pytest.mark.parametrize(
    ("name", "param", "gain"),
    [
        ("linear", None, 1),
        ("sigmoid", None, 1),
        ("tanh", None, 5 / 3),
        ("relu", None, np.sqrt(2)),
        ("selu", None, 0.75),
        ("leaky_relu", None, np.sqrt(2 / (1 + 0.01**2))),
        ("leaky_relu", 1.0, 1.0),
    ],
)
def test_gains_are_those_of_pytorch(name, param, gain):
    assert init.calculate_gain(name, param) == pytest.approx(gain, rel=1e-15)


def test_a_filled_tensor_counts_as_changed():
    t = sn.nn.Parameter(np.ones(3))
    y = (t * t).sum()
    init.zeros_(t)
    with pytest.raises(sn.GradientError, match="changed in place"):
        y.backward()


@pytest.mark.parametrize("shape", [(), (3,), (0, 3), (2, 0, 4)])
@pytest.mark.parametrize(
    "initialise", [init.xavier_uniform_, init.xavier_normal_, init.kaiming_uniform_, init.kaiming_normal_]
)
def test_fans_are_read_off_matrices_and_filters_only(initialise, shape):
    with pytest.raises(sn.ShapeError, match=rf"^{initialise.__name__}: expected .*\(fan_in, fan_out\), or .* got"):
        initialise(sn.Tensor(np.zeros(shape)))


BAD = [
    lambda t: init.uniform_(t, 1.0, 0.0),
    lambda t: init.normal_(t, 0.0, -1.0),
    lambda t: init.kaiming_normal_(t, mode="fan_sum"),
    lambda t: init.kaiming_normal_(t, nonlinearity="step"),
]


@pytest.mark.parametrize("initialise", BAD)
def test_an_option_out_of_range_is_refused(initialise):
    with pytest.raises(sn.ConfigError, match=r"expected .*, got "):
        initialise(sn.Tensor(np.zeros((2, 2))))


def test_integers_are_refused():
    with pytest.raises(sn.DtypeError, match=r"^uniform_: expected a float32 or float64 tensor, got int64"):
        init.uniform_(sn.Tensor([1, 2]))


# --- matrices and limits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3), (4, 2, 3)])
def test_orthogonal_has_orthonormal_rows_or_columns_times_the_gain(shape):
    t = init.orthogonal_(sn.Tensor(np.empty(shape)), gain=2.0).numpy().reshape(shape[0], -1)
    fewer = t if len(t) <= t.shape[1] else t.T
    np.testing.assert_allclose(fewer @ fewer.T, 4 * np.eye(len(fewer)), atol=1e-12)


def test_orthogonal_matrices_are_uniform():
    """The mean of any element is 0, its variance 1 / n (Haar measure); QR alone would make the diagonal negative."""
    sn.manual_seed(0)
    found = np.array([init.orthogonal_(sn.Tensor(np.empty((3, 3)))).numpy() for _ in range(2000)])
    np.testing.assert_allclose(found.mean(0), 0, atol=5 / np.sqrt(3 * 2000))
    np.testing.assert_allclose(found.var(0), 1 / 3, atol=0.05)


def test_trunc_normal_is_the_truncated_distribution():

    sn.manual_seed(0)
    values = init.trunc_normal_(sn.Tensor(np.empty(20000)), 1.0, 2.0, 0.0, 4.0).numpy()
    assert values.min() >= 0 and values.max() <= 4
    expected = scipy.stats.truncnorm(-0.5, 1.5, loc=1.0, scale=2.0)
    np.testing.assert_allclose([values.mean(), values.std()], [expected.mean(), expected.std()], rtol=0.02)
    for mean in (-1.0, 0.5, 2.0):  # the ends belong to it
        assert init.trunc_normal_(sn.Tensor(np.empty(2)), mean, 0.0, -1.0, 2.0).numpy().tolist() == [mean, mean]


def test_eye_keeps_the_input_of_a_layer():
    layer = sn.nn.Linear(3, 4, bias=False)
    init.eye_(layer.weight)
    assert layer(np.float32([1, 2, 3])).detach().numpy().tolist() == [1, 2, 3, 0]


@pytest.mark.parametrize(
    "call",
    [
        lambda t: init.eye_(t), lambda t: init.orthogonal_(t), lambda t: init.trunc_normal_(t, a=2, b=1),
        lambda t: init.trunc_normal_(t, 0, 0.1, 5, 6), lambda t: init.trunc_normal_(t, 0, 0, 1, 2),
        lambda t: init.trunc_normal_(t, 0, 0, -2, -1), lambda t: init.trunc_normal_(t, a=1, b=1),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(call):
    with pytest.raises((sn.ConfigError, sn.ShapeError), match=r"expected .*got"):
        call(sn.Tensor(np.empty(3)))
