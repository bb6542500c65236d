"""`sn.cuda`: the GPU, where there is one. Nothing here is needed to use it: `.to("cuda")` moves tensors and modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .errors import DeviceError
from .kernels import device
from .tensor import Tensor


def is_available() -> bool:
    """Is there a GPU that can be used, with its driver and numba-cuda? Numba's simulator is none."""
    try:
        from .kernels.cuda.compile import is_available
    except DeviceError:
        return False
    return is_available()


def device_count() -> int:
    """GPUs that workers may compute on, "cuda:0", "cuda:1" and so on. Raises DeviceError where "cuda" does."""
    device("cuda")
    from .kernels.cuda.compile import count_gpus

    return count_gpus()


def synchronize() -> None:
    """Waits until every kernel that was launched is done."""
    device("cuda")
    from .kernels.cuda.memory import synchronize

    synchronize()


def memory_allocated() -> int:
    """Bytes of device memory that arrays have, or that wait for the next ones."""
    device("cuda")
    from .kernels.cuda.memory import pool

    return pool.allocated


def empty_cache() -> None:
    """Gives the memory that waits for the next arrays back to the driver."""
    device("cuda")
    from .kernels.cuda.memory import pool

    pool.empty()


def from_dlpack(x: Any) -> Tensor:
    """A tensor that shares the memory of an array of CuPy, PyTorch or any other library with DLPack.

    Raises DeviceError for memory that is not on the GPU, DtypeError for a dtype that kernels do not know.
    """
    where = device("cuda")
    from .kernels.cuda.memory import from_dlpack

    return Tensor._wrap(from_dlpack(x), where)  # type: ignore[arg-type]


def prefetch(batches: Iterable[tuple[np.ndarray, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """The batches as tensors on the GPU, of which the next one travels there while this one is worked on.

    `DataLoader` does this where the default device is "cuda".
    """
    where = device("cuda")
    for arrays in where.prefetch(batches):
        yield tuple(Tensor._wrap(x, where) for x in arrays)
