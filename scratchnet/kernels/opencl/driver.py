"""What cuda/driver.py does, by OpenCL 2.0 through pyopencl: devices, memory, copies, launches.

Memory is shared virtual memory (SVM), whose addresses are those of the host and of the device alike, so views of it are
made as for CUDA. All is done in one queue, in order: there is one stream, and events have nothing to wait for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ...errors import DeviceError
from ..cuda import host
from . import source

try:
    import pyopencl as _opencl
except ImportError:  # why_unavailable says so
    _opencl = None  # type: ignore[assignment]

cl: Any = _opencl
LEGACY_STREAM = 1
OPTIONS = "-w -cl-std=CL1.2 -cl-fp32-correctly-rounded-divide-sqrt"
THREADS, LOCAL_BYTES = 256, 1 << 15  # of a block, at most
_lock = threading.RLock()  # of the arguments of a kernel, which are set one by one


class Gpu(NamedTuple):
    number: int
    device: Any
    context: Any
    queue: Any


@cache
def _devices() -> list[Any]:
    """All devices, GPUs first."""
    found = [device for platform in cl.get_platforms() for device in platform.get_devices()]
    return sorted(found, key=lambda device: not device.type & cl.device_type.GPU)


def count_gpus() -> int:
    return len(_devices())


def why_unavailable(number: int) -> str | None:
    if cl is None:
        return "SCRATCHNET_GPU=opencl: expected the package pyopencl; pip install 'pyopencl[pocl]', got none"
    try:
        device = _devices()[number]
    except (cl.Error, IndexError):
        return "SCRATCHNET_GPU=opencl: expected a device of OpenCL, got none; pyopencl[pocl] brings one, the CPU"
    needs = {
        "shared virtual memory": device.svm_capabilities,
        "float64": "cl_khr_fp64" in device.extensions,
        f"blocks of {THREADS} threads": device.max_work_group_size >= THREADS,
        f"{LOCAL_BYTES:,} bytes of local memory": device.local_mem_size >= LOCAL_BYTES,
    }
    missing = [need for need, there in needs.items() if not there]
    return f"SCRATCHNET_GPU=opencl: expected {missing[0]}, got {device.name!r} without" if missing else None


_number = 0


def has_tensor_cores() -> bool:
    return True  # their arithmetic is that of tensor_cores.py


def use_gpu(number: int) -> None:
    global _number
    _number = number


@cache
def _opened(number: int) -> Gpu:
    device = _devices()[number]
    context = cl.Context([device])
    return Gpu(number, device, context, cl.CommandQueue(context))


def gpu() -> Gpu:
    with _lock:
        return _opened(_number)


class Stream:
    handle = 0

    def synchronize(self) -> None:
        gpu().queue.finish()


_stream = Stream()


def stream(name: str = "compute") -> Stream:
    return _stream


class Event(host.Event):
    def is_done(self) -> bool:
        self.synchronize()
        return True

    def synchronize(self) -> None:
        _stream.synchronize()


class Memory:
    __slots__ = ("_allocation", "address", "flat", "last", "layout")

    def __init__(self, nbytes: int):
        self.last: tuple | None = None
        here = gpu()
        try:
            self._allocation = cl.SVMAllocation(here.context, nbytes, 64, cl.svm_mem_flags.READ_WRITE, queue=here.queue)
        except cl.Error as error:  # its MemoryError is none of Python's
            raise MemoryError(str(error)) from None
        self.address = self._allocation.svm_ptr

    def free(self) -> None:
        self._allocation.release()


def free_bytes() -> int:
    return gpu().device.global_mem_size


def pinned(nbytes: int) -> np.ndarray:
    return np.empty(nbytes, np.uint8)


def gpu_of(address: int) -> int | None:
    return None


def _memory(address: int, nbytes: int = 1) -> Any:
    return cl.SVM(np.asarray(host.Address(address, nbytes)))


def _copy(target: int, source: int, nbytes: int) -> None:
    cl.enqueue_copy(gpu().queue, _memory(target, nbytes), _memory(source, nbytes), is_blocking=True)


def send(address: int, flat: np.ndarray, by: Stream) -> None:
    _copy(address, flat.__array_interface__["data"][0], flat.nbytes)


def receive(flat: np.ndarray, address: int, by: Stream) -> None:
    _copy(flat.__array_interface__["data"][0], address, flat.nbytes)


def copy(address: int, source: int, nbytes: int, by: Stream) -> None:
    _copy(address, source, nbytes)


def compiled(function: Callable, codes: tuple, bounds: Any) -> tuple[Any, tuple]:
    """The kernel for arguments of these codes, and the codes one by one, as `launch` takes them."""
    with _lock:
        try:
            program = cl.Program(gpu().context, source.translated(function, codes)).build(OPTIONS)
            return cl.Kernel(program, "run"), tuple(_flat(codes))
        except cl.Error as error:
            first = next((line for line in str(error).splitlines() if "error:" in line), str(error).splitlines()[0])
            name = function.__qualname__.replace(".<locals>", "")
            raise DeviceError(f"opencl: expected {gpu().device.name!r} to compile {name}, got {first}") from None


def _flat(codes: tuple) -> list[str]:
    return [y for x in codes for y in (_flat(x) if isinstance(x, tuple) else [x])]


def launch(
    kernel: Any, blocks: Sequence[int], threads: Sequence[int], codes: tuple[str, ...], values: Sequence[Any]
) -> None:
    """Starts a kernel on a grid."""
    arguments: list[Any] = []
    rest = iter(values)
    for code in codes:
        if code[0] == "[":  # seven numbers, see cuda/machine_code.py
            _, _, size, _, address, _, _ = (next(rest) for _ in range(7))
            arguments += [_memory(address), np.int64(size)]
        else:
            arguments.append(np.dtype(code).type(next(rest)))
    with _lock:
        for i, x in enumerate(arguments):
            kernel.set_arg(i, x)
        sizes = tuple(a * b for a, b in zip(blocks, threads, strict=True))
        cl.enqueue_nd_range_kernel(gpu().queue, kernel, sizes, threads)


class Launch:
    """The same as a call that may be repeated."""

    def __init__(self, *arguments: Any, held: Any):
        self._arguments, self._held = arguments, held

    def __call__(self) -> None:
        launch(*self._arguments)


class Graph:
    def __init__(self, launches: Any):
        raise DeviceError("cuda: expected an NVIDIA GPU, got OpenCL, which has no graphs")
