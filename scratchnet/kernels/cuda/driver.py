"""The CUDA driver, as far as it is needed: GPUs, memory, copies, streams, events and launches, through cuda.bindings.

numba-cuda compiles the kernels and does nothing else here: its own host side is deprecated, takes twenty times as long
for a launch, and computes on GPU 0 in each thread that it does not know. In Numba's simulator host.py stands in for
this file. tests/helpers/stub_driver.c is a driver without a GPU, under which all of this runs.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any, NamedTuple

import numpy as np

from ...errors import DeviceError
from . import machine_code

try:
    from cuda.bindings import driver as _api
    from cuda.bindings import nvjitlink as _linker
except ImportError:  # compile.py says so where it matters
    _api = _linker = None  # type: ignore[assignment]

LEAST_CAPABILITY = 7, 5  # what the toolkit of CUDA 13 compiles for
TENSOR_CORES = 8, 0  # from which on they have the shapes and types of tensor_cores.py
NOT_INITIALIZED, OUT_OF_MEMORY, NOT_READY = 3, 2, 600
LEGACY_STREAM = 1  # of other libraries, where they name none


def call(name: str, *arguments: Any) -> Any:
    """What a function of the driver returns. Raises DeviceError, or MemoryError if there is no more memory."""
    code, *found = getattr(_api, name)(*arguments)
    if code != 0:
        _refuse(name, int(code), code)
    return found[0] if len(found) == 1 else found


def _refuse(name: str, code: int, shown: Any) -> None:
    if code == OUT_OF_MEMORY:
        raise MemoryError(f"{name}: CUDA_ERROR_OUT_OF_MEMORY")
    remedy = "; a process that was forked after its parent used the GPU cannot use it: start it by spawn"
    raise DeviceError(
        f"cuda: expected {name} to work, got {getattr(shown, 'name', shown)}"
        f"{remedy if code == NOT_INITIALIZED and _gpu is not None else ''}"
    )


# --- the GPU of this process ------------------------------------------------------------------------------------------


class Gpu(NamedTuple):
    """number: as in "cuda:1"."""

    number: int
    capability: tuple[int, int]
    context: Any


# In which launchers give a process its place among those of its machine: Open MPI, Hydra, MVAPICH, Slurm.
PLACES = "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"
_gpu: Gpu | None = None
_chosen: int | None = None
_starting = threading.Lock()
_local = threading.local()  # is_current: does this thread compute on the GPU?


def count_gpus() -> int:
    """GPUs that this process may use."""
    call("cuInit", 0)
    return call("cuDeviceGetCount")


def attribute(name: str, number: int) -> int:
    """A property of a GPU, under the driver's name in lower case."""
    return call("cuDeviceGetAttribute", getattr(_api.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name.upper()}"), number)


def capability_of(number: int) -> tuple[int, int]:
    """The compute capability of a GPU, for which its kernels are compiled."""
    major, minor = (attribute(f"compute_capability_{part}", number) for part in ("major", "minor"))
    return major, minor


def has_tensor_cores() -> bool:
    """Does the GPU of this process multiply bfloat16, float16 and TF32 by units of their own?"""
    return capability_of(chosen()) >= TENSOR_CORES


def identity() -> bytes:
    """16 bytes that no other GPU has, nor another part of this one."""
    return bytes(call("cuDeviceGetUuid", gpu().number).bytes)[:16]


def why_unavailable(number: int) -> str | None:
    """What stands against computing on this GPU, found without a context on it: others may use it meanwhile."""
    none = "expected an NVIDIA GPU and its driver, got none"
    try:
        if number >= count_gpus():
            return none
    except (RuntimeError, OSError) as error:  # no library, no function in it, no GPU
        is_missing = "NO_DEVICE" in str(error) or type(error).__name__ == "DynamicLibNotFoundError"
        return none if is_missing else f"expected an NVIDIA GPU and its driver, got {str(error).splitlines()[-1]}"
    found, toolkit = call("cuDriverGetVersion"), _linker.version()[0]
    if found // 1000 < toolkit:
        version = f"{found // 1000}.{found % 1000 // 10}"
        return f"expected a driver for CUDA {toolkit}, got one for {version}; it needs pip install 'numba-cuda[cu12]'"
    if (capability := capability_of(number)) < LEAST_CAPABILITY:
        least, own = (".".join(map(str, x)) for x in (LEAST_CAPABILITY, capability))
        return f"expected a GPU of compute capability {least} or more, got {own}"
    return None


def chosen() -> int:
    """The number of the GPU of this process: `use_gpu` says it, or else its place among the ranks of this machine."""
    if _chosen is not None:
        return _chosen
    places = (os.environ.get(name, "") for name in PLACES)
    return next((int(place) for place in places if place.isdecimal()), 0) % max(1, count_gpus())


def use_gpu(number: int) -> None:
    """Lets this process compute on the GPU of this number. Raises DeviceError if it has used another one."""
    global _chosen
    if _gpu is not None and _gpu.number != number:
        raise DeviceError(f"cuda: expected one GPU a process, 'cuda:{_gpu.number}', got 'cuda:{number}'")
    _chosen = number


def gpu() -> Gpu:
    """The GPU of this process, on which this thread computes from now on."""
    global _gpu
    if not getattr(_local, "is_current", False):
        with _starting:
            if _gpu is None:
                number = chosen()
                count_gpus()
                _gpu = Gpu(number, capability_of(number), call("cuDevicePrimaryCtxRetain", number))
        call("cuCtxSetCurrent", _gpu.context)
        _local.is_current = True
    assert _gpu is not None
    return _gpu


# --- streams and events -----------------------------------------------------------------------------------------------


class Stream:
    """A queue of copies and launches, which happen in order."""

    def __init__(self, handle: int | None = None):
        gpu()
        self.handle = int(call("cuStreamCreate", 0)) if handle is None else handle

    def synchronize(self) -> None:
        """Waits until all of it is done."""
        gpu()
        call("cuStreamSynchronize", self.handle)


_streams: dict[str, Stream] = {}


def stream(name: str = "compute") -> Stream:
    """A stream by its use: "compute" for all kernels, "copy" for transfers beside them, "capture" to make graphs."""
    found = _streams.get(name)
    if found is None:
        gpu()
        with _starting:
            found = _streams[name] = _streams.get(name) or Stream()
    return found


class Event:
    """A mark in a stream, for which other streams can wait; with timing it also records when it was reached."""

    def __init__(self, timing: bool = False):
        gpu()
        self.handle = call("cuEventCreate", 0 if timing else 2)
        weakref.finalize(self, _api.cuEventDestroy, self.handle).atexit = False

    def record(self, stream: Stream) -> None:
        gpu()
        call("cuEventRecord", self.handle, stream.handle)

    def wait(self, stream: Stream) -> None:
        """What is put into the stream from now on begins after the mark was reached."""
        gpu()
        call("cuStreamWaitEvent", stream.handle, self.handle, 0)

    def is_done(self) -> bool:
        """Was it reached?"""
        gpu()
        (code,) = _api.cuEventQuery(self.handle)
        if code not in (0, NOT_READY):
            _refuse("cuEventQuery", int(code), code)
        return code == 0

    def synchronize(self) -> None:
        gpu()
        call("cuEventSynchronize", self.handle)

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds until another mark, both with timing."""
        return call("cuEventElapsedTime", self.handle, end.handle)


# --- memory -----------------------------------------------------------------------------------------------------------


class Memory:
    """Bytes on the GPU. last: shape and dtype of the array that lay there last; layout, flat: that array's."""

    __slots__ = ("address", "flat", "last", "layout")

    def __init__(self, nbytes: int):
        gpu()
        self.last: tuple | None = None
        self.address = int(call("cuMemAlloc", nbytes))

    def free(self) -> None:
        """Gives them back to the driver, which waits for all kernels."""
        gpu()
        call("cuMemFree", self.address)


def free_bytes() -> int:
    """Bytes that the driver can still allocate."""
    gpu()
    return call("cuMemGetInfo")[0]


def pinned(nbytes: int) -> np.ndarray:
    """Bytes of the host that the GPU copies without help of the CPU."""
    gpu()
    address = int(call("cuMemHostAlloc", nbytes, 1))  # for all contexts
    memory = (ctypes.c_uint8 * nbytes).from_address(address)
    weakref.finalize(memory, _free_pinned, address).atexit = False
    return np.frombuffer(memory, np.uint8)  # type: ignore[call-overload]


def _free_pinned(address: int) -> None:
    gpu()
    _api.cuMemFreeHost(address)


def gpu_of(address: int) -> int | None:
    """The number of the GPU whose memory is at an address; None if it is memory of the host, or none."""
    gpu()
    kind, ordinal = _api.CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE, 9
    code, found = _api.cuPointerGetAttribute(kind, address)
    if code != 0 or int(found) != 2:
        return None
    return int(call("cuPointerGetAttribute", _api.CUpointer_attribute(ordinal), address))


def send(address: int, flat: np.ndarray, by: Stream) -> None:
    """Copies an array in C order to the GPU. Pinned memory must stay as it is until that is done."""
    gpu()
    call("cuMemcpyHtoDAsync", address, flat.__array_interface__["data"][0], flat.nbytes, by.handle)


def copy(address: int, source: int, nbytes: int, by: Stream) -> None:
    """Copies memory of the GPU."""
    gpu()
    (code,) = _api.cuMemcpyDtoDAsync(address, source, nbytes, by.handle)
    if code != 0:
        _refuse("cuMemcpyDtoDAsync", int(code), code)


def receive(flat: np.ndarray, address: int, by: Stream) -> None:
    """Copies from the GPU over an array in C order, and waits until that is done."""
    gpu()
    call("cuMemcpyDtoHAsync", flat.__array_interface__["data"][0], address, flat.nbytes, by.handle)
    by.synchronize()


# --- kernels ----------------------------------------------------------------------------------------------------------


def compiled(function: Callable, codes: tuple, bounds: tuple[int, int]) -> tuple[Any, Struct]:
    """The kernel for arguments of these codes (see machine_code.py), and how their bytes are packed."""
    architecture = "sm_{}{}".format(*gpu().capability)
    name, code = machine_code.compiled(function, codes, bounds, architecture)
    return loaded(code, name), Struct(machine_code.layout(codes))


def loaded(code: bytes, name: str) -> Any:
    """The kernel `name` of machine code, for `Launch`."""
    gpu()
    library = call("cuLibraryLoadData", code, [], [], 0, [], [], 0)
    return _api.CUfunction(int(call("cuLibraryGetKernel", library, name.encode())))


MOST_BYTES = 4096  # of the arguments of a launch


class _Arguments:
    """Where the bytes of arguments lie while a launch reads them."""

    def __init__(self, nbytes: int):
        self.buffer, self.size = ctypes.create_string_buffer(nbytes), ctypes.c_size_t(nbytes)
        begin, size, end = 1, 2, 0  # CU_LAUNCH_PARAM_BUFFER_POINTER, _SIZE, _END
        self._extra = (ctypes.c_void_p * 5)(
            begin, ctypes.addressof(self.buffer), size, ctypes.addressof(self.size), end
        )
        self.address = ctypes.addressof(self._extra)


class _Scratch(threading.local):
    """For launches that are made once: one for each thread, since a launch lets other threads run."""

    def __init__(self) -> None:
        self.arguments = _Arguments(MOST_BYTES)


_scratch = _Scratch()


def launch(kernel: Any, blocks: Sequence[int], threads: Sequence[int], struct: Struct, values: Sequence[Any]) -> None:
    """Starts a kernel on a grid."""
    arguments = _scratch.arguments
    struct.pack_into(arguments.buffer, 0, *values)
    arguments.size.value = struct.size
    _start((kernel, *blocks, 1, *threads, 1, 0, stream().handle, 0, arguments.address))


def _start(call: tuple) -> None:
    gpu()
    (code,) = _api.cuLaunchKernel(*call)
    if code != 0:
        _refuse(f"cuLaunchKernel with a grid of {call[1:3]} blocks of {call[4:6]}", int(code), code)


class Launch:
    """The same as a call that may be repeated: its arguments are packed once."""

    __slots__ = ("_arguments", "_call", "_held")

    def __init__(
        self, kernel: Any, blocks: Sequence[int], threads: Sequence[int], struct: Struct, values: Sequence, held: Any
    ):
        """held: what must stay alive as long as this may be called."""
        self._arguments, self._held = _Arguments(struct.size), held
        struct.pack_into(self._arguments.buffer, 0, *values)
        self._call = kernel, *blocks, 1, *threads, 1, 0, stream().handle, 0, self._arguments.address

    def __call__(self) -> None:
        _start(self._call)

    def into(self, stream: Stream) -> None:
        """Puts it into another stream than that of kernels."""
        *front, _, nothing, arguments = self._call
        _start((*front, stream.handle, nothing, arguments))


_capturing = threading.Lock()


class Graph:
    """Launches that were made once before, as one graph, which the GPU starts without the host. Calling it starts it.

    They are captured in a stream of their own: what other threads launch meanwhile stays out. Raises DeviceError where
    one of them cannot be captured.
    """

    def __init__(self, launches: Sequence[Launch]):
        gpu()
        own = stream("capture")
        with _capturing:
            call("cuStreamBeginCapture", own.handle, _api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            try:
                for launch in launches:
                    launch.into(own)
            except BaseException:
                _api.cuStreamEndCapture(own.handle)
                raise
            graph = call("cuStreamEndCapture", own.handle)
        self._launches = tuple(launches)  # they hold the arrays
        self._graph = call("cuGraphInstantiate", graph, 0)
        call("cuGraphDestroy", graph)
        self._call = self._graph, stream().handle
        weakref.finalize(self, _api.cuGraphExecDestroy, self._graph).atexit = False

    def __call__(self) -> None:
        gpu()
        (code,) = _api.cuGraphLaunch(*self._call)
        if code != 0:
            _refuse("cuGraphLaunch", int(code), code)
