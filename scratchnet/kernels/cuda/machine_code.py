"""Kernels as machine code: compiled by numba-cuda and nvJitLink, and kept on disk for other processes.

A kernel is made by a factory and closes over what it was made for: constants, types, helpers. The name of its file is
a digest of all that: of its code, of what it closes over, and of the numbers and functions that it finds by name; of
the types of its arguments, the GPU's architecture, the versions of the compilers, and the sources in this folder.
"""

from __future__ import annotations

import hashlib
import types as python_types
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from struct import calcsize
from typing import Any

import numba
import numpy as np

from ...errors import DeviceError
from ...native import cache as disk

# How an argument of a kernel reaches it: a code, whose letter is the one of `struct` for a number, and for an array of
# a dtype "[" and the letter of the dtype. ARRAY stands for what Numba's kernels expect of an array of one dimension:
# two pointers that are null here, elements, bytes of one, address, length, stride.
ARRAY = "qqqqqqq"
NUMBERS: dict[type, str] = {
    bool: "?", np.bool_: "?", int: "q", np.int64: "q", np.uint64: "Q", np.int32: "i", np.uint8: "B",
    float: "d", np.float64: "d", np.float32: "f",
}  # fmt: skip


def types_of(codes: tuple) -> tuple:
    """Numba's types of arguments."""
    return tuple(_type(code) for code in codes)


@cache
def _type(code: Any) -> Any:
    if isinstance(code, tuple):
        return numba.types.UniTuple(_type(code[0]), len(code))
    dtype = numba.from_dtype(np.dtype(code[-1]))
    return numba.types.Array(dtype, 1, "C") if code[0] == "[" else dtype


def layout(codes: tuple) -> str:
    """The bytes of arguments, as a format of `struct`, which aligns each as C does."""
    return "".join(layout(x) if isinstance(x, tuple) else ARRAY if x[0] == "[" else x for x in codes)


def places(layout: str) -> list[tuple[int, int]]:
    """(offset, bytes) of each number."""
    return [(calcsize(f"{layout[:i]}0{x}"), calcsize(x)) for i, x in enumerate(layout)]


def compiled(function: Callable, codes: tuple, bounds: tuple[int, int], architecture: str) -> tuple[str, bytes]:
    """(the name of the kernel, machine code). architecture: such as "sm_90"."""
    key = repr((meaning(function), codes, bounds, architecture, _versions(), _sources()))
    name = f"cuda-{function.__qualname__.partition('.')[0]}-{hashlib.sha256(key.encode()).hexdigest()[:24]}"

    def make() -> bytes:
        ptx = ptx_of(function, codes, bounds, architecture)
        entry = ptx.partition(".entry ")[2].partition("(")[0].strip()
        return entry.encode() + b"\0" + linked(ptx, architecture)[0]

    entry, _, code = disk.object_code(name, make).partition(b"\0")
    return entry.decode(), code


def ptx_of(function: Callable, codes: tuple, bounds: tuple[int, int], architecture: str) -> str:
    """What numba-cuda makes of a kernel."""
    _complete_numpy()
    from numba import cuda

    compile_ptx: Any = cuda.compile_ptx
    cc = int(architecture[3:-1]), int(architecture[-1])
    return compile_ptx(function, types_of(codes), cc=cc, launch_bounds=bounds)[0]


def linked(ptx: str, architecture: str, *options: str) -> tuple[bytes, str]:
    """Machine code of PTX, and what the linker says of it."""
    from cuda.bindings import nvjitlink

    flags = [f"-arch={architecture}", *options]
    handle = nvjitlink.create(len(flags), flags)
    try:
        code = ptx.encode()
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, code, len(code), "kernel")
        nvjitlink.complete(handle)
        cubin, log = bytearray(nvjitlink.get_linked_cubin_size(handle)), bytearray(nvjitlink.get_info_log_size(handle))
        nvjitlink.get_linked_cubin(handle, cubin)
        nvjitlink.get_info_log(handle, log)
    except nvjitlink.nvJitLinkError as error:
        raise DeviceError(f"cuda: expected machine code for {architecture}, got {str(error).splitlines()[0]}") from None
    finally:
        nvjitlink.destroy(handle)
    return bytes(cubin), log.decode()


@cache
def _complete_numpy() -> None:
    """numba-cuda 0.30 asks NumPy for `row_stack`, which NumPy 2.5 no longer has. Inside this import it has it."""
    missing = "row_stack"
    if not hasattr(np, missing):
        setattr(np, missing, lambda arrays: np.vstack(arrays))
        try:
            import numba.cuda.np.arrayobj  # noqa: F401
        finally:
            delattr(np, missing)


# --- the name of the file ---------------------------------------------------------------------------------------------


@cache
def _versions() -> tuple[str, ...]:
    from cuda.bindings import nvjitlink

    return version("numba-cuda"), version("llvmlite"), str(nvjitlink.version()), _version_of_nvvm()


def _version_of_nvvm() -> str:
    from numba.cuda.cudadrv.nvvm import NVVM

    return str(NVVM().get_version()) if hasattr(NVVM, "get_version") else ""


@cache
def _sources() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def meaning(x: Any) -> Any:
    """All that a kernel, or what it uses, is compiled from, as something with the same `repr` in every process."""
    x = getattr(x, "py_func", None) or getattr(x, "_defn", None) or x  # of a helper, or of an intrinsic
    if not isinstance(x, python_types.FunctionType):
        return getattr(x, "__name__", None) or repr(x)
    return x.__module__, x.__qualname__, _code(x.__code__), _found_by(x)


def _found_by(function: python_types.FunctionType) -> list:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return [(name, meaning(cell.cell_contents)) for name, cell in cells] + [
        (name, meaning(function.__globals__[name]))
        for name in sorted(set(function.__code__.co_names))
        if name in function.__globals__
    ]


def _code(code: python_types.CodeType) -> tuple:
    constants = [_code(c) if isinstance(c, python_types.CodeType) else repr(c) for c in code.co_consts]
    return code.co_code, code.co_names, code.co_varnames, constants
