"""Questions about a whole gradient, as one long vector: is it finite, and what is its norm?"""

import numpy as np

from .compile import JIT_ENABLED, jit


@jit(reduction=True)
def _zeros(x):
    """0, or NaN if any element is NaN or infinite."""
    total = x.dtype.type(0)
    for i in range(x.size):
        total += x[i] * x.dtype.type(0)
    return total


@jit(reduction=True)
def _sum_of_squares(x):
    total = 0.0
    for i in range(x.size):
        total += np.float64(x[i]) * np.float64(x[i])
    return total


def is_finite(x: np.ndarray) -> bool:
    """Is every element of x (n,), float32 or float64, neither NaN nor infinite?"""
    return bool(_zeros(x) == 0) if JIT_ENABLED else bool(np.isfinite(x).all())


def sum_of_squares(x: np.ndarray) -> float:
    """The squared norm of x (n,), float32 or float64. It is summed in float64, in an order that depends on n alone."""
    return float(_sum_of_squares(x)) if JIT_ENABLED else float(np.square(x, dtype=np.float64).sum())
