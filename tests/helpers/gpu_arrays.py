"""Random arrays, and tensors on the device "cuda"."""

import numpy as np

import scratchnet as sn

RNG = np.random.default_rng(0)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def on_gpu(x, **options):
    return sn.Tensor(x, device="cuda", **options)
