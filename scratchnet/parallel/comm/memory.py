"""Memory that several processes share as NumPy arrays. It has no name, so it cannot outlive them.

`SharedMemory` is a file in memory, which child processes inherit open. `Layout` divides it, and `Heap` allocates arrays
in a part of it.
"""

import bisect
import fcntl
import mmap
import os
import secrets
import weakref
from collections.abc import Sequence

import numpy as np

from ...errors import SharedMemoryError
from ...native.limits import available_bytes

ALIGNMENT = 64  # bytes: arrays begin on a cache line, and on a full vector register


def round_up(n: int, multiple: int = ALIGNMENT) -> int:
    return -(-n // multiple) * multiple


def above_standard_streams(fd: int) -> int:
    """The open file with another number if its own is that of a standard stream, because that was closed.

    What other code writes to "stderr" would go into the memory.
    """
    if fd > 2:
        return fd
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return moved


def _new_file() -> int:
    """A file in memory that is in no folder: it ends with the last process that has it open."""
    if hasattr(os, "memfd_create"):
        return above_standard_streams(os.memfd_create("scratchnet", os.MFD_CLOEXEC))
    import _posixshmem  # macOS; what multiprocessing.shared_memory is built on

    name = f"/scratchnet-{secrets.token_hex(8)}"
    fd = _posixshmem.shm_open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode=0o600)
    _posixshmem.shm_unlink(name)  # at once: from here on it has no name that could be left behind
    return fd


class SharedMemory:
    """`size` bytes, zeros at first, that this process shares with those it starts; `array` gives arrays in it.

    It may be an argument of a `multiprocess.Process` with the context spawn: the child inherits the open file. The
    memory is freed when the last process that holds it, or an array in it, ends.

    committed: bytes that are allocated now (all by default). The others `commit` allocates, so that a large `size`
    costs addresses only. Raises SharedMemoryError if there is too little memory.
    """

    fd = -1  # of no file yet, for `_close`

    def __init__(self, size: int, committed: int | None = None):
        try:
            self.fd = _new_file()
        except (OSError, ImportError) as error:
            raise SharedMemoryError(f"shared memory: expected a system that gives some, got {error}") from None
        self.size = max(size, 1)
        try:
            os.ftruncate(self.fd, self.size)
            self.commit(0, self.size if committed is None else committed)
        except OSError as error:
            self._close()
            raise SharedMemoryError(f"shared memory: expected {size} bytes, got {error.strerror}") from None
        except SharedMemoryError:
            self._close()
            raise
        self._map()

    def _map(self) -> None:
        try:
            self._bytes = mmap.mmap(self.fd, self.size)
        except (OSError, ValueError) as error:
            self._close()
            raise SharedMemoryError(f"shared memory: expected room for {self.size} bytes, got {error}") from None

    def _close(self, close=os.close) -> None:  # at the end of a program, `os` may be gone before the last memory
        fd, self.fd = self.fd, -1
        if fd >= 0:
            close(fd)

    __del__ = _close

    def commit(self, offset: int, size: int) -> None:
        """Allocate `size` bytes from `offset` on, or raise SharedMemoryError.

        Without it a write could find no memory left, and SIGBUS would kill the process. The free memory is checked
        first, because allocating more than there is can wake the system's out-of-memory killer.
        """
        available = available_bytes()
        if available is not None and size > available:
            left = f"{available} left, as the machine and its control groups allow"
            raise SharedMemoryError(f"shared memory: expected {size} bytes, got {left}")
        if size == 0 or not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(self.fd, offset, size)
        except OSError as error:
            raise SharedMemoryError(f"shared memory: expected {size} bytes, got {error.strerror}") from None

    def array(self, offset: int, shape: int | Sequence[int], dtype: np.typing.DTypeLike) -> np.ndarray:
        """The array that begins `offset` bytes into the memory; it keeps the memory alive."""
        return np.ndarray(shape, dtype, self._bytes, offset)

    def __reduce__(self):
        from multiprocess.reduction import DupFd

        return _inherited, (DupFd(self.fd), self.size)

    @classmethod
    def opened(cls, fd: int, size: int) -> "SharedMemory":
        """The memory of another process, whose file is open in this one as `fd`."""
        memory = cls.__new__(cls)
        memory.fd, memory.size = fd, max(size, 1)
        memory._map()
        return memory


def _inherited(passed, size: int) -> SharedMemory:
    return SharedMemory.opened(passed.detach(), size)


class Layout:
    """Divides memory among arrays: `place(nbytes)` returns the offset of the next, `size` is the end of the last."""

    def __init__(self) -> None:
        self.size = 0

    def place(self, nbytes: int) -> int:
        offset, self.size = self.size, self.size + round_up(nbytes)
        return offset


class _Block:
    """An allocation of a heap; every array that uses it keeps it alive."""

    def __init__(self, memory: SharedMemory, offset: int, shape, dtype: np.dtype):
        self._array = memory.array(offset, shape, dtype)
        self.__array_interface__ = self._array.__array_interface__


class Heap:
    """Allocates arrays in the `size` bytes of `memory` from `offset` on, first fit; the memory of dead ones is reused.

    One process allocates from a heap; the others may read and write its arrays.
    """

    GROWTH = 1 << 20  # bytes committed at a time, at least

    def __init__(self, memory: SharedMemory, offset: int, size: int):
        self.memory, self.end = memory, offset + size
        self._committed = offset
        self._free = [(offset, size)]  # (offset, bytes), sorted, no two of them adjacent

    def empty(self, shape: int | Sequence[int], dtype: np.typing.DTypeLike) -> np.ndarray:
        """An array of unknown content, aligned to a cache line. Raises SharedMemoryError if there is no room."""
        dtype = np.dtype(dtype)
        shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
        nbytes = round_up(max(1, int(np.prod(shape, dtype=object)) * dtype.itemsize))
        offset = self._allocate(nbytes)
        block = _Block(self.memory, offset, shape, dtype)
        weakref.finalize(block, self._release, offset, nbytes).atexit = False
        return np.asarray(block)

    def _allocate(self, nbytes: int) -> int:
        found = next((i for i, (_, room) in enumerate(self._free) if room >= nbytes), None)
        if found is None:
            raise SharedMemoryError(f"shared memory: expected room for {nbytes} bytes, got none in one piece")
        offset, room = self._free[found]
        if offset + nbytes > self._committed:
            growth = max(offset + nbytes, min(self._committed + self.GROWTH, self.end)) - self._committed
            self.memory.commit(self._committed, growth)
            self._committed += growth
        self._free[found : found + 1] = [(offset + nbytes, room - nbytes)] if room > nbytes else []
        return offset

    def _release(self, offset: int, nbytes: int) -> None:
        free = self._free
        at = bisect.bisect(free, (offset, 0))
        if at < len(free) and offset + nbytes == free[at][0]:
            nbytes += free.pop(at)[1]
        if at and sum(free[at - 1]) == offset:
            offset, nbytes = free[at - 1][0], free[at - 1][1] + nbytes
            at -= 1
            del free[at]
        free.insert(at, (offset, nbytes))
