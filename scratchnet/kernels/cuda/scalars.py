"""The scalar functions that all devices share, as helpers of kernels of one dtype."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np

from .. import scalars as shared
from .compile import SIMULATED, device

# Of a GPU's library, under Python's names. The simulator computes with NumPy's functions, as they stand in the table:
# Python's raise where IEEE has an answer.
OWN = {} if SIMULATED else {f.__name__: f for f in (math.exp, math.log, math.log1p, math.sqrt, math.tanh, math.erf)}


@cache
def scalars(dtype: np.dtype) -> dict[str, Callable]:
    """name -> function."""
    return shared.lifted(device, dtype.type, OWN)
