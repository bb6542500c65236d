"""How CPU kernels are compiled: one decorator, one way to stamp variants, one thread count.

Write a kernel as a module-level function on contiguous arrays that fills `out`::

    @jit(parallel=True)                     # serial without `parallel`; `reduction=True` lets a sum be reassociated
    def scale(x, factor, out):
        for i in prange(x.size):
            out[i] = factor * x[i]

To get one kernel per scalar function, write the loop once and stamp it (a closure could not be cached, a global can)::

    @jit(parallel=True)
    def elementwise(x, out):
        for i in prange(x.size):
            out[i] = function(x[i])         # `function` is any module-level name; each stamp has its own

    exp = stamp(elementwise, "exp", function=scalar_exp)
    tanh = stamp(elementwise, "tanh", function=scalar_tanh)

Copy by such a loop, too, not by `out[:] = x`: for that, Numba compiles how it would say that shapes differ, for 1.3 s.

A kernel compiles at its first call for given argument types; cache.py keeps the machine code for other processes. With
`NUMBA_DISABLE_JIT=1` kernels stay plain Python functions. No other file uses Numba's own decorators.
"""

import ctypes
import functools
import inspect
import os
import threading
import types
import weakref
from typing import ClassVar

import llvmlite.binding as llvm
import numba
from numba.core import config
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import register_pass
from numba.core.lowering import Lower
from numba.core.registry import CPUDispatcher
from numba.core.typed_passes import BaseNativeLowering, NativeLowering, NativeParforLowering
from numba.np.ufunc import parallel as threading_layer

from .. import checks
from ..errors import ConfigError
from .cache import CompileStats, KernelCache, session
from .limits import cores

JIT_ENABLED = not config.DISABLE_JIT  # type: ignore[attr-defined]
MAX_THREADS: int = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]

# GNU OpenMP's threads spin for milliseconds before they sleep. Beside another busy program that made the median
# training step 5 to 10 times longer. The price of a short spin is to wake a thread, 20-50 us a parallel region, even on
# an idle machine; so it lasts about as long as Python takes between two products of a small step: of 784-128-10 with a
# batch of 64, without jit, the median on an idle machine was 700, 500, 474 us for 1000, 5000, 30000 spins, and beside
# two busy programs 0.75, 1.2, 6 ms. On a Xeon (Sapphire Rapids) 5000 spins end before the Python between two recorded
# steps with Adam does: 350 us a step, and 260 with 8000, 12000 or 20000 spins. Read when the library loads, at the
# first parallel kernel; a user's setting wins.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "8000")

# `contract` gives fused multiply-adds. `reassoc` and `nsz` let a sum be split over vector lanes. Nothing here may ever
# hold `nnan` or `ninf`: they delete checks for NaN and infinity.
FASTMATH = frozenset({"contract"})
FASTMATH_REDUCTION = FASTMATH | {"reassoc", "nsz"}


def jit(function=None, *, parallel=False, reduction=False, inline=False):
    """Compile `function` at its first call for given argument types; use as `@jit` or `@jit(parallel=True)`.

    parallel: `prange` loops run on all threads. Fold sums over fixed chunks, so that bits do not depend on threads.
    reduction: let the compiler reassociate sums. Only for pure reductions: it destroys polynomials and bit tricks.
    inline: become part of every caller, however long: a loop around a call would not vectorise.

    The GIL is released, division by zero gives inf or nan as in NumPy, and a * b + c is fused.
    """
    if function is None:
        return functools.partial(jit, parallel=parallel, reduction=reduction, inline=inline)
    if not JIT_ENABLED:
        return function
    options = {
        "nopython": True,
        "nogil": True,
        "error_model": "numpy",
        "boundscheck": None,
        "parallel": parallel,
        "forceinline": inline,
        "no_cfunc_wrapper": True,  # it would hold the kernel a second time, for C, which nobody calls from
        "fastmath": set(FASTMATH_REDUCTION if reduction else FASTMATH),
    }
    return _Kernel(function, targetoptions=options)


def stamp(template, name, **bindings):
    """A new kernel `name`: the code and the compile options of `template`, with the global names in `bindings` rebound.

    `template` is a module-level function, decorated or not (then the result is a plain function too); the values of
    `bindings` are kernels or constants. The stamp sees the template's other globals as they are now, so stamp at the
    end of a module, after all helpers are defined.
    """
    source = getattr(template, "py_func", template)
    code = source.__code__.replace(co_name=name, co_qualname=name)
    function = types.FunctionType(code, {**source.__globals__, **bindings}, name, source.__defaults__)
    function.__module__, function.__doc__ = source.__module__, source.__doc__
    function.__dict__["__signature__"] = inspect.signature(source)
    bound = sorted((key, _describe(value)) for key, value in bindings.items())
    function.__dict__["__bindings__"] = bound  # goes into the name of the cache file
    return _Kernel(function, targetoptions=template.targetoptions) if isinstance(template, CPUDispatcher) else function


def _describe(value):
    """A text that tells one binding of a stamp from another, the same in every process."""
    return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else repr(value)


def before_first_kernel(action):
    """Call `action()` once, before this process compiles or loads its first kernel."""
    _before_first_kernel.append(action)


_before_first_kernel: list = []


kernels: weakref.WeakValueDictionary = weakref.WeakValueDictionary()  # by "module.qualname"
listeners: list = []  # functions that are called with each kernel that Python calls, and its types, once it is there


class _Lower(Lower):
    """Has loops use all of AVX-512. For Intel's CPUs LLVM prefers half of it, as the whole once lowered their clock."""

    def setup_function(self, fndesc):
        super().setup_function(fndesc)
        set.add(self.function.attributes, '"prefer-vector-width"="512"')  # llvmlite's own `add` knows none with a value


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(NativeLowering):
    _name = "native_lowering_to_wide_vectors"
    lowering_class = _Lower


class _Compiler(Compiler):
    lowering: ClassVar[dict] = {NativeLowering: _Lowering}

    def define_pipelines(self):
        pipelines = super().define_pipelines()
        for pipeline in pipelines:
            pipeline.passes = [(self.lowering.get(step, step), says) for step, says in pipeline.passes]
            pipeline.finalize()
        return pipelines


class Whole(JITCodeLibrary):
    """Machine code of a kernel that Python calls."""

    @staticmethod
    def to_keep(state, module):
        (name, _, (code, _)), *rest = state
        symbols = [x.name for kind in (module.functions, module.global_variables) for x in kind if not x.is_declaration]
        return (name, code, symbols), *rest

    @classmethod
    def load(cls, codegen, name, code, symbols):
        """Numba's own reads what LLVM made of the kernel, too, and asks it for all names: half of the time."""
        self = cls(codegen, name)
        self.enable_object_caching()
        self._set_compiled_object(code)
        self._finalize_final_module()
        codegen._engine._defined_symbols.update(symbols)
        return self

    @staticmethod
    def executable(target, *arguments):
        return target.get_executable(*arguments)


class Part(JITCodeLibrary):
    """LLVM code of a kernel that others call: it is optimised, and becomes machine code, as a part of each of them.

    Numba does all that for it by itself, too: a third of the time. Python cannot call it.
    """

    def finalize(self):
        for library in dict.fromkeys(self._linking_libraries):
            self._reload_init.update(library._reload_init)
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalize_dynamic_globals()
        self._finalized = True

    def serialize_using_object_code(self):
        return self.name, self._get_module_for_linking().as_bitcode()

    @staticmethod
    def to_keep(state, _):
        return *state[:-1], ()  # the callers keep the environments

    @classmethod
    def load(cls, codegen, name, bitcode):
        self = cls(codegen, name)
        self._shared_module, self._finalized = llvm.parse_bitcode(bitcode), True
        return self

    @staticmethod
    def executable(*_):
        return object()  # by which Numba knows it from others


class _IntoPart(BaseNativeLowering):
    """Lowering that ends before there is machine code."""

    def run_pass(self, state):
        state.library = Part(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = state.flags.no_cpython_wrapper = True
        has_changed = super().run_pass(state)
        state["cr"] = state["cr"]._replace(cfunc=Part.executable())
        state.targetctx.insert_user_function(state["cr"].cfunc, state["cr"].fndesc, [state.library])
        state.reload_init.extend(state.library._reload_init)
        return has_changed


@register_pass(mutates_CFG=True, analysis_only=False)
class _LoweringIntoPart(_IntoPart, _Lowering):
    _name = "native_lowering_into_part"


@register_pass(mutates_CFG=True, analysis_only=False)
class _ParallelLoweringIntoPart(_IntoPart, NativeParforLowering):
    _name = "native_parfor_lowering_into_part"


class _PartCompiler(_Compiler):
    lowering: ClassVar[dict] = {NativeLowering: _LoweringIntoPart, NativeParforLowering: _ParallelLoweringIntoPart}


class _Dispatcher(CPUDispatcher):
    """Numba's dispatcher with our compiler, our cache and our progress note."""

    compiler: type = _Compiler
    library: type = Whole

    def __init__(self, py_func, locals=None, targetoptions=None, **kwargs):
        super().__init__(py_func, locals or {}, targetoptions, pipeline_class=self.compiler, **kwargs)
        self._cache = KernelCache(py_func, targetoptions, self.library)

    def compile(self, sig):
        with global_compiler_lock, session:
            while _before_first_kernel:
                _before_first_kernel[-1]()
                _before_first_kernel.pop()
            return super().compile(sig)


class _Part(_Dispatcher):
    """A kernel as others call it."""

    compiler, library = _PartCompiler, Part

    def add_overload(self, result):
        self.overloads[tuple(result.signature.args)] = result  # Python cannot call it


class _Kernel(_Dispatcher):
    """A kernel as Python calls it; others that call it have it as a part."""

    def __init__(self, py_func, locals=None, targetoptions=None, **kwargs):
        py_func.__signature__ = inspect.signature(py_func)  # Numba asks twice: half of the time that 350 kernels took
        super().__init__(py_func, locals, targetoptions, **kwargs)
        kernels[f"{py_func.__module__}.{py_func.__qualname__}"] = self

    @functools.cached_property
    def _part(self):
        return _Part(self.py_func, self.locals, self.targetoptions)

    def compile(self, sig):
        entry = super().compile(sig)
        for listener in listeners:
            listener(self, sig)
        return entry

    def get_call_template(self, args, kws):
        return self._part.get_call_template(args, kws)

    def get_overload(self, sig):
        return self._part.get_overload(sig)


def entry_of(kernel, arguments):
    """The address of a kernel's machine code for arguments like these; it is valid as long as the kernel lives."""
    kinds = tuple(map(numba.typeof, arguments))
    if kinds not in kernel.overloads:
        kernel.compile(kinds)
    compiled = kernel.overloads[kinds]
    return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)


def compile_stats():
    """What this process compiled and loaded so far: `CompileStats(compiled, loaded, seconds)`."""
    return CompileStats(session.compiled, session.loaded, session.seconds)


# --- threads ----------------------------------------------------------------------------------------------------------

if cores() < MAX_THREADS and "NUMBA_NUM_THREADS" not in os.environ:  # Numba knows no quota of a control group
    numba.set_num_threads(cores())

runs = True  # does this process run kernels, or only load them for those that it forks?
_main_of_forked: int | None = None  # the thread that a forked process began with, if kernels ran before the fork


def _after_fork() -> None:
    """In a process that was forked after parallel kernels ran, GNU OpenMP's threads are missing. Numba would end it.

    So kernels run on its first thread alone, with the same bits. A thread that it starts gets new ones. Where none ran,
    there were no threads yet.
    """
    global _main_of_forked
    if threading_layer._is_initialized and numba.threading_layer() == "omp":
        from numba.np.ufunc import omppool

        ctypes.CFUNCTYPE(None, ctypes.c_int)(omppool.launch_threads)(MAX_THREADS)  # Numba: this is your process
        if runs:
            numba.set_num_threads(1)
            _main_of_forked = threading.get_ident()


os.register_at_fork(after_in_child=_after_fork)


def get_num_threads():
    """How many threads parallel kernels use."""
    if (
        threading_layer._is_initialized
    ):  # then Numba's own function takes two locks, and five times as long, to say the same
        return threading_layer._get_num_threads()
    return numba.get_num_threads()


def set_num_threads(n):
    """Let parallel kernels use `n` threads, from 1 to `MAX_THREADS` (all cores, or `NUMBA_NUM_THREADS`).

    Results keep their bits. Raises ConfigError for any other `n`.
    """
    remedy = "NUMBA_NUM_THREADS=n in the environment, before Python starts, allows more, which take turns on the cores"
    n = checks.integer("set_num_threads", n, 1, MAX_THREADS, remedy=remedy)
    if n > 1 and threading.get_ident() == _main_of_forked:
        raise ConfigError(
            f"set_num_threads: expected 1 in a process forked after kernels ran, whose threads stayed behind, got {n}; "
            "start it by spawn or forkserver"
        )
    numba.set_num_threads(n)
