"""Kernels of every make, called in one way: Python, Numba (lazy, explicit, parallel, ufuncs), numba.cuda, Cython, C."""

import contextlib
import ctypes
import functools
import inspect
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from .. import checks
from ..errors import ContractError

MARGIN = 16  # elements on both sides of an output that nobody may touch


def name_of(kernel: Any) -> str:
    inner = getattr(kernel, "func", kernel)  # of a functools.partial
    return getattr(inner, "__name__", type(kernel).__name__)


def is_cuda(kernel: Any) -> bool:
    """Does @cuda.jit make it, for a GPU or for Numba's simulator?"""
    return type(kernel).__name__ in ("CUDADispatcher", "FakeCUDAKernel")


def is_foreign(kernel: Any) -> bool:
    return isinstance(kernel, ctypes._CFuncPtr)  # type: ignore[attr-defined]


def parameters(kernel: Any) -> Mapping[str, inspect.Parameter] | None:
    """The parameters of a kernel by name; None where nobody knows them: ufuncs, functions in C."""
    if isinstance(kernel, np.ufunc) or is_foreign(kernel) or hasattr(kernel, "ufunc"):
        return None
    try:
        return _parameters(getattr(kernel, "py_func", kernel))
    except (ValueError, TypeError):
        return None


@functools.lru_cache(maxsize=64)
def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def fills(kernel: Any, inputs: int, results: int, params: Mapping[str, Any]) -> bool:
    """Does a kernel fill arrays that it is given, or does it return new ones?

    It fills if a parameter is called `out` or `new_...`, or if it asks for as many arguments as there are inputs and
    results together. ufuncs, cuda kernels and functions in C fill.
    """
    known = parameters(kernel)
    if known is None:
        return isinstance(kernel, np.ufunc) or hasattr(kernel, "ufunc") or is_foreign(kernel)
    if is_cuda(kernel) or any(name == "out" or name.startswith("new_") for name in known):
        return True
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    asked = [p for p in known.values() if p.kind in positional and p.default is p.empty and p.name not in params]
    return len(asked) == inputs + results


_REFUSALS = (
    (TypeError, "No matching definition for argument type"),  # Numba, with signatures
    (ValueError, "buffer source array is read-only"),  # Cython, whose memoryviews say what they take
    (ValueError, "ndarray is not C-contiguous"),
    (ValueError, "ndarray is not Fortran contiguous"),
    (ValueError, "ndarray is not contiguous"),
)


def refuses_layout(error: Exception) -> bool:
    """Did a kernel that was compiled for some layouts refuse an argument of another?"""
    return any(isinstance(error, kind) and str(error).startswith(words) for kind, words in _REFUSALS)


# --- one call ---------------------------------------------------------------------------------------------------------


def call(
    kernel: Any, inputs: Sequence[Any], buffers: Sequence[Any], shapes: Sequence[tuple], launch: Any, params
) -> Any:
    """Calls a kernel; `buffers` are the memory of its results, if it fills them, else there are none.

    A buffer is an array, which is the result, or flat memory, whose result lies MARGIN away from both of its ends.
    """
    if is_cuda(kernel):
        return _on_gpu(kernel, inputs, buffers, shapes, launch, params)
    results = [result_in(b, shape) for b, shape in zip(buffers, shapes, strict=bool(buffers))]
    if is_foreign(kernel):
        return _foreign(kernel, [*inputs, *results])
    if results and takes_out_by_name(kernel):
        return kernel(*inputs, out=results[0] if len(results) == 1 else tuple(results), **params)
    return kernel(*inputs, *results, **params)


def takes_out_by_name(kernel: Any) -> bool:
    """Is `out` an option, as in f(x, axis=None, out=None)?"""
    out = (parameters(kernel) or {}).get("out")
    return out is not None and (out.default is not out.empty or out.kind is out.KEYWORD_ONLY)


def result_in(buffer: Any, shape: tuple) -> Any:
    if isinstance(buffer, Apart):
        return buffer.memory[MARGIN : buffer.memory.size - MARGIN].reshape(shape)
    return buffer


class Apart:
    """Memory of a result that has margins."""

    def __init__(self, memory: np.ndarray):
        self.memory = memory


def _foreign(kernel: Any, arguments: Sequence[Any]) -> Any:
    """A function in C takes pointers; a scalar becomes what its `argtypes` say."""
    types = kernel.argtypes or [None] * len(arguments)
    if len(types) != len(arguments):
        raise TypeError(f"argtypes of {len(types)} arguments, for {len(arguments)} arrays and scalars")
    given = []
    for x, kind in zip(arguments, types, strict=True):
        if isinstance(x, np.ndarray) and not hasattr(kind, "_ndim_"):  # numpy.ctypeslib.ndpointer checks arrays itself
            x = ctypes.cast(x.ctypes.data, kind or ctypes.c_void_p)
        elif isinstance(x, np.generic):
            x = x.item()
        if isinstance(x, float) and kind is None:
            x = ctypes.c_double(x)
        given.append(x)
    return kernel(*given)


def _on_gpu(kernel: Any, inputs, buffers, shapes, launch: Any, params) -> None:
    """Copies there and back, so that what is written to inputs, or beside results, is seen."""
    from numba import cuda

    size = max((int(np.prod(shape)) for shape in shapes), default=1)
    grid = launch(*inputs) if callable(launch) else launch or (-(-max(size, 1) // 32), 32)
    moved: dict[int, tuple[np.ndarray, Any]] = {}

    def there(x: Any) -> Any:
        if not isinstance(x, np.ndarray):
            return x
        if id(x) not in moved:
            moved[id(x)] = x, cuda.to_device(x)
        return moved[id(x)][1]

    given = [there(x) for x in inputs]
    for b, shape in zip(buffers, shapes, strict=True):
        given.append(there(b.memory)[MARGIN:-MARGIN].reshape(shape) if isinstance(b, Apart) else there(b))
    kernel[grid](*given, **params)
    for x, copy in moved.values():
        after = copy.copy_to_host()
        if x.flags.writeable:
            x[...] = after
        elif x.tobytes() != after.tobytes():
            raise ContractError("expected the inputs as they were, but a read-only one was changed")


# --- threads ----------------------------------------------------------------------------------------------------------


def numbers_of_threads(kernel: Any, asked: Sequence[int] | None) -> tuple[int, ...]:
    """How many threads to run a kernel on, one number after the other; none if it does not run in parallel."""
    if asked is None and ("numba" not in sys.modules or not runs_in_parallel(kernel)):
        return ()
    import numba

    most = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    if asked is None:
        if most == 1:
            warnings.warn(
                f"{name_of(kernel)} runs in parallel, but NUMBA_NUM_THREADS is 1: nothing tells whether its bits "
                "depend on the number of threads; set NUMBA_NUM_THREADS=4 before numba is imported",
                stacklevel=4,
            )
        return tuple(sorted({1, min(2, most), most}))
    for n in asked:
        if n > most:
            remedy = f"set NUMBA_NUM_THREADS={n} before numba is imported"
            checks.refuse("assert_matches_reference: threads", f"at most {most} threads", n, remedy=remedy)
    return tuple(asked)


@contextlib.contextmanager
def numba_threads(n: int) -> Iterator[None]:
    """Inside, parallel Numba kernels of this thread run on n threads."""
    import numba

    before = numba.get_num_threads()
    numba.set_num_threads(n)
    try:
        yield
    finally:
        numba.set_num_threads(before)


def _attributes(x: Any) -> Mapping[str, Any]:
    """What stands in an object itself. Names lead to objects of all kinds, whose __getattr__ may do anything."""
    return getattr(x, "__dict__", None) or {}


@functools.lru_cache(maxsize=256)
def _parallel(kernel: Any) -> bool:
    pending: list[Any] = [kernel]
    seen: set[int] = set()
    while pending and len(seen) < 1000:
        f = pending.pop()
        if id(f) in seen:
            continue
        seen.add(id(f))
        own = _attributes(f)
        if isinstance(own.get("targetoptions"), dict) and own["targetoptions"].get("parallel"):
            return True
        pending += [own[name] for name in ("py_func", "__wrapped__") if name in own]
        if isinstance(f, functools.partial):
            pending.append(f.func)
        if not inspect.isfunction(f):
            continue
        code = f.__code__
        scope = [f.__globals__[name] for name in code.co_names if name in f.__globals__]
        for cell in f.__closure__ or ():
            with contextlib.suppress(ValueError):  # a cell that is still empty
                scope.append(cell.cell_contents)
        modules = [vars(m) for m in scope if isinstance(m, ModuleType)]
        scope += [names[name] for names in modules for name in code.co_names if name in names]
        pending += [x for x in scope if "targetoptions" in _attributes(x) or inspect.isfunction(x)]
    return False


def runs_in_parallel(kernel: Any) -> bool:
    """Is it a Numba kernel with parallel=True, or does it call one by name?"""
    try:
        return _parallel(kernel)
    except TypeError:  # not hashable
        return False


# --- Hypothesis' deadline ---------------------------------------------------------------------------------------------


def untimed(function: Callable[[], Any]) -> Any:
    """function(), in time that Hypothesis does not count: a kernel's first call may compile it.

    The time goes to what Hypothesis takes off the time of a test. It must not look like drawing, which has a limit too.
    """
    control = sys.modules.get("hypothesis.control")
    if control is None or not control.currently_in_test_context():
        return function()
    start = time.perf_counter()
    try:
        return function()
    finally:
        times = getattr(control.current_build_context().data, "_stateful_run_times", {})
        times["compile"] = times.get("compile", 0.0) + time.perf_counter() - start
