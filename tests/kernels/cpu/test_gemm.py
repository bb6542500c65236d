"""The matrix product: against NumPy in a wider type, bit for bit against itself, and within its arrays.

Sizes lie around the edges of tiles, panels and blocks. With NUMBA_DISABLE_JIT=1 the cutting runs in plain Python.
"""

import ctypes
import functools
import mmap
import re
import sys
import threading
from itertools import product

import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import THOROUGH

from scratchnet import errors
from scratchnet.kernels import device
from scratchnet.kernels.cpu import dot_rows, gemm
from scratchnet.kernels.cpu import gemm_cuts as cuts
from scratchnet.native import loops as blocks
from scratchnet.native import simd
from scratchnet.native.compile import JIT_ENABLED, MAX_THREADS, compile_stats, get_num_threads, set_num_threads

DTYPES = [np.float32, np.float64]
TRANSPOSED = list(product([False, True], repeat=2))
EDGES = [0, 1, 2, 3, 5, 6, 7, 8, 9, 12, 13, 15, 16, 17, 24, 31, 32, 33, 47, 48, 49, 63, 64, 65]
SIZES = st.sampled_from([*EDGES, 95, 96, 97, 127, 128, 129, 255, 256, 257] if JIT_ENABLED else EDGES[:16])

MANY = settings(max_examples=20 * settings().max_examples)  # an example takes a millisecond

needs_jit = pytest.mark.skipif(not JIT_ENABLED, reason="there is no compiled code")

# (m, n, k): each row crosses a threshold of gemm.py, in m, n or k
LARGE = [
    (2, 3, cuts.SPAN + 1),  # k in two blocks
    (cuts.PACK_AS_READ_TILES * cuts.ROWS, 33, 5),  # the topmost tiles pack b
    (40, 129, cuts.L2_BYTES // 512),  # b does not stay in L2 any more
    (cuts.MOST_M_BLOCK + 1, 70, 3),  # two blocks of rows
    (7, 256, 6),  # a packed, on some CPUs
    (13, cuts.PACK_TRANSPOSED_A_COLUMNS + 1, cuts.PACK_TRANSPOSED_A_K),  # a packed where transposed
    (cuts.MOST_M_BLOCK + 50, 1033, 3),  # two blocks of rows
]
LARGE += [
    (
        2 * simd.TILE.vector_bytes // 4 + 3,
        cuts.FEW_COLUMNS,
        cuts.PACK_TRANSPOSED_B_K + 1,
    ),  # few columns, a transposed by blocks of k
    (simd.TILE.vector_bytes, 3, 5),  # few columns, fewer than a square has
    (cuts.FEW_ROWS, 40, cuts.FEW_ROWS_ELEMENTS // 40 + 3),  # b in whole rows
    (5, 70, cuts.FEW_STEPS),  # row by row
    (9, 70, cuts.PACK_TRANSPOSED_B_K + 9),  # b transposed by blocks of k
    (1, 2 * simd.TILE.vector_bytes // 4 + 1, simd.TILE.vector_bytes // 2 + 3),  # squares of b, and parts of squares
    (1, simd.TILE.vector_bytes // 4, cuts.SPAN + 5),  # a vector of long sums
    (2 * cuts.ROWS + 1, 40, 9),  # b transposed, all of it at once
]
if JIT_ENABLED:
    LARGE += [(300, 130, 2 * cuts.SPAN + 3), (64, 128, 784), (784, 128, 64), (512, 10, 128), (301, 299, 302)]


def operands(m, n, k, transpose_a, transpose_b, dtype, seed=0):
    random = np.random.default_rng(seed)
    a = random.standard_normal((k, m) if transpose_a else (m, k)).astype(dtype)
    b = random.standard_normal((n, k) if transpose_b else (k, n)).astype(dtype)
    return a, b


def multiply(a, b, transpose_a=False, transpose_b=False, **options):
    shape = a.shape[1 if transpose_a else 0], b.shape[0 if transpose_b else 1]
    out = options.pop("out", None)
    out = np.full(shape, np.nan, a.dtype) if out is None else out.copy()
    gemm.matmul(a, b, out, transpose_a, transpose_b, **options)
    return out


def assert_close(got, a, b, transpose_a, transpose_b, start):
    """got = op(a) @ op(b) + start, with an error of one rounding a term at most: Higham (2002), section 3.1."""
    a, b = (a.T if transpose_a else a).astype(np.float64), (b.T if transpose_b else b).astype(np.float64)
    k = a.shape[1]
    terms = min(k, cuts.SPAN) + -(-k // cuts.SPAN) + 2  # the products of a span, the spans, a bias, an old value
    unit = terms * np.finfo(got.dtype).eps / 2
    bound = unit / (1 - unit) * (np.abs(a) @ np.abs(b) + np.abs(start))
    if got.dtype == np.float64:
        bound *= 2  # NumPy's own error
    error = np.abs(got - (a @ b + start))
    assert np.all(error <= bound), f"an error of {np.nanmax(error / np.maximum(bound, 1e-300)):.3g} bounds"


def same_bits(x, y):
    return x.tobytes() == y.tobytes()


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.threads
@MANY
@given(SIZES, SIZES, SIZES, st.sampled_from(TRANSPOSED), st.sampled_from(DTYPES), st.booleans(), st.booleans())
def test_equals_numpy_within_the_bound(m, n, k, transposed, dtype, with_bias, accumulate):
    a, b = operands(m, n, k, *transposed, dtype)
    random = np.random.default_rng(1)
    bias = random.standard_normal(n).astype(dtype) if with_bias else None
    old = random.standard_normal((m, n)).astype(dtype)
    got = multiply(a, b, *transposed, bias=bias, accumulate=accumulate, out=old)
    start = (bias.astype(np.float64) if with_bias else 0) + (old.astype(np.float64) if accumulate else 0)
    assert_close(got, a, b, *transposed, start + np.zeros((m, n)))


@pytest.mark.threads
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", TRANSPOSED)
@pytest.mark.parametrize("m, n, k", LARGE)
def test_equals_numpy_beyond_every_threshold(m, n, k, transposed, dtype):
    a, b = operands(m, n, k, *transposed, dtype)
    assert_close(multiply(a, b, *transposed), a, b, *transposed, np.zeros((m, n)))


@pytest.mark.parametrize("rows", range(1, 2 * simd.TILE.most_rows + 2))
def test_every_width_is_right_at_every_height(rows):
    for n in range(1, 8 * simd.TILE.vector_bytes // 4 + 2, 1 if JIT_ENABLED else 7):
        a, b = operands(rows, n, 3, False, False, np.float32)
        assert_close(multiply(a, b), a, b, False, False, np.zeros((rows, n)))


def test_an_empty_sum_is_the_bias_or_what_was_there():
    a, b, bias, old = np.zeros((3, 0)), np.zeros((0, 4)), np.arange(4.0), np.ones((3, 4))
    assert np.array_equal(multiply(a, b), np.zeros((3, 4)))
    assert np.array_equal(multiply(a, b, bias=bias), np.tile(bias, (3, 1)))
    assert np.array_equal(multiply(a, b, out=old, accumulate=True), old)
    assert np.array_equal(multiply(a, b, out=old, accumulate=True, bias=bias), old + bias)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("transposed", TRANSPOSED)
def test_nan_and_infinity_stay_in_their_row_and_column(transposed, value):
    m, n, k = 13, 29, 11
    a, b = operands(m, n, k, *transposed, np.float32)
    (a.T if transposed[0] else a)[12, 10] = value
    (b.T if transposed[1] else b)[10, 28] = value
    finite = np.isfinite(multiply(a, b, *transposed))
    assert finite[:12, :28].all() and not finite[12].any() and not finite[:, 28].any()


# --- bits -------------------------------------------------------------------------------------------------------------


@pytest.mark.threads
@MANY
@given(SIZES, SIZES, SIZES, st.sampled_from(TRANSPOSED), st.sampled_from(DTYPES))
def test_bits_do_not_depend_on_how_operands_are_stored(m, n, k, transposed, dtype):
    a, b = operands(m, n, k, False, False, dtype)
    stored = [np.ascontiguousarray(x.T) if t else x for x, t in zip((a, b), transposed, strict=True)]
    assert same_bits(multiply(*stored, *transposed), multiply(a, b))


def test_a_sum_that_underflows_keeps_its_sign():
    """In parts of vectors, too: what fills them up changes no sum, not even -0."""
    a, b = np.float32([[0, -1e-30]]), np.full((33, 2), 1e-30, np.float32)
    assert same_bits(multiply(a, b, False, True), multiply(a, np.ascontiguousarray(b.T)))


@pytest.mark.parametrize("k", [5, cuts.SPAN + 5])
def test_a_row_times_a_transposed_matrix_is_added_once(k):
    """Vectors of sums may overlap those that are done."""
    for n in range(1, 4 * simd.TILE.vector_bytes // 4, 1 if JIT_ENABLED else 7):
        a, b = operands(1, n, k, False, True, np.float32)
        options = {"out": np.arange(float(n), dtype=np.float32)[None], "accumulate": True}
        assert same_bits(multiply(a, b, False, True, **options), multiply(a, np.ascontiguousarray(b.T), **options))


@pytest.mark.parametrize("transposed", TRANSPOSED)
@pytest.mark.parametrize("m, n, k", [(150, 40, 21), (60, 300, 9), (10, 17, cuts.SPAN + 5)])
def test_bits_of_a_row_or_column_do_not_depend_on_the_others(m, n, k, transposed):
    a, b = operands(m, n, k, False, False, np.float32)
    whole = multiply(a, b)
    for i, j in [(0, 0), (m // 2, n // 2), (m - 1, n - 1)]:
        row, column = a[i : i + 1], np.ascontiguousarray(b[:, j : j + 1])
        few = a[i : i + 5]
        left = [np.ascontiguousarray(x.T) if transposed[0] else x for x in (row, few, a)]
        right = [np.ascontiguousarray(x.T) if transposed[1] else x for x in (b, column)]
        assert same_bits(multiply(left[0], right[0], *transposed), whole[i : i + 1])
        assert same_bits(multiply(left[1], right[0], *transposed), whole[i : i + 5])
        assert same_bits(multiply(left[2], right[1], *transposed), np.ascontiguousarray(whole[:, j : j + 1]))


# every way to compute a region, in the order of gemm_blocks.multiply, and the wide ones of few rows in parts
SPANNED = [(1, 1), (40, 5), (70, 3), (1, 40), (3, 9), (2, 70), (13, 33), (170, 40), (61, 300), (3, 16500), (1, 70000)]


@pytest.mark.threads
@needs_jit
@pytest.mark.parametrize("transposed", TRANSPOSED)
@pytest.mark.parametrize("m, n", SPANNED)
def test_a_long_sum_is_the_sum_of_its_spans(m, n, transposed):
    """The definition, on whatever way a product takes: equal spans, each begun with zero, added up in order."""
    if m * n > 16000 and transposed[1]:
        pytest.skip("packed like others")
    k = cuts.SPAN + 9 if m * n > 16000 else 2 * cuts.SPAN + 3
    a, b = operands(m, n, k, False, False, np.float32)
    bias, span = np.random.default_rng(1).standard_normal(n).astype(np.float32), cuts.span_of(k)
    expected = multiply(np.ascontiguousarray(a[:, :span]), b[:span], bias=bias)
    for k0 in range(span, k, span):
        expected += multiply(np.ascontiguousarray(a[:, k0 : k0 + span]), b[k0 : k0 + span])
    stored = [np.ascontiguousarray(x.T) if t else x for x, t in zip((a, b), transposed, strict=True)]
    assert same_bits(multiply(*stored, *transposed, bias=bias), expected)


def test_how_long_a_span_is_depends_on_k_alone():
    lengths = {1: 16, 1024: 1024, 1025: 528, 2048: 1024, 2049: 688, 10**6: 1024}
    assert {k: int(cuts.span_of(k)) for k in lengths} == lengths


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_continued_has_the_bits_of_the_whole(dtype):
    a, b = operands(14, 35, 40, False, False, dtype)
    first = multiply(np.ascontiguousarray(a[:, :17]), b[:17])
    assert same_bits(multiply(np.ascontiguousarray(a[:, 17:]), b[17:], out=first, accumulate=True), multiply(a, b))


@pytest.fixture
def threads():
    before = get_num_threads()
    yield
    set_num_threads(before)


@pytest.mark.threads
@pytest.mark.skipif(MAX_THREADS < 2, reason="one core")
@pytest.mark.parametrize("transposed", TRANSPOSED)
@pytest.mark.parametrize("m, n, k", [(150, 130, 30), (3, 700, 70), (1100, 10, 20)] if JIT_ENABLED else [(20, 30, 5)])
def test_bits_do_not_depend_on_threads(m, n, k, transposed, threads, monkeypatch):
    monkeypatch.setattr(blocks, "PARALLEL_FROM", 1)
    a, b = operands(m, n, k, *transposed, np.float32)
    results = []
    for count in range(1, min(MAX_THREADS, 4) + 1):
        set_num_threads(count)
        results.append(multiply(a, b, *transposed))
    assert all(same_bits(result, results[0]) for result in results)


@pytest.mark.parametrize("block", [1, 2, 5, 6, 7, 50])
@pytest.mark.parametrize("transposed", TRANSPOSED)
def test_any_cut_by_rows_or_columns_gives_the_same_bits(block, transposed):
    a, b = operands(61, 45, 30, *transposed, np.float32)
    expected, out = multiply(a, b, *transposed), np.full((61, 45), np.nan, np.float32)
    scratch = blocks.scratch(gemm._SCRATCH[out.dtype], out.dtype)
    right = gemm._packed(b, True, 0, 45, False) if transposed[1] else b
    zeros, columns = gemm.ZEROS[out.dtype], -(-45 // (gemm.SHARED * gemm.LANES[out.dtype]))
    plain = (a, b, zeros, out, *transposed)
    cases = [(gemm._by_rows, 61, (*plain, False)), (gemm._by_columns, columns, plain)]
    if transposed[1]:
        cases.append((gemm._packed_by_rows, 61, (a, right, zeros, out, transposed[0], 0, False)))
    for loop, size, arguments in cases:
        out[...] = np.nan
        for lo in range(0, size, block):
            loop.serial(lo, min(lo + block, size), *arguments, scratch)
        assert same_bits(out, expected)


@pytest.mark.parametrize("transposed", TRANSPOSED)
def test_a_large_b_is_packed_by_columns(transposed, monkeypatch):
    monkeypatch.setattr(gemm, "PACKED_ELEMENTS", 40 * 64)
    monkeypatch.setattr(gemm, "cut_now", lambda number: 1)
    monkeypatch.setattr(gemm, "L2_K", 0)
    a, b = operands(20, 150, 40, *transposed, np.float32)
    assert_close(multiply(a, b, *transposed), a, b, *transposed, start=0)


def test_threads_of_python_have_memory_of_their_own(threads):
    set_num_threads(1)  # the threading layer `workqueue` must not be entered twice
    cases = [operands(50, 60, 70 if JIT_ENABLED else 5, True, True, np.float32, seed) for seed in range(4)]
    alone = [multiply(*case, True, True) for case in cases]
    wrong = []

    def work(case, expected):
        set_num_threads(1)
        for _ in range(200 if JIT_ENABLED else 3):
            if not same_bits(multiply(*case, True, True), expected):
                wrong.append(case)

    workers = [threading.Thread(target=work, args=pair) for pair in zip(cases, alone, strict=True)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


# --- memory -----------------------------------------------------------------------------------------------------------


def before_a_wall(x):
    """A copy of x whose last byte is the last of a page, with a page behind it that nobody may touch."""
    pages = -(-x.nbytes // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    whole = np.frombuffer(memory, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    wall = ctypes.c_void_p(whole.ctypes.data + pages * mmap.PAGESIZE)
    assert libc.mprotect(wall, mmap.PAGESIZE, 0) == 0
    copy = whole[pages * mmap.PAGESIZE - x.nbytes : pages * mmap.PAGESIZE].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


@needs_jit
@pytest.mark.skipif(sys.platform != "linux", reason="mprotect of an anonymous map")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", TRANSPOSED)
def test_nothing_beyond_the_arrays_is_touched(transposed, dtype, threads):
    set_num_threads(1)  # one block, so that the sizes below reach every way of packing
    shapes = [
        (1, 1, 1),
        (1, 64, 32),
        (1, 35, 21),
        (2, 3, 5),
        (7, 9, 4),
        (13, 10, 3),
        (50, 33, 17),
        (5, 300, 7),
        (61, 67, 260),
    ]
    for m, n, k in shapes:
        a, b = operands(m, n, k, *transposed, dtype)
        bias = before_a_wall(np.ones(n, dtype))
        out = before_a_wall(np.zeros((m, n), dtype))
        gemm.matmul(before_a_wall(a), before_a_wall(b), out, *transposed, bias=bias)
        assert same_bits(out, multiply(a, b, *transposed, bias=np.ones(n, dtype)))


def test_what_surrounds_out_and_the_operands_stay_as_they_were():
    for m, n, k in [(7, 10, 5), (49, 33, 6), (1, 3, 2)]:
        a, b = operands(m, n, k, False, False, np.float32)
        copies = a.copy(), b.copy()
        frame = np.full((m + 2, n), 7, np.float32)
        gemm.matmul(a, b, frame[1:-1])
        assert (frame[0] == 7).all() and (frame[-1] == 7).all()
        assert same_bits(a, copies[0]) and same_bits(b, copies[1])


def test_operands_in_another_layout_compile_nothing_new():
    a, b = operands(20, 30, 10, False, False, np.float32)
    bias = np.ones(30, np.float32)
    expected = multiply(a, b, bias=bias)
    before = compile_stats()
    frozen = [x.copy() for x in (a, b, bias)]
    for x in frozen:
        x.flags.writeable = False
    assert same_bits(multiply(*frozen[:2], bias=frozen[2]), expected)
    strided = np.repeat(np.repeat(a, 2, 0), 3, 1)[::2, ::3]
    assert same_bits(multiply(strided, np.asfortranarray(b), bias=np.repeat(bias, 2)[::2]), expected)
    assert compile_stats().compiled == before.compiled


# --- bad input --------------------------------------------------------------------------------------------------------

Z = np.zeros
BAD = [
    (Z((2, 3)), Z((4, 5)), Z((2, 5)), {}, errors.ShapeError, r"got \(2, 3\) @ \(4, 5\) -> \(2, 5\)"),
    (Z((2, 3)), Z((3, 5)), Z((5, 2)), {}, errors.ShapeError, r"-> \(5, 2\)"),
    (Z((2, 3)), Z((5, 3)), Z((2, 5)), {}, errors.ShapeError, r"\(5, 3\)"),
    (Z(3), Z((3, 5)), Z((3, 5)), {}, errors.ShapeError, r"got \(3,\)"),
    (Z((2, 3)), Z((3, 5)), Z((2, 5)), {"bias": Z(2)}, errors.ShapeError, r"bias of shape \(5,\), got \(2,\)"),
    (Z((2, 3)), Z((3, 5)), Z((5, 2)).T, {}, errors.ShapeError, "row by row"),
    (Z((2, 3), "f"), Z((3, 5)), Z((2, 5)), {}, errors.DtypeError, "got float32, float64, float64"),
    (Z((2, 3), "i"), Z((3, 5), "i"), Z((2, 5), "i"), {}, errors.DtypeError, "got int32"),
    (Z((2, 3)), Z((3, 5)), Z((2, 5)), {"bias": Z(5, "f")}, errors.DtypeError, "float32, float64"),
]


@pytest.mark.parametrize("a, b, out, options, error, message", BAD)
def test_bad_arrays_are_named(a, b, out, options, error, message):
    with pytest.raises(error, match=message):
        gemm.matmul(a, b, out, **options)


@pytest.mark.parametrize("shape", [(1,), (4,), (128,), (1, 5)])
def test_a_small_layer_refuses_a_bias_of_another_shape(shape):
    """Which its fast way would take for the row of zeros that sums without a bias begin with."""
    with pytest.raises(errors.ShapeError, match=r"bias of shape \(5,\)"):
        device("cpu").linear(*(Z(sizes, "f") for sizes in ((2, 3), (3, 5), shape, (2, 5))))


# --- code -------------------------------------------------------------------------------------------------------------

MACHINES = {  # triple, CPU, what a fused multiply-add on whole vectors looks like, what a spilled vector looks like
    "avx2": (
        "x86_64-unknown-linux-gnu",
        "haswell",
        r"vfmadd\d+ps\s.*%ymm\d+$",
        r"vmov[ua]p[sd]\s+%ymm\d+, -?\d*\(%rsp",
    ),
    "avx512f": (
        "x86_64-unknown-linux-gnu",
        "znver5",
        r"vfmadd\d+ps\s.*%zmm\d+$",
        r"vmov[ua]p[sd]\s+%zmm\d+, -?\d*\(%rsp",
    ),
    "neon": ("aarch64-unknown-linux-gnu", "neoverse-n1", r"fmla\s+v\d+\.4s", r"st[rp]\s+q\d+.*\[sp"),
}


def innermost_loops(text):
    """The parts of a function's assembly that lie between a label and the jump back to it, with no such part inside."""
    labels = {found[1]: found.start() for found in re.finditer(r"^(\.LBB\w+):", text, re.MULTILINE)}
    jumps = re.finditer(r"^\s+(?:j\w+|b\.\w+|cbn?z\s+\w+,)\s+(\.LBB\w+)$", text, re.MULTILINE)
    loops = [(labels[jump[1]], jump.end()) for jump in jumps if labels[jump[1]] < jump.start()]
    inner = [x for x in loops if not any(x != y and x[0] <= y[0] and y[1] <= x[1] for y in loops)]
    assert inner
    return [text[begin:end] for begin, end in inner]


@needs_jit
@pytest.mark.once
@pytest.mark.parametrize("kind", MACHINES)
def test_tiles_stay_in_registers(kind):
    triple, cpu, multiply_add, spill = MACHINES[kind]
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    tile = simd.TILES[kind]
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
    dtypes = simd.DTYPES if THOROUGH or tile == simd.TILE else ("float32",)
    updates = ("sgd", "rmsprop") if THOROUGH else ("sgd",)  # Adam spills one or two, after the loop over k
    sources = simd.llvm_module, simd.in_place_module, *(functools.partial(simd.updating_module, x) for x in updates)
    modules = [llvm.parse_assembly(source(dtype, tile)) for dtype in dtypes for source in sources]
    assembly = "\n".join(map(machine.emit_assembly, modules))
    functions = re.split(r"\.Lfunc_end\d+:", assembly)
    for text in functions:
        # An update follows the loop over k, and may spill what the loop summed up; the loop may not.
        is_update = re.search(r"^tile_(sgd|rmsprop)_", text, re.MULTILINE)
        assert not any(re.search(spill, part) for part in (innermost_loops(text) if is_update else [text]))
    vectors = tile.vectors[tile.rows]
    body = assembly.split(f"tile_float32_{tile.rows}x{vectors}_00:")[1].split(".Lfunc_end")[0]
    copies = 2 if tile.rows * vectors >= 16 else 1  # of a step, between two jumps
    assert len(re.findall(multiply_add, body, re.MULTILINE)) == copies * tile.rows * vectors


@needs_jit
@pytest.mark.once
@pytest.mark.parametrize("kind", MACHINES)
def test_squares_are_transposed_in_registers(kind):
    triple, cpu, multiply_add, spill = MACHINES[kind]
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
    size = simd.TILES[kind].vector_bytes
    loops = innermost_loops(machine.emit_assembly(llvm.parse_assembly(dot_rows.module("float32", size))))
    whole, *_ = loops  # squares; the others are parts of them
    assert len(re.findall(multiply_add, whole, re.MULTILINE)) == size // 4
    assert len(re.findall(spill, whole)) <= (2 if kind == "avx2" else 0)
