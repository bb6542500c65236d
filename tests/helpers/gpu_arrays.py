"""Random arrays, and tensors on the device "cuda"."""

import ml_dtypes
import numpy as np

import scratchnet as sn

RNG = np.random.default_rng(0)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def on_gpu(x, **options):
    return sn.Tensor(x, device="cuda", **options)


# --- operands of tensor cores -----------------------------------------------------------------------------------------


def tf32(x):
    """11 significant bits, of multiples of 2**-136 at least: the nearest, ties to even."""
    fraction, exponent = np.frexp(x.astype(np.float64))
    last = np.maximum(exponent - 11, -136)
    with np.errstate(over="ignore"):
        return np.ldexp(np.rint(np.ldexp(fraction, exponent - last)), last).astype(np.float32)


def by_cast(dtype):
    def rounded(x):
        with np.errstate(over="ignore"):
            return x.astype(dtype).astype(np.float32)

    return rounded


ROUNDED = {"bfloat16": by_cast(ml_dtypes.bfloat16), "float16": by_cast(np.float16), "tf32": tf32}
