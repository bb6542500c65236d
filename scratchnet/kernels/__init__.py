"""The device tables: one dictionary of kernels a device, all with the same keys.

A kernel is a function on C-contiguous arrays. Its inputs come first, then the arrays that it writes
(`out`), then plain numbers. It changes nothing but its outputs and keeps nothing. `reference.py` is
the definition: a new kernel is one function there and one of the same name and signature in every
other table.
"""

import threading
from collections.abc import Callable, Container, Iterable
from functools import cache
from typing import Any

import numpy as np

from .. import checks
from ..errors import DeviceError
from ..native.aligned import aligned, keep_freed_memory

Kernel = Callable[..., None]


def _numpy_table() -> dict[str, Kernel]:
    from .dispatch import REFERENCE

    return REFERENCE


def _cpu_table() -> dict[str, Kernel]:
    from . import cpu  # imports Numba: only when the device is first used

    return cpu.KERNELS  # type: ignore[return-value]


def _cuda_table() -> dict[str, Kernel]:
    from . import cuda  # imports numba.cuda

    return cuda.KERNELS


TABLES: dict[str, Callable[[], dict[str, Kernel]]] = {"numpy": _numpy_table, "cpu": _cpu_table, "cuda": _cuda_table}


class Device:
    """A device: its kernels as attributes, and the memory that they work on.

    >>> device("numpy").exp(x, out)        # out[...] = e ** x

    `from_host` and `to_host` move NumPy arrays there and back; `write` puts one over an array that is there; `prefetch`
    moves tuples of them there, where possible the next one while this one is worked on. `for_numba` gives the
    array of Numba of the same memory, for kernels of a user's own.
    """

    def __init__(self, name: str):
        self.name = name
        self.kernels = TABLES[name]()
        self.__dict__.update(self.kernels)
        self.is_host = name != "cuda"  # are its arrays NumPy's?
        keep_freed_memory()
        memory: Any = _Host
        self.prefetch: Callable[[Iterable[Any]], Iterable[Any]] = _Host.from_host
        if not self.is_host:
            from .cuda import memory, replayed, staging

            self.replayed, self.prefetch = replayed, staging.prefetch
        self.empty, self.write = memory.empty, memory.write
        self.aligned = aligned if self.is_host else memory.empty  # for what is kept
        self.from_host, self.to_host, self.for_numba = memory.from_host, memory.to_host, memory.for_numba

    def __reduce__(self) -> tuple:
        return device, (self.name,)  # one of each in a process: copies are the same object

    def __getattr__(self, name: str) -> Kernel:
        if name.startswith("__"):  # Python asks for methods such as __deepcopy__
            raise AttributeError(name)
        raise DeviceError(f"device {self.name!r} has no kernel {name!r}")

    def __repr__(self) -> str:
        return f"Device({self.name!r})"


class _Host:
    """NumPy's memory."""

    empty, write = np.empty, np.copyto

    @staticmethod
    def from_host(x: Any) -> Any:
        return x

    to_host = for_numba = from_host


_devices: dict[str, Device] = {}
_making = threading.RLock()


def device(name: str) -> Device:
    """The device called `name`. Raises DeviceError for an unknown name, or for "cuda" where there is none."""
    if isinstance(name, str) and (known := _devices.get(name)) is not None:
        return known
    if not isinstance(name, str) or name not in TABLES:
        remedy = "a dtype is set by .astype(...), or of a module by .to(dtype=...)" if checks.is_dtype(name) else ""
        checks.refuse("device", f"one of {', '.join(map(repr, TABLES))}", name, DeviceError, remedy)
    if name == "cuda":
        _check_cuda()
    with _making:  # one of each in a process, also if two threads are the first to ask for it
        plain = str(name)  # the names of dtypes.py are strings with attributes
        return _devices.get(plain) or _devices.setdefault(plain, Device(plain))


@cache
def _check_cuda() -> None:
    from .cuda.compile import why_unavailable

    if (missing := why_unavailable()) is not None:
        raise DeviceError(f"cuda: {missing}")


def order_of_bfloat16() -> str:
    """How the cpu device adds up products of bfloat16 here: its name in kernels/cpu/gemm_bfloat16.py, WAYS."""
    from .cpu.gemm_bfloat16 import way

    return way()


def order_of_gpu() -> str | None:
    """How the GPU adds up products of rounded operands: by "tensor cores", or None, in the order of float32."""
    from .cuda.compile import machine

    return "tensor cores" if machine.has_tensor_cores() else None


def order_of(precision: str, kinds: Container[str]) -> str | None:
    """How devices of these kinds add up products in the precision, if that depends on the CPU or on the GPU."""
    if precision == "bfloat16" and "cpu" in kinds:
        return order_of_bfloat16()
    return order_of_gpu() if precision != "float32" and "cuda" in kinds else None


def set_num_threads(n: int) -> None:
    """Let the kernels of the cpu device use n threads; results keep their bits. Raises ConfigError outside 1..cores."""
    from ..native.compile import set_num_threads  # here, not above: a program that never computes never loads Numba

    set_num_threads(n)


def get_num_threads() -> int:
    """Threads that the kernels of the cpu device may use."""
    from ..native.compile import get_num_threads

    return get_num_threads()
