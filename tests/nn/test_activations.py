"""Activations against SciPy formulas: values, gradients at and beside their kinks, options, and in recorded steps."""

import numpy as np
import pytest
import scipy.special
from messages import error_line

import scratchnet as sn
from scratchnet import nn
from scratchnet.nn import functional as F
from scratchnet.testing import gradcheck

X = np.array([-30.0, -3.0, -1.0, -1e-9, -0.3, 0.2, 1e-9, 0.999, 2.0, 6.5, 40.0]).reshape(1, 11)
expit, expm1, softplus = scipy.special.expit, np.expm1, lambda x: np.logaddexp(0, x)


def elu(x, alpha=1.0):
    return np.where(x > 0, x, alpha * expm1(np.minimum(x, 0)))


# layer, how it prints, its function with the same options, a formula from outside
ACTIVATIONS = [
    (nn.ReLU(), "ReLU()", F.relu, lambda x: np.maximum(x, 0)),
    (nn.ReLU(inplace=True), "ReLU()", F.relu, lambda x: np.maximum(x, 0)),
    (nn.Tanh(), "Tanh()", F.tanh, np.tanh),
    (nn.Sigmoid(), "Sigmoid()", F.sigmoid, expit),
    (nn.SiLU(), "SiLU()", F.silu, lambda x: x * expit(x)),
    (nn.LogSigmoid(), "LogSigmoid()", F.logsigmoid, scipy.special.log_expit),
    (nn.Softsign(), "Softsign()", F.softsign, lambda x: x / (1 + np.abs(x))),
    (nn.Mish(), "Mish()", F.mish, lambda x: x * np.tanh(softplus(x))),
    (nn.ReLU6(), "ReLU6()", F.relu6, lambda x: np.clip(x, 0, 6)),
    (nn.SELU(), "SELU()", F.selu, lambda x: 1.0507009873554805 * elu(x, 1.6732632423543772)),
    (nn.GELU(), "GELU()", F.gelu, lambda x: x * scipy.special.ndtr(x)),
    (
        nn.GELU("tanh"), "GELU(approximate='tanh')", lambda x: F.gelu(x, approximate="tanh"),
        lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    ),
    (nn.LeakyReLU(), "LeakyReLU()", F.leaky_relu, lambda x: np.where(x > 0, x, 0.01 * x)),
    (
        nn.LeakyReLU(0.2), "LeakyReLU(negative_slope=0.2)", lambda x: F.leaky_relu(x, 0.2),
        lambda x: np.where(x > 0, x, 0.2 * x),
    ),
    (nn.ELU(), "ELU()", F.elu, elu),
    (nn.ELU(0.5), "ELU(alpha=0.5)", lambda x: F.elu(x, 0.5), lambda x: elu(x, 0.5)),
    (nn.Softplus(), "Softplus()", F.softplus, softplus),
    (nn.Softplus(2.0), "Softplus(beta=2.0)", lambda x: F.softplus(x, 2.0), lambda x: softplus(2 * x) / 2),
    (nn.Hardtanh(), "Hardtanh()", F.hardtanh, lambda x: np.clip(x, -1, 1)),
    (
        nn.Hardtanh(-0.5, 2), "Hardtanh(min_val=-0.5, max_val=2.0)", lambda x: F.hardtanh(x, -0.5, 2),
        lambda x: np.clip(x, -0.5, 2),
    ),
    (nn.Softmax(), "Softmax()", F.softmax, lambda x: scipy.special.softmax(x, axis=-1)),
    (nn.Softmax(dim=0), "Softmax(dim=0)", lambda x: F.softmax(x, 0), lambda x: scipy.special.softmax(x, axis=0)),
    (nn.LogSoftmax(dim=1), "LogSoftmax(dim=1)", F.log_softmax, lambda x: scipy.special.log_softmax(x, axis=1)),
]  # fmt: skip
every = pytest.mark.parametrize(
    ("layer", "text", "function", "formula"), ACTIVATIONS, ids=[text for _, text, _, _ in ACTIVATIONS]
)


@every
def test_an_activation_follows_its_formula_and_prints_its_options(layer, text, function, formula, device):
    assert repr(layer) == text
    for x in (X, sn.Tensor(X)):
        for got in (layer(x), function(x)):
            np.testing.assert_allclose(got.numpy(), formula(X), rtol=1e-12, atol=1e-15)
    single = layer(X.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single.numpy(), formula(X.astype(np.float32).astype(np.float64)), rtol=2e-6, atol=1e-6)


@every
def test_an_activation_has_the_gradient_of_its_formula(layer, text, function, formula):
    gradcheck(layer, [X[:, [1, 4, 5, 7]]], order=2)
    x = sn.Tensor(np.full((2, 3), np.nan), requires_grad=True)
    assert np.isnan(layer(x).detach().numpy()).all()


@every
def test_a_recorded_activation_is_the_plain_one(layer, text, function, formula):
    def step(x):
        p.zero_grad()
        y = layer(x * p)
        (y * y).sum().backward()
        return y, p.grad

    p = nn.Parameter(np.float32(1.0))
    recorded = sn.jit(step)
    for seed in range(3):
        x = sn.Tensor(np.random.default_rng(seed).standard_normal((3, 9)).astype(np.float32))
        got = [t.detach().numpy().tobytes() for t in recorded(x)]
        assert got == [t.detach().numpy().tobytes() for t in step(x)]


# the slope where the two sides meet, as PyTorch has it
KINKS = [
    (F.relu, 0.0, 0.0), (F.leaky_relu, 0.0, 0.01), (F.elu, 0.0, 1.0), (F.selu, 0.0, 1.7580993408473766),
    (F.relu6, 0.0, 0.0), (F.relu6, 6.0, 0.0), (F.hardtanh, 1.0, 0.0), (F.hardtanh, -1.0, 0.0), (F.softsign, 0.0, 1.0),
]  # fmt: skip


@pytest.mark.parametrize(("function", "at", "slope"), KINKS)
def test_the_slope_at_a_kink_is_that_of_pytorch(function, at, slope, device):
    x = sn.Tensor([at], requires_grad=True)
    function(x).backward()
    np.testing.assert_allclose(x.grad.numpy(), [slope], rtol=1e-6)


def test_elu_keeps_its_digits_near_0():
    x = np.float32([-1e-6, -1e-20])
    np.testing.assert_allclose(F.elu(x).numpy(), np.expm1(x.astype(np.float64)), rtol=3e-7)


def test_prelu_learns_one_slope_or_one_a_channel(device):
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    slopes = np.array([0.1, 0.2, 0.3])
    expected = np.where(x > 0, x, x * slopes[:, None])
    np.testing.assert_allclose(F.prelu(x, slopes).numpy(), expected, rtol=1e-12)
    gradcheck(F.prelu, [x, slopes])
    one, many = nn.PReLU(), nn.PReLU(3, init=0.5)
    assert repr(many) == "PReLU(num_parameters=3)" and one.weight.shape == (1,)
    assert one(np.float32([-2.0])).item() == -0.5 and many(np.full((1, 3), -2, np.float32)).detach().numpy().sum() == -3
    with pytest.raises(sn.ShapeError, match=r"prelu: expected a weight of shape \(1,\) or \(4,\), got \(3,\)"):
        many(np.ones((2, 4), np.float32))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LeakyReLU("0.1"), lambda: nn.ELU(float("nan")), lambda: nn.Softplus(0), lambda: nn.GELU("exact"),
        lambda: nn.Hardtanh(1, 1), lambda: nn.ReLU(inplace=1), lambda: nn.Softmax(0.5), lambda: nn.PReLU(0),
    ],
)  # fmt: skip
def test_an_option_out_of_range_is_refused(make):
    with pytest.raises(sn.ConfigError, match="expected") as error:
        make()
    error_line(error)


def test_an_infinity_leaves_the_gradient_of_a_slope_alone():
    slope = sn.tensor([0.25], requires_grad=True)
    F.prelu(np.array([np.inf, -2.0], np.float32), slope).sum().backward()
    assert slope.grad.tolist() == [-2.0]
