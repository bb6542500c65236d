"""What driver.py does, in Numba's simulator: the memory of the GPU is the host's, and everything is done at once."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np

from ...errors import DeviceError

SIMULATED_GPUS = 2  # names for one and the same thing
LEGACY_STREAM = 1


class Gpu(NamedTuple):
    number: int


_gpu = Gpu(0)


def count_gpus() -> int:
    return SIMULATED_GPUS


def why_unavailable(number: int) -> str | None:
    return None


def identity() -> bytes:
    return os.getpid().to_bytes(16, "little")  # each process has the whole of it


def use_gpu(number: int) -> None:
    pass


def has_tensor_cores() -> bool:
    return True  # their arithmetic is that of tensor_cores.py


def gpu() -> Gpu:
    return _gpu


class Stream:
    def __init__(self, handle: int = 0):
        self.handle = handle

    def synchronize(self) -> None:
        pass


_stream = Stream()


def stream(name: str = "compute") -> Stream:
    return _stream


class Event:
    def __init__(self, timing: bool = False):
        pass

    def record(self, stream: Stream) -> None:
        pass

    wait = record

    def is_done(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


class Memory:
    __slots__ = ("_bytes", "address", "flat", "last", "layout")

    def __init__(self, nbytes: int):
        self.last: tuple | None = None
        self._bytes = np.empty(nbytes, np.uint8)
        self.address = self._bytes.__array_interface__["data"][0]

    def free(self) -> None:
        pass


def free_bytes() -> int:
    return 0


def pinned(nbytes: int) -> np.ndarray:
    return np.empty(nbytes, np.uint8)


def gpu_of(address: int) -> int | None:
    return 0


class Address:
    """An address, as an object of which NumPy makes an array."""

    def __init__(self, address: int, nbytes: int):
        self.__array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": (address, False), "version": 3}


def send(address: int, flat: np.ndarray, by: Stream) -> None:
    np.asarray(Address(address, flat.nbytes))[...] = flat.view(np.uint8)


def receive(flat: np.ndarray, address: int, by: Stream) -> None:
    flat.view(np.uint8)[...] = np.asarray(Address(address, flat.nbytes))


def copy(address: int, source: int, nbytes: int, by: Stream) -> None:
    np.asarray(Address(address, nbytes))[...] = np.asarray(Address(source, nbytes))


class Graph:
    def __init__(self, launches: Any):
        raise DeviceError("cuda: expected a GPU, got the simulator, which has no graphs")
