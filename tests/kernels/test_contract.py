"""Every kernel of every device keeps the contract of the tables: values, inputs, outputs, layouts, by one row each."""

import contextlib
import inspect
import itertools
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from philox import KNOWN
from sizes import DEVICES, JIT, SIMULATED, SIZES, SLOW

from scratchnet import kernels
from scratchnet.kernels import reference
from scratchnet.kernels.signatures import HALVES
from scratchnet.native import loops
from scratchnet.testing import KERNEL_ROWS, LAYOUTS, KernelCase, arrays, host_kernel, kernel_cases

OTHERS = [name for name in DEVICES if name != "numpy"]
WITH_INTEGERS = [name for name, row in KERNEL_ROWS.items() if row.integers]


kernel = host_kernel


@pytest.mark.parametrize("device", DEVICES)
def test_every_kernel_has_a_row_and_every_row_a_kernel(device):
    assert set(kernels.device(device).kernels) == set(KERNEL_ROWS)


def test_threads_that_are_the_first_to_ask_for_a_device_get_one(monkeypatch):
    together = threading.Barrier(2)

    class Slow(kernels.Device):
        def __init__(self, name):
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait(0.3)  # for a second one that is made
            super().__init__(name)

    monkeypatch.setattr(kernels, "_devices", {})
    monkeypatch.setattr(kernels, "Device", Slow)
    with ThreadPoolExecutor(2) as threads:
        assert len(set(threads.map(kernels.device, ["numpy", "numpy"]))) == 1


@pytest.mark.parametrize("device", OTHERS)
@pytest.mark.parametrize("name", KERNEL_ROWS)
def test_signatures_are_the_same_on_all_devices(device, name):
    own, reference = (inspect.signature(kernel(d, name)) for d in (device, "numpy"))
    assert list(own.parameters) == list(reference.parameters)
    assert [p.default for p in own.parameters.values()] == [p.default for p in reference.parameters.values()]


@pytest.mark.threads
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [name for name in KERNEL_ROWS if name not in SLOW])
@given(data=st.data())
def test_floats_match_the_oracle(name, device, data):
    case = data.draw(kernel_cases(name, **SIZES))
    case.check(kernel(device, name))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [name for name, row in KERNEL_ROWS.items() if row.params and name not in SLOW])
@settings(max_examples=1)
@given(data=st.data())
def test_every_combination_of_parameters_matches_the_oracle(name, device, data):
    row = KERNEL_ROWS[name]
    for values in itertools.product(*row.params.values()):
        one = {key: (value,) for key, value in zip(row.params, values, strict=True)}
        with mock.patch.dict(KERNEL_ROWS, {name: replace(row, params=one)}):
            case = data.draw(kernel_cases(name, dtypes=[row.dtypes[0]], sizes=(3,)))
        case.check(kernel(device, name), layouts=("C",))


ELEMENTWISE = [name for name, row in KERNEL_ROWS.items() if row.shapes in ("*", "* *", "* * *") and row.special]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_pairs_of_special_values_match_the_oracle(name, device, dtype):
    row = KERNEL_ROWS[name]
    values = np.array([*row.special, 1.0, -2.0, 0.5], dtype)
    grids = np.meshgrid(*[values] * len(row.shapes.split()))
    domains = [row.domain] * len(grids) if isinstance(row.domain, str) else row.domain
    inputs = tuple(x.ravel() > 0 if domain == "bool" else x.ravel() for x, domain in zip(grids, domains, strict=True))
    for params in ({key: options[i] for key, options in row.params.items()} for i in (0, 1)):
        case = KernelCase(name, inputs, params, row.oracle, 1, row.roundings, row.magnitude)
        case.check(kernel(device, name), layouts=("C",))


INF, NAN = np.inf, np.nan
ROWS = [
    [-INF] * 3,
    [-INF, 1, 2],
    [NAN, 1, -INF],
    [1e30, -1e30, 1],
    [88, 89, 90],
    [-1e4, -1e4, -1e4],
    [0.0, -0.0, 1e-45],
]
WITH_INF = [[INF, 1, 2], [INF, INF, 0], [INF, -INF, 0], [NAN, INF, 0]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["softmax", "logsumexp", "log_softmax", "cross_entropy"])
def test_rows_of_special_values_match_the_oracle(name, dtype, device):
    row, rows = KERNEL_ROWS[name], np.array(ROWS + WITH_INF * (INF in KERNEL_ROWS[name].special), dtype)
    inputs = (rows, np.arange(len(rows)) % 3)[: len(row.shapes.split())]
    KernelCase(name, inputs, {}, row.oracle, 3, row.roundings, row.magnitude).check(kernel(device, name))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", WITH_INTEGERS)
@settings(max_examples=5)
@given(data=st.data())
def test_integers_match_the_oracle(name, device, data):
    case = data.draw(kernel_cases(name, dtypes=[np.int64], **SIZES))
    case.check(kernel(device, name))


@pytest.mark.threads
@pytest.mark.parametrize("device", OTHERS)
@pytest.mark.parametrize("name", KERNEL_ROWS)
@given(data=st.data())
def test_devices_match_the_reference(name, device, data):
    case = data.draw(kernel_cases(name, **SIZES))
    case.check(kernel(device, name), reference=kernel("numpy", name), layouts=("C",))


@pytest.mark.threads
@pytest.mark.skipif(SIMULATED, reason="of the cpu table")
@pytest.mark.parametrize("name", KERNEL_ROWS)
@given(data=st.data())
def test_many_small_blocks_in_parallel_match_the_oracle(name, data):
    case = data.draw(kernel_cases(name, dtypes=[np.float32], **SIZES))
    with mock.patch.multiple(loops, PARALLEL_FROM=1, BLOCK=100):
        case.check(kernel("cpu", name), layouts=("offset",))


@pytest.mark.skipif(not JIT or SIMULATED, reason="of recorded steps on the cpu")
@pytest.mark.parametrize("name", KERNEL_ROWS)
@settings(max_examples=5)
@given(data=st.data())
def test_a_kernel_writes_nothing_outside_its_loops(name, data):
    """A recorded step replays the loops of a kernel alone; what else it wrote would stay as it was then."""
    from scratchnet.kernels import cpu

    case = data.draw(kernel_cases(name, dtypes=[np.float32], **SIZES))
    with np.errstate(all="ignore"):
        found = case.oracle(*case.inputs, **case.params)
    made = [np.ascontiguousarray(x) for x in (found if isinstance(found, tuple) else (found,))]
    arrays = [np.ascontiguousarray(x) for x in case.inputs] + made
    for x in arrays:
        x.setflags(write=False)
    plan = loops.Plan()
    try:
        with loops.planning(plan):
            arguments = inspect.signature(kernel("numpy", name)).bind(*arrays, **case.params)
            arguments.apply_defaults()
            cpu._COMPILED[name](*arguments.args)
    except ValueError as error:  # "assignment destination is read-only", "expected an `out` that is writable"
        assert re.search("read-only|writable", str(error)) and not plan, error


@pytest.mark.threads
@pytest.mark.skipif(not JIT, reason="large")
@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 1), (1, 3), (9, 1), (1, 65)])
def test_thin_products_of_great_length_match(m, n):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((m, 140_000), (140_000, n)))
    out = np.empty((m, n), np.float32)
    kernel("cpu", "matmul")(a, b, out)
    np.testing.assert_array_equal(out, a.astype(float) @ b.astype(float))  # sums of small integers have no error


@pytest.mark.skipif(not JIT, reason="nothing is compiled")
def test_parallel_kernels_work_when_each_process_finds_those_of_others_in_the_cache(new_cache):
    code = """
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest import mock
import numpy as np
from scratchnet.kernels import device
from scratchnet.native import loops
x, out = np.arange(100, dtype=np.float32), np.empty(100, np.float32)
with mock.patch.multiple(loops, PARALLEL_FROM=1, BLOCK=10):
    for name in sys.argv[1:]:
        device("cpu").kernels[name](x, out)
        assert (abs(out) == x).all()
"""
    for names in (["neg"], ["abs"], ["abs"]):  # the second process loads the loop, the third everything
        environment = {**os.environ, "SCRATCHNET_CACHE_DIR": str(new_cache), "SCRATCHNET_QUIET": "1"}
        subprocess.run([sys.executable, "-c", code, *names], env=environment, check=True)


# --- what a table of cases does not say ------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@given(operands=arrays("mnk", layouts=tuple(LAYOUTS), dtypes=(np.float32, np.float64, np.int64, bool), **SIZES))
def test_copy_takes_any_layout_and_converts(device, operands):
    (x,) = operands
    for dtype in (np.float32, np.float64, np.int64):
        for layout in ("C", "Fortran", "strided", "reversed"):
            out = LAYOUTS[layout](np.full(x.shape, 77, dtype))
            kernel(device, "copy")(x, out)
            np.testing.assert_array_equal(out, x.astype(dtype))


@pytest.mark.threads
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("half", HALVES, ids=str)
def test_copies_to_a_half_are_rounded_to_the_nearest_even_and_those_from_it_are_exact(half, device):
    every = np.arange(0, 2**16, 1 if JIT else 61, dtype=np.uint16).view(half)
    wide = every.astype(np.float32)
    with np.errstate(all="ignore"):
        middle = ((wide.astype(np.float64) + np.roll(wide, 1)) / 2).astype(np.float32)  # halfway between neighbours
        x = np.concatenate([wide, middle, np.nextafter(middle, np.float32(0)), wide * np.float32(1.001)])
    x = x[~np.isnan(x)]
    x = x[: len(x) // 6 * 6].reshape(-1, 6)[:, ::-1]
    for source in (x, x[:, ::2].astype(np.float64), np.clip(x, -1e9, 1e9).astype(np.int64)):
        with np.errstate(all="ignore"):
            expected = source.astype(np.float32).astype(half).astype(np.float32)  # ml_dtypes and NumPy know it
        for out in (np.empty(source.shape, half), np.empty(source.shape[::-1], half).T):
            kernel(device, "copy")(source, out)
            assert out.astype(np.float32).tobytes() == expected.tobytes()
    for dtype in (np.float32, np.float64, HALVES[half == HALVES[0]]):
        out = np.empty(every.shape, dtype)
        kernel(device, "copy")(every, out)
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(out.astype(np.float32), wide.astype(dtype).astype(np.float32))
    assert np.isnan(wide).any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, bool, *HALVES])
def test_fill_takes_any_dtype(device, dtype):
    out = np.empty((3, 5), dtype)
    kernel(device, "fill")(out, 1)
    assert (out == 1).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["sgd", "adam", "amsgrad", "rmsprop", "adagrad", "adadelta"])
@given(data=st.data())
def test_an_optimizer_gives_the_same_bits_in_place(name, device, data):
    case = data.draw(kernel_cases(name, **SIZES))
    step = kernel(device, name)
    param, grad, *state = [x.copy() for x in case.inputs]
    apart = [np.empty_like(x) for x in (param, *state)]
    step(param, grad, *state, *apart, **case.params)
    step(param, grad, *state, param, *state, **case.params)
    assert [x.tobytes() for x in (param, *state)] == [x.tobytes() for x in apart]


NUMBERS = {  # of a step with little memory, so that states at the border cross it
    "sgd": (1, [0.1, 0.5, 0, 0]),
    "adam": (2, [0.1, 0.5, 0.5, 1e-8, 0, 0, 1]),
    "amsgrad": (3, [0.1, 0.5, 0.5, 1e-8, 0, 0, 1]),
    "rmsprop": (2, [0.1, 0.5, 1e-8, 0.5, 0]),
    "adagrad": (1, [0.1, 1e-8, 0]),
    "adadelta": (2, [0.1, 0.5, 1e-6, 0]),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NUMBERS)
def test_an_optimizer_keeps_no_state_that_is_subnormal(name, dtype, device):
    states, numbers = NUMBERS[name]
    tiny = np.finfo(dtype).tiny
    old = np.array([8 * tiny, tiny, tiny / 4, np.finfo(dtype).smallest_subnormal, 0, 1, np.nan] * 9, dtype)
    param, grad = np.ones_like(old), np.zeros_like(old)
    new = [np.empty_like(old) for _ in range(1 + states)]
    kernel(device, name)(param, grad, *[old.copy() for _ in range(states)], *new, np.array(numbers))
    for state in new[1:]:
        assert not ((state != 0) & (abs(state) < tiny)).any()
        assert (np.isnan(state) == np.isnan(old)).all() and (state[old == 1] > 0.4).all() and (state[::7] >= tiny).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["adam", "amsgrad", "rmsprop"])
def test_weight_decay_ends_at_zero_before_it_is_subnormal(name, dtype, device):
    """Weights of a dead unit would else stay where weight decay rounds to nothing, and make all arithmetic slow."""
    states, numbers = NUMBERS[name]
    few = np.finfo(dtype).tiny * dtype(2.0**26)
    param = np.array([few / 4, -few / 4, 4 * few, -4 * few, 0, 1] * 9, dtype)
    for decay in (0.01, 0.0):
        given = [{1e-8: 1.0, 0: decay}.get(x, x) if i in (2, 3, 4) else x for i, x in enumerate(numbers)]  # eps is 1
        new = [np.empty_like(param) for _ in range(1 + states)]
        kernel(device, name)(param, *[np.zeros_like(param) for _ in new], *new, np.array(given))
        small = abs(param) < few
        assert ((new[0] == 0) == (small if decay else False) | (param == 0)).all()
        assert decay or (new[0] == param).all()


@pytest.mark.parametrize("device", DEVICES)
def test_scatter_adds_in_the_order_of_the_index(device):
    g = np.array([[1e8], [1.0], [-1e8], [1.0]], np.float32)  # 1 in this order, 2 or 0 in others, or in float64
    for dtype, total in ((np.float64, 2.0), (np.int64, 2), (np.float32, 1.0)):  # no kernel of a wider type is taken
        out = np.empty((2, 1), dtype)
        kernel(device, "scatter_rows")(g.astype(dtype), np.array([1, 1, 1, 1]), out)
        assert out.tolist() == [[0.0], [total]]


@pytest.mark.parametrize("device", DEVICES)
def test_argmax_is_the_first_of_equals_and_nan_is_the_largest(device):
    x = np.array([[1, 3, 3, 2], [5, np.nan, 9, np.nan], [-np.inf] * 4], np.float32).reshape(3, 4, 1)
    out = np.empty((3, 1), np.int64)
    kernel(device, "argmax")(x, out)
    assert out.ravel().tolist() == [1, 1, 0]


@pytest.mark.parametrize("device", DEVICES)
def test_dropout_draws_depend_on_the_element_and_its_stream_alone(device):
    def draw(size, seed, stream):
        out = np.empty(size, np.float32)
        kernel(device, "dropout")(np.ones(size, np.float32), out, 0.5, np.array([seed, stream], np.uint64))
        return out.tobytes()

    for size in (33, 34, 35, 36):  # four are drawn at a time
        assert draw(100, 1, 2)[: 4 * size] == draw(size, 1, 2)
    assert (
        len({draw(100, 1, 2), draw(100, 1, 3), draw(100, 2, 2), draw(100, 1, 2 + 2**32), draw(100, 1 + 2**32, 2)}) == 5
    )


@pytest.mark.threads
@pytest.mark.parametrize("device", DEVICES)
def test_dropout_keeps_the_share_that_it_promises(device):
    x, out = np.ones(20_000 if JIT else 2_000, np.float64), np.empty(20_000 if JIT else 2_000)
    kernel(device, "dropout")(x, out, 0.3, np.array([5, 6], np.uint64))
    kept = (out != 0).mean()
    assert abs(kept - 0.7) < 5 * np.sqrt(0.3 * 0.7 / x.size)  # five standard deviations
    np.testing.assert_allclose(out[out != 0], 1 / 0.7, rtol=1e-15)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_the_reference_draws_known_random_numbers(counter, key, words):
    drawn = reference._philox(np.array([counter], np.uint32), key)[0]
    assert " ".join(f"{word:08x}" for word in drawn) == words
