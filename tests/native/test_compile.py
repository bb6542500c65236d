"""What the decorators of compile.py promise, and its thread count."""

import contextlib
import gc
import math
import subprocess
import sys
from collections import defaultdict

import numba
import numpy as np
import pytest

from scratchnet import errors
from scratchnet.kernels import device
from scratchnet.native import compile as native
from scratchnet.native.cache import _code_key
from scratchnet.native.compile import JIT_ENABLED, MAX_THREADS, get_num_threads, jit, set_num_threads, stamp

needs_jit = pytest.mark.skipif(not JIT_ENABLED, reason="nothing is compiled")

# --- decorators -------------------------------------------------------------------------------------------------------


@jit
def divide(x, y):
    return x / y


@jit
def multiply_add(a, b, c):
    return a * b + c


@jit(reduction=True)
def count_nan(x):
    found = 0.0
    for value in x:
        found += 1.0 if value != value else 0.0
    return found


@jit
def grouped(a, b):
    """(a + b) - a: zero where b is lost in a, b if the compiler may reorder."""
    return (a + b) - a


def square(x):
    return x * x


def twice(x):
    return x + x


compiled_square, compiled_twice = jit(square), jit(twice)


@jit
def function(x):
    return x


@jit
def elementwise(x, out):
    for i in range(x.size):
        out[i] = function(x[i])


def applied(kernel, x):
    out = np.empty_like(x)
    kernel(x, out)
    return out.tolist()


@needs_jit
def test_division_by_zero_follows_numpy():
    assert divide(1.0, 0.0) == math.inf and math.isnan(divide(0.0, 0.0))


@needs_jit
def test_a_product_and_a_sum_are_rounded_once():
    tiny = 2.0**-30
    assert multiply_add(1 + tiny, 1 - tiny, -1.0) == -(tiny**2)  # two roundings give 0


@needs_jit
def test_sums_keep_their_order():
    assert grouped(1e30, 1.0) == 0.0


def test_nan_is_seen_in_reductions():
    assert count_nan(np.array([1.0, np.nan, np.inf, np.nan])) == 2.0


def test_a_stamp_rebinds_names_and_leaves_the_template_alone():
    x = np.array([1.0, 3.0])
    assert applied(stamp(elementwise, "squares", function=compiled_square), x) == [1, 9]
    assert applied(stamp(elementwise, "doubles", function=compiled_twice), x) == [2, 6]
    assert applied(elementwise, x) == [1, 3]


@needs_jit
@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("argument", [1.0, None])
def test_garbage_is_collected_after_compiling_as_before(enabled, argument):
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with contextlib.nullcontext() if argument else pytest.raises(numba.TypingError):
            stamp(elementwise, f"garbage_{enabled}", function=compiled_square)(
                np.ones(1), np.empty(1) if argument else 1.0
            )
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()


@needs_jit
def test_a_kernel_that_another_one_calls_is_compiled_as_a_part_of_that_and_by_itself_when_python_calls_it():
    @jit
    def part(x):
        return 3 * x

    @jit
    def whole(x):
        return part(x) + 1

    assert whole(2.0) == 7.0
    assert not part.overloads and len(part._part.overloads) == 1
    (made,) = part._part.overloads.values()
    assert native.Part is type(made.library) and not made.library.codegen._engine.is_symbol_defined(
        made.fndesc.llvm_cpython_wrapper_name
    )
    assert part(2.0) == 6.0 and len(part.overloads) == len(part._part.overloads) == 1


def test_a_stamp_has_its_own_name():
    kernel = stamp(elementwise, "squares", function=compiled_square)
    assert (kernel.__name__, kernel.__qualname__, kernel.__module__) == ("squares", "squares", __name__)


def test_a_stamp_of_a_plain_function_is_one():
    assert stamp(square, "renamed")(3) == 9 and not hasattr(stamp(square, "renamed"), "py_func")


@needs_jit
def test_kernels_of_this_package_have_names_of_their_own():
    """Two of one name, compiled by two processes, could get the same symbol; a third process would mix them up."""
    device("cpu")  # imports them
    kernels = [x.py_func for x in gc.get_objects() if type(x) is native._Kernel]
    found = defaultdict(set)
    for f in kernels:
        found[f"{f.__module__}.{f.__qualname__}"].add(repr((_code_key(f.__code__), getattr(f, "__bindings__", None))))
    ours = {name: codes for name, codes in found.items() if name.startswith("scratchnet.")}
    assert len(ours) > 200 and [name for name, codes in ours.items() if len(codes) > 1] == []


# --- threads ----------------------------------------------------------------------------------------------------------


def test_threads_are_set_for_numba():
    before = get_num_threads()
    for count in (1, MAX_THREADS):
        set_num_threads(count)
        assert get_num_threads() == numba.get_num_threads() == count
    set_num_threads(before)


@pytest.mark.parametrize("count", [0, -1, MAX_THREADS + 1, 1.0, True, "2", None])
def test_another_number_of_threads_is_refused(count):
    with pytest.raises(errors.ConfigError, match=rf"from 1 to {MAX_THREADS}, got {count!r}"):
        set_num_threads(count)


def test_other_users_of_numba_keep_their_own_cache():
    assert "scratchnet" not in str(numba.config.CACHE_DIR)
    assert numba.njit(square)(3) == 9


FORKED = """
import os, sys, threading, numpy as np, scratchnet as sn
x = sn.Tensor(np.random.default_rng(0).standard_normal((600, 600)).astype(np.float32))
product = lambda: (x @ x).numpy().tobytes()
expected = product()
pid = os.fork()
if pid == 0:
    found = [product()]
    thread = threading.Thread(target=lambda: found.append(product()))
    thread.start(); thread.join()
    print(found == [expected, expected], sn.get_num_threads(), flush=True)
    try:
        sn.set_num_threads(2)
    except sn.ConfigError as error:
        print(error, flush=True)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), product() == expected)
"""


@pytest.mark.skipif(not JIT_ENABLED or MAX_THREADS < 2, reason="needs parallel kernels")
def test_a_process_forked_after_kernels_ran_has_the_same_bits_on_one_thread():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True)
    same, refusal, ended = done.stdout.splitlines()
    assert (same, ended) == ("True 1", "0 True"), done.stderr
    assert refusal.endswith("whose threads stayed behind, got 2; start it by spawn or forkserver")
