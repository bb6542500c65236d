"""Exercise 4: a sum with the same bits on any number of threads.

Floating-point addition is not associative: (a + b) + c may differ from a + (b + c) in the last bit. So a parallel sum
is only reproducible if the order of its additions does not depend on how many threads there are, or which is faster.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np


def parallel_sum(x, threads):
    """The sum of a float32 array as np.float32, by so many threads. The bits must not depend on `threads`."""
    with ThreadPoolExecutor(threads) as pool:
        raise NotImplementedError  # your lines: pool.map(function, items) returns the results in the order of the items
