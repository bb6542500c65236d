"""`find_races`, for kernels of anybody: what is right passes, and each kind of fault is named."""

import numpy as np
import pytest
from messages import one_line
from numba import cuda, float32

import scratchnet as sn
from scratchnet.testing import find_races

ORDERS = ("ascending", "descending", "shuffled")


@cuda.jit(device=True)
def square(x):
    return x * x


@cuda.jit
def block_sums(x, out):
    """The sum of the squares of each block's 8 numbers: a tree in shared memory."""
    shared = cuda.shared.array(8, float32)
    i, t = cuda.grid(1), cuda.threadIdx.x
    shared[t] = square(x[i]) if i < x.size else 0
    cuda.syncthreads()
    step = 4
    while step:
        if t < step:
            shared[t] += shared[t + step]
        cuda.syncthreads()
        step //= 2
    if t == 0:
        out[cuda.blockIdx.x] = shared[0]


@cuda.jit
def transposed(x, out):
    tile = cuda.shared.array(shape=(4, 4), dtype=float32)
    i, j = cuda.grid(2)
    if i < x.shape[0] and j < x.shape[1]:
        tile[cuda.threadIdx.y, cuda.threadIdx.x] = x[i, j]
    cuda.syncthreads()
    if i < x.shape[0] and j < x.shape[1]:
        out[j, i] = tile[cuda.threadIdx.y, cuda.threadIdx.x]


@cuda.jit
def histogram(x, out):
    i = cuda.grid(1)
    if i < x.size:
        cuda.atomic.add(out, x[i], 1)


@pytest.mark.parametrize("order", ORDERS)
def test_kernels_without_races_give_their_results(order):
    x = np.arange(13, dtype=np.float32)
    out = np.full(2, np.nan, np.float32)
    find_races(block_sums, (2, 8), x, out, order=order)
    np.testing.assert_array_equal(out, [(x[:8] ** 2).sum(), (x[8:] ** 2).sum()])
    matrix, turned = np.arange(35, dtype=np.float32).reshape(5, 7), np.empty((7, 5), np.float32)
    find_races(transposed, ((2, 2), (4, 4)), matrix, turned, order=order)
    np.testing.assert_array_equal(turned, matrix.T)
    counts = np.zeros(3, np.int64)
    find_races(histogram, (1, 8), np.array([2, 0, 2, 1, 2]), counts, order=order)
    np.testing.assert_array_equal(counts, [1, 1, 3])


@cuda.jit
def adds_without_atomics(x, out):
    out[0] += x[cuda.grid(1)]


@cuda.jit
def forgets_a_barrier(x, out):
    shared = cuda.shared.array(8, float32)
    t = cuda.threadIdx.x
    shared[t] = x[t]
    out[t] = shared[7 - t]


@cuda.jit
def reads_beyond_the_end(x, out):
    i = cuda.grid(1)
    out[i] = x[i + 1]


@cuda.jit
def counts_from_the_end(x, out):
    i = cuda.grid(1)
    out[i] = x[i - 1]


@cuda.jit
def leaves_before_the_barrier(x, out):
    i = cuda.grid(1)
    if i > 4:
        return
    cuda.syncthreads()
    out[i] = x[i]


@cuda.jit
def reads_what_nobody_wrote(x, out):
    shared = cuda.shared.array(8, float32)
    cuda.syncthreads()
    out[cuda.grid(1)] = shared[cuda.threadIdx.x]


@cuda.jit
def mixes_atomics_and_stores(x, out):
    i = cuda.grid(1)
    if i == 0:
        out[0] = 0
    cuda.atomic.add(out, 0, x[i])


@cuda.jit
def reads_what_others_add_to(x, out):
    i = cuda.grid(1)
    cuda.atomic.add(out, 0, x[i])
    if i == 7:
        x[i] = out[0]


@cuda.jit
def writes_what_others_add_to(x, out):
    i = cuda.grid(1)
    cuda.atomic.add(out, 0, x[i])
    if i == 7:
        out[0] = 0


@cuda.jit
def writes_what_another_has_read(x, out):
    i = cuda.grid(1)
    if i == 0:
        out[0] = x[1]
    else:
        x[i] = 0


@cuda.jit
def writes_what_all_have_read(x, out):
    i = cuda.grid(1)
    out[i] = x[7]
    if i == 7:
        x[7] = 0


@cuda.jit
def takes_a_row(x, out):
    out[0] = x[0:2]


@cuda.jit
def uses_a_vote(x, out):
    out[0] = cuda.ballot_sync(-1, True)


@cuda.jit
def two_blocks_write_one_word(x, out):
    if cuda.threadIdx.x == 0:
        out[0] = x[0]


FAULTS = {
    adds_without_atomics: "global array that thread 0 touches too, without a barrier between",
    forgets_a_barrier: "shared array is read before it is written",
    reads_beyond_the_end: "index 8 of a global array of 8",
    counts_from_the_end: "index -1 of a global array of 8",
    leaves_before_the_barrier: "wait for each other at different places",
    reads_what_nobody_wrote: "read before it is written",
    mixes_atomics_and_stores: "an atomic update of word 0 .* that thread 0 touches too",
    reads_what_others_add_to: "a read of word 0 of a global array that another thread touches too",
    writes_what_others_add_to: "a write of word 0 of a global array that another thread touches too",
    writes_what_another_has_read: "a write of word 1 of a global array that thread 0 touches too",
    writes_what_all_have_read: "a write of word 7 of a global array that another thread touches too",
    takes_a_row: "index every one",
    uses_a_vote: "cuda.ballot_sync is not known to find_races",
}


@pytest.mark.parametrize("kernel", FAULTS, ids=lambda kernel: kernel.__name__)
def test_each_fault_is_named_with_kernel_block_and_thread(kernel):
    x, out = np.arange(8, dtype=np.float32), np.zeros(8, np.float32)
    with pytest.raises(sn.ContractError, match=FAULTS[kernel]) as error:
        find_races(kernel, (1, 8), x, out)
    assert kernel.__name__ in one_line(error)


@cuda.jit
def one_block_reads_what_another_writes(x, out):
    if cuda.blockIdx.x == 0:
        out[cuda.threadIdx.x] = x[4]
    else:
        x[cuda.grid(1)] = 0


def test_two_blocks_that_touch_one_word_are_named():
    x, out = np.arange(8, dtype=np.float32), np.zeros(8, np.float32)
    with pytest.raises(sn.ContractError, match=r"block 1, thread 0: a write of word 0 .* that block 0 touches too"):
        find_races(two_blocks_write_one_word, (2, 4), x, out)
    with pytest.raises(sn.ContractError, match=r"block 1, thread 0: a write of word 4 .* that block 0 touches too$"):
        find_races(one_block_reads_what_another_writes, (2, 4), x, out)


@cuda.jit
def swaps_by_two_arrays(x, out):
    first, second = cuda.shared.array(8, float32), cuda.shared.array(8, float32)
    t = cuda.threadIdx.x
    first[t], second[7 - t] = x[t], x[t]
    cuda.syncthreads()
    first[7 - t] = second[t]
    out[7 - t] = first[7 - t]


def test_words_of_two_shared_arrays_are_not_taken_for_each_other():
    x, out = np.arange(8, dtype=np.float32), np.zeros(8, np.float32)
    find_races(swaps_by_two_arrays, (1, 8), x, out)
    np.testing.assert_array_equal(out, x)


def test_what_is_no_kernel_or_no_order_is_refused():
    x = np.zeros((4, 4), np.float32)
    for wrong in (lambda: find_races(3, (1, 4), x), lambda: find_races(histogram, (1, 4), x.T[1:], x, order="random")):
        with pytest.raises(sn.ConfigError, match="find_races"):
            wrong()
    with pytest.raises(sn.ConfigError, match="arrays in C order"):
        find_races(histogram, (1, 4), np.zeros((4, 4), int).T[1:], np.zeros(3, int))
