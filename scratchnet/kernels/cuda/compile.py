"""How cuda kernels are compiled and launched, and the one place that imports numba.cuda.

A kernel is a plain Python function that `kernel(threads)` marks; its first launch compiles it. `device` marks helpers.
`launch` is the only way to run a kernel, so that tests can interpret the same source instead. In Numba's simulator
(NUMBA_ENABLE_CUDASIM=1) every thread of a kernel is a thread of Python. With SCRATCHNET_GPU=opencl kernels are
translated to OpenCL C, and numba-cuda is not needed.
"""

import importlib.util
import math
import os
from collections.abc import Callable
from contextvars import ContextVar
from functools import cached_property
from struct import Struct
from typing import Any

import numba
import numpy as np
from llvmlite import ir

from ... import checks
from ...errors import DeviceError
from . import machine_code

VARIABLE = "SCRATCHNET_GPU"
OPENCL = checks.one_of(VARIABLE, os.environ.get(VARIABLE) or "cuda", ("cuda", "opencl")) == "opencl"
SIMULATED = bool(numba.config.ENABLE_CUDASIM)  # type: ignore[attr-defined]
if OPENCL and SIMULATED:
    raise DeviceError(f"cuda: expected {VARIABLE}=opencl or NUMBA_ENABLE_CUDASIM=1, got both")

numba_cuda: Any = None
libdevice: Any = None  # the GPU's functions of one number
if not OPENCL:  # which has no use for them: it translates the source
    try:
        from numba import cuda as _numba_cuda
        from numba.cuda import libdevice as _libdevice

        numba_cuda, libdevice = _numba_cuda, _libdevice
    except ImportError:  # a Numba that no longer brings a cuda target of its own
        raise DeviceError("cuda: expected the package numba-cuda; pip install 'numba-cuda[cu13]', got none") from None

PYTHON = SIMULATED or OPENCL  # do helpers stay functions of Python?


machine: Any  # the GPU
if SIMULATED:
    from . import host as machine
elif OPENCL:
    from ..opencl import driver as machine
else:
    from . import driver as machine


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
    """A kernel's source, compiled at its first launch on each kind of arguments, or found on disk.

    threads: most threads of a block. resident: fewest blocks that a multiprocessor must hold. Both limit the registers.
    """

    def __init__(self, function: Callable[..., None], threads: int, resident: int = 1):
        self.function, self.threads, self.bounds = function, threads, (threads, resident)
        self._loaded: dict[tuple, tuple[Any, Struct]] = {}

    @cached_property
    def simulated(self) -> Any:
        return numba_cuda.jit(self.function)

    def loaded(self, codes: tuple) -> tuple[Any, Struct]:
        """The kernel for arguments of these codes (see machine_code.py), and how their bytes are packed."""
        found = self._loaded.get(codes)
        if found is None:
            found = self._loaded[codes] = machine.compiled(self.function, codes, self.bounds)
        return found


def kernel(threads: int, resident: int = 1) -> Callable[[Callable[..., None]], Kernel]:
    """Marks a kernel; arguments as for Kernel."""
    return lambda function: Kernel(function, threads, resident)


def device(function: Callable[..., Any]) -> Any:
    """Marks a helper, which is compiled into each kernel that calls it."""
    return function if PYTHON else numba_cuda.jit(function, device=True, inline="always")


def _ready(kernel: Kernel, blocks: Any, threads: Any, arguments: tuple) -> tuple:
    """A launch as the driver takes it: the compiled kernel, its grid, and how its numbers are packed."""
    codes, values = packed(arguments)
    handle, struct = kernel.loaded(codes)
    return handle, _dimensions(blocks), _dimensions(threads), struct, values


def _dimensions(n: Any) -> tuple[int, int]:
    return n if type(n) is tuple else (n, 1)


def packed(arguments: tuple) -> tuple[tuple, list]:
    """The codes and the numbers of arguments."""
    codes: list[Any] = []
    values: list[Any] = []
    for x in arguments:
        code: Any = machine_code.NUMBERS.get(type(x))
        if code is not None:
            values.append(x)
        else:
            code, inner = packed(x) if type(x) is tuple else x._flat or x.flat
            values += inner
        codes.append(code)
    return tuple(codes), values


def _simulate(kernel: Kernel, blocks: Any, threads: Any, arguments: tuple) -> None:
    with np.errstate(all="ignore"):
        kernel.simulated[blocks, threads](*map(_flat, arguments))


def _flat(x: Any) -> Any:
    return tuple(map(_flat, x)) if type(x) is tuple else x.flat if hasattr(x, "layout") else x


def _run(kernel: Kernel, blocks: Any, threads: Any, arguments: tuple) -> None:
    machine.launch(*_ready(kernel, blocks, threads, arguments))


if SIMULATED:
    _run = _simulate


launcher: ContextVar[Callable[..., None]] = ContextVar("launcher", default=_run)


def launch(kernel: Kernel, blocks: Any, threads: Any, *arguments: Any) -> None:
    """Starts a kernel on a grid: `blocks` of `threads`, each a number or (x, y). The kernel sees DeviceArrays flat."""
    launcher.get()(kernel, blocks, threads, arguments)


def captured(call: Callable[[], None]) -> list[tuple[Callable[[], None], str]]:
    """The launches of a call in order, as functions that start them, and as texts; the call itself starts none."""
    make = _packed_once if launcher.get() is _run and not SIMULATED else _again
    found: list[tuple[Callable[[], None], str]] = []
    token = launcher.set(lambda *launched: found.append((make(launched), _text(*launched[:3]))))
    try:
        call()
    finally:
        launcher.reset(token)
    return found


def _text(kernel: Kernel, blocks: Any, threads: Any) -> str:
    grid = " of ".join("x".join(map(str, n if type(n) is tuple else (n,))) for n in (blocks, threads))
    return f"{kernel.function.__qualname__.partition('.')[0]}, {grid} threads"


def _packed_once(launched: tuple) -> Callable[[], None]:
    return machine.Launch(*_ready(*launched), held=launched)


def _again(launched: tuple) -> Callable[[], None]:
    return lambda: launcher.get()(*launched)


# --- what Python and a GPU have under different names -----------------------------------------------------------------

# Python's math raises where IEEE has an answer, so the simulator computes with NumPy's functions.
exp, log, sqrt = (np.exp, np.log, np.sqrt) if SIMULATED else (math.exp, math.log, math.sqrt)


def _mover(name: str, aligned_source: bool) -> Callable[..., None]:
    def in_python(source: Any, i: int, target: Any, j: int) -> None:
        for v in range(16 // source.dtype.itemsize):
            target[j + v] = source[i + v]

    in_python.__name__ = name
    if PYTHON:
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

stream, Event = machine.stream, machine.Event
count_gpus = machine.count_gpus


def check_gpu(number: int) -> None:
    """Raises DeviceError if there is no GPU of this number, or one that kernels cannot run on."""
    if number >= count_gpus():
        raise DeviceError(f"cuda: expected a GPU from 'cuda:0' to 'cuda:{count_gpus() - 1}', got 'cuda:{number}'")
    if (missing := machine.why_unavailable(number)) is not None:
        raise DeviceError(f"cuda:{number}: {missing}")


def use_gpu(number: int) -> None:
    """Makes this process compute on the GPU of this number; call it before it uses any other."""
    check_gpu(number)
    machine.use_gpu(number)


def is_available() -> bool:
    """Is there a GPU that can be used, with its driver and numba-cuda, or by OpenCL? The simulator is none."""
    return not SIMULATED and why_unavailable() is None


def why_unavailable() -> str | None:
    """What is missing, in a few words; None in the simulator, where nothing is. It puts no context on the GPU."""
    if PYTHON:
        return machine.why_unavailable(0)
    if importlib.util.find_spec("numba_cuda") is None:
        return "expected the package numba-cuda; pip install 'numba-cuda[cu13]', got none"
    try:
        return machine.why_unavailable(0)
    except Exception as error:  # drivers fail in many ways, and all of them mean this
        return f"expected an NVIDIA GPU and its driver, got {(str(error).strip() or repr(error)).splitlines()[-1]}"
