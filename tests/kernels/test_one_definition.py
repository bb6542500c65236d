"""An elementwise op stands in three places: its NumPy reference, its scalar function, the row with its derivative."""

import re
from pathlib import Path

import numpy as np
import pytest
import scipy.special
from sizes import DEVICES

import scratchnet as sn
from scratchnet import kernels
from scratchnet.kernels.scalars import SCALARS, lifted
from scratchnet.kernels.signatures import SIGNATURES
from scratchnet.testing import KERNEL_ROWS, gradcheck

PACKAGE = Path(sn.__file__).parent
PLACES = {
    "kernels/reference.py": "def {}(x, out):",
    "kernels/scalars.py": "def {}(x):",
    "ops/elementwise.py": "{0} = unary(",
}


@pytest.mark.parametrize("name", ["neg", "softplus", "silu"])  # cpu computes some others in a way of its own
def test_an_elementwise_op_is_defined_in_three_places_and_nowhere_else(name):
    word = re.compile(rf"\b{name}\b")
    folders = [path for folder in ("kernels", "ops") for path in (PACKAGE / folder).rglob("*.py")]
    found = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in folders}
    assert {path for path, text in found.items() if word.search(text)} == set(PLACES)
    for path, definition in PLACES.items():
        assert found[path].count(definition.format(name)) == 1


def test_every_elementwise_kernel_has_one_scalar_function():
    elementwise = {name for name, row in KERNEL_ROWS.items() if row.shapes in ("*", "* *")} - {"copy", "dropout"}
    assert elementwise == {name for name, scalar in SCALARS.items() if scalar.dtypes}
    assert set(KERNEL_ROWS) == set(SIGNATURES)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scalar_functions_are_plain_python_with_constants_of_any_type(dtype):
    plain = lifted(lambda function: function, dtype, {})
    for x in map(dtype, (-40.0, -1.5, -0.0, 0.25, 40.0, np.inf)):
        assert type(plain["softplus"](x)) is type(plain["silu"](x)) is type(plain["gelu"](x)) is dtype
        np.testing.assert_allclose(plain["sigmoid"](x), scipy.special.expit(x), rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("device", DEVICES)
def test_silu_is_a_function_a_method_and_a_kernel_of_every_device(device):
    x = np.linspace(-6, 6, 15, dtype=np.float32)
    out = sn.silu(sn.tensor(x, device=device))
    assert "silu" in kernels.device(device).kernels
    np.testing.assert_allclose(out.to("numpy").numpy(), x * scipy.special.expit(x), rtol=1e-6)
    np.testing.assert_array_equal(sn.tensor(x, device=device).silu().to("numpy").numpy(), out.to("numpy").numpy())


@pytest.mark.parametrize("device", DEVICES)
def test_gelu_and_its_derivative_have_their_left_tails_on_every_device(device):
    """1 + erf(x / sqrt(2)) has none below -8.3, where it rounds to 0."""
    x = np.linspace(-12, -4, 17, dtype=np.float32)
    given = sn.tensor(x, device=device, requires_grad=True)
    out, wide = sn.nn.functional.gelu(given), x.astype(np.float64)
    out.sum().backward()
    tail, density = scipy.special.ndtr(wide), np.exp(-0.5 * wide**2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(out.detach().to("numpy").numpy(), wide * tail, rtol=2e-5)
    np.testing.assert_allclose(given.grad.to("numpy").numpy(), tail + wide * density, rtol=2e-5)


def test_silu_is_differentiable_twice_and_part_of_a_compiled_step():
    x = np.linspace(-3, 3, 7)
    gradcheck(sn.silu, [x], order=2)

    def step(a):
        a = sn.tensor(a, requires_grad=True)
        a.silu().sum().backward()
        return a.grad

    compiled = sn.jit(step)
    for _ in range(3):
        np.testing.assert_array_equal(np.asarray(compiled(x)), np.asarray(step(x)))
