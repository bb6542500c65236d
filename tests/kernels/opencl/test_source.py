"""Kernels as OpenCL C. That all of them compute what they should is seen where there is OpenCL, by the suites of the
tables: SCRATCHNET_GPU=opencl python -m pytest -k cuda tests/kernels tests/ops
"""

import numpy as np
import pytest

from scratchnet.errors import DeviceError
from scratchnet.kernels.opencl.source import translated

cuda = None  # of which a kernel knows the names alone
FLOAT, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


def body_of(function, *codes):
    """The statements of the kernel, one a line."""
    return translated(function, codes).partition("__kernel ")[2].splitlines()[1:-1]


def test_arguments_are_pointers_with_lengths_and_numbers_in_the_order_of_the_codes():
    def kernel(x, wide, pair):
        x[0] = pair[1]

    text = translated(kernel, ("[f", "?", ("q", "f")))
    assert "__kernel void run(__global float *a0, long a0_n, uchar a1, long a2_0, float a2_1) {" in text
    assert body_of(kernel, "[f", "?", ("q", "f")) == ["a0[0L] = a2_1;"]


def test_what_a_kernel_closes_over_is_a_constant_and_decides_branches():
    SCALE, IS_LONG = np.float32(0.5), False

    def kernel(x):
        if IS_LONG and x.size > 4:
            x[0] = SCALE
        else:
            x[1] = -SCALE * 2 if not IS_LONG else x[1]

    assert body_of(kernel, "[f") == ["a0[1L] = -0x1.0000000000000p+0f;"]


@pytest.mark.parametrize(
    ("codes", "kind"),
    [
        (("[f", "f"), "float"),
        (("[f", "d"), "double"),
        (("[d", "f"), "double"),
        (("[f", "q"), "double"),
        (("[i", "i"), "int"),
    ],
)
def test_a_variable_has_the_type_of_all_that_is_assigned_to_it(codes, kind):
    def kernel(x, y):
        total = x[0]
        for _ in range(3):
            total = total + y
        x[0] = total

    assert f"{kind} v_total;" in body_of(kernel, *codes)


def test_quotients_and_remainders_of_integers_are_those_of_python():
    def kernel(x):
        x[0] = x[1] // 2 + x[1] % 3

    assert body_of(kernel, "[l") == ["a0[0L] = (divided(a0[1L], 2L) + rest_of(a0[1L], 3L));"]


def test_all_values_are_computed_before_any_is_stored():
    def kernel(x):
        x[0], x[1] = x[1], x[0]

    first, second, *stores = body_of(kernel, "[f")
    assert (first.split(" = ")[1], second.split(" = ")[1]) == ("a0[1L];", "a0[0L];")
    assert [line.split(" = ")[0] for line in stores] == ["a0[0L]", "a0[1L]"]


def test_a_helper_is_translated_once_for_each_kind_of_arguments():
    def twice(a):
        return a + a

    def kernel(x, y):
        x[0], x[1], y[0] = twice(x[0]), twice(x[1]), twice(y[0])

    text = translated(kernel, ("[f", "[d"))
    assert text.count("float twice_") == text.count("double twice_") == 1


def test_a_helper_that_returns_several_numbers_returns_a_struct():
    def ends(a):
        return a - 1, a * FLOAT.type(2)

    def kernel(x):
        low, high = ends(x[0])
        x[0] = high - low

    text = translated(kernel, ("[f",))
    assert "typedef struct { double f0; float f1; } ends_" in text and "double v_low;" in text


def test_memory_of_a_block_and_of_a_thread_and_barriers():
    def kernel(x):
        shared = cuda.shared.array(8, np.float32)
        own = cuda.local.array(4, np.int64)
        shared[cuda.threadIdx.x] = x[cuda.grid(1)]
        cuda.syncthreads()
        own[0] = cuda.gridDim.y
        x[own[0]] = shared[0]

    text = translated(kernel, ("[f",))
    for part in (
        "__local float",
        "__private long",
        "get_local_id(0)",
        "get_global_id(0)",
        "get_num_groups(1)",
        "barrier(",
    ):
        assert text.count(part) == 1, part


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(-np.inf), "((float)-INFINITY)"),
        (np.float32("nan"), "((float)NAN)"),
        (0.1, "((double)0x1.999999999999ap-4)"),
        (np.int64(-(2**63)), "((long)9223372036854775808UL)"),
        (np.uint64(2**64 - 1), "((ulong)18446744073709551615UL)"),
        (7, "7L"),
        (True, "1"),
    ],
)
def test_constants_keep_all_their_bits(value, text):
    def kernel(x):
        y = value
        x[0] = y

    assert any(line == f"v_y = {text};" for line in body_of(kernel, "[d"))


def test_what_it_does_not_know_is_refused_in_a_line():
    def breaks(x):
        while x[0] > 0:
            break

    def shuffles(x):
        x[0] = cuda.shfl_xor_sync(1, x[0], 1)

    def names(x):
        x[0] = max(x[0], x[1], key=None)

    for function, what in (
        (breaks, "Break in breaks, line 3"),
        (shuffles, "cuda.shfl_xor_sync"),
        (names, "keyword in names"),
    ):
        with pytest.raises(DeviceError, match=rf"^opencl: expected what source.py translates, got {what}") as caught:
            translated(function, ("[f",))
        assert "\n" not in str(caught.value)
