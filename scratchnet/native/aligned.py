"""Memory for arrays that are kept, and what becomes of that of the others."""

import ctypes
import math
import os
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


# What one step frees, the next one takes again. glibc gives it back to the system in between, if more lies free at the
# end of the heap than twice the largest array; then each page comes anew, is cleared, and costs 0.3 to 0.7 us.
KEPT = {-1: 1 << 30, -3: 32 << 20}  # M_TRIM_THRESHOLD: bytes that stay; M_MMAP_THRESHOLD: arrays that may (its limit)


def keep_freed_memory() -> None:
    """Arrays of up to 32 MiB that are freed leave up to 1 GiB with this process. A user's own setting wins."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    is_set = "glibc.malloc" in tunables or any(name.startswith("MALLOC_") for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl and macOS have none
    if mallopt is not None and not is_set:
        for parameter, value in KEPT.items():
            mallopt(parameter, value)
