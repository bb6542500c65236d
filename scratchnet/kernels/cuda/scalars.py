"""The scalar functions that all devices share, as helpers of kernels of one dtype."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np

from .. import scalars as shared
from .compile import PYTHON, device, libdevice

# Of a GPU's library, under Python's names. The simulator computes with NumPy's functions, as they stand in the table:
# Python's raise where IEEE has an answer. OpenCL has its own for those.
OF_LIBRARY = "exp log log1p log2 log10 expm1 sin cos sqrt tanh erf floor ceil"
OWN = {} if PYTHON else {name: getattr(math, name) for name in OF_LIBRARY.split()}


@cache
def scalars(dtype: np.dtype) -> dict[str, Callable]:
    """name -> function."""
    own = OWN if PYTHON else OWN | {"round": libdevice.rintf if dtype == np.float32 else libdevice.rint}
    own |= {"flushed": _flushing(dtype)} if dtype.kind == "f" else {}
    return shared.lifted(device, dtype.type, own)


def _flushing(dtype: np.dtype) -> Callable:
    """The table's function asks NumPy for a limit, which Numba looks up by the machine's driver."""
    smallest, zero = np.finfo(dtype).tiny, dtype.type(0)

    @device
    def flushed(x: float) -> float:
        return zero if abs(x) < smallest else x

    return flushed
