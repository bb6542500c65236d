"""Exercise 11: a sum on a GPU.

A kernel is run by blocks of threads. Each block here has 32 threads and adds up 32 numbers: its threads put them into
memory that the block shares, then half of the threads add the other half to theirs, then a quarter, and so on. Where a
thread reads what another one wrote, all threads of the block have to meet before: cuda.syncthreads(). Your kernel is
checked without a GPU, by an interpreter that runs thread by thread and sees each access to memory.

cuda.threadIdx.x is the number of the thread in its block, cuda.blockIdx.x that of the block.
"""

import numba
from numba import cuda

THREADS = 32


@cuda.jit
def block_sums(x, out):
    """out[b] = the sum of x[32 * b : 32 * b + 32], for block b. The last block may have fewer numbers, or none."""
    shared = cuda.shared.array(THREADS, numba.float32)
    raise NotImplementedError  # your lines
