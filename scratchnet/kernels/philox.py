"""Philox 4x32-10 (Salmon et al. 2011): the words that the reference draws, in the form that cpu and cuda compile."""

import numpy as np

MULTIPLIER_0, MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL_0, WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
LOW, SHIFT, TO_24_BITS = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(8)


def four_words(c0, c1, c2, c3, k0, k1):
    """Four random 32-bit words for a counter of four and a key of two such words, all held in uint64."""
    for _ in range(10):
        p0, p1 = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1
        c0, c1, c2, c3 = (p1 >> SHIFT) ^ c1 ^ k0, p1 & LOW, (p0 >> SHIFT) ^ c3 ^ k1, p0 & LOW
        k0, k1 = (k0 + WEYL_0) & LOW, (k1 + WEYL_1) & LOW
    return c0, c1, c2, c3
