"""A kernel of a device with memory of its own as a function of NumPy arrays, so that what tests one tests all."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import ContractError
from ..jit.trace import memory_of
from ..kernels import device

_NUMBERS = {"numbers", "key"}  # parameters that are arrays on every device's host


def host_kernel(name: str, kernel: str) -> Callable[..., None]:
    """The kernel of a device for NumPy arrays: as it is, or between copies of all memory there and back.

    The memory around the arrays travels with them, so that what is written beside a result is seen.
    """
    where = device(name)
    function = where.kernels[kernel]
    if where.is_host:
        return function
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        given = dict(zip(names, args, strict=False)) | kwargs
        moved: dict[int, tuple[np.ndarray, Any]] = {}
        there = {k: x if k in _NUMBERS or not isinstance(x, np.ndarray) else _at(x, moved) for k, x in given.items()}
        function(**there)
        for memory, copy in moved.values():
            after = where.to_host(copy).view(memory.dtype)
            if memory.flags.writeable:
                memory.reshape(-1)[...] = after
            elif memory.tobytes() != after.tobytes():
                raise ContractError(f"{kernel}: expected the inputs as they were, but a read-only one was changed")

    def _at(x: np.ndarray, moved: dict) -> Any:
        from ..kernels.cuda.memory import DeviceArray

        memory = memory_of(x)
        if not memory.flags.c_contiguous:  # the same bytes in C order, if there are any: what is written must come back
            memory = memory.T if memory.flags.f_contiguous else np.ascontiguousarray(memory)
        if not np.may_share_memory(x, memory):
            memory = x = np.ascontiguousarray(x)
        if id(memory) not in moved:
            moved[id(memory)] = memory, where.from_host(memory.reshape(-1).view(np.uint8))
        copy = moved[id(memory)][1]
        offset = x.__array_interface__["data"][0] - memory.__array_interface__["data"][0]
        buffer = np.asarray(copy.layout)
        layout = np.ndarray(x.shape, x.dtype, buffer, offset, x.strides) if x.size else np.empty(x.shape, x.dtype)
        return DeviceArray(layout, copy)

    return run
