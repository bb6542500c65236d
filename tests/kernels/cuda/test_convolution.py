"""Convolution on the device "cuda", by tiles: values, the order of additions, and what lies outside of the planes."""

import contextlib
import math
from unittest import mock

import numpy as np
import pytest
from gpu_arrays import RNG, ROUNDED
from sizes import SIMULATED

import scratchnet as sn
from scratchnet.kernels import reference_windows as reference
from scratchnet.nn import functional as F
from scratchnet.testing import host_kernel, interpreted

NEEDS = "simulated"
if SIMULATED:
    from scratchnet.kernels.cuda import compile, convolution, memory, tuning

KERNELS = "conv2d", "conv2d_input", "conv2d_weight"
# (images, groups, channels, h, w, filters), window, stride, padding, dilation: channels and filters are those of a
# group. Tiles have 8 x 8 and 4 x 8 elements and 4 terms, and nothing here is a multiple of that.
CALLS = {
    "two tiles and a rest": ((2, 1, 3, 6, 5, 9), (3, 2), (1, 1), (1, 1), (1, 1)),
    "groups": ((1, 2, 3, 4, 5, 5), (2, 2), (1, 1), (0, 1), (1, 1)),
    "each channel on its own": ((2, 3, 1, 5, 4, 1), (3, 3), (1, 1), (1, 1), (1, 1)),
    "strides": ((2, 1, 2, 7, 9, 5), (3, 3), (2, 3), (1, 2), (1, 1)),
    "windows with holes": ((1, 1, 2, 7, 8, 3), (2, 3), (1, 1), (2, 1), (2, 3)),
    "strides and holes": ((1, 1, 3, 9, 8, 4), (2, 3), (2, 4), (1, 1), (3, 2)),
    "windows that miss most of x": ((1, 1, 2, 5, 7, 3), (1, 1), (2, 3), (0, 0), (1, 1)),
    "one term": ((1, 1, 1, 1, 3, 2), (1, 1), (1, 1), (0, 0), (1, 1)),
    "no channel": ((1, 1, 0, 3, 3, 2), (2, 2), (1, 1), (0, 0), (1, 1)),
    "no filter": ((1, 1, 2, 3, 3, 0), (2, 2), (1, 1), (0, 0), (1, 1)),
    "no image": ((0, 1, 2, 3, 3, 2), (2, 2), (1, 1), (0, 0), (1, 1)),
}


def arrays(call, dtype=np.float32, draw=RNG.standard_normal):
    """x, weight, bias, g of a call."""
    (images, groups, channels, h, w, filters), window, stride, padding, dilation = call
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip((h, w), padding, dilation, window, stride, strict=True)
    ]
    shapes = (images, groups * channels, h, w), (groups * filters, channels, *window), (groups * filters,)
    return [np.asarray(draw(shape)).astype(dtype) for shape in (*shapes, (images, groups * filters, *size))]


def computed(name, call, x, weight, bias, g, table=None, precision=None):
    """The result of a kernel; by the reference if that is the table."""
    (_, groups, *_), _, *windows = call
    inputs, like = {
        "conv2d": ((x, weight, bias), g), "conv2d_input": ((g, weight), x), "conv2d_weight": ((g, x), weight)
    }[name]  # fmt: skip
    out = np.full_like(like, np.nan)
    if table is reference:
        getattr(reference, name)(*inputs, out, *windows, groups)
    else:
        name, more = (f"{name}_rounded", (precision,)) if precision else (name, ())
        with interpreted(), tuning.use(tuning.TINY):
            host_kernel("cuda", name)(*inputs, out, *windows, groups, *more)
    return out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("name", KERNELS)
def test_sums_of_small_integers_are_exact(name, call, dtype):
    """So no rounding hides an element that is missed, or met twice."""
    given = arrays(call, dtype, lambda shape: RNG.integers(-3, 4, shape))
    wide = [x.astype(np.float64) for x in given]
    np.testing.assert_array_equal(computed(name, call, *given), computed(name, call, *wide, table=reference))


SEVERAL_TILES = (1, 2, 3, 4, 6, 33), (2, 2), (1, 1), (1, 0), (1, 1)  # of 32 x 16 and 16 x 8 elements


IN_A_PRECISION = [("bfloat16", SEVERAL_TILES), ("tf32x3", SEVERAL_TILES), ("tf32", CALLS["strides and holes"])]
IN_A_PRECISION += [("float16", CALLS["windows with holes"]), ("bfloat16", CALLS["no channel"])]


@pytest.mark.parametrize(("precision", "call"), IN_A_PRECISION, ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_by_tensor_cores_sums_are_numpys_of_rounded_operands(name, precision, call):
    x, weight, bias, g = arrays(call)
    rounded = ROUNDED.get(precision, np.asarray)
    wide = [rounded(y).astype(np.float64) for y in (x, weight)] + [bias.astype(np.float64), rounded(g).astype(float)]
    exact = computed(name, call, *wide, table=reference)
    size = computed(name, call, *map(np.abs, wide), table=reference)
    (images, _, channels, *_, filters), (kh, kw), *_ = call
    places = images * math.prod(g.shape[2:])
    terms = {"conv2d": channels * kh * kw, "conv2d_input": filters * kh * kw, "conv2d_weight": places}[name]
    roundings = terms + 1 + (8 if precision == "tf32x3" else 0)  # what three products lose: docs/precision.md
    error = np.abs(computed(name, call, x, weight, bias, g, precision=precision) - exact)
    assert (error <= roundings * np.finfo(np.float32).eps / 2 * size).all()
    if precision == "tf32x3":
        once = computed(name, call, x, weight, bias, g, precision="tf32")
        assert (np.abs(once - exact) > roundings * np.finfo(np.float32).eps / 2 * size).any()


@pytest.mark.parametrize("precision", ["bfloat16", "tf32x3"])
@pytest.mark.parametrize("name", KERNELS)
def test_a_gpu_without_tensor_cores_rounds_first(name, precision):
    call = CALLS["groups"]
    given = arrays(call)
    with mock.patch.object(compile.machine, "has_tensor_cores", lambda: False):
        found = computed(name, call, *given, precision=precision)
    rounded = ROUNDED.get(precision, np.asarray)
    x, weight, bias, g = given
    assert found.tobytes() == computed(name, call, rounded(x), rounded(weight), bias, rounded(g)).tobytes()


def test_a_layer_is_rounded_with_its_gradients_or_not_at_all():
    convolving = convolution.convolving
    for filters, channels, is_rounded in ((16, 16, True), (15, 16, False), (16, 1, False)):
        x, weight = (
            sn.Tensor(RNG.standard_normal(shape).astype(np.float32), device="cuda", requires_grad=True)
            for shape in ((1, channels, 16, 128), (filters, channels, 2, 2))
        )
        made = []
        given = mock.patch.object(convolution, "convolving", lambda *x, made=made: made.append(x[-1]) or convolving(*x))
        token = compile.launcher.set(lambda *launch: None)
        with given, sn.precision("tf32"):
            y = F.conv2d(x, weight)
            y.sum().backward()
        compile.launcher.reset(token)
        assert made == ["tf32" if is_rounded else None] * 3


@pytest.mark.parametrize("name", KERNELS)
def test_an_element_is_two_parts_of_the_sum_each_in_order(name):
    call = (4, 1, 4, 2, 3, 5), (2, 2), (1, 1), (0, 1), (1, 1)
    x, weight, bias, g = arrays(call)
    (images, _, channels, *_, filters), window, _, (ph, pw), _ = call
    at = one, two, y, z = {"conv2d": (2, 3, 0, 3), "conv2d_input": (2, 3, 1, 0), "conv2d_weight": (4, 3, 1, 0)}[name]
    if name == "conv2d":
        terms = [
            (weight[two, c, r, s], x, (one, c, y + r - ph, z + s - pw)) for c, r, s in np.ndindex(channels, *window)
        ]
    elif name == "conv2d_input":
        terms = [
            (weight[f, two, r, s], g, (one, f, y + ph - r, z + pw - s)) for f, r, s in np.ndindex(filters, *window)
        ]
    else:
        terms = [(g[i, one, r, s], x, (i, two, r + y - ph, s + z - pw)) for i, r, s in np.ndindex(images, *g.shape[2:])]
    _, span, parts, _ = convolution.planned(*planned_with(name, call, x, weight, g))
    sums = np.zeros(parts, np.float32)
    for k, (factor, plane, (i, c, row, column)) in enumerate(terms):
        if 0 <= row < plane.shape[2] and 0 <= column < plane.shape[3]:
            sums[k // span] += factor * plane[i, c, row, column]
    sums[0] += bias[two] if name == "conv2d" else 0
    assert parts == 2 and computed(name, call, x, weight, bias, g)[at] == sums[0] + sums[1]


def planned_with(name, call, x, weight, g):
    walks = {
        "conv2d": convolution.forward,
        "conv2d_input": convolution.of_input,
        "conv2d_weight": convolution.of_weight,
    }
    shape = convolution._shape(x, weight, g, *call[2:], call[0][1])
    return walks[name], shape, 4, False, tuning.TINY


@pytest.mark.parametrize("precision", [None, "bfloat16", "tf32"])
@pytest.mark.parametrize("name", KERNELS)
def test_what_lies_outside_of_a_plane_takes_no_part_in_a_sum(name, precision):
    call = CALLS["strides"]
    x, weight, bias, g = arrays(call)
    weight[0, 1, 0, 0], weight[3, 0, 2, 2] = np.inf, np.nan
    g[1, 1, 0, 0], g[0, 2, -1, -1] = -np.inf, np.nan
    given = [ROUNDED[precision](y) if precision and y is not bias else y for y in (x, weight, bias, g)]
    expected = computed(name, call, *given, table=reference)
    assert np.isnan(expected).any() and np.isfinite(expected).any()
    found = computed(name, call, x, weight, bias, g, precision=precision)
    np.testing.assert_allclose(found, expected, 1e-5, 1e-5)


def test_a_strided_gradient_multiplies_what_meets_and_nothing_else():
    call = CALLS["strides"]
    x, weight, _, g = arrays(call)
    _, _, _, found = convolution.planned(*planned_with("conv2d_input", call, x, weight, g))
    (images, _, _, h, w, filters), (kh, kw), (sh, sw), (ph, pw), _ = call
    met = sum(
        (y + ph - r) % sh == 0 and (z + pw - s) % sw == 0
        for y in range(h) for z in range(w) for r in range(kh) for s in range(kw)
    )  # fmt: skip
    assert len(found) == sh * sw
    assert sum(n * k for _, _, _, (_, n, k, *_) in found) == images * filters * met


def test_the_tile_fits_the_filters_and_long_sums_have_parts():
    numbers = tuning.PRODUCTION
    for filters, rows in {128: 64, 64: 64, 33: 64, 32: 32, 16: 16, 8: 8, 3: 8, 1: 8}.items():
        shape = convolution.Shape(128, 1, 64, 28, 28, filters, 28, 28, 3, 3, (1, 1), (1, 1), (1, 1))
        tile, span, parts, _ = convolution.planned(convolution.forward, shape, 4, False, numbers)
        assert (tile.rows, parts) == (rows, 1) and span >= 576
        _, span, parts, _ = convolution.planned(convolution.of_weight, shape, 4, False, numbers)
        assert span <= 1024 and parts == math.ceil(128 * 784 / span)


@pytest.mark.parametrize(("h", "w", "fits"), [(2**29 - 3, 1, True), (2**29 - 2, 1, False), (1, 2**31 - 2, False)])
def test_planes_whose_rows_or_columns_do_not_fit_their_bits_are_refused(h, w, fits):
    """With one row and one column of zeros on each side."""
    x = memory.empty((1,), np.float32)
    shape = convolution.Shape(1, 1, 1, h, w, 1, 1, 1, 1, 1, (1, 1), (1, 1), (1, 1))
    token, launched = compile.launcher.set(lambda *launch: launched.append(launch)), []
    try:
        with contextlib.nullcontext() if fits else pytest.raises(sn.ShapeError, match="conv2d: expected fewer than"):
            convolution._convolve(convolution.forward, x, x, x, x, shape)
    finally:
        compile.launcher.reset(token)
    assert len(launched) == fits


@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_opencl_gets_the_same_source(precision):
    from scratchnet.kernels.opencl.source import translated

    numbers = tuning.PRODUCTION
    tile = (numbers.tensor_windows if precision else numbers.windows)[0]
    loop = convolution.convolving(np.dtype(np.float32), tile, False, True, precision)
    numbers = [("q",) * n for n in (14, 11, 3, 4, 7, 2)]  # of a walk, and where the sum is cut
    text = translated(loop.function, ("[f",) * 4 + tuple(numbers))
    assert text.count("barrier(") == 3 and text.count("aligned(16)") == 11  # six arrays of the block, five of a thread
