"""Five rounds for 32 numbers. Each round halves the number of sums, and all threads meet after it."""

import numba
from numba import cuda

THREADS = 32


@cuda.jit
def block_sums(x, out):
    shared = cuda.shared.array(THREADS, numba.float32)
    own = cuda.threadIdx.x
    i = cuda.blockIdx.x * THREADS + own
    shared[own] = x[i] if i < x.size else 0  # also a thread beyond the end writes its word
    cuda.syncthreads()
    step = THREADS // 2
    while step > 0:
        if own < step:
            shared[own] += shared[own + step]
        cuda.syncthreads()  # outside of the `if`: all threads come here
        step //= 2
    if own == 0:
        out[cuda.blockIdx.x] = shared[0]
