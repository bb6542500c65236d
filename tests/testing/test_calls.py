"""Kernels of every make are called by the same few words; threads; compiling does not count as time."""

import ctypes
import functools
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from messages import one_line
from planted import by_threads
from sizes import JIT

import scratchnet as sn
from scratchnet.testing import LAYOUTS, arrays, assert_matches_reference, calls

PROGRAMS = Path(__file__).parents[1] / "programs"
X = np.random.default_rng(0).standard_normal((9, 17)).astype(np.float32)
INDEX = np.array([3, 0, 8, 8])
needs_jit = pytest.mark.skipif(not JIT, reason="nothing is compiled")


def doubled(x, out):
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = x[i, j] + x[i, j]


def doubled_in_c():
    """memcpy of the C library, as a kernel (out is x) that is a function in C; its arguments are out, x, bytes."""
    copy = ctypes.CDLL(None).memmove
    copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    return copy


def doubled_rows(x, out):
    for i in range(x.size):
        out[i] = x[i] + x[i]


def parallel_doubled(x, out):
    for i in numba.prange(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = x[i, j] + x[i, j]


MAKES = {
    "plain": lambda: doubled,
    "njit": lambda: numba.njit(doubled),
    "njit with signatures": lambda: numba.njit("void(float32[:, ::1], float32[:, ::1])")(doubled),
    "njit, parallel": lambda: numba.njit(parallel=True)(parallel_doubled),
    "returns": lambda: lambda x: x + x,
    "njit that returns": lambda: numba.njit(lambda x: x + x),
    "another name for out": lambda: lambda x, result: doubled(x, result),
    "partial": lambda: functools.partial(lambda factor, x, out: np.multiply(x, np.float32(factor), out=out), 2),
    "vectorize": lambda: numba.vectorize(["float32(float32)"])(lambda x: x + x),
    "vectorize, lazy": lambda: numba.vectorize(lambda x: x + x),
    "guvectorize": lambda: numba.guvectorize(["void(float32[:], float32[:])"], "(n)->(n)")(doubled_rows),
}
made = functools.cache(lambda make: MAKES[make]())


@needs_jit
@pytest.mark.parametrize("make", MAKES)
def test_a_kernel_of_every_make_is_checked_by_one_call_and_a_wrong_one_is_found(make):
    assert_matches_reference(made(make), lambda x: x + x, [X], roundings=0, layouts=("C", "offset"))
    with pytest.raises(sn.ContractError, match=r"element \("):
        assert_matches_reference(made(make), lambda x: x + 2 * x, [X], roundings=0, layouts=("C",))


def test_a_function_in_c_gets_pointers():
    sqrt = ctypes.CDLL(None).sqrt
    sqrt.restype, sqrt.argtypes = ctypes.c_double, [ctypes.c_double]
    assert_matches_reference(sqrt, lambda x: math.sqrt(x), [2.0], fills=False, roundings=1)

    def copied(x, out):
        doubled_in_c()(out.ctypes.data, x.ctypes.data, x.nbytes)

    assert_matches_reference(copied, lambda x: x, [X], roundings=0)
    move = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_float), ctypes.c_int, ctypes.POINTER(ctypes.c_float))

    @move
    def first_doubled(x, n, out):
        for i in range(n):
            out[i] = 2 * x[i]

    assert_matches_reference(first_doubled, lambda x, n: 2 * x, [X.ravel(), X.size], roundings=0)
    with pytest.raises(sn.ContractError, match="element"):
        assert_matches_reference(first_doubled, lambda x, n: 3 * x, [X.ravel(), X.size], roundings=0)


CYTHON = """
def doubled(const double[:, ::1] x, double[:, ::1] out):
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = x[i, j] + x[i, j]

def without_const(double[:, ::1] x, double[:, ::1] out):
    doubled(x, out)

def forgets_the_last(const double[:, ::1] x, double[:, ::1] out):
    for i in range(x.shape[0]):
        for j in range(x.shape[1] - 1):
            out[i, j] = x[i, j] + x[i, j]

def total(const double[:] x):
    return sum(x)
"""


def test_functions_of_cython(tmp_path, monkeypatch):
    """Runs where Cython and a compiler of C are installed; the next test plays what its functions say."""
    pytest.importorskip("Cython")
    (tmp_path / "cython_kernels.pyx").write_text(CYTHON)
    command = [sys.executable, "-m", "Cython.Build.Cythonize", "-i", "-q", "-3", "cython_kernels.pyx"]
    if subprocess.run(command, cwd=tmp_path, check=False).returncode:
        pytest.skip("no compiler of C")
    monkeypatch.syspath_prepend(tmp_path)
    import cython_kernels as made

    x = X.astype(float)
    assert_matches_reference(made.doubled, lambda x: 2 * x, [x], roundings=0)
    assert_matches_reference(made.total, lambda x: x.sum(), [x[0]], terms=17, layouts=("C", "strided", "reversed"))
    with pytest.warns(UserWarning, match=r"without_const: layout 'readonly' left out.*layouts=\('C', 'offset'\)"):
        assert_matches_reference(made.without_const, lambda x: 2 * x, [x], roundings=0)
    with pytest.raises(sn.ContractError, match=r"layout 'Fortran': ValueError: ndarray is not C-contiguous; leave it"):
        assert_matches_reference(made.doubled, lambda x: 2 * x, [x], roundings=0, layouts=("C", "Fortran"))
    with pytest.raises(sn.ContractError, match=r"element \(0, 16\): expected to be written"):
        assert_matches_reference(made.forgets_the_last, lambda x: 2 * x, [x], roundings=0)


def test_memoryviews_of_compiled_functions_take_some_layouts():
    def typed(x, out):
        if not x.flags.writeable:
            raise ValueError("buffer source array is read-only")
        if not x.flags.c_contiguous:
            raise ValueError("ndarray is not C-contiguous")
        np.add(x, x, out=out)

    with pytest.warns(UserWarning, match=r"typed: layout 'readonly' left out"):
        assert_matches_reference(typed, lambda x: 2 * x, [X])
    with pytest.raises(sn.ContractError, match=r"typed, layout 'strided': .* not C-contiguous; leave it out"):
        assert_matches_reference(typed, lambda x: 2 * x, [X], layouts=("C", "strided"))
    with pytest.raises(sn.ContractError, match=r"read-only; leave it out of layouts="):
        assert_matches_reference(typed, lambda x: 2 * x, [X], layouts=("readonly",))


def test_a_compiled_function_without_a_signature_says_how_to_have_it_called():
    assert calls.parameters(math.hypot) is None
    with pytest.raises(sn.ContractError, match=r"got TypeError: .*; fills=True calls it with arrays to fill"):
        assert_matches_reference(math.hypot, lambda x: x, [X])
    with pytest.raises(sn.ContractError, match=r"got TypeError: [^;]*$"):
        assert_matches_reference(math.hypot, lambda x: x, [X], fills=True)


class OtherLibrary:
    """Arrays of a library such as PyTorch, which become NumPy's unless they require gradients."""

    def __init__(self, x, recorded=False):
        self.x, self.recorded = x, recorded

    def __array__(self, dtype=None, copy=None):
        if self.recorded:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        return self.x


def test_results_of_other_libraries_are_taken_as_arrays():
    assert_matches_reference(np.exp, lambda x: OtherLibrary(np.exp(x)), [X], roundings=6)
    assert_matches_reference(lambda x: OtherLibrary(np.exp(x)), np.exp, [X], roundings=6)
    with pytest.raises(
        sn.ContractError, match=r"exp, layout 'C'.*: the reference raised RuntimeError: Can't call numpy"
    ):
        assert_matches_reference(np.exp, lambda x: OtherLibrary(np.exp(x), True), [X])
    with pytest.raises(sn.ContractError, match="expected no exception, got RuntimeError: Can't call numpy"):
        assert_matches_reference(lambda x: OtherLibrary(np.exp(x), True), np.exp, [X])


def test_oracles_of_pytorch():
    """Runs where PyTorch is installed; the last test stands for it elsewhere."""
    torch = pytest.importorskip("torch")

    def softmax(x, out):
        e = np.exp(x - x.max(axis=1, keepdims=True))
        out[...] = e / e.sum(axis=1, keepdims=True)

    options = {"terms": 17, "roundings": 16, "magnitude": np.ones_like, "layouts": tuple(LAYOUTS)}
    for dtype in (np.float32, np.float64):
        x = X.astype(dtype)
        assert_matches_reference(softmax, lambda x: torch.softmax(torch.from_numpy(x), 1), [x], **options)
        with pytest.raises(sn.ContractError, match=r"element \("):
            assert_matches_reference(softmax, lambda x: torch.softmax(torch.from_numpy(x), 0), [x], **options)
    extrema = lambda x: (x.max(axis=1), x.argmax(axis=1))  # noqa: E731
    assert_matches_reference(extrema, lambda x: torch.max(torch.from_numpy(x), 1), [X], roundings=0)


def test_out_may_be_an_option_of_the_kernel():
    assert_matches_reference(np.sum, np.sum, [X], terms=X.size)

    def doubled(x, *, out):
        np.add(x, x, out=out)

    assert_matches_reference(doubled, lambda x: x + x, [X], roundings=0)
    assert_matches_reference(lambda x: x * 2, lambda x: x * 2, [X.astype(np.longdouble)])


@needs_jit
def test_scalars_indices_batches_and_several_results():
    saxpy = numba.njit(lambda a, x, y: a * x + y)
    assert_matches_reference(saxpy, lambda a, x, y: a * x + y, [np.float32(2.5), X, X], roundings=2, layouts=("C",))
    take = numba.njit(lambda x, index: x[index])
    assert_matches_reference(take, lambda x, index: x[index], [X, INDEX], roundings=0, layouts=("C",))
    assert_matches_reference(np.matmul, np.matmul, [np.stack([X, X]), np.stack([X.T, X.T])], terms=17)

    def extrema(x, least, most):
        least[...], most[...] = x.min(axis=1), x.max(axis=1)

    assert_matches_reference(extrema, lambda x: (x.min(axis=1), x.max(axis=1)), [X], roundings=0)
    total = numba.njit(lambda x: x.sum())  # compiled functions return numbers of Python, which have no dtype
    assert_matches_reference(total, lambda x: x.sum(), [X], terms=X.size, layouts=("C",))


@needs_jit
def test_layouts_that_no_signature_takes_are_left_out_and_named():
    eager = numba.njit("void(float32[:, ::1], float32[:, ::1])")(doubled)
    with pytest.warns(UserWarning, match=r"doubled: layout 'readonly' left out.*layouts=\('C', 'offset'\)"):
        assert_matches_reference(eager, lambda x: x + x, [X], roundings=0)
    assert_matches_reference(eager, lambda x: x + x, [X], roundings=0, layouts=("C", "offset"))
    with pytest.raises(sn.ContractError, match=r"doubled, layout 'Fortran': TypeError: No matching definition"):
        assert_matches_reference(eager, lambda x: x + x, [X], roundings=0, layouts=("C", "Fortran"))
    with pytest.raises(sn.ContractError, match="No matching definition"):
        assert_matches_reference(eager, lambda x: x + x, [X.astype(np.float64)], roundings=0)


# --- threads ----------------------------------------------------------------------------------------------------------


@needs_jit
@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one thread")
def test_a_sum_that_depends_on_the_number_of_threads_is_found():
    total = numba.njit(parallel=True)(by_threads)
    x = np.array([1e8, 1, -1e8, 1], np.float32)

    def check(kernel=total, **options):
        assert_matches_reference(kernel, lambda x: x.sum(), [x], terms=4, layouts=("C",), **options)

    before = numba.get_num_threads()
    with pytest.raises(
        sn.ContractError, match=r"same bits for each number of threads, got \S+ with 1 and \S+ with 2"
    ) as e:
        check()
    one_line(e)
    assert numba.get_num_threads() == before
    with pytest.raises(sn.ContractError, match="number of threads"):
        check(lambda x, out: total(x, out))  # found through the name by which it is called
    check(threads=())
    check(threads=(2,))
    with pytest.raises(sn.ConfigError, match=r"threads: expected at most .*NUMBA_NUM_THREADS=999"):
        check(threads=(1, 999))


@needs_jit
def test_parallel_kernels_are_recognised_through_names_modules_and_cells():
    total = numba.njit(parallel=True)(by_threads)
    serial = numba.njit(lambda x: x)
    caller = numba.njit(lambda x, out: total(x, out))
    assert calls.runs_in_parallel(total) and calls.runs_in_parallel(caller)
    assert calls.runs_in_parallel(functools.partial(total, X))
    assert not calls.runs_in_parallel(serial) and not calls.runs_in_parallel(np.add)


class Moody:
    def __getattr__(self, name):
        raise ValueError(name)


moody = Moody()


def test_objects_that_a_kernel_names_are_not_asked_for_attributes():
    def kernel(x):
        return x + 1 if moody else x

    assert_matches_reference(kernel, lambda x: x + 1, [X])


# --- time -------------------------------------------------------------------------------------------------------------


def test_compiling_is_not_counted_as_time_of_the_test():
    slow, seconds = [], [0.3, 1.2]

    def compiles(x, out):
        if not slow:
            slow.append(time.sleep(seconds.pop()))  # more than Hypothesis allows for drawing
        np.add(x, x, out=out)

    def test(kernel, factor):
        @settings(deadline=200, max_examples=50, database=None)
        @given(arrays("mn", dtypes=[np.float32]))
        def test(inputs):
            assert_matches_reference(kernel, lambda x: factor * x, inputs)

        test()

    test(compiles, 2)
    assert slow
    slow.clear()
    with pytest.raises(sn.ContractError, match=r"float32\(1, 1\)") as error:  # shrunk
        test(lambda x, out: compiles(x, out), 3)
    assert slow
    assert any(note.startswith("to reproduce: assert_matches_reference(") for note in error.value.__notes__)


@pytest.mark.skipif(not JIT, reason="in the simulator of a process of its own")
def test_cuda_kernels_run_in_the_simulator():
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(PROGRAMS.parents[1])}
    subprocess.run([sys.executable, PROGRAMS / "cuda_kernels.py"], check=True, env=environment)
