"""Compression: sent = C(gradient + residual), and the rest stays for the next step."""

import math

import numpy as np
import pytest
from linear import BATCH, RNG, START, X, Y, batches, products, shard, train

from scratchnet.parallel import AllReduce, BFloat16, Float16, PowerSGD, TopK
from scratchnet.parallel.pool.compress import orthonormalize
from scratchnet.testing.oracles.half import bfloat16


def half(v):
    return np.clip(v, -65504, 65504).astype(np.float16).astype(np.float64)


def top(v, ratio):
    kept = np.argsort(-np.abs(v).ravel(), kind="stable")[: math.ceil(ratio * v.size)]
    out = np.zeros(v.size)
    out[kept] = v.ravel()[kept]
    return out.reshape(v.shape)


@pytest.mark.parametrize("shards", [3, 8])  # of the last batch, 6 samples, two of the 8 are empty
@pytest.mark.parametrize(
    ("compression", "oracle"),
    [(Float16(), half), (BFloat16(), bfloat16), (TopK(0.2), lambda v: top(v, 0.2)), (TopK(1.0), lambda v: v)],
)
def test_what_is_left_out_of_a_gradient_comes_with_the_next(compression, oracle, shards):
    """An empty shard sends nothing and keeps its residual."""
    weight, residuals, scale = START.copy(), [np.zeros_like(START) for _ in range(shards)], 1e4
    for x, y in batches(4):
        for k in range(shards):
            part, target = shard(k, shards, x, scale * y)
            if len(part):
                v = part.T @ target / target.size * len(part) / len(x) + residuals[k]
                sent = oracle(v)
                weight, residuals[k] = weight - 0.1 * sent, v - sent
    found, _ = train(AllReduce(compression), products, shards=shards, epochs=4, y=scale * Y)
    np.testing.assert_allclose(found, weight, rtol=1e-9)


@pytest.mark.parametrize("v", [[3.0, -3.0, 3.0, 1.0, -3.0, 3.0], [0.0] * 6, [5.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
def test_top_k_sends_as_many_numbers_as_it_says_though_magnitudes_are_equal(v):
    compression, v = TopK(0.5), np.array(v)
    sent, unpacked = np.full(6, np.nan), np.full(6, np.nan)
    compression.compress(v, sent)
    np.testing.assert_array_equal(sent, top(v, 0.5))
    packed = compression.pack(sent)
    assert packed.nbytes == compression.sent_bytes(v.shape, v.itemsize)
    compression.unpack(packed, unpacked)
    np.testing.assert_array_equal(unpacked, sent)


def test_power_sgd_sends_all_of_a_gradient_of_its_rank():
    """One row of x: gradients are outer products, of rank 1."""
    x, y = np.repeat(X[:1], BATCH, 0), np.repeat(Y[:1], BATCH, 0)
    weight = START - 3 * 0.1 * x.T @ y / y.size
    found, _ = train(AllReduce(PowerSGD(1)), products, shards=2, epochs=3, x=x, y=y)
    np.testing.assert_allclose(found, weight, rtol=1e-9)


def test_power_sgd_forgets_nothing():
    """The same gradient of full rank again and again: what was sent comes near to all of it."""
    x, y = X[:BATCH], Y[:BATCH]
    full = x.T @ y / y.size
    errors = []
    for epochs in (1, 30):
        found, _ = train(AllReduce(PowerSGD(1)), products, shards=2, epochs=epochs, x=x, y=y)
        errors.append(np.linalg.norm((START - found) / 0.1 / epochs - full) / np.linalg.norm(full))
    assert errors[0] > 0.2  # a matrix of rank 1 is not it
    assert errors[1] < 0.1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_orthonormal_columns_span_what_they_did(dtype):
    a = RNG.standard_normal((9, 4)).astype(dtype)
    a[:, 2] = a[:, 0] - a[:, 1]  # dependent: it becomes zero
    q = a.copy()
    orthonormalize(q)
    eps = 100 * np.finfo(dtype).eps
    np.testing.assert_allclose(q.T @ q, np.diag([1, 1, 0, 1]), atol=eps)
    np.testing.assert_allclose(q @ (q.T @ a), a, atol=10 * eps)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bfloat16_travels_as_it_was_rounded(dtype):
    tie = 1 + 2.0**-8  # half way between two of them: a float64 beside it must not be rounded to it first
    v = np.array([tie, tie + 2.0**-40, tie - 2.0**-40, 3 * tie, -1e-37, 1e-39, 3.4e38, -3.4e38, 0.0, 1e-30], dtype)
    sent, unpacked = np.empty_like(v), np.empty_like(v)
    BFloat16().compress(v, sent)
    expected = bfloat16(v)
    expected[5:8] = 0, 2.0**128 - 2.0**120, -(2.0**128) + 2.0**120  # kept for the next step, and clipped
    np.testing.assert_array_equal(sent, expected)
    packed = BFloat16().pack(sent)
    assert packed.nbytes == BFloat16().sent_bytes(v.shape, v.itemsize) == 2 * v.size
    BFloat16().unpack(packed, unpacked)
    assert unpacked.tobytes() == sent.tobytes()
    BFloat16().compress(np.array([np.nan], dtype), sent[:1])
    assert np.isnan(sent[0])
