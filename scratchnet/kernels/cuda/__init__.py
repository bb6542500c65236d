"""The `cuda` device: the kernels of reference.py for GPUs, written in numba.cuda.

`KERNELS` is the table. Each file holds the kernels of one family. Their front door (dispatch.py) turns numbers into
device memory, widens small integers, and refuses all other calls. The README says what of this was proven without a
GPU, and how; scripts/gpu/check is the proof with one.
"""

import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from ...errors import DeviceError, DtypeError
from ..dispatch import entry
from ..signatures import accepted, arrays_of
from . import (
    cells,
    convolution,
    elementwise,
    fusion,
    gemm,
    gemm_tensor,
    memory,
    movement,
    norm,
    optim,
    order,
    random,
    reduce,
    rows,
    windows,
)
from .memory import DeviceArray
from .replay import Replay

INT64, SMALL = np.dtype(np.int64), {np.dtype(np.int32), np.dtype(np.uint8)}
LIMITED = {"copy", "take_rows"}  # kernels whose results know the limits of their integers, see DeviceArray.limits


def _guarded(name: str, kernel: Callable[..., None]) -> Callable[..., None]:
    """`kernel` behind the front door."""
    (inputs, count), known = arrays_of(name), accepted(name, "cuda")

    def otherwise(*arguments):
        arrays, numbers = _on_device(name, arguments[:count]), arguments[count:]
        dtypes = tuple(x.dtype for x in arrays)
        if dtypes in known:
            kernel(*arrays, *numbers)
        elif tuple(INT64 if x in SMALL else x for x in dtypes) in known:
            _in_int64(kernel, arrays, inputs, numbers)
        else:
            expected = " or ".join("(" + ", ".join(map(str, case)) + ")" for case in known)
            raise DtypeError(f"{name}: expected dtypes {expected} on 'cuda', got {', '.join(map(str, dtypes))}")

    return entry(name, "cuda", kernel, "type({x}) is DeviceArray", otherwise, DeviceArray=DeviceArray)


def _in_int64(kernel: Callable, arrays: list[DeviceArray], inputs: int, numbers: tuple) -> None:
    """A call on small integers, computed in int64: the bits are the same, as all integers wrap around powers of two."""
    wide = [memory.empty(x.shape, INT64) if x.dtype in SMALL else x for x in arrays]
    for x, copy in zip(arrays[:inputs], wide[:inputs], strict=True):
        if x is not copy:
            movement.copy(x, copy)
    kernel(*wide, *numbers)
    for x, copy in zip(arrays[inputs:], wide[inputs:], strict=True):
        if x is not copy:
            movement.copy(copy, x)


def replayed(
    calls: Iterable[tuple[str, tuple]], is_private: Callable[[DeviceArray], bool] = lambda x: False
) -> list[Callable[[], None]]:
    """Calls (kernel, arguments) that will be repeated, as functions to call in order: their memory is allocated once.

    All launches between two calls that only Python can make, as they leave behind what is known of their results, are
    one function. is_private: does nobody but these calls see the memory of an array?
    """
    parts: list[Callable[[], None]] = []
    groups = [(key, [_item(*call) for call in group]) for key, group in itertools.groupby(calls, _leaves_limits)]
    for by_python, group in groups:
        others = {memory for _, other in groups if other is not group for x in other for memory in x.touched}
        if by_python:
            parts += [x.run for x in group]
        else:
            private = partial(_is_within, is_private, others)
            parts.append(Replay(fusion.fused(group, private)))
    return parts


def _is_within(is_private: Callable[[DeviceArray], bool], others: set[int], x: DeviceArray) -> bool:
    return is_private(x) and fusion.memory_of(x) not in others


def _leaves_limits(call: tuple[str, tuple]) -> bool:
    name, arguments = call
    return name in LIMITED and arguments[arrays_of(name)[1] - 1].dtype.kind in "iu"


def _item(name: str, arguments: tuple) -> fusion.Item:
    count = arrays_of(name)[1]
    arguments = *_on_device(name, arguments[:count]), *arguments[count:]
    return fusion.item(name, partial(KERNELS[name], *arguments), arguments)


def _on_device(name: str, arrays: Iterable[Any]) -> list[DeviceArray]:
    """The arrays, where a Python number that an op was given (a NumPy array of one element) becomes device memory."""
    return [x if type(x) is DeviceArray else _number(name, x) for x in arrays]


def _number(name: str, x: Any) -> DeviceArray:
    """A number as device memory, filled by a kernel and kept: steps use the same few numbers again and again."""
    if not isinstance(x, np.ndarray):
        raise DeviceError(f"{name}: expected arrays on 'cuda', got {type(x).__name__}")
    if x.size != 1:
        raise DeviceError(f"{name}: expected arrays on 'cuda', got a NumPy array of shape {x.shape}; use .to('cuda')")
    key = x.dtype, x.tobytes()
    found = _numbers.get(key)
    if found is None:
        if len(_numbers) >= MOST_NUMBERS:
            _numbers.clear()
        found = _numbers[key] = memory.empty((), x.dtype)
        movement.fill(found, x.item())
    return found.reshape(x.shape)


_numbers: dict[tuple[np.dtype, bytes], DeviceArray] = {}
MOST_NUMBERS = 1024

_COMPILED: dict[str, Any] = {
    **elementwise.KERNELS,
    **reduce.KERNELS,
    **movement.KERNELS,
    **rows.KERNELS,
    **order.KERNELS,
    **norm.KERNELS,
    **random.KERNELS,
    **optim.KERNELS,
    **gemm.KERNELS,
    **gemm_tensor.KERNELS,
    **convolution.KERNELS,
    **windows.KERNELS,
    **cells.KERNELS,
}

KERNELS = {name: _guarded(name, kernel) for name, kernel in _COMPILED.items()}
