"""Laws of the `cpu` device alone: bits do not depend on threads, code compiles once a dtype, loops use vectors."""

import os
import re
import subprocess
import sys

import llvmlite.binding as llvm
import numpy as np
import pytest
from sizes import JIT

from scratchnet.kernels import device
from scratchnet.kernels.cpu import ANY_LAYOUT, elementwise, folds, optim, random, reduce
from scratchnet.kernels.cpu.elementwise import SCALARS
from scratchnet.kernels.signatures import SIGNATURES, arrays_of
from scratchnet.native import cache
from scratchnet.native import loops as blocks
from scratchnet.native.compile import compile_stats, get_num_threads, set_num_threads, stamp

CPU, NUMPY = device("cpu").kernels, device("numpy").kernels
ROWS, COLUMNS = (700, 200) if JIT else (7, 13)  # with the JIT: parallel, in several blocks, with a remainder
WINDOWS = (1, 1), (1, 1), (1, 1), 1
NUMBERS = {
    "clip": (-0.5, 0.5),
    "dropout": (0.3, np.array([1, 2], np.uint64)),
    "sgd": (np.array([0.1, 0.9, 1, 0.01]),),
    "adam": (np.array([0.1, 0.9, 0.99, 1e-8, 0.01, 1, 3]),),
    "amsgrad": (np.array([0.1, 0.9, 0.99, 1e-8, 0.01, 1, 3]),),
    "rmsprop": (np.array([0.1, 0.9, 1e-8, 0.9, 0.01]),),
    "adagrad": (np.array([0.1, 1e-10, 0.01]),),
    "adadelta": (np.array([0.1, 0.9, 1e-6, 0.01]),),
    "standardize": (1e-5,),
    "standardize_grad": (1e-5,),
    **dict.fromkeys(("conv2d", "conv2d_input", "conv2d_weight"), WINDOWS),
    **dict.fromkeys(("conv2d_rounded", "conv2d_input_rounded", "conv2d_weight_rounded"), (*WINDOWS, "tf32")),
    "max_pool2d": ((2, 2), (2, 2), (0, 0), (1, 1)),
    **dict.fromkeys(("avg_pool2d", "avg_pool2d_grad"), ((2, 2), (2, 2), (0, 0), True)),
    **dict.fromkeys(("batch_norm", "batch_norm_sums", "batch_norm_grad"), (1e-5,)),
    **dict.fromkeys(("rnn_cell", "rnn_cell_grad"), (False,)),
}
COMPILED = [name for name in SIGNATURES if name not in ANY_LAYOUT]
needs_jit = pytest.mark.skipif(not JIT, reason="about compiled code")


def case(name, dtype=np.float32, rows=ROWS, columns=COLUMNS, seed=0):
    """Inputs, outputs and numbers for the kernel `name`: (rows, columns), or what the kernel takes instead."""
    rng = np.random.default_rng(seed)
    x = [np.asarray(abs(rng.standard_normal((rows, columns))) + 0.1, dtype) for _ in range(5)]
    index = rng.integers(0, min(rows, columns), rows)
    empty = [np.empty_like(y) for y in x]
    images = [np.resize(y, (4, 6, 30, 36)).astype(dtype) for y in x]
    small, channels = np.empty((24, 15, 18), dtype), x[3].ravel()[:6].copy()
    moments = x[4].ravel()[:12].reshape(2, 6).copy()
    kernels = np.resize(x[1], (6, 6, 3, 3)).astype(dtype)
    flat, like = [y.reshape(24, 30, 36) for y in images], [np.empty_like(y) for y in images]
    by_channel = [y.reshape(4, 6, -1) for y in images]
    columns_of_rows = rng.integers(0, columns, (rows, columns))
    alive = index % 3 > 0

    def cell(slots, gates, states=0, written=1):
        """Of a cell, or with states of its backward pass."""
        slab, gated, hidden = (
            [np.resize(y, shape).astype(dtype) for y in x]
            for shape in ((slots, rows, columns), (rows, gates, columns), (states, rows, columns))
        )
        if not states:
            return [*gated[:2], slab[2], alive], [np.empty_like(slab[0])]
        arrays = [*hidden[:2], x[2], np.stack(slab[3:]), alive]
        return arrays, [*map(np.empty_like, gated[:written]), np.empty_like(hidden[0])]

    inputs, outputs = {
        "rnn_cell": cell(1, 1),
        "gru_cell": cell(5, 3),
        "lstm_cell": cell(6, 4),
        "rnn_cell_grad": cell(1, 1, 1),
        "gru_cell_grad": cell(5, 3, 1, 2),
        "lstm_cell_grad": cell(6, 4, 2),
        **dict.fromkeys(("conv2d", "conv2d_rounded"), ([images[0], kernels, channels], like[:1])),
        **dict.fromkeys(("conv2d_input", "conv2d_input_rounded"), ([images[0], kernels], like[:1])),
        **dict.fromkeys(("conv2d_weight", "conv2d_weight_rounded"), (images[:2], [np.empty_like(kernels)])),
        "max_pool2d": ([flat[0]], [np.empty(small.shape, np.int64)]),
        "avg_pool2d": ([flat[0]], [small]),
        "avg_pool2d_grad": ([np.resize(x[0], small.shape).astype(dtype)], [like[0].reshape(flat[0].shape)]),
        **{k: ([x[0], columns_of_rows], empty[:1]) for k in ("take_in_rows", "scatter_in_rows")},
        "channel_moments": ([by_channel[0]], [np.empty((2, 6), dtype)]),
        "batch_norm": ([by_channel[0], moments, channels, channels], [np.empty_like(by_channel[0])]),
        "batch_norm_sums": ([*by_channel[:2], moments], [np.empty((2, 6), dtype)]),
        "batch_norm_grad": ([*by_channel[:2], moments, channels, moments], [np.empty_like(by_channel[0])]),
        "where": ([x[0] > 0.5, x[1], x[2]], empty[:1]),
        **{k: ([x[0].reshape(1, -1, 1)], [np.empty((1, 1), dtype)]) for k in ("sum", "max", "min")},
        "argmax": ([x[0][:, :, None]], [np.empty((rows, 1), np.int64)]),
        **{k: ([x[0], index], empty[:1]) for k in ("take_rows", "scatter_rows")},
        "add_rows": ([x[0], index, index[::-1].copy(), x[1][:, 0].copy()], empty[:1]),
        "argmax_rows": ([x[0], index, index[::-1].copy()], [np.empty((rows, columns), np.int64)]),
        "standardize": ([x[0][None]], [empty[0][None]]),
        "standardize_grad": ([x[0][None], x[1][None]], [empty[0][None]]),
        "logsumexp": ([x[0]], [np.empty(rows, dtype)]),
        "cross_entropy": ([x[0], index], [np.empty(rows, dtype)]),
        "cross_entropy_grad": ([x[1][:, 0].copy(), x[0], index], empty[:1]),
        "matmul": ([x[0], x[1][:columns].copy()], [np.empty((rows, x[1][:columns].shape[1]), dtype)]),
        "batched_matmul": ([flat[0], flat[1].reshape(24, 36, 30)], [np.empty((24, 30, 30), dtype)]),
        **dict.fromkeys(
            ("matmul_bfloat16", "matmul_float16", "matmul_tf32", "matmul_tf32x3"),
            ([flat[0], flat[1].reshape(24, 36, 30)], [np.empty((24, 30, 30), dtype)]),
        ),
        "linear": ([x[0], x[1][:columns].copy(), x[2][0].copy()], [np.empty((rows, columns), dtype)]),
        **{k: (x[:2], [np.empty((rows, columns), bool)]) for k in ("lt", "le", "gt", "ge", "eq", "ne")},
    }.get(name, (x[: arrays_of(name)[0]], empty[: arrays_of(name)[1] - arrays_of(name)[0]]))
    return inputs, outputs, NUMBERS.get(name, ())


def answer(name, inputs, outputs, numbers):
    CPU[name](*inputs, *outputs, *numbers)
    return [x.tobytes() for x in outputs]


# --- same bits --------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_threads():
    before = get_num_threads()
    if before < 2:
        pytest.skip("one core")
    yield lambda n: set_num_threads(n)
    set_num_threads(before)


@pytest.mark.threads
@needs_jit
@pytest.mark.parametrize("name", COMPILED)
def test_bits_do_not_depend_on_threads(name, two_threads):
    two_threads(1)
    one = answer(name, *case(name))
    two_threads(2)
    assert answer(name, *case(name)) == one


@pytest.mark.threads
@needs_jit
@pytest.mark.parametrize("name", [name for name in COMPILED if name not in ("matmul", "linear")])
def test_bits_do_not_depend_on_the_path(name, monkeypatch):
    large = answer(name, *case(name))
    monkeypatch.setattr(blocks, "PARALLEL_FROM", float("inf"))
    assert answer(name, *case(name)) == large


@pytest.mark.threads
@needs_jit
@pytest.mark.parametrize("shape", [(3, 70_000, 1), (2, 3000, 33), (1, 5, 9000)])
def test_bits_of_a_sum_do_not_depend_on_threads_for_any_shape(shape, two_threads):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    outputs = [np.empty((shape[0], shape[2]), np.float32) for _ in range(2)]
    for n, out in enumerate(outputs, 1):
        two_threads(n)
        CPU["sum"](x, out)
    assert outputs[0].tobytes() == outputs[1].tobytes()


# --- accuracy ---------------------------------------------------------------------------------------------------------


@pytest.mark.threads
@pytest.mark.parametrize("shape", [(1, 300_001, 1), (1, 300_001, 3)] if JIT else [(1, 601, 1), (1, 601, 3)])
def test_a_long_sum_is_not_a_long_chain(shape):
    """Adding 0.1 in one chain of float32 is off by 1e-3 and more; runs of at most 4096 / 16 keep it near 256 eps."""
    out = np.empty((shape[0], shape[2]), np.float32)
    CPU["sum"](np.full(shape, 0.1, np.float32), out)
    exact = shape[1] * np.float64(np.float32(0.1))
    np.testing.assert_allclose(out, exact, rtol=256 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("nans", [(), (700,), (1300, 1301), (3, 1400)])
def test_argmax_of_a_long_row_is_its_first_maximum_or_nan(nans):
    x = np.random.default_rng(0).integers(0, 40, (3, 1501, 1)).astype(np.float32)  # ties in each of several runs
    x[1, 600:] += 40
    x[2, list(nans)] = np.nan
    out = np.empty((3, 1), np.int64)
    CPU["argmax"](x, out)
    np.testing.assert_array_equal(out, np.argmax(x, axis=1))


# --- what compiles ----------------------------------------------------------------------------------------------------


def _read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def _misaligned(x):
    memory = np.empty(x.nbytes + 1, np.uint8)[1:]
    y = memory.view(x.dtype).reshape(x.shape)
    y[...] = x
    return y


@pytest.mark.threads
@needs_jit
@pytest.mark.parametrize("layout", [_read_only, _misaligned, np.asfortranarray], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", COMPILED)
def test_no_layout_of_inputs_compiles_a_kernel_again(name, layout):
    inputs, outputs, numbers = case(name, rows=40, columns=30)
    plain = answer(name, inputs, outputs, numbers)
    other = _read_only if layout is np.asfortranarray else np.asfortranarray
    answer(name, [other(x) for x in inputs], outputs, numbers)  # a small product takes another way in plain layout
    before = compile_stats()
    inputs = [layout(x) for x in inputs]
    kept = [x.tobytes() for x in inputs]
    assert answer(name, inputs, outputs, numbers) == plain
    assert [x.tobytes() for x in inputs] == kept
    assert compile_stats()[:2] == before[:2]


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float16])
def test_other_dtypes_get_the_reference_and_compile_nothing(dtype):
    a, b = np.arange(1, 7, dtype=dtype), np.full(6, 2, dtype)
    before = compile_stats()
    for name in ("add", "mul", "maximum"):
        out, expected = np.empty(6, dtype), np.empty(6, dtype)
        CPU[name](a, b, out)
        NUMPY[name](a, b, expected)
        np.testing.assert_array_equal(out, expected)
    assert compile_stats()[:2] == before[:2]


def test_an_output_of_another_layout_is_filled():
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    for out in (np.zeros((4, 3), np.float32).T, np.zeros((3, 8), np.float32)[:, ::2]):
        CPU["neg"](x, out)
        np.testing.assert_array_equal(out, -x)


PROGRAM = """
import numpy as np
from scratchnet.kernels import device
from scratchnet.native.compile import compile_stats
x = np.linspace(-3, 3, 200_000, dtype=np.float32)
out = np.empty_like(x)
device("cpu").exp(x, out)                                   # parallel, with a polynomial
device("cpu").exp(x[:5].copy(), out[:5])                    # serial
np.testing.assert_allclose(out, np.exp(x), rtol=1e-6)
print(*compile_stats()[:2])
"""


@needs_jit
def test_a_second_process_compiles_nothing(new_cache):
    environment = {**os.environ, "SCRATCHNET_CACHE_DIR": str(new_cache)}
    command = [sys.executable, "-c", PROGRAM]
    first, second = (
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    )
    assert int(first[0]) > 0
    assert second[0] == "0"
    assert int(second[1]) > 0


# --- speed that a change could lose in silence ------------------------------------------------------------------------

X = np.linspace(-3, 3, 64, dtype=np.float32)
LOOPS = {  # a loop, what it is stamped with, its arguments, and what its inner loop does to packed floats
    "add": (
        elementwise._binary,
        {"function": SCALARS["add"]},
        (0, 64, X, X, X.copy(), elementwise._ONE_ROW[True, True]),
        "addps",
    ),
    "relu": (elementwise._unary, {"function": SCALARS["relu"]}, (0, 64, X, X.copy()), "cmp"),
    "sum": (reduce._fold, {"combine": reduce._add}, (X,), "addps"),
    "max": (reduce._fold, {"combine": folds.maximum}, (X,), "maxps"),
    "dropout": (random._dropout, {}, (0, 16, X, X.copy(), 5, 2.0, np.array([1, 2])), "pmuludq"),
    "argmax": (reduce._first, {}, (X, X[0]), "pmin|pcmpgt"),
    "sgd": (
        optim._one_state_in_place,
        {"prepare": optim._prepare_sgd, "rule": optim._sgd},
        (0, 64, X.copy(), X, X.copy(), np.array([0.1, 0.9, 0.0, 0.1])),
        "fmadd",
    ),
    "adam": (
        optim._two_states_in_place,
        {"prepare": optim._prepare_adam, "rule": optim._adam},
        (0, 64, X.copy(), X, X.copy(), X.copy(), np.array([0.1, 0.9, 0.99, 1e-8, 0.1, 1.0, 1.0])),
        "sqrtps",
    ),
    "rmsprop": (
        optim._two_states_in_place,
        {"prepare": optim._prepare_rmsprop, "rule": optim._rmsprop},
        (0, 64, X.copy(), X, X.copy(), X.copy(), np.array([0.1, 0.99, 1e-8, 0.9, 0.1])),
        "sqrtps",
    ),
    "amsgrad": (
        optim._three_states_in_place,
        {"prepare": optim._prepare_adam, "rule": optim._amsgrad},
        (0, 64, X.copy(), X, X.copy(), X.copy(), X.copy(), np.array([0.1, 0.9, 0.99, 1e-8, 0.1, 1.0, 1.0])),
        "sqrtps",
    ),
    "adagrad": (
        optim._one_state_in_place,
        {"prepare": optim._prepare_adagrad, "rule": optim._adagrad},
        (0, 64, X.copy(), X, X.copy(), np.array([0.1, 1e-10, 0.1])),
        "sqrtps",
    ),
}


@needs_jit
@pytest.mark.skipif(not llvm.get_host_cpu_features().get("avx2"), reason="looks for AVX instructions")
@pytest.mark.parametrize("name", LOOPS)
def test_hot_loops_use_vectors(name, monkeypatch):
    monkeypatch.setattr(cache, "_folder", lambda: None)  # code from the cache cannot be inspected
    template, bindings, arguments, instruction = LOOPS[name]
    loop = stamp(template, f"inspected_{name}", **bindings)
    loop(*arguments)
    (assembly,) = loop.inspect_asm().values()
    packed = [line for line in assembly.splitlines() if re.search(f"({instruction}).*%[yz]mm", line)]
    assert packed
