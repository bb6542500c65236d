"""An op of the user's own has gradients of any order, is called again by recorded steps, and is checked."""

import numpy as np
import pytest
from messages import error_line

import scratchnet as sn
from scratchnet.testing import gradcheck

X = np.array([0.5, -1.5, 2.0])
cube = sn.op(lambda x: x**3, lambda g, y, x: g * 3.0 * x * x, name="cube")
scaled = sn.op(lambda x, y, factor: x * y * factor, lambda g, z, x, y, factor: g * y * factor,
               lambda g, z, x, y, factor: g * x * factor, name="scaled")  # fmt: skip


def derived(vjp):
    """A backward pass through an op that has this derivative."""
    sn.op(lambda x: x * 2, vjp, name="bad")(sn.tensor(X, requires_grad=True)).sum().backward()


@pytest.mark.usefixtures("device")
def test_an_op_of_ones_own_has_values_and_gradients_of_any_order():
    np.testing.assert_allclose(cube(X).detach().to("numpy").numpy(), X**3)
    gradcheck(cube, [X], order=2)
    gradcheck(lambda x, y: scaled(x, y, factor=2.0), [X, X[:1]], order=2)  # broadcasts


def test_a_kernel_of_ones_own_takes_the_place_of_forward_on_its_device(device):
    def on_cuda(x):
        global cuda  # the simulator looks for it there
        from numba import cuda

        @cuda.jit
        def cubes(x, out):
            i = cuda.grid(1)
            if i < x.size:
                out[i] = x[i] * x[i] * x[i]

        out = cuda.device_array(x.shape, x.dtype)
        cubes[1, 32](x, out)
        return out

    def never(x):
        raise AssertionError("the kernel was not called")

    kernels = {"numpy": lambda x: x**3, "cpu": lambda x: x**3, "cuda": on_cuda}
    own = sn.op(never, lambda g, y, x: g * 3.0 * x * x, kernels=kernels, name="own")
    gradcheck(own, [X])
    others = sn.op(lambda x: x**3, None, kernels={name: never for name in kernels if name != device})
    assert others(X).to("numpy").numpy().tobytes() == (X**3).tobytes()
    with pytest.raises(sn.DtypeError, match=f"own: kernel of {device}: expected an array"):
        sn.op(never, None, kernels={device: lambda x: "no"}, name="own")(X)


@pytest.mark.usefixtures("numpy_device")
def test_a_recorded_step_calls_it_in_each_replay():
    def step(x):
        x = sn.tensor(x, requires_grad=True)
        cube(x).sum().backward()
        return x.grad

    recorded = sn.jit(step)
    for shift in range(4):
        np.testing.assert_allclose(recorded(X + shift).numpy(), 3 * (X + shift) ** 2)


@pytest.mark.usefixtures("numpy_device")
@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: sn.op(3), sn.ConfigError, "op: forward: expected a function"),
        (lambda: sn.op(np.exp, 3), sn.ConfigError, "op: a vjp: expected a function"),
        (lambda: sn.op(np.exp, None, kernels=3), sn.ConfigError, "op: kernels: expected a dict, or None"),
        (lambda: sn.op(np.exp, None, kernels={"gpu": np.exp}), sn.ConfigError, "op: kernels: expected one of numpy"),
        (lambda: sn.op(np.exp, None, kernels={"cpu": 3}), sn.ConfigError, "op: kernels: cpu: expected a function"),
        (lambda: cube(X, X), sn.ShapeError, "cube: expected 1 inputs"),
        (lambda: sn.op(lambda x: "no", None, name="bad")(X), sn.DtypeError, "bad: forward: expected an array"),
        (lambda: sn.op(lambda x: x.astype("f4"), None, name="bad")(X), sn.DtypeError, "bad: expected .* float64"),
        (lambda: sn.op(lambda x: x * 1j, None, name="bad")(X), sn.DtypeError, "bad: expected .*, got dtype complex128"),
        (lambda: derived(lambda g, y, x: g.detach().numpy()), sn.DtypeError, "bad: the vjp of input 0: expected a ten"),
        (lambda: derived(lambda g, y, x: None), sn.DtypeError, "bad: the vjp of input 0: expected a tensor, got None"),
        (lambda: derived(lambda g, y, x: g.float()), sn.DtypeError, "expected a gradient of float64 for input 0, got"),
        (lambda: derived(lambda g, y, x: g.sum()), sn.ShapeError, r"gradient of shape \(3,\), or .* input 0, got \(\)"),
        (lambda: derived(lambda g, y, x: g[:2]), sn.ShapeError, r"for input 0, got \(2,\)"),
    ],
)
def test_what_makes_no_op_is_refused_in_a_line(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call()
    error_line(caught)
