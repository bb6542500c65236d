"""clip_grad_norm_ against NumPy's norms."""

import math

import numpy as np
import pytest
from messages import error_line

import scratchnet as sn
from scratchnet.nn.utils import clip_grad_norm_

RNG = np.random.default_rng(0)


def parameters(scale=1.0, dtype=np.float64):
    """Two with a gradient, one without."""
    params = [sn.nn.Parameter(np.zeros(shape, dtype)) for shape in ((3, 4), (5,), (2,))]
    for p in params[:2]:
        p.grad = sn.Tensor((scale * RNG.standard_normal(p.shape)).astype(dtype))
    return params


def flat(params):
    return np.concatenate([p.grad.numpy().ravel() for p in params if p.grad is not None])


@pytest.mark.parametrize("norm_type", [1, 2.0, 3, math.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_are_scaled_to_the_norm(norm_type, dtype, device):
    params = parameters(10.0, dtype)
    before = flat(params).astype(np.float64)
    norm = clip_grad_norm_(params, 1.5, norm_type).item()
    np.testing.assert_allclose(norm, np.linalg.norm(before, norm_type), rtol=1e-12)
    assert flat(params).dtype == dtype
    np.testing.assert_allclose(flat(params), before * 1.5 / (norm + 1e-6), rtol=1e-6)
    assert params[2].grad is None


def test_small_gradients_stay_as_they_are():
    params = parameters(1e-3)
    before = flat(params)
    clip_grad_norm_(iter(params), 1.0)
    np.testing.assert_array_equal(flat(params), before)


def test_squares_of_large_float32_gradients_do_not_overflow():
    params = parameters(1e25, np.float32)
    before = flat(params).astype(np.float64)
    assert clip_grad_norm_(params, 1.0).item() == pytest.approx(np.linalg.norm(before), rel=1e-12)
    np.testing.assert_allclose(np.linalg.norm(flat(params)), 1.0, rtol=1e-5)


def test_one_parameter_or_none_with_a_gradient_is_fine():
    p, *_, q = parameters(10.0)
    assert clip_grad_norm_(p, 1.0).item() > 1
    assert np.linalg.norm(p.grad.numpy()) == pytest.approx(1.0, abs=1e-6)
    assert clip_grad_norm_([q], 1.0).item() == 0.0
    assert clip_grad_norm_([], 1.0, math.inf).item() == 0.0


@pytest.mark.parametrize("norm_type", [2, math.inf])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_norm_that_is_not_finite_is_refused_on_request_and_changes_nothing(value, norm_type):
    params = parameters()
    params[0].grad.numpy()[0, 0] = value
    before = flat(params)
    with pytest.raises(sn.NonFiniteError, match="expected finite gradients"):
        clip_grad_norm_(params, 1.0, norm_type, error_if_nonfinite=True)
    np.testing.assert_array_equal(flat(params), before)
    assert not math.isfinite(clip_grad_norm_(params, 1.0, norm_type))
    if math.isnan(value):
        assert np.isnan(flat(params)).all()  # it is not hidden


@pytest.mark.parametrize("options", [{"max_norm": -1.0}, {"max_norm": math.nan}, {"max_norm": 1.0, "norm_type": 0}])
def test_an_option_out_of_range_is_refused(options):
    with pytest.raises(sn.ConfigError, match=r"^clip_grad_norm_: \w+: expected a number"):
        clip_grad_norm_(parameters(), **options)


def test_a_generator_that_was_used_up_is_refused():
    model = sn.nn.Linear(2, 2)
    (model(np.full((1, 2), 1e3, np.float32)) ** 2).sum().backward()
    used_up = model.parameters()
    assert len(list(used_up)) == 2
    with pytest.raises(sn.ConfigError, match=r"clip_grad_norm_.*used up") as error:
        clip_grad_norm_(used_up, 1.0)
    error_line(error)
    for optimizer in (sn.optim.SGD, sn.optim.Adam):
        with pytest.raises(sn.ConfigError, match="at least one parameter"):
            optimizer(used_up, lr=0.1)
    with pytest.raises(sn.ConfigError, match="parameters_to_vector: expected at least one parameter, got none"):
        sn.nn.utils.parameters_to_vector([])
    clip_grad_norm_(model.parameters(), 1.0)
    assert np.linalg.norm(flat(list(model.parameters()))) == pytest.approx(1.0, rel=1e-5)


# --- elements, and parameters as a vector ----------------------------------------------------------------------------


def test_clip_grad_value_limits_each_element():
    p, idle = sn.nn.Parameter(np.zeros(4)), sn.nn.Parameter(np.zeros(1))
    p.grad = sn.Tensor([3.0, -0.5, -7.0, float("nan")], dtype="float64")
    sn.nn.utils.clip_grad_value_([p, idle], 1.0)
    np.testing.assert_array_equal(p.grad.numpy(), [1, -0.5, -1, np.nan])
    assert idle.grad is None


def test_parameters_travel_through_a_vector():
    model = sn.nn.MLP(2, 3, 1)
    vector = sn.nn.utils.parameters_to_vector(model.parameters())
    expected = np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])
    np.testing.assert_array_equal(vector.detach().numpy(), expected)
    (vector * vector).sum().backward()
    first = next(model.parameters())
    np.testing.assert_array_equal(first.grad.numpy(), 2 * first.detach().numpy())
    memory = first.detach().numpy()
    sn.nn.utils.vector_to_parameters(vector * 2, model.parameters())
    after = sn.nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    np.testing.assert_array_equal(after, 2 * expected)
    assert first.detach().numpy() is memory
    with pytest.raises(sn.ShapeError, match=r"a vector of 13 elements, got shape \(3,\)"):
        sn.nn.utils.vector_to_parameters(sn.Tensor(np.ones(3)), model.parameters())


# --- the table of parameters ------------------------------------------------------------------------------------------


def test_a_summary_names_shapes_and_numbers():
    model = sn.nn.Sequential(sn.nn.Linear(4, 3), sn.nn.Sequential(sn.nn.BatchNorm1d(3)), sn.nn.Linear(3, 2, bias=False))
    model[2].requires_grad_(False)
    assert repr(sn.nn.summary(model)).splitlines() == [
        "       module       parameters               number",
        "       Sequential",
        "  0    Linear       weight [4, 3], bias [3]      15",
        "  1    Sequential",
        "    0  BatchNorm1d  weight [3], bias [3]          6",
        "  2    Linear       weight [3, 2]                 6",
        "27 parameters, 21 trained; 0.00 MB with buffers",
    ]


def test_a_shared_parameter_counts_once():
    layer = sn.nn.Linear(2, 2)
    other = sn.nn.Linear(2, 2)
    other.weight = layer.weight
    model = sn.nn.Sequential(layer, other, layer)
    assert sn.nn.summary(model).endswith("8 parameters, 8 trained; 0.00 MB with buffers")
    with pytest.raises(sn.ConfigError, match="summary: expected a module"):
        sn.nn.summary(3)
