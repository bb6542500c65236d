"""How CPU kernels are compiled: one decorator, one cache, one thread count. No other file uses Numba's own decorators.

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

A kernel compiles at its first call for given argument types. The machine code is kept in the user's cache folder
(`SCRATCHNET_CACHE_DIR`, else `$XDG_CACHE_HOME/scratchnet`, else `~/.cache/scratchnet`), in a subfolder named by a hash
of all sources of this package folder, the versions of Python, NumPy, Numba and llvmlite, and the CPU. Without a
writable folder everything works and compiles anew in each process. With `NUMBA_DISABLE_JIT=1` kernels stay plain
Python functions. `SCRATCHNET_QUIET=1` silences the note on stderr that the first run is compiling.
"""

import atexit
import contextlib
import functools
import hashlib
import os
import pickle
import platform
import shutil
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import NamedTuple

import llvmlite
import llvmlite.binding as llvm
import numba
import numpy as np
from numba.core import config, sigutils
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import CPUDispatcher
from numba.core.runtime.nrt import rtsys
from numba.core.serialize import dumps

from scratchnet.errors import ConfigError

try:
    import fcntl
except ImportError:  # no file locks on Windows: two cold processes then compile the same kernels, each correctly
    fcntl = None  # type: ignore[assignment]

JIT_ENABLED = not config.DISABLE_JIT  # type: ignore[attr-defined]
MAX_THREADS: int = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]

# `contract` gives fused multiply-adds. `reassoc` and `nsz` let a sum be split over vector lanes. Nothing here may ever
# hold `nnan` or `ninf`: they delete checks for NaN and infinity.
FASTMATH = frozenset({"contract"})
FASTMATH_REDUCTION = FASTMATH | {"reassoc", "nsz"}

LOCK_SECONDS = 60.0  # how long to wait for another process that compiles, before compiling the same kernel ourselves
STALE_DAYS = 60  # cache subfolders of other versions that nobody used for so long are removed


class CompileStats(NamedTuple):
    """What this process compiled, what it found in the cache, and the seconds that the compiling took."""

    compiled: int
    loaded: int
    seconds: float


# --- decorators -----------------------------------------------------------------------------------------------------


def jit(function=None, *, parallel=False, reduction=False):
    """Compile `function` at its first call for given argument types; use as `@jit` or `@jit(parallel=True)`.

    parallel: `prange` loops run on all threads. Fold sums over fixed chunks, so that bits do not depend on threads.
    reduction: let the compiler reassociate sums. Only for pure reductions: it destroys polynomials and bit tricks.

    The GIL is released, division by zero gives inf or nan as in NumPy, and a * b + c is fused.
    """
    if function is None:
        return functools.partial(jit, parallel=parallel, reduction=reduction)
    if not JIT_ENABLED:
        return function
    options = {
        "nopython": True,
        "nogil": True,
        "error_model": "numpy",
        "boundscheck": None,
        "parallel": parallel,
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
    bound = sorted((key, _describe(value)) for key, value in bindings.items())
    function.__dict__["__bindings__"] = bound  # goes into the name of the cache file
    return _Kernel(function, targetoptions=template.targetoptions) if isinstance(template, CPUDispatcher) else function


def _describe(value):
    """A text that tells one binding of a stamp from another, the same in every process."""
    return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else repr(value)


# --- threads --------------------------------------------------------------------------------------------------------


def get_num_threads():
    """How many threads parallel kernels use."""
    return numba.get_num_threads()


def set_num_threads(n):
    """Let parallel kernels use `n` threads, from 1 to `MAX_THREADS` (all cores, or `NUMBA_NUM_THREADS`).

    Results keep their bits. Raises ConfigError for any other `n`.
    """
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or not 1 <= n <= MAX_THREADS:
        raise ConfigError(f"set_num_threads: expected an integer from 1 to {MAX_THREADS}, got {n!r}")
    numba.set_num_threads(int(n))


# --- what this process has compiled, and the note to the user --------------------------------------------------------


def compile_stats():
    """What this process compiled and loaded so far: `CompileStats(compiled, loaded, seconds)`."""
    return CompileStats(_session.compiled, _session.loaded, _session.seconds)


class _Session:
    """Counts compilations, tells the user, and holds the lock of the cache folder while this process compiles.

    A re-entrant context: compiling a kernel compiles the kernels that it calls. Numba's compiler lock lets one thread
    in at a time, so nothing here needs a lock of its own.
    """

    def __init__(self):
        self.compiled, self.loaded, self.seconds = 0, 0, 0.0
        self._depth, self._started, self._said = 0, None, False
        self._lock, self._patience = None, LOCK_SECONDS

    def __enter__(self):
        self._depth += 1

    def __exit__(self, *exc_info):
        self._depth -= 1
        if self._depth or self._started is None:
            return
        self.seconds += time.perf_counter() - self._started
        self._started = None
        if self._lock is not None:
            os.close(self._lock)  # and thereby unlocks
            self._lock = None
        self._erase()

    def begin(self, name):
        """The kernel `name` is not in the cache: its compilation starts."""
        if self._started is None:
            self._started = time.perf_counter()
        self._say(name)

    def lock(self, folder, until):
        """Wait for the right to fill `folder`: no longer than the file `until` is missing, nor than LOCK_SECONDS.

        The system drops the lock of a process that dies. Without the lock (its holder is stopped, or the file system
        has no locks) two processes may write the same file: each writes all of it, by a rename.
        """
        if self._lock is not None or fcntl is None:
            return
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + self._patience
        while not until.exists():
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):  # another process holds it
                if time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                self._patience = 0.0
            except OSError:  # no locks here
                self._patience = 0.0
            else:
                self._lock = lock
                for leftover in folder.glob("*.tmp"):  # of a process that was killed while it wrote
                    leftover.unlink(missing_ok=True)
                return
            break
        os.close(lock)

    def _say(self, name):
        if os.environ.get("SCRATCHNET_QUIET") == "1":
            return
        line = "scratchnet: compiling kernels for this CPU, once"
        if sys.stderr.isatty():
            print(f"\r\033[K{line}: {self.compiled} done, {name} ...", end="", file=sys.stderr, flush=True)
        elif not self._said:
            print(f"{line} ...", file=sys.stderr, flush=True)
        if not self._said:
            atexit.register(self._summarise)
            self._said = True

    def _erase(self):
        if self._said and sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def _summarise(self):
        kept = f"kept in {_folder()}" if _folder() else "not kept: no writable cache folder"
        print(f"scratchnet: compiled {self.compiled} kernels in {self.seconds:.1f} s ({kept})", file=sys.stderr)


_session = _Session()


class _Kernel(CPUDispatcher):
    """Numba's dispatcher with our cache and our progress note."""

    def __init__(self, py_func, locals=None, targetoptions=None, **kwargs):
        super().__init__(py_func, locals=locals, targetoptions=targetoptions, **kwargs)
        self._cache = _DiskCache(py_func, targetoptions)

    def compile(self, sig):
        with global_compiler_lock, _session:
            return super().compile(sig)


# --- the cache on disk -----------------------------------------------------------------------------------------------


class _DiskCache(_Cache):
    """The machine code of one kernel: one file per signature, named by a digest of all that determines its content.

    Numba's own cache keeps an index file that concurrent processes corrupt, and does not see a change in a callee of
    another file. Here there is no index, a file appears whole by a rename, and a checksum guards it.
    """

    def __init__(self, py_func, options):
        self._py_func, self._options = py_func, options

    @property
    def cache_path(self):
        return _folder()

    def load_overload(self, sig, target_context):
        # The memory runtime is all that loading needs; `refresh` would import half of Numba, and SciPy: 0.4 s.
        rtsys.initialize(target_context)
        file = self._file(sig, target_context.codegen())
        result = self._read(file, target_context)
        if result is None and file is not None:
            with contextlib.suppress(OSError):
                _session.lock(file.parent, until=file)
            result = self._read(file, target_context)  # another process may have written it meanwhile
        if result is not None:
            _session.loaded += 1
            return result
        _session.begin(self._py_func.__name__)
        target_context.refresh()
        return None

    def save_overload(self, sig, result):
        _session.compiled += 1
        file = self._file(sig, result.codegen)
        if file is None or result.lifted or result.library.has_dynamic_globals:
            return
        payload = dumps(result._reduce())
        with contextlib.suppress(OSError):  # a full disk costs the cache, not the run
            _write_whole(file, hashlib.sha256(payload).digest() + payload)

    def _read(self, file, target_context):
        if file is None:
            return None
        try:
            content = file.read_bytes()
        except OSError:
            return None
        digest, payload = content[:32], content[32:]
        if hashlib.sha256(payload).digest() != digest:
            return None
        return CompileResult._rebuild(target_context, *pickle.loads(payload))

    def _file(self, sig, codegen):
        """The file for one signature, or None: no folder, or a function whose meaning its source file does not fix."""
        function, folder = self._py_func, _folder()
        source = _source_digest(function.__code__.co_filename)
        if folder is None or source is None or function.__closure__:
            return None
        argument_types, _ = sigutils.normalize_signature(sig)
        key = (
            function.__module__,
            function.__qualname__,
            getattr(function, "__bindings__", None),
            _code_key(function.__code__),
            source,
            sorted(self._options["fastmath"]),
            self._options["parallel"],
            str(argument_types),
            codegen.magic_tuple(),
        )
        return folder / f"{function.__name__}-{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}.nbc"

    def enable(self):
        pass

    def disable(self):
        pass

    def flush(self):
        pass


def _code_key(code):
    constants = [_code_key(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return code.co_firstlineno, code.co_code, code.co_names, code.co_varnames, constants


@functools.cache
def _source_digest(path):
    """A digest of one source file, or None when there is none (a function typed at a prompt)."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return None


def _package_digest():
    """A digest of everything that kernels of this package compile to: sources, versions, the CPU."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    versions = (platform.python_version(), np.__version__, numba.__version__, llvmlite.__version__)
    digest.update(repr((versions, llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())).encode())
    return digest.hexdigest()[:16]


# Taken at import, like the code itself: a source that is edited while this process runs must not pass for what it runs.
_PACKAGE_DIGEST = _package_digest()


@functools.cache
def _folder():
    """This version's cache folder, created if need be, or None where there is no place to write."""
    base = os.environ.get("SCRATCHNET_CACHE_DIR")
    if not base:
        home = os.environ.get("XDG_CACHE_HOME", "")
        base = os.path.join(home if os.path.isabs(home) else os.path.expanduser("~/.cache"), "scratchnet")
    folder = Path(base).absolute() / f"kernels-{_PACKAGE_DIGEST}"
    try:
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _remove_stale(folder.parent)
        tempfile.TemporaryFile(dir=folder).close()
        os.utime(folder)  # "used today", for `_remove_stale`
    except OSError:
        return None
    return folder


def _remove_stale(base):
    for other in base.glob("kernels-*"):
        if time.time() - other.stat().st_mtime > STALE_DAYS * 86400:
            shutil.rmtree(other, ignore_errors=True)


def _write_whole(file, content):
    """Write `file` so that others see all of it or nothing."""
    handle, temporary = tempfile.mkstemp(prefix=file.stem, suffix=".tmp", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
