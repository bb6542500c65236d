"""How cuda kernels are compiled and launched, and the one place that imports numba.cuda.

A kernel is a plain Python function that `kernel(threads)` marks; its first launch compiles it. `device` marks helpers.
`launch` is the only way to run a kernel, so that tests can interpret the same source instead. In Numba's simulator
(NUMBA_ENABLE_CUDASIM=1) every thread of a kernel is a thread of Python.
"""

import importlib.util
import math
from collections.abc import Callable
from contextvars import ContextVar
from functools import cached_property
from typing import Any

import numba
import numpy as np
from llvmlite import ir

from ...errors import DeviceError

try:
    from numba import cuda as _numba_cuda
    from numba.cuda import libdevice as _libdevice
except ImportError:  # a Numba that no longer brings a cuda target of its own
    raise DeviceError("cuda: expected the package numba-cuda; pip install 'numba-cuda[cu13]', got none") from None

numba_cuda: Any = _numba_cuda
libdevice: Any = _libdevice  # the GPU's functions of one number
SIMULATED = bool(numba.config.ENABLE_CUDASIM)  # type: ignore[attr-defined]


if importlib.util.find_spec("numba_cuda") is not None and not SIMULATED:
    from numba.cuda.core import config

    config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # small arrays have small grids, and that is right


class _Simulated:
    """numba.cuda as the running kernel sees it.

    The simulator itself exchanges the module's globals, which fails for helpers: the first thread that leaves one would
    take them away from the others.
    """

    def __getattr__(self, name: str) -> Any:
        from numba.cuda.simulator.kernel import _get_kernel_context

        return getattr(_get_kernel_context() or numba_cuda, name)


cuda: Any = _Simulated() if SIMULATED else numba_cuda


class Kernel:
    """A kernel's source, compiled at its first launch.

    threads: most threads of a block. resident: fewest blocks that a multiprocessor must hold. Both limit the registers.
    """

    def __init__(self, function: Callable[..., None], threads: int, resident: int = 1):
        self.function, self.threads, self.bounds = function, threads, (threads, resident)

    @cached_property
    def compiled(self) -> Any:
        return numba_cuda.jit(self.function, **({} if SIMULATED else {"launch_bounds": self.bounds}))


def kernel(threads: int, resident: int = 1) -> Callable[[Callable[..., None]], Kernel]:
    """Marks a kernel; arguments as for Kernel."""
    return lambda function: Kernel(function, threads, resident)


def device(function: Callable[..., Any]) -> Any:
    """Marks a helper, which is compiled into each kernel that calls it."""
    return function if SIMULATED else numba_cuda.jit(function, device=True, inline="always")


def _run(kernel: Kernel, blocks: Any, threads: Any, arguments: tuple) -> None:
    with np.errstate(all="ignore"):
        kernel.compiled[blocks, threads, stream()](*[x.flat if hasattr(x, "layout") else x for x in arguments])


launcher: ContextVar[Callable[..., None]] = ContextVar("launcher", default=_run)


def launch(kernel: Kernel, blocks: Any, threads: Any, *arguments: Any) -> None:
    """Starts a kernel on a grid: `blocks` of `threads`, each a number or (x, y). The kernel sees DeviceArrays flat."""
    launcher.get()(kernel, blocks, threads, arguments)


def captured(call: Callable[[], None]) -> list[Callable[[], None]]:
    """The launches of a call in order, as functions that start them; the call itself starts none."""
    found: list[Callable[[], None]] = []
    token = launcher.set(lambda *launched: found.append(lambda: launcher.get()(*launched)))
    try:
        call()
    finally:
        launcher.reset(token)
    return found


# --- what Python and a GPU have under different names -----------------------------------------------------------------

# Python's math raises where IEEE has an answer, so the simulator computes with NumPy's functions.
exp, log, sqrt = (np.exp, np.log, np.sqrt) if SIMULATED else (math.exp, math.log, math.sqrt)


def _mover(name: str, aligned_source: bool) -> Callable[..., None]:
    def in_python(source: Any, i: int, target: Any, j: int) -> None:
        for v in range(16 // source.dtype.itemsize):
            target[j + v] = source[i + v]

    if SIMULATED:
        return in_python
    from numba.cuda import extending, types

    @extending.intrinsic
    def move(typing_context, source, i, target, j):
        def generate(context, builder, signature, arguments):
            element = context.get_data_type(source.dtype)
            size = context.get_abi_sizeof(element)
            vector = ir.VectorType(element, 16 // size).as_pointer()
            pointers = [
                builder.bitcast(builder.gep(context.make_array(kind)(context, builder, array).data, [at]), vector)
                for kind, array, at in ((source, *arguments[:2]), (target, *arguments[2:]))
            ]
            value = builder.load(pointers[0], align=16 if aligned_source else size)
            builder.store(value, pointers[1], align=size if aligned_source else 16)
            return context.get_dummy_value()

        return types.void(source, types.intp, target, types.intp), generate  # type: ignore[attr-defined]

    return move


# move(source, i, target, j): 16 bytes from source[i] on to target[j] on, in one instruction. The array that is not the
# thread's own must be aligned there to 16 bytes: global or shared memory to local, or back.
load_wide, store_wide = _mover("load_wide", True), _mover("store_wide", False)

ALIGNED = None if SIMULATED else 16  # bytes, of shared memory that is moved 16 bytes at a time

# --- the machine ------------------------------------------------------------------------------------------------------

_streams: dict[str, Any] = {}


def stream(name: str = "compute") -> Any:
    """A stream by its use: "compute" for all kernels, "copy" for transfers that overlap with them."""
    if name not in _streams:
        _streams[name] = numba_cuda.stream()
    return _streams[name]


def event(timing: bool = False) -> Any:
    """A mark in a stream, for which other streams can wait; with timing it also records when it was reached."""
    return numba_cuda.event(**({} if SIMULATED else {"timing": timing}))


SIMULATED_GPUS = 2  # in the simulator GPUs are names for one and the same thing


def count_gpus() -> int:
    """GPUs of this machine that this process may use."""
    return SIMULATED_GPUS if SIMULATED else len(numba_cuda.gpus)


def check_gpu(number: int) -> None:
    """Raises DeviceError if there is no GPU of this number."""
    if number >= count_gpus():
        raise DeviceError(f"cuda: expected a GPU from 'cuda:0' to 'cuda:{count_gpus() - 1}', got 'cuda:{number}'")


def use_gpu(number: int) -> None:
    """Makes this thread compute on the GPU of this number; call it before the thread uses any other."""
    check_gpu(number)
    if not SIMULATED:  # where the only GPU is number 0
        numba_cuda.select_device(number)


def is_available() -> bool:
    """Is there a GPU that can be used, with its driver and numba-cuda? The simulator is none."""
    return not SIMULATED and why_unavailable() is None


def why_unavailable() -> str | None:
    """What is missing, in a few words; None in the simulator, where nothing is."""
    if SIMULATED:
        return None
    if importlib.util.find_spec("numba_cuda") is None:
        return "expected the package numba-cuda; pip install 'numba-cuda[cu13]', got none"
    try:
        if not numba_cuda.is_available():
            return "expected an NVIDIA GPU and its driver, got none"
        driver = numba_cuda.cudadrv.driver.driver.get_version()
        numba_cuda.current_context()
    except Exception as error:  # drivers fail in many ways, and all of them mean this
        return f"expected an NVIDIA GPU and its driver, got {(str(error).strip() or repr(error)).splitlines()[-1]}"
    toolkit = numba_cuda.runtime.get_version()
    if driver[0] < toolkit[0]:
        found = ".".join(map(str, driver))
        return f"expected a driver for CUDA {toolkit[0]}, got one for {found}; it needs pip install 'numba-cuda[cu12]'"
    return None
