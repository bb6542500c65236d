"""Memory on the GPU: a pool of blocks, and DeviceArray, a view of one that has NumPy's shapes and strides.

A DeviceArray has a `layout`: a NumPy array at the device's addresses, whose elements nobody reads. So NumPy itself
slices, transposes and reshapes device memory. Only `from_host` and `to_host` move elements.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from typing import Any

import numpy as np

from ...errors import DeviceError, DtypeError
from ..signatures import DTYPES, bits_of
from . import dlpack, movement
from .compile import OPENCL, SIMULATED, Event, machine, stream
from .host import Address

GRAIN = 512  # bytes; blocks are multiples of it, so arrays of nearly one size share them
_BASIC = (int, np.integer, slice, type(None), type(Ellipsis))


class _Block:
    """A piece of device memory, which returns to the pool with the last view of it."""

    __slots__ = ("address", "memory", "nbytes", "pool")

    def __init__(self, pool: Pool, nbytes: int, memory: Any):
        self.pool, self.nbytes, self.memory, self.address = pool, nbytes, memory, memory.address

    def __del__(self) -> None:
        self.pool.give_back(self.nbytes, self.memory)


class Pool:
    """Free blocks by size, for the next array of that size.

    All kernels run in one stream, in the order of their launches. So a block may be reused as soon as Python has freed
    it, even while an earlier kernel still reads it.

    A block may come back at any line of Python, since the garbage collector may run there: in the middle of any of
    these functions, too. So what `give_back` touches has no lock; each of its steps is one that Python does at once.
    """

    def __init__(self) -> None:
        self.waiting: dict[int, deque[Any]] = {}
        self.allocated = 0  # bytes, free blocks included
        self._counting = threading.Lock()  # of `allocated`, which give_back leaves alone

    def take(self, nbytes: int) -> _Block:
        """A block of at least so many bytes. Raises DeviceError if there are not as many."""
        size = max(-(-nbytes // GRAIN), 1) * GRAIN
        try:
            memory = self.waiting[size].pop()
        except (KeyError, IndexError):
            memory = self._allocate(size)
            self._count(size)
        return _Block(self, size, memory)

    def give_back(self, size: int, memory: Any) -> None:
        self.waiting.setdefault(size, deque()).append(memory)

    def empty(self) -> None:
        """Returns all free blocks to the driver."""
        for size, found in list(self.waiting.items()):
            with contextlib.suppress(IndexError):
                while True:
                    found.pop().free()
                    self._count(-size)

    def _count(self, change: int) -> None:
        with self._counting:
            self.allocated += change

    def _allocate(self, size: int) -> Any:
        with contextlib.suppress(MemoryError):
            return allocate(size)
        self.empty()
        with contextlib.suppress(MemoryError):
            return allocate(size)
        raise DeviceError(f"cuda: expected {size:,} bytes of free device memory, got {machine.free_bytes():,}")


def allocate(size: int) -> Any:
    """New memory from the driver."""
    return machine.Memory(size)


pool = Pool()


class _Lent:
    """What keeps memory of another library, until the kernels that were launched meanwhile are done with it.

    That library gives memory that it gets back to its own kernels, at once and in streams of its own, while ours may
    still be waiting in theirs.
    """

    def __init__(self, source: Any):
        self.source = source

    def __del__(self) -> None:
        mark = Event()
        mark.record(stream())
        _lent.append((mark, self.source))
        let_go()


_lent: deque[tuple[Any, Any]] = deque()  # the mark after the last kernel that may use it, and what keeps it


def let_go() -> None:
    """Forgets memory of other libraries that no kernel of ours uses any more."""
    with contextlib.suppress(IndexError):
        while _lent[0][0].is_done():
            _lent.popleft()


class DeviceArray:
    """An array on the GPU: shape, strides, dtype and views as NumPy's, elements out of Python's reach.

    layout: the NumPy array with the same shape and strides at the same address. owner: keeps the memory alive.
    """

    __slots__ = ("__weakref__", "_address", "_flat", "_limits", "base", "dtype", "layout", "owner", "shape")
    __array_ufunc__ = None

    def __init__(self, layout: np.ndarray, owner: Any, base: DeviceArray | None = None):
        self.layout, self.owner, self.base = layout, owner, base
        self.shape, self.dtype = layout.shape, layout.dtype
        self._flat: Any = None
        self._address: int | None = None
        self._limits: tuple[int, int] | None = None

    strides = property(lambda self: self.layout.strides)
    ndim = property(lambda self: self.layout.ndim)
    size = property(lambda self: self.layout.size)
    nbytes = property(lambda self: self.layout.nbytes)
    itemsize = property(lambda self: self.layout.itemsize)
    flags = property(lambda self: self.layout.flags)
    T = property(lambda self: self.transpose())

    @property
    def address(self) -> int:
        if self._address is None:
            self._address = self.layout.__array_interface__["data"][0]
        return self._address

    def _view(self, layout: np.ndarray) -> DeviceArray:
        return DeviceArray(layout, self.owner, self if self.base is None else self.base)

    def reshape(self, *shape: Any, copy: bool = False) -> DeviceArray:
        """Another shape, without a copy. Raises ValueError where only a copy has it."""
        return self._view(self.layout.reshape(*shape, copy=False))

    def view(self, dtype: Any) -> DeviceArray:
        """The same bytes as another dtype."""
        return self._view(self.layout.view(dtype))

    def transpose(self, *axes: Any) -> DeviceArray:
        return self._view(self.layout.transpose(*axes))

    def swapaxes(self, a: int, b: int) -> DeviceArray:
        return self._view(self.layout.swapaxes(a, b))

    def __getitem__(self, key: Any) -> DeviceArray:
        """A view, even of one element; `key` as in NumPy's basic indexing. Raises DeviceError for other keys."""
        parts = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(part, _BASIC) for part in parts):
            raise DeviceError(f"cuda: expected slices and numbers as an index of device memory, got {key!r:.80}")
        return self._view(self.layout[parts if any(part is Ellipsis for part in parts) else (*parts, Ellipsis)])

    def __len__(self) -> int:
        return len(self.layout)

    def copy(self) -> DeviceArray:
        """A copy in C order."""
        out = empty(self.shape, self.dtype)
        write(out, self)
        return out

    def __reduce__(self) -> tuple:  # for pickle and copy.deepcopy
        return from_host, (to_host(self),)

    def astype(self, dtype: Any, copy: bool = True) -> DeviceArray:
        """The elements in another dtype; with copy=False the array itself if it has that one."""
        if self.dtype == dtype and not copy:
            return self
        out = empty(self.shape, dtype)
        movement.copy(self, out)
        return out

    # Labels must lie in a range. Reading them would wait for all kernels, so integers from the host, and their copies,
    # keep the limits that they had there.

    @property
    def known_limits(self) -> tuple[int, int] | None:
        return (self if self.base is None else self.base)._limits

    def set_limits(self, limits: tuple[int, int] | None) -> None:
        """Sets the limits of the elements, all of which were just written; None if they are unknown."""
        memory = self if self.base is None else self.base
        memory._limits = limits if self.size == memory.size else None

    @property
    def limits(self) -> tuple[int, int]:
        """(smallest, largest) element, or wider limits: a view may have those of the whole memory."""
        if self.known_limits is not None:
            return self.known_limits
        elements = to_host(self)
        return int(elements.min()), int(elements.max())

    def item(self) -> Any:
        return to_host(self).item()

    @property
    def flat(self) -> Any:
        """The argument of a kernel: the elements as one row. Raises DeviceError unless they are C-contiguous."""
        if self._flat is None:
            if not self.layout.flags.c_contiguous:
                raise DeviceError(f"cuda: expected C-contiguous memory, got shape {self.shape}, strides {self.strides}")
            self._flat = _argument(self.layout.reshape(-1))
        return self._flat

    @property
    def span(self) -> tuple[DeviceArray, int]:
        """All elements from the lowest address to the highest, gaps included, and the index of element 0, 0...."""
        low, high = 0, 0
        for n, stride in zip(self.shape, self.strides, strict=True):
            reach = (n - 1) * stride // self.itemsize
            low, high = low + min(reach, 0), high + max(reach, 0)
        start, nbytes = self.address + low * self.itemsize, (high - low + 1) * self.itemsize
        return self._view(np.asarray(Address(start, nbytes)).view(self.dtype)), -low

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the protocol by which CuPy, PyTorch and Numba share device memory."""
        if OPENCL:
            raise AttributeError("memory of OpenCL has no __cuda_array_interface__")
        return {
            "shape": self.shape,
            "strides": None if self.flags.c_contiguous else self.strides,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "version": 3,
            "stream": None if SIMULATED else stream().handle,
        }

    def __dlpack__(
        self, *, stream: int | None = None, max_version: Any = None, dl_device: Any = None, copy: bool | None = None
    ) -> Any:
        """A capsule of DLPack with this memory, or with copy=True a copy of it, for kernels in the consumer's `stream`.

        Raises DeviceError for another `dl_device`: .numpy() copies to the host.
        """
        if dl_device is not None and tuple(dl_device) != self.__dlpack_device__():
            own = self.__dlpack_device__()
            raise DeviceError(
                f"__dlpack__: expected dl_device {own} or None, got {dl_device}; .numpy() copies to the host"
            )
        dlpack.check_shared("__dlpack__")
        dlpack.order_after_us(stream)
        return dlpack.export(self.copy() if copy else self)

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.HERE, machine.gpu().number

    def __array_function__(self, function: Any, types: Any, args: tuple, kwargs: dict) -> Any:
        if function is np.broadcast_to:
            return self._view(np.broadcast_to(self.layout, *args[1:], **kwargs))
        if function in (np.shape, np.ndim, np.size):  # these do not look at the elements
            return function(self.layout, *args[1:], **kwargs)
        raise DeviceError(f"np.{function.__name__}: expected a NumPy array, got one on 'cuda'; use .numpy()")

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise DeviceError("cuda: expected a NumPy array, got one on 'cuda'; use .numpy()")

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype})"


def _argument(flat: np.ndarray) -> Any:
    """Its code and its words, see machine_code.py; in the simulator, Numba's own array."""
    flat = bits_of(flat)
    if SIMULATED:
        from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

        return FakeCUDAArray(flat)
    n, size, address = flat.size, flat.itemsize, flat.__array_interface__["data"][0]
    return f"[{flat.dtype.char}", (0, 0, n, size, address, n, size)


def checked(dtype: Any) -> np.dtype:
    """A dtype that kernels know. Raises DtypeError for others."""
    dtype = np.dtype(dtype)
    if dtype not in DTYPES:
        raise DtypeError(f"cuda: expected one of {', '.join(map(str, DTYPES))}, got {dtype}")
    return dtype


def empty(shape: Any, dtype: Any) -> DeviceArray:
    """A C-contiguous array whose elements are undefined. Raises DeviceError if memory does not suffice."""
    dtype = checked(dtype)
    shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    nbytes = math.prod(shape) * dtype.itemsize
    block = pool.take(nbytes)
    memory = block.memory
    if memory.last != (shape, dtype):
        memory.last = shape, dtype
        memory.layout = np.asarray(Address(block.address, nbytes)).view(dtype).reshape(shape)
        memory.flat = _argument(memory.layout.reshape(-1))
    out = DeviceArray(memory.layout, block)
    out._address, out._flat = block.address, memory.flat
    return out


def from_host(x: Any) -> DeviceArray:
    """A NumPy array copied to the device; a DeviceArray as it is; the shared memory of what `adopt` takes."""
    if isinstance(x, DeviceArray):
        return x
    if not isinstance(x, np.ndarray):
        return adopt(x)
    x = np.require(x, requirements="C")
    out = empty(x.shape, x.dtype)
    if x.size:
        send(out, x.reshape(-1))
    return out


def send(out: DeviceArray, flat: np.ndarray, by: str = "compute") -> None:
    """Copies the elements of a NumPy array over those of a C-contiguous array, in the stream `by`."""
    machine.send(out.address, flat, stream(by))
    out.set_limits((int(flat.min()), int(flat.max())) if flat.dtype.kind in "iu" else None)


def to_host(x: DeviceArray) -> np.ndarray:
    """A copy of the elements as a NumPy array; it waits for the kernels that compute them."""
    if not x.layout.flags.c_contiguous:
        x = x.copy()
    out = np.empty(x.shape, x.dtype)
    if x.size:
        receive(x, out.reshape(-1))
    return out


def receive(x: DeviceArray, flat: np.ndarray) -> None:
    """Copies the elements of a C-contiguous array over those of a NumPy array, and waits until they are there."""
    machine.receive(flat, x.address, stream())


def write(x: DeviceArray, value: np.ndarray | DeviceArray) -> None:
    """Overwrites a C-contiguous array with the elements of another one, here or there, of its shape and dtype."""
    if isinstance(value, DeviceArray):
        _write(x, value)
    elif x.size:
        send(x, np.require(value, x.dtype, "C").reshape(-1))


def _write(x: DeviceArray, value: DeviceArray) -> None:
    layout = value.layout
    if layout.flags.c_contiguous and layout.shape == x.layout.shape and layout.dtype == x.layout.dtype:
        x.set_limits(value.known_limits if layout.dtype.kind in "iu" else None)
        if layout.size:
            machine.copy(x.address, value.address, layout.nbytes, stream())
    else:
        movement.copy(value, x)


def adopt(x: Any) -> DeviceArray:
    """The memory of another library's array, shared. Raises DeviceError or DtypeError if it has none to share here."""
    dlpack.check_shared("from_host")
    interface = getattr(x, "__cuda_array_interface__", None)
    if interface is None and SIMULATED and hasattr(x, "__cuda_ndarray__"):  # Numba's own array, without an address
        return DeviceArray(x._ary, x)
    if interface is None:
        raise DeviceError(f"cuda: expected an array with __cuda_array_interface__, got {type(x).__name__}")
    dtype = checked(interface["typestr"])
    if (producer := interface.get("stream")) is not None:
        dlpack.order_before_us(producer)  # its kernels may still be writing
    strides, address = interface.get("strides"), interface["data"][0]
    described = Address(address, 0)
    described.__array_interface__ |= {"shape": tuple(interface["shape"]), "typestr": dtype.str, "strides": strides}
    layout = np.asarray(described)
    if layout.size and (there := machine.gpu_of(address)) != machine.gpu().number:
        found = "memory of the host" if there is None else f"memory of 'cuda:{there}'"
        raise DeviceError(f"cuda: expected memory of 'cuda:{machine.gpu().number}', on which we compute, got {found}")
    return DeviceArray(layout, _Lent(x))


def for_numba(x: DeviceArray) -> Any:
    """Numba's array of the same memory, for kernels of the user's own."""
    dlpack.check_shared("for_numba")
    if SIMULATED:
        from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

        return FakeCUDAArray(x.layout)
    from numba import cuda

    return cuda.as_cuda_array(x)


def from_dlpack(x: Any) -> DeviceArray:
    """The memory of an object with __dlpack__, shared. Raises DeviceError or DtypeError if it cannot be."""
    layout, owner = dlpack.take(x)
    checked(layout.dtype)
    return DeviceArray(layout, _Lent(owner))


def synchronize() -> None:
    """Waits for all kernels."""
    stream().synchronize()
    let_go()
