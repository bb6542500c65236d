"""Tensors of bfloat16 and float16: one rule for all ops, explicit casts, and what is refused."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
from messages import error_line
from sizes import SIMULATED

import scratchnet as sn
from scratchnet.kernels.signatures import HALVES
from scratchnet.testing.oracles.half import ROUNDED

RNG = np.random.default_rng(0)
A, B = (RNG.standard_normal(shape).astype(np.float32) for shape in ((5, 40), (40, 3)))


@pytest.fixture(autouse=True)
def _device(device):
    """Each device."""


@pytest.fixture(params=HALVES, ids=str)
def half(request):
    return request.param


def numbers(t):
    return t.detach().astype("float32").numpy()


def test_a_product_adds_up_in_float32_and_is_rounded_once(half):
    a, b = sn.Tensor(A, dtype=half), sn.Tensor(B, dtype=half)
    exact = ROUNDED[str(half)](A).astype(np.float64) @ ROUNDED[str(half)](B).astype(np.float64)
    expected = ROUNDED[str(half)]((numbers(a) @ numbers(b)).astype(np.float32))
    found = numbers(a @ b)
    assert (a @ b).dtype == half
    np.testing.assert_allclose(found, exact, rtol=float(ml_dtypes.finfo(half).eps), atol=1e-4)
    assert (found == expected).mean() > 0.9  # sums in another order differ in a last bit now and then
    n = 300 if SIMULATED else 3000
    ones = sn.ones(1, n, dtype=half)
    assert (ones @ ones.T).item() == ROUNDED[str(half)](np.float32([3000]))[
        0
    ]  # a rounded sum would stop at 256, or 2,048


@pytest.mark.parametrize("x", [0.0, 1.5, 300.0], ids=str)
@pytest.mark.parametrize("name", ["gelu", "silu", "tanh", "sigmoid", "softplus", "softmax", "log_softmax", "logsumexp"])
def test_second_derivatives_are_finite_and_those_of_float64(name, x, half):
    """At 300 a square of float16 is infinite, and inf * 0 is NaN: inside of a row numbers are float32."""
    rows, weights = np.array([[x, 0.5, -x]]), np.array([[1.0, -2.0, 3.0]])

    def second(dtype):
        w = sn.Tensor(weights, dtype=dtype)
        first = sn.grad(lambda t: (getattr(t, name)() * (1.0 if name == "logsumexp" else w)).sum())
        return sn.grad(lambda t: (first(t) * w).sum())(sn.Tensor(rows, dtype=dtype))

    found, exact = second(half), second(np.float64).detach().numpy()
    assert found.dtype == half
    tolerance = 16 * float(ml_dtypes.finfo(half).eps)
    np.testing.assert_allclose(numbers(found), exact, rtol=tolerance, atol=tolerance)


def test_a_gradient_that_float16_cannot_hold_underflows_in_it_alone():
    scales = np.logspace(-12, -1, 12, dtype=np.float32)
    lost = {}
    for dtype in (sn.float16, sn.bfloat16, sn.float32):
        x = sn.ones(12, dtype=dtype, requires_grad=True)
        g = sn.Tensor(scales).astype(dtype)
        (x * 2).backward(g)
        lost[str(dtype)] = int((numbers(x.grad) == 0).sum())
    assert lost == {"float16": 5, "bfloat16": 0, "float32": 0}  # 1e-12 to 1e-8; the least number is 6e-8


def test_floats_do_not_mix_and_the_line_names_the_cast(half):
    x = sn.ones(3, dtype=half)
    for other in (sn.ones(3), sn.ones(3, dtype=np.float64), sn.ones(3, dtype=HALVES[half == HALVES[0]])):
        for mixed in (lambda a, b: a + b, lambda a, b: sn.cat([a, b]), lambda a, b: sn.where(a > 0, a, b)):
            with pytest.raises(sn.DtypeError, match=rf"expected one float dtype, got .*{half}.*\.astype\(") as error:
                mixed(x, other)
            assert "and" in error_line(error)
    assert (x + 1).dtype == (x + sn.Tensor([1, 2, 3])).dtype == (2.5 * x).dtype == half


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "uint8"])
@pytest.mark.parametrize("lies", [lambda x: x, lambda x: x.transpose(0, 1), lambda x: x[:, :1], lambda x: x[:, ::2]])
def test_a_recorded_cast_of_a_half_reads_the_numbers_of_each_call(lies, dtype, half):
    step = sn.jit(lambda x: (lies(x).astype(dtype), lies(x.astype("float32")).astype(half)))
    for i in range(4):
        x = np.arange(i, i + 12, dtype=np.float32).reshape(3, 4)
        cast, back = step(sn.Tensor(x).astype(half))
        np.testing.assert_array_equal(cast.numpy(), lies(sn.Tensor(x)).numpy().astype(dtype))
        np.testing.assert_array_equal(back.numpy().astype(np.float32), lies(sn.Tensor(x)).numpy())


@pytest.mark.parametrize(
    ("refused", "error", "words"),
    [
        (lambda h: sn.randn(2, dtype=h), sn.DtypeError, "randn: expected float32 or float64"),
        (lambda h: sn.randint(0, 9, (2,), dtype=h), sn.DtypeError, "random numbers: expected float32 or wider"),
        (lambda h: sn.optim.Adam(sn.nn.Linear(2, 2).to(dtype=h).parameters()), sn.DtypeError, "precision="),
        (lambda h: sn.nn.Linear(2, 2).to(dtype=h)(sn.ones(1, 2)), sn.DtypeError, "one float dtype"),
        (lambda h: sn.nn.Linear(2, 2)(sn.ones(1, 2, dtype=h)), sn.DtypeError, "one float dtype"),
        (lambda h: sn.nn.init.normal_(sn.ones(2, dtype=h)), sn.DtypeError, "expected a float32 or float64 tensor"),
        (lambda h: sn.ones(2, dtype=h) + 1e39, sn.DtypeError, "a number that fits"),
        (lambda h: sn.ones(2, dtype=h).maximum(1e-50), sn.DtypeError, "a number that fits"),
    ],
)  # fmt: skip
def test_what_halves_have_no_version_of_is_refused_in_a_line(refused, error, words, half):
    with sn.default_device("cpu"), pytest.raises(error, match=words) as caught:
        refused(half)
    error_line(caught)


def assigned(value):
    x = sn.ones(3, dtype=sn.float16)
    x[:] = value
    return x


@pytest.mark.parametrize("make", [
    lambda: [70000, 1, 2] * sn.ones(3, dtype=sn.float16),
    lambda: sn.ones(3, dtype=sn.float16) + sn.Tensor([1, -70000, 2]),
    lambda: sn.Tensor(np.array([65520], np.int32)) * sn.ones(1, dtype=sn.float16),
    lambda: assigned([1e-9, 1.0, 1.0]),
    lambda: assigned((1, 1e9, 1)),
    lambda: assigned(sn.Tensor([1, 70000, 1])),
    lambda: sn.ones(2, dtype=sn.float16).copy_([70000, 1]),
    lambda: sn.Tensor(1e9, dtype=sn.float16),
    lambda: sn.Tensor(np.float64(1e-9), dtype=sn.float16),
    lambda: sn.tensor([1e9, 1.0], dtype=sn.float16),
    lambda: sn.Tensor(np.array([70000]), dtype=sn.float16),
    lambda: sn.Tensor(np.float32([1, 70000]), dtype=sn.float16),
    lambda: sn.tensor(np.array([1e-9]), dtype=sn.float16),
    lambda: sn.Tensor(sn.Tensor([70000.0]), dtype=sn.float16),
    lambda: sn.as_tensor(np.float64([1e39]), dtype=sn.bfloat16),
    lambda: assigned(np.float32([1, 70000, 1])),
    lambda: sn.ones(1, dtype=sn.float16).copy_(np.array([1e-9])),
    lambda: sn.Tensor([1e39], dtype=sn.bfloat16),
    lambda: sn.as_tensor([1, 70000], dtype=sn.float16),
    lambda: sn.arange(0, 1e6, 5e5, dtype=sn.float16),
    lambda: sn.arange(65521, dtype=sn.float16),
    lambda: sn.linspace(0, 1e6, 2, dtype=sn.float16),
    lambda: sn.linspace(0, 1e-9, 2, dtype=sn.float16),
])  # fmt: skip
def test_numbers_and_integers_that_a_half_cannot_hold_are_refused(make):
    with pytest.raises(sn.DtypeError, match=r"expected a number that fits b?float16, got .*; use .astype") as caught:
        make()
    error_line(caught)


def test_numbers_that_a_half_rounds_are_taken():
    found = assigned([65504, np.inf, 1 / 3]) + sn.Tensor([-65519, 0, 0])
    assert found.tolist()[:2] == [0, np.inf] and assigned([0, np.nan, 1]).isnan().tolist() == [False, True, False]
    assert sn.Tensor([65519], dtype=sn.float16).item() == 65504 == sn.Tensor(np.int64([65519]), dtype=sn.float16).item()
    assert sn.arange(-0.3, 0.25, 0.1, dtype=sn.float16).abs().tolist()[3] < 1e-3
    assert sn.linspace(-0.3, 0.3, 7, dtype=sn.float16).shape == (7,)
    assert sn.Tensor(np.float32([1e9, 1e-9]), dtype=sn.bfloat16).tolist()[0] > 9e8
    assert sn.Tensor(np.array([65519, np.inf, 0]), dtype=sn.float16).tolist() == [65504, np.inf, 0]
    assert numbers(sn.Tensor(np.float32([1e9, 1e-9])).half()).tolist() == [np.inf, 0]  # a cast rounds


@pytest.mark.skipif(SIMULATED, reason="of the host")
def test_a_recorded_step_makes_no_halves_of_arrays_whose_numbers_it_would_not_look_at():
    step = sn.jit(lambda x: sn.Tensor(x, dtype=sn.float16) * 2)
    with pytest.raises(sn.JitError, match=r"Tensor\(array, dtype='float16'\)") as caught:
        for _ in range(3):
            step(np.float32([1, 2]))
    error_line(caught)


@pytest.mark.skipif(SIMULATED, reason="of the host")
def test_a_recorded_step_refuses_integers_that_float16_cannot_hold():
    step = sn.jit(lambda x, n: x + n)
    x = sn.ones(2, dtype=sn.float16)
    for integers in (np.int64, np.int32):
        for _ in range(3):
            assert step(x, sn.Tensor(np.array([1, 65504], integers))).tolist() == [2, 65504]
        with pytest.raises(sn.DtypeError, match="fits float16, got 70000"):
            step(x, sn.Tensor(np.array([1, 70000], integers)))


def test_halves_are_close_by_the_numbers_of_float32(half):
    x = sn.Tensor([1.0, 2.0, np.inf], dtype=half)
    assert sn.allclose(x, x) and not sn.allclose(x, x * 1.02)
    assert sn.isclose(x, sn.Tensor([1, 3, 4])).tolist() == [True, False, False]
    assert sn.isclose(sn.Tensor([1, 3, 4]), x).tolist() == [True, False, False]
    assert sn.isclose(x, x * 1.02, rtol=0.05).tolist() == [True] * 3
    with pytest.raises(sn.DtypeError, match="one float dtype"):
        sn.isclose(x, sn.ones(3))


def test_distinct_numbers_of_halves_are_those_of_float32(half):
    given = [np.nan, 1, np.nan, 1, 2, 1, 3, 2]
    values, counts = sn.Tensor(given, dtype=half).unique(return_counts=True)
    assert values.dtype == half and counts.tolist() == [3, 2, 1, 2]
    np.testing.assert_array_equal(numbers(values), [1, 2, 3, np.nan])


def test_infinities_and_zeros_are_numbers_of_halves(half):
    assert (sn.ones(1, dtype=half) * np.inf).item() == np.inf and (sn.ones(1, dtype=half) * 0.0).item() == 0


def test_a_recorded_step_has_the_bits_of_the_plain_call(half):
    def step(x, w, labels):
        loss = sn.nn.functional.cross_entropy((x @ w).relu(), labels)
        return loss, sn.grad(lambda w: sn.nn.functional.cross_entropy((x @ w).gelu(), labels))(w)

    recorded, labels = sn.jit(step), sn.Tensor(np.array([0, 2, 1, 1, 0]))
    for k in range(3):
        x, w = sn.Tensor(A * (k + 1), dtype=half), sn.Tensor(B, dtype=half)
        for found, expected in zip(recorded(x, w, labels), step(x, w, labels), strict=True):
            assert found.dtype == half and numbers(found).tobytes() == numbers(expected).tobytes()


def test_an_op_of_the_users_own_computes_in_float32(half):
    seen = []

    def cube(x):
        seen.append(x.dtype)
        return x**3

    row = sn.op(cube, lambda g, y, x: g * 3 * x * x)
    x = sn.Tensor([2.0, 5.0], dtype=half, requires_grad=True)
    row(x).sum().backward()
    assert seen == [np.float32] and row(x).dtype == x.grad.dtype == half and x.grad.tolist() == [12, 75]


def test_memory_changes_in_place_and_keeps_its_dtype(half):
    x = sn.zeros(4, dtype=half)
    x += 1
    x[1] = 2.5
    x[2:] = sn.Tensor([3.0, 4.0], dtype=half)
    x.mul_(2).copy_(x + sn.Tensor([0, 0, 0, 1]))
    assert x.dtype == half and x.tolist() == [2, 5, 6, 9]
    y = sn.cat([x.reshape(2, 2), x.reshape(2, 2)])[1:3].T
    assert y.tolist() == [[6, 2], [9, 5]] and y[0, 1].item() == 2.0 and type(y.tolist()[0][0]) is float
    table = sn.Tensor(np.arange(6).reshape(3, 2), dtype=half, requires_grad=True)
    rows = table[sn.Tensor(np.array([2, 0, 2]))]
    rows.sum().backward()
    assert rows.tolist() == [[4, 5], [0, 1], [4, 5]] and table.grad.tolist() == [[1, 1], [0, 0], [2, 2]]


def test_tensors_and_models_are_copied_pickled_and_converted(half):
    x = sn.Tensor(A, dtype=half)
    for twin in (copy.deepcopy(x), pickle.loads(pickle.dumps(x)), x.clone()):
        assert twin.dtype == half and numbers(twin).tobytes() == ROUNDED[str(half)](A).tobytes()
    assert x.half().dtype == sn.float16 and x.bfloat16().dtype == sn.bfloat16 and x.float().dtype == sn.float32
    assert x.is_floating_point() and "dtype" in repr(x) and x.device == sn.ones(1).device
    assert sn.zeros_like(x).dtype == half and sn.arange(3, dtype=half).tolist() == [0, 1, 2]


@pytest.mark.skipif(SIMULATED, reason="of the host")
def test_memory_is_shared_by_dlpack(half):
    from scratchnet.kernels import dlpack

    x = sn.Tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=half)
    if half == sn.float16:
        assert np.from_dlpack(x).tolist() == x.tolist()
        return
    kept = len(dlpack._shared)
    for _ in range(3):
        with pytest.raises((BufferError, RuntimeError), match="Unsupported dtype"):  # NumPy's own line
            np.from_dlpack(x)
        assert len(dlpack._shared) == kept + 1  # the next one finds what nobody took
    tensor, _ = dlpack.opened(x.T.__dlpack__(), x)
    assert (tensor.code, tensor.bits, tensor.device_type) == (4, 16, 1) and dlpack.dtype_of(tensor) == half
    assert tensor.data == x._data.ctypes.data and list(tensor.shape[:2] + tensor.strides[:2]) == [3, 2, 1, 3]
    with pytest.raises(sn.DeviceError, match=r"expected dl_device \(1, 0\)"):
        x.__dlpack__(dl_device=(2, 0))
    with pytest.raises(sn.DtypeError, match=r"read-only bfloat16; \.clone\(\)"):
        sn.ones(1, dtype=half).broadcast_to(3).__dlpack__()


@pytest.mark.skipif(SIMULATED, reason="of the host")
def test_a_model_of_halves_predicts_and_is_saved_and_loaded(half, tmp_path):
    sn.manual_seed(0)
    wide = sn.nn.Sequential(sn.nn.Linear(40, 8), sn.nn.LayerNorm(8), sn.nn.GELU(), sn.nn.Linear(8, 3)).eval()
    model = copy.deepcopy(wide).to(dtype=half)
    found = model(sn.Tensor(A, dtype=half))
    np.testing.assert_allclose(numbers(found), numbers(wide(sn.Tensor(A))), atol=4 * float(ml_dtypes.finfo(half).eps))
    sn.save(tmp_path / "half.safetensors", model=model, x=sn.Tensor(A, dtype=half))
    state = sn.load(tmp_path / "half.safetensors")
    assert state["x"].dtype == half and state["x"].astype(np.float32).tobytes() == ROUNDED[str(half)](A).tobytes()
    other = copy.deepcopy(wide).to(dtype=half)
    other.load_state_dict(state["model"])
    assert numbers(other(sn.Tensor(A, dtype=half))).tobytes() == numbers(found).tobytes()
    with pytest.raises(sn.CheckpointError, match=f"expected float32 .*, got {half}"):
        wide.load_state_dict(state["model"])
