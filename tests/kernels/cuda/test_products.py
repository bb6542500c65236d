"""Products of many matrices on the device "cuda": by tiles, with the bits of one chain of terms for each element."""

import itertools

import numpy as np
import pytest
from gpu_arrays import RNG
from sizes import SIMULATED

from scratchnet.testing import host_kernel, interpreted

NEEDS = "simulated"
if SIMULATED:
    from scratchnet.kernels.cuda import gemm, tuning

SHAPES = [(1, 5, 7, 3), (2, 17, 33, 9), (3, 16, 32, 8), (2, 3, 0, 4), (4, 1, 5, 1)]


@pytest.mark.parametrize("transposed", list(itertools.product((False, True), repeat=2)), ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_an_element_of_many_products_is_one_chain_of_its_terms(dtype, transposed):
    for count, m, k, n in SHAPES:
        a, b = (10 * RNG.standard_normal((count, *shape)) for shape in ((m, k), (k, n)))
        a, b = a.astype(dtype), b.astype(dtype)
        given = [np.ascontiguousarray(x.swapaxes(1, 2)) if t else x for x, t in zip((a, b), transposed, strict=True)]
        out, expected = np.empty((count, m, n), dtype), np.zeros((count, m, n), dtype)
        with interpreted(), tuning.use(tuning.TINY):
            host_kernel("cuda", "batched_matmul")(*given, out, *transposed)
        for i in range(k):
            expected = expected + a[:, :, i : i + 1] * b[:, i : i + 1]
        assert out.tobytes() == expected.tobytes()


def test_a_tile_fits_the_matrices_and_leaves_no_multiprocessor_idle():
    numbers, float32 = tuning.PRODUCTION, np.dtype(np.float32)
    sizes = {(256, 64, 64): 64, (256, 64, 10): 16, (8, 512, 512): 128, (1, 512, 512): 32, (4096, 17, 17): 32}
    for (count, m, n), rows in sizes.items():
        assert gemm.tile_of_many(numbers, float32, count, m, n).rows == rows
    assert gemm.tile_of_many(numbers, np.dtype(np.float64), 256, 64, 64).rows == 64
