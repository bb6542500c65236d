"""Machine code on disk, so that a kernel is compiled once for this machine and not once a process.

The folder is `SCRATCHNET_CACHE_DIR`, else `$XDG_CACHE_HOME/scratchnet`, else `~/.cache/scratchnet`; in it, one
subfolder for each state of the sources of this package folder, versions of Python, NumPy, Numba and llvmlite, and CPU.
Without one everything works, and compiles anew in each process; one that is read-only serves as far as it goes.
`SCRATCHNET_QUIET=1` silences the note on stderr that the first run is compiling.
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
from numba.core import sigutils
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.runtime.nrt import rtsys
from numba.core.serialize import dumps

try:
    import fcntl
except ImportError:  # no file locks on Windows: two cold processes then compile the same kernels, each correctly
    fcntl = None  # type: ignore[assignment]

# Files that kernels are compiled from, in this package.
SOURCES = (
    "native/*.py",
    "kernels/*.py",
    "kernels/cpu/*.py",
    "parallel/comm/*.py",
    "parallel/pool/claims.py",
    "data/rows.py",
)

LOCK_SECONDS = 60.0  # how long to wait for another process that compiles, before compiling the same kernel ourselves
STALE_DAYS = 60  # subfolders of other versions that nobody used for so long are removed


class CompileStats(NamedTuple):
    """What this process compiled, what it found in the cache, and the seconds that the compiling took."""

    compiled: int
    loaded: int
    seconds: float


class _Session:
    """Counts compilations, tells the user, and holds the lock of the cache folder while this process compiles.

    A re-entrant context: compiling a kernel compiles the kernels that it calls. It is entered under Numba's compiler
    lock, which lets one thread in at a time, so nothing here needs a lock of its own.
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

    def fetch(self, name, file):
        """The content of `file`; None if it has to be made, and then this process has the right to make it."""
        content = _read(file)
        if content is None and file is not None:
            with contextlib.suppress(OSError):
                self._wait(file)
            content = _read(file)  # another process may have made it meanwhile
        if content is not None:
            self.loaded += 1
            return content
        if self._started is None:
            self._started = time.perf_counter()
        self._say(name)
        return None

    def keep(self, file, content):
        """`content` was made: `file` will have it next time."""
        self.compiled += 1
        if file is not None:
            with contextlib.suppress(OSError):  # a full disk costs the cache, not the run
                _write(file, content)

    def _wait(self, file):
        """Wait for the right to fill the folder: no longer than `file` is missing, nor than LOCK_SECONDS.

        The system drops the lock of a process that dies. Without the lock (its holder is stopped, or the file system
        has no locks) two processes may write the same file: each writes all of it, by a rename.
        """
        if self._lock is not None or fcntl is None:
            return
        lock = os.open(file.parent / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + self._patience
        while not file.exists():
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
                for leftover in file.parent.glob("*.tmp"):  # of a process that was killed while it wrote
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
        folder = _folder()
        kept = f"kept in {folder}" if folder and os.access(folder, os.W_OK) else "not kept: no writable cache folder"
        print(f"scratchnet: compiled {self.compiled} kernels in {self.seconds:.1f} s ({kept})", file=sys.stderr)


session = _Session()


class KernelCache(_Cache):
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
        content = session.fetch(self._py_func.__name__, self._file(sig, target_context.codegen()))
        if content is None:
            target_context.refresh()
            return None
        result = CompileResult._rebuild(target_context, *pickle.loads(content))
        # What starts the threads. A caller that is compiled later inherits it from here, which Numba forgets: loaded
        # from the cache by a third process, the caller would run its parallel loop without threads, and crash.
        result.library._reload_init.update(result.reload_init)
        return result

    def save_overload(self, sig, result):
        cachable = not result.lifted and not result.library.has_dynamic_globals
        session.keep(self._file(sig, result.codegen) if cachable else None, dumps(result._reduce()))

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
        return folder / f"{function.__name__}-{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}.kernel"

    def enable(self):
        pass

    def disable(self):
        pass

    def flush(self):
        pass


def object_code(name, compile_object):
    """What `compile_object()` returns, as bytes, from this package's own LLVM module `name`."""
    with global_compiler_lock, session:
        file = _folder() and _folder() / f"{name}.object"
        code = session.fetch(name, file)
        if code is None:
            code = compile_object()
            session.keep(file, code)
        return code


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
    package = Path(__file__).parents[1]
    for path in sorted(path for pattern in SOURCES for path in package.glob(pattern)):
        digest.update(path.name.encode() + path.read_bytes())
    versions = (platform.python_version(), np.__version__, numba.__version__, llvmlite.__version__)
    digest.update(repr((versions, llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())).encode())
    return digest.hexdigest()[:16]


# Taken at import, like the code itself: a source that is edited while this process runs must not pass for what it runs.
_PACKAGE_DIGEST = _package_digest()


@functools.cache
def _folder():
    """This version's cache folder, created if need be; it may be one that can only be read. None: there is none."""
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
    handle, temporary = tempfile.mkstemp(prefix=file.stem, suffix=".tmp", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(hashlib.sha256(content).digest() + content)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
