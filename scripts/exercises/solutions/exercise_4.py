"""Chunks end where the length of x says, threads take them in any order, and the partial sums are added up in order."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np


def parallel_sum(x, threads):
    chunks = [x[i : i + 1000] for i in range(0, len(x), 1000)]
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(np.sum, chunks))
    return np.sum(np.array(parts, np.float32))
