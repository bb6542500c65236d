"""Machine code on disk: a kernel is compiled once for this machine, not once a process.

The folder is `SCRATCHNET_CACHE_DIR`, else `$XDG_CACHE_HOME/scratchnet`, else `~/.cache/scratchnet`. It has a subfolder
for each combination of kernel sources, CPU, and versions of Python, NumPy, Numba and llvmlite. A read-only folder is
read; without a folder each process compiles for itself.

Processes fill a folder together: each locks the kernel that it compiles, and whoever needs the same one waits for it.
Numba's own cache cannot be filled like this (numba#4807): its processes overwrite an index. Here is none; a file
appears whole, by a rename, under a name that says what it holds.

`SCRATCHNET_QUIET=1` silences the note on stderr that the first run is compiling.
"""

import atexit
import contextlib
import functools
import gc
import hashlib
import io
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
from numba.core import sigutils
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.environment import Environment, _rebuild_env
from numba.core.runtime import _nrt_python
from numba.core.serialize import dumps

try:
    import fcntl
except ImportError:  # no file locks on Windows: two cold processes then compile the same kernels, each correctly
    fcntl = None  # type: ignore[assignment]

# The files of this package that kernels are compiled from: a change in any of them gives the subfolder another name.
# tests/native/test_cache.py checks that whatever such a file imports is in the list.
SOURCES = (
    "native/*.py",
    "kernels/*.py",
    "kernels/cpu/*.py",
    "parallel/comm/*.py",
    "parallel/phases.py",
    "parallel/pool/claims.py",
    "data/rows.py",
)

LOCK_SECONDS = 60.0  # to wait for a kernel that another process compiles, before compiling it here, too
STALE_DAYS = 60  # after which an unused subfolder is removed


class CompileStats(NamedTuple):
    """What this process compiled, what it found in the cache, and the seconds that the compiling took."""

    compiled: int
    loaded: int
    seconds: float


class TakenError(Exception):
    """This kernel is for another process to compile, or is being compiled there."""


class _Session:
    """Counts compilations, tells the user, and holds the locks of the kernels that this process compiles.

    A re-entrant context: compiling a kernel compiles the kernels that it calls. It is entered under Numba's compiler
    lock, which lets one thread in at a time, so nothing here needs a lock of its own. Meanwhile Python looks for no
    garbage, which a compiler has little of: that took a tenth of the time.
    """

    def __init__(self):
        self.compiled, self.loaded, self.seconds = 0, 0, 0.0
        self.skips_taken = False  # raise TakenError where another process compiles the kernel that was asked for?
        self.only_loads = False  # raise it where the kernel is not there?
        self.before_compiling = []  # functions that are called with the name of a kernel that has to be compiled
        self._depth, self._started, self._said, self._collects = 0, None, False, False
        self._locks, self._patience = None, LOCK_SECONDS
        self._lost = None  # why a kernel could not be kept

    def __enter__(self):
        if self._depth == 0:
            self._collects = gc.isenabled()
            gc.disable()
        self._depth += 1

    def __exit__(self, *exc_info):
        self._depth -= 1
        if self._depth:
            return
        if self._collects:
            gc.enable()
        if self._locks is not None:
            os.close(self._locks)  # and thereby unlocks all
            self._locks = None
        if self._started is not None:
            self.seconds += time.perf_counter() - self._started
            self._started = None
            self._erase()

    def fetch(self, name, file):
        """The content of `file`; None if it has to be made, and then this process has the right to make it."""
        content = _read(file)
        if content is None and self.only_loads:
            raise TakenError(name)
        if content is None and file is not None:
            with contextlib.suppress(OSError):
                self._lock(file)
            content = _read(file)  # another process may have made it meanwhile
        if content is not None:
            self.loaded += 1
            return content
        if self._started is None:
            self._started = time.perf_counter()
        self._say(name)
        for action in self.before_compiling:
            action(name)
        return None

    def keep(self, file, content):
        """`content` was made: `file` will have it next time."""
        self.compiled += 1
        if file is not None:
            try:
                _write(file, content)
            except OSError as error:  # a full disk costs the cache, not the run
                self._lost = error.strerror

    def _lock(self, file):
        """Wait for the right to make `file`: no longer than it is missing, nor than LOCK_SECONDS.

        The locks are single bytes of one file, at an offset that the name determines. The system drops those of a
        process that dies. Where a lock cannot be had (its holder is stopped, or the file system has no locks), two
        processes may make the same file: each writes all of it.
        """
        if fcntl is None:
            return
        if self._locks is None:  # one descriptor for all: closing any descriptor of a file drops all locks on it
            self._locks = os.open(file.parent / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        offset = int.from_bytes(hashlib.sha256(file.name.encode()).digest()[:7])
        deadline = time.monotonic() + self._patience
        while not file.exists():
            try:
                fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
            except (BlockingIOError, PermissionError):  # another process has it
                if self.skips_taken and self._depth == 1:
                    raise TakenError(file.name) from None
                if time.monotonic() >= deadline:
                    self._patience = 0.0
                    return
                time.sleep(0.02)
            else:
                for leftover in file.parent.glob(f"{file.stem}.*.tmp"):  # of a process that was killed while it wrote
                    leftover.unlink(missing_ok=True)
                return

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
        folder = writable_folder()
        kept = f"kept in {folder}" if folder else "not kept: no writable cache folder"
        if self._lost is not None:
            kept = f"not all {kept}: {self._lost}"
        print(f"scratchnet: compiled {self.compiled} kernels in {self.seconds:.1f} s ({kept})", file=sys.stderr)


session = _Session()


def _environment(module, constants, name):
    """What Numba keeps of a function for Python's objects in it: its module's names, and constants.

    A kernel has no such objects, so its module, perhaps one of Numba's that imports SciPy (0.1 s), need not be there.
    """
    found = Environment._memo.get(name)
    if found is None and not constants:
        found = Environment({"__name__": module})
        found.env_name = name
        Environment._memo[name] = found
    return found or _rebuild_env(module, constants, name)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        found = super().find_class(module, name)
        return _environment if found is _rebuild_env else found


class _Target:
    """Numba's target, as `CompileResult._rebuild` sees it: it makes a library of what was kept of one."""

    def __init__(self, target, library):
        self._target, self._library = target, library

    def codegen(self):
        return self

    def unserialize_library(self, kept):
        return self._library.load(self._target.codegen(), *kept)

    def get_executable(self, *arguments):
        return self._library.executable(self._target, *arguments)

    def __getattr__(self, name):
        return getattr(self._target, name)


@functools.cache
def _find_runtime():
    """Make Numba's memory runtime known to LLVM. Its own `rtsys.initialize` compiles some more, which takes 15 ms."""
    for name, address in _nrt_python.c_helpers.items():
        llvm.add_symbol(name if name.startswith("_") else f"NRT_{name}", address)


class KernelCache(_Cache):
    """The machine code of one kernel: a file for each signature, named by a digest of all that determines its content.

    Numba's own cache does not notice a change in a callee of another file; SOURCES is for that. `library` is the class
    of what is kept, Whole or Part of compile.py.
    """

    def __init__(self, py_func, options, library):
        self._py_func, self._options, self._library = py_func, options, library

    @property
    def cache_path(self):
        return _folder()

    def load_overload(self, sig, target_context):
        content = session.fetch(self._py_func.__name__, self._file(sig, target_context.codegen()))
        if content is None:
            target_context.refresh()  # half of Numba, and SciPy: 0.4 s, of which loading needs nothing
            return None
        _find_runtime()
        define_functions_in(content)
        state = _Unpickler(io.BytesIO(content)).load()
        result = CompileResult._rebuild(_Target(target_context, self._library), *state)
        # These functions start the threads. Numba forgets that a caller which is compiled later needs them, too: a
        # third process that loads the caller from the cache would run its parallel loop without threads, and crash.
        result.library._reload_init.update(result.reload_init)
        return result._replace(target_context=target_context)

    def save_overload(self, sig, result):
        cachable = not result.lifted and not result.library.has_dynamic_globals
        kept = dumps(self._library.to_keep(result._reduce(), result.library._final_module))
        session.keep(self._file(sig, result.codegen) if cachable else None, kept)

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
            self._library.__name__,
            str(argument_types),
            codegen.magic_tuple(),
        )
        return folder / f"{function.__name__}-{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}.kernel"

    def enable(self):
        pass

    def disable(self):
        pass

    def flush(self):
        pass


_definitions: dict = {}  # of functions that kernels call by name: what makes them known to LLVM


def define_later(names, action):
    """Call `action()` once, before this process runs code that calls LLVM functions of these names."""
    _definitions.update(dict.fromkeys(names, action))


def define_functions_in(code):
    """Make the functions known that machine code, as bytes, calls: it has their names in it."""
    for action in {action for name, action in _definitions.items() if name.encode() in code}:
        action()
        for name in [name for name, its_action in _definitions.items() if its_action is action]:
            del _definitions[name]


def object_code(name, compile_object):
    """What `compile_object()` returns, as bytes, from this package's own LLVM module `name`."""
    with global_compiler_lock, session:
        file = _folder() and _folder() / f"{name}.object"
        code = session.fetch(name, file)
        if code is None:
            code = compile_object()
            session.keep(file, code)
        return code


def kept_text(name, make):
    """A text that `make()` finds out about this machine, once for all processes; None where nothing can be kept."""
    if (folder := writable_folder()) is None:
        return None
    with global_compiler_lock, session:
        file = folder / f"{name}.text"
        found = session.fetch(name, file)
        if found is None:
            found = make().encode()
            session.keep(file, found)
        return found.decode()


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


def _sources(package):
    """The files of SOURCES below the package's folder."""
    return sorted(path for pattern in SOURCES for path in package.glob(pattern))


def _package_digest(package):
    """A digest of everything that determines what kernels compile to: sources, versions, the CPU."""
    digest = hashlib.sha256()
    for path in _sources(package):
        digest.update(repr((path.relative_to(package).parts, path.read_bytes())).encode())
    versions = (platform.python_version(), np.__version__, numba.__version__, llvmlite.__version__)
    digest.update(repr((versions, llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())).encode())
    return digest.hexdigest()[:16]


# Computed at import, like the code itself: when a source is edited later, this process still runs the old one.
_PACKAGE_DIGEST = _package_digest(Path(__file__).parents[1])


@functools.cache
def _folder():
    """This version's subfolder, created if need be, perhaps read-only; None if there is none."""
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
        return folder if os.path.isdir(folder) else None
    return folder


def writable_folder():
    """The same, or None if this process may not write to it."""
    folder = _folder()
    return folder if folder and os.access(folder, os.W_OK) else None


def _remove_stale(base):
    for other in base.glob("kernels-*"):
        if time.time() - other.stat().st_mtime > STALE_DAYS * 86400:
            shutil.rmtree(other, ignore_errors=True)


def _read(file):
    """The content of `file`, or None if it is missing or damaged."""
    if file is None:
        return None
    try:
        stored = file.read_bytes()
    except OSError:
        return None
    digest, content = stored[:32], stored[32:]
    return content if hashlib.sha256(content).digest() == digest else None


def _write(file, content):
    """Write `file`, with a checksum, so that others see all of it or nothing."""
    temporary = file.with_name(f"{file.stem}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(hashlib.sha256(content).digest() + content)
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
