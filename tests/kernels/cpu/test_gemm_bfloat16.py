"""Products of bfloat16 on the CPU: the bits of both ways, and which one is taken."""

import ml_dtypes
import numpy as np
import pytest
from messages import error_line
from sizes import JIT

from scratchnet import errors
from scratchnet.kernels import device
from scratchnet.kernels.cpu import gemm, gemm_bfloat16, pairs, tiles
from scratchnet.kernels.cpu.gemm_update import with_update
from scratchnet.native.compile import MAX_THREADS, get_num_threads, set_num_threads
from scratchnet.native.loops import Plan, planning

UNITS = [
    pytest.param(name, marks=pytest.mark.skipif(not (JIT and unit.are_there()), reason="a CPU without them"))
    for name, unit in gemm_bfloat16.UNITS.items()
]

SHAPES = [(1, 1, 1, 1), (1, 16, 32, 16), (1, 33, 65, 17), (3, 20, 40, 50), (1, 5, 0, 3)]
WIDENED = SHAPES + [(1, 33, 1056, 520), (1, 20, 900, 130), (1, 70, 1100, 5), (2, 40, 900, 50), (1, 1, 90, 800)] * JIT
SHAPES += [(1, 17, 1056, 40), (1, 40, 1056, 17)] * JIT  # more than one part of k
SHAPES += [(1, 560, 40, 530)] * JIT  # both sides longer than a part


def operands(count, m, k, n, transpose_a, transpose_b):
    rng = np.random.default_rng(m + k + n)
    a = rng.standard_normal((count, k, m) if transpose_a else (count, m, k)).astype(np.float32)
    b = rng.standard_normal((count, n, k) if transpose_b else (count, k, n)).astype(np.float32)
    return a, b, np.full((count, m, n), np.nan, np.float32)


@pytest.mark.threads
@pytest.mark.parametrize("flags", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("shape", WIDENED)
def test_widened_factors_have_the_bits_of_their_float32_product(shape, flags):
    a, b, out = operands(*shape, *flags)
    expected = np.empty_like(out)
    gemm_bfloat16.WAYS["widened"](a, b, out, *flags)
    for i in range(len(out)):
        gemm.matmul(pairs.bfloat16(a[i]), pairs.bfloat16(b[i]), expected[i], *flags)
    assert out.tobytes() == expected.tobytes()


SPECIAL = [0x3F808000, 0x3F818000, 0x3F807FFF, 0x80000000, 0x8000, 0x18001, 0x7F7FFFFF, 0xFF800000, 0x7F800001]


@pytest.mark.parametrize("transposed", [False, True])
def test_packing_rounds_ties_subnormal_numbers_and_nan_as_ml_dtypes_does(transposed):
    lanes = gemm.LANES[np.dtype(np.float32)]
    for columns in (3, lanes, lanes + 1):
        b = np.resize(np.uint32(SPECIAL), (20, columns)).view(np.float32)
        with np.errstate(invalid="ignore"):  # one of them is a NaN that signals
            packed, expected = np.empty_like(b), b.astype(ml_dtypes.bfloat16).astype(np.float32)
        gemm.pack_b(0, 1, np.ascontiguousarray(b.T) if transposed else b, transposed, 0, packed, True)
        bits, exact = (np.where(np.isnan(x), 0, x.view(np.uint32)) for x in (packed, expected))
        np.testing.assert_array_equal(bits, exact)
        np.testing.assert_array_equal(np.isnan(packed), np.isnan(b))


@pytest.mark.threads
@pytest.mark.skipif(not JIT, reason="without the JIT nothing is planned")
def test_an_update_takes_in_the_product_of_rounded_factors():
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((450, 40), (450, 600)))
    numbers, plan, gradient = np.array([0.1, 0.9, 0, 0.01]), Plan(), np.empty((40, 600), np.float32)
    fused, plain = [[x.copy() for x in (gradient, gradient)] for _ in range(2)]
    for x in (*fused, *plain):
        x[...] = np.arange(600)
    with planning(plan):
        gemm_bfloat16.WAYS["widened"](a[None], b[None], gradient[None], True, False)
    for task in (*plan[:-1], with_update(plan[-1], "sgd", fused[0], fused[1:], numbers)):
        task.loop.serial(0, task.size, *task.arguments)
    gemm.matmul(pairs.bfloat16(a), pairs.bfloat16(b), gradient, True)
    device("cpu").sgd(plain[0], gradient, plain[1], *plain, numbers)
    assert fused[0].tobytes() == plain[0].tobytes() and fused[1].tobytes() == plain[1].tobytes()


@pytest.mark.threads
@pytest.mark.parametrize("way", UNITS)
@pytest.mark.parametrize("flags", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("shape", SHAPES)
def test_units_have_the_bits_of_their_definition(shape, flags, way):
    a, b, out = operands(*shape, *flags)
    gemm_bfloat16.WAYS[way](a, b, out, *flags)
    left, right = (pairs.bfloat16(x.swapaxes(1, 2) if turned else x) for x, turned in zip((a, b), flags, strict=True))
    k = shape[2]
    left, right = np.pad(left, ((0, 0), (0, 0), (0, -k % 32))), np.pad(right, ((0, 0), (0, -k % 32), (0, 0)))
    expected = np.zeros_like(out)
    for i in range(len(out)):
        step = 32 if way == "tiles" else 1024
        for t in range(0, left.shape[2], step):
            terms = left[i, :, t : t + step], right[i, t : t + step]
            if way == "tiles":
                expected[i] = tiles.add_tiles(expected[i], *terms)
            else:
                part = pairs.add_pairs(np.zeros_like(out[i]), *terms)
                expected[i] = expected[i] + part if t else part
    assert out.tobytes() == expected.tobytes()


@pytest.mark.threads
@pytest.mark.parametrize("way", UNITS)
def test_bits_of_units_do_not_depend_on_threads(way):
    a, b, out = operands(1, 200, 700, 150, False, False)
    results, before = [], get_num_threads()
    for count in range(1, min(MAX_THREADS, 4) + 1):
        set_num_threads(count)
        gemm_bfloat16.WAYS[way](a, b, out, False, False)
        results.append(out.tobytes())
    set_num_threads(before)
    assert len(set(results)) == 1


def test_the_way_of_the_environment_is_taken_or_refused(monkeypatch):
    monkeypatch.setenv(gemm_bfloat16.VARIABLE, "widened")
    assert gemm_bfloat16.way.__wrapped__() == "widened"
    monkeypatch.setenv(gemm_bfloat16.VARIABLE, "fast")
    with pytest.raises(errors.ConfigError, match=r"SCRATCHNET_BFLOAT16.*got 'fast'") as error:
        gemm_bfloat16.way.__wrapped__()
    error_line(error)


def test_another_way_is_taken_only_where_it_is_clearly_faster(monkeypatch):
    for seconds, expected in (({"widened": 1.2, "tiles": 0.9}, "tiles"), ({"widened": 1.0, "tiles": 0.9}, "widened")):
        monkeypatch.setattr(gemm_bfloat16, "measured", lambda ways, seconds=seconds: seconds)
        assert gemm_bfloat16._fastest(["widened", "tiles"]) == expected


def test_the_way_is_measured_once_for_all_processes(monkeypatch, tmp_path):
    from scratchnet.native import cache

    monkeypatch.setattr(cache, "writable_folder", lambda: tmp_path)
    asked = []
    for _ in range(2):
        assert cache.kept_text("answer", lambda: asked.append(1) or "tiles") == "tiles"
    assert asked == [1]
    monkeypatch.setattr(cache, "writable_folder", lambda: None)
    assert cache.kept_text("answer", lambda: "tiles") is None


def test_operands_of_other_layouts_and_empty_ones_are_taken():
    kernel = device("cpu").matmul_bfloat16
    a, b, out = operands(2, 3, 4, 5, False, False)
    kernel(np.asfortranarray(a), b[:, ::-1][:, ::-1], out)
    np.testing.assert_allclose(out, pairs.bfloat16(a) @ pairs.bfloat16(b), rtol=1e-5, atol=1e-5)
    kernel(a[:0], b[:0], out[:0])
