"""Memory for arrays that are kept."""

import math
from typing import Any

import numpy as np

LINE = 64  # bytes of a cache line


def aligned(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros whose first element begins a cache line: a vector that crosses a line costs twice."""
    size = math.prod(shape if isinstance(shape, tuple) else (shape,)) * np.dtype(dtype).itemsize
    memory = bytearray(size + LINE)  # not an array: the result shall not pass for a view of one
    start = -np.frombuffer(memory, np.uint8).__array_interface__["data"][0] % LINE
    return np.ndarray(shape, dtype, memory, start)


def unwritten(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The same without zeros, a view: none of it is in use before it is written, where `aligned` writes it all."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + LINE, np.uint8)
    start = -memory.__array_interface__["data"][0] % LINE
    return memory[start : start + size].view(dtype).reshape(shape)
