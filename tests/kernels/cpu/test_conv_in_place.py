"""Convolution that reads patches in place: right at all sizes around its tiles, and what lies outside takes no part."""

import numpy as np
import pytest

from scratchnet.kernels import reference_windows as reference
from scratchnet.kernels.cpu import KERNELS
from scratchnet.kernels.cpu.conv import _geometry
from scratchnet.kernels.cpu.conv_in_place import reads_in_place

RNG = np.random.default_rng(0)
# n, channels, h, w, filters, filter, padding, dilation, groups: around tiles of 12 filters by 32 outputs
CASES = [
    (3, 5, 16, 17, 13, (3, 3), (1, 1), 1, 1),
    (2, 4, 14, 20, 6, (3, 1), (1, 0), 1, 2),
    (2, 3, 13, 40, 25, (5, 5), (2, 2), 1, 1),
    (1, 2, 13, 13, 300, (3, 3), (1, 1), 1, 1),
    (2, 2, 18, 18, 5, (3, 3), (2, 2), 2, 1),
    (3, 3, 16, 150, 7, (1, 3), (0, 1), 1, 1),
    (2, 70, 14, 14, 4, (3, 3), (1, 1), 1, 1),
    (9, 2, 26, 26, 3, (3, 3), (0, 0), 1, 1),
]


def arrays(case, dtype):
    n, c, h, w, filters, kernel, padding, dilation, groups = case
    size = [length + 2 * p - dilation * (k - 1) for length, p, k in zip((h, w), padding, kernel, strict=True)]
    shapes = (n, c, h, w), (filters, c // groups, *kernel), (n, filters, *size)
    return *(RNG.standard_normal(s).astype(dtype) for s in shapes), ((1, 1), padding, (dilation, dilation), groups)


def both(name, inputs, shape, at):
    """What the cpu's kernel and the reference make of the same inputs."""
    outs = [np.full(shape, np.nan, inputs[0].dtype) for _ in range(2)]
    KERNELS[name](*inputs, outs[0], *at)
    getattr(reference, name)(*inputs, outs[1], *at)
    return outs


@pytest.mark.threads
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_patches_in_place_make_the_same_sums(case, dtype):
    x, weight, g, at = arrays(case, dtype)
    bias = RNG.standard_normal(len(weight)).astype(dtype)
    assert reads_in_place(_geometry(x, weight, g, *at))
    terms = {"conv2d": weight[0].size, "conv2d_input": g[0, :, 0, 0].size * 9, "conv2d_weight": g[:, 0].size}
    for name, inputs, like in (
        ("conv2d", (x, weight, bias), g),
        ("conv2d_input", (g, weight), x),
        ("conv2d_weight", (g, x), weight),
    ):
        found, expected = both(name, inputs, like.shape, at)
        bound = 8 * terms[name] ** 0.5 * np.finfo(dtype).eps * max(1, np.abs(expected).max())
        np.testing.assert_allclose(found, expected, rtol=0, atol=bound, err_msg=name)


def test_an_image_has_the_bits_that_it_has_alone():
    x, weight, g, at = arrays(CASES[0], np.float32)
    whole, alone = np.empty_like(g), np.empty_like(g[:1])
    KERNELS["conv2d"](x, weight, np.zeros(1, np.float32), whole, *at)
    for i in range(len(x)):
        KERNELS["conv2d"](x[i : i + 1], weight, np.zeros(1, np.float32), alone, *at)
        assert alone.tobytes() == whole[i : i + 1].tobytes()


@pytest.mark.parametrize("size", [6, 16], ids=["packed", "in place"])
@pytest.mark.parametrize("groups", [1, 2, 8], ids=str)
def test_what_lies_outside_takes_no_part_beside_infinities(size, groups):
    x, weight, g, at = arrays((2, 8, size, size, 8, (3, 3), (1, 1), 1, groups), np.float32)
    x, g, weight = np.abs(x), np.abs(g), np.abs(weight)
    bad_weight, bad_g, bad_x = weight.copy(), g.copy(), x.copy()
    bad_weight[:, :, 0, 0] = np.inf
    bad_g[:, :, 0, 0], bad_x[:, :, :, -1] = np.inf, np.inf
    zero = np.zeros(1, np.float32)
    for name, inputs, like in (
        ("conv2d", (x, bad_weight, zero), g),
        ("conv2d", (bad_x, weight, zero), g),
        ("conv2d_input", (g, bad_weight), x),
        ("conv2d_input", (bad_g, weight), x),
        ("conv2d_weight", (bad_g, x), weight),
        ("conv2d_weight", (g, bad_x), weight),
    ):
        found, expected = both(name, inputs, like.shape, at)
        assert np.isinf(expected).any() and np.isfinite(expected).any()
        np.testing.assert_allclose(found, expected, rtol=1e-4, err_msg=name)
