"""The functions of the public face follow from the op table; grad and value_and_grad differentiate functions."""

import inspect
import math

import numpy as np
import public_face
import pytest
from hypothesis import given
from hypothesis import strategies as st

import scratchnet as sn
from scratchnet import ops

pytestmark = pytest.mark.usefixtures("numpy_device")

X = np.random.default_rng(0).standard_normal((3, 4))
FLOATS = (np.float32, np.float64)


def leaf(*values, dtype=np.float64):
    return sn.Tensor(np.array(values if len(values) != 1 else values[0], dtype), requires_grad=True)


def _called(function, given):
    """The result of a call by the names of the parameters, those of any number apart."""
    parameters = inspect.signature(function).parameters.values()
    many = next((p.name for p in parameters if p.kind == p.VAR_POSITIONAL), None)
    before = [*given][: [*given].index(many)] if many else [*given][:1]
    first = [given.pop(name) for name in before]
    first[0] = first[0] if isinstance(first[0], sn.Tensor) else sn.Tensor(first[0])
    return function(*first, *given.pop(many, ()), **given)


def _parts(result):
    return result if isinstance(result, tuple) else (result,)


def gradient(x):
    return x.grad.numpy().tolist()


def test_every_function_is_its_method_and_takes_what_can_become_a_tensor():
    for name in ops.METHODS:
        given = public_face.EXAMPLES[f"sn.{name}"]()
        by_method, by_function = (_called(f, {**given}) for f in (getattr(sn.Tensor, name), getattr(sn, name)))
        for one, other in zip(_parts(by_method), _parts(by_function), strict=True):
            assert type(one) is type(other)
            np.testing.assert_array_equal(one, other)
    assert type(sn.exp(X)) is sn.Tensor and sn.exp(X).device == "numpy"
    assert sn.where([True, False], 1.0, sn.Tensor([2.0, 3.0])).numpy().tolist() == [1.0, 3.0]
    assert sn.maximum(1.0, sn.Tensor([0.0, 2.0])).numpy().tolist() == [1.0, 2.0]
    assert sn.cat([sn.Tensor([1.0]), np.float32([2.0]), [3.0]]).numpy().tolist() == [1.0, 2.0, 3.0]


def test_what_is_public_in_the_op_table_is_a_method_and_a_function_with_its_docstring():
    from scratchnet.ops import METHODS

    assert {"exp", "softplus", "maximum", "clip", "sum", "softmax", "reshape", "matmul"} <= set(METHODS)
    for name, function in METHODS.items():
        assert getattr(sn.Tensor, name) is function and function.__name__ == name and function.__doc__
        assert getattr(sn, name).__doc__ == function.__doc__ and name in sn.__all__
        assert not hasattr(sn.Tensor, f"{name}_grad")


# --- grad and value_and_grad -----------------------------------------------------------------------------------------


def nth_derivative(f, n):
    for _ in range(n):
        f = sn.grad(f)
    return f


def tanh_derivative(n, x):
    t = math.tanh(x)
    return [t, 1 - t**2, -2 * t * (1 - t**2), (1 - t**2) * (6 * t**2 - 2), 8 * t * (1 - t**2) * (2 - 3 * t**2)][n]


def sigmoid_derivative(n, x):
    s = 1 / (1 + math.exp(-x))
    return [s, s * (1 - s), s * (1 - s) * (1 - 2 * s), s * (1 - s) * (1 - 6 * s + 6 * s**2)][n]


CLOSED_FORMS = {
    "tanh": (sn.tanh, tanh_derivative, 4),
    "sigmoid": (sn.sigmoid, sigmoid_derivative, 3),
    "exp": (sn.exp, lambda n, x: math.exp(x), 5),
    "log": (sn.log, lambda n, x: (-1) ** (n - 1) * math.factorial(n - 1) / x**n, 5),
    "power": (lambda x: x**5, lambda n, x: math.prod(range(6 - n, 6)) * x ** (5 - n), 5),
    "quotient": (lambda x: 1 / x, lambda n, x: (-1) ** n * math.factorial(n) / x ** (n + 1), 4),
    "sqrt": (sn.sqrt, lambda n, x: math.prod(0.5 - k for k in range(n)) * x ** (0.5 - n), 4),
}


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(("name", "n"), [(name, n) for name, row in CLOSED_FORMS.items() for n in range(1, row[2] + 1)])
@pytest.mark.parametrize("x", [0.3, 1.7])
def test_derivatives_of_any_order_match_closed_forms(name, n, x):
    f, closed, _ = CLOSED_FORMS[name]
    assert nth_derivative(f, n)(np.array(x)).item() == pytest.approx(closed(n, x), rel=1e-9)


@given(st.floats(-2, 2), st.floats(-2, 2))
def test_mixed_partial_derivatives_commute(x, y):
    def f(x, y):
        return x**2 * y**3 + (x * y).tanh()

    x, y = np.array(x), np.array(y)
    by_x_then_y = sn.grad(sn.grad(f, 0), 1)(x, y).item()
    by_y_then_x = sn.grad(sn.grad(f, 1), 0)(x, y).item()
    t = math.tanh(x * y)
    expected = 6 * x * y**2 + (1 - t**2) * (1 - 2 * x * y * t)
    assert by_x_then_y == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert by_y_then_x == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("power", [1, 2, 3])
@pytest.mark.parametrize("x", [0.0, 1.5, -2.0])
def test_derivatives_beyond_the_degree_of_a_power_are_zero_at_zero_too(power, x):
    derivative = lambda x: x**power  # noqa: E731
    for order in range(1, power + 4):
        derivative = sn.grad(derivative)
        expected = math.perm(power, order) * x ** (power - order) if order <= power else 0.0
        assert derivative(x).item() == expected


def test_grad_takes_arrays_numbers_and_tensors_and_returns_what_was_asked_for():
    def f(a, b, scale=1.0):
        return (a * b).sum() * scale

    a, b = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    assert sn.grad(f)(a, b).numpy().tolist() == [3.0, 4.0]
    assert sn.grad(f, 1)(sn.Tensor(a), sn.Tensor(b), scale=2.0).numpy().tolist() == [2.0, 4.0]
    by_both = sn.grad(f, (1, 0))(a, b)
    assert [g.numpy().tolist() for g in by_both] == [[1.0, 2.0], [3.0, 4.0]]
    value, g = sn.value_and_grad(f)(a, b)
    assert value.item() == 11.0 and g.numpy().tolist() == [3.0, 4.0]
    assert sn.grad(lambda x: x * x)(3.0).item() == 6.0
    assert sn.grad(lambda x: x * x)(3).dtype == np.float32


def test_grad_leaves_all_leaves_alone():
    x, w = leaf(3.0), leaf(2.0)
    assert sn.grad(lambda x: w * x * x)(x).item() == 12.0
    assert x.grad is None and w.grad is None and x.requires_grad


def test_the_gradient_of_what_does_not_depend_on_an_argument_is_zero():
    assert sn.grad(lambda a, b: a * 2, 1)(sn.Tensor(1.0), 5.0).item() == 0.0
    assert sn.grad(lambda a: sn.Tensor(1.0))(np.ones(())).item() == 0.0


def test_one_derivative_does_not_mistake_the_variable_of_another_for_its_own():
    assert sn.grad(lambda x: x * sn.grad(lambda y: x + y)(2.0))(1.0).item() == 1.0
    assert sn.grad(lambda x: x * sn.grad(lambda y: x * y)(2.0))(3.0).item() == 6.0
    assert sn.grad(lambda x: sn.grad(lambda x: x * x)(x) * x)(3.0).item() == 12.0


def test_a_gradient_can_be_part_of_a_loss():
    w = leaf(2.0, 3.0)
    penalty = (sn.grad(lambda x: (w * x * x).sum())(np.array([1.0, 1.0])) ** 2).sum()  # (2 w x) ** 2
    penalty.backward()
    assert gradient(w) == [16.0, 24.0]


def test_results_of_grad_carry_no_record_unless_something_outside_wants_one():
    value, g = sn.value_and_grad(lambda x: x * x)(3.0)
    assert not value.requires_grad and not g.requires_grad
    w = leaf(2.0, dtype=np.float32)
    value, g = sn.value_and_grad(lambda x: w * x)(3.0)
    assert value.requires_grad and g.requires_grad
    with sn.no_grad():
        value, g = sn.value_and_grad(lambda x: w * x)(3.0)
    assert not value.requires_grad and not g.requires_grad


@pytest.mark.parametrize(("f", "came"), [(lambda x: x, r"shape \(2,\)"), (lambda x: 3.0, "float")])
def test_grad_of_a_function_without_one_number_as_result_is_an_error(f, came):
    with pytest.raises(sn.ShapeError, match=f"grad: expected a function whose result is one element, got {came}"):
        sn.grad(f)(np.ones(2))


def test_grad_takes_dictionaries_lists_and_tuples_of_tensors():
    def loss(p, x):
        return ((x * p["w"] + p["layers"][0][1]) ** 2).sum()

    w, b, x = np.array([1.0, 2.0]), np.array(0.5), np.array([3.0, 4.0])
    value, g = sn.value_and_grad(loss)({"w": sn.Tensor(w), "layers": [(1.0, sn.Tensor(b))]}, x)
    residual = x * w + b
    assert value.item() == (residual**2).sum()
    np.testing.assert_allclose(g["w"].numpy(), 2 * residual * x)
    assert g["layers"][0][1].item() == pytest.approx(2 * residual.sum()) and g["layers"][0][0].item() == 0
    assert type(g["layers"]) is list and type(g["layers"][0]) is tuple
    first, second = sn.grad(lambda a, b: (a[0] * b).sum() + a[1].sum(), (0, 1))([w, w], x)
    np.testing.assert_array_equal(first[0].numpy(), x)
    np.testing.assert_array_equal(second.numpy(), w)
    assert sn.grad(lambda t: (t * t).sum())([1.0, 2.0]).tolist() == [2.0, 4.0]  # numbers alone are an array
