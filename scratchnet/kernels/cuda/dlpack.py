"""DLPack of device memory: in which order our kernels and those of other libraries use it.

In the simulator the memory is the host's, and is called so: NumPy can read it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import DeviceError
from .. import dlpack
from .compile import OPENCL, SIMULATED, Event, machine, stream

HERE = dlpack.CPU if SIMULATED else dlpack.OPENCL if OPENCL else dlpack.CUDA


def order_after_us(consumer: int | None) -> None:
    """What a consumer puts into its stream from now on begins after our kernels. None: its default stream; -1: no."""
    if SIMULATED or consumer == -1:
        return
    mark = Event()
    mark.record(stream())
    mark.wait(_theirs("__dlpack__", machine.LEGACY_STREAM if consumer is None else consumer))


def order_before_us(producer: int) -> None:
    """Our kernels begin after what a producer has put into its stream."""
    if SIMULATED:
        return
    mark = Event()
    mark.record(_theirs("__cuda_array_interface__", producer))
    mark.wait(stream())


def _theirs(what: str, handle: int) -> machine.Stream:
    if isinstance(handle, bool) or not isinstance(handle, int) or handle < 1:  # 0 would be ambiguous, says the protocol
        raise DeviceError(f"{what}: expected a stream as a positive integer, 1 for the default one, got {handle!r}")
    return machine.Stream(handle)


def check_shared(what: str) -> None:
    """Raises DeviceError for memory of OpenCL, whose addresses mean nothing to other libraries."""
    if OPENCL:
        raise DeviceError(f"{what}: expected memory of CUDA, got OpenCL's, which is not shared; .numpy() copies it")


def export(x: Any) -> Any:
    """A capsule with the memory of a DeviceArray."""
    return dlpack.capsule(x, x.address, HERE, machine.gpu().number)


def take(source: Any) -> tuple[np.ndarray, Any]:
    """The memory of an object with __dlpack__ as a layout (see DeviceArray), and its owner.

    Raises DeviceError or DtypeError if it cannot be shared.
    """
    check_shared("from_dlpack")
    if not hasattr(source, "__dlpack__"):
        raise DeviceError(f"from_dlpack: expected an object with __dlpack__, got {type(source).__name__}")
    kind, number = source.__dlpack_device__()
    if kind != HERE:
        raise DeviceError(f"from_dlpack: expected memory of device type {HERE}, got {kind}")
    if number != machine.gpu().number:
        own = machine.gpu().number
        raise DeviceError(f"from_dlpack: expected memory of 'cuda:{own}', on which we compute, got 'cuda:{number}'")
    capsule = source.__dlpack__(**({} if SIMULATED else {"stream": stream().handle}))
    tensor, owner = dlpack.opened(capsule, source)
    dtype = dlpack.dtype_of(tensor)
    interface = {
        "shape": tuple(tensor.shape[: tensor.ndim]),
        "strides": tuple(s * dtype.itemsize for s in tensor.strides[: tensor.ndim]) if tensor.strides else None,
        "typestr": f"|V{dtype.itemsize}",
        "data": ((tensor.data or 0) + tensor.byte_offset, False),
        "version": 3,
    }
    return np.asarray(_Described(interface)).view(dtype), owner


class _Described:
    def __init__(self, interface: dict[str, Any]):
        self.__array_interface__ = interface
