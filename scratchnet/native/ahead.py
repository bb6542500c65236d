"""Kernels compiled ahead: while a job compiles what it needs first, a helper process compiles what it will need last.

A list says which kernels a job calls. As soon as one of them has to be compiled, the helper starts and goes through the
list from its end, leaving out what is there or being compiled (see cache.py). The job finds in the cache what the
helper made, and waits for what it is making. The helper ends with its list or with the job, whichever comes first. If
it dies, the job compiles everything itself.

`SCRATCHNET_COMPILERS=1` keeps the helper away.

Kernels loaded ahead: a process that forks others loads what earlier ones of these told it that they needed, so that the
next have it from their first instant.
"""

import atexit
import contextlib
import os
import signal
import subprocess
import sys

import numba
from numba.core import types

from . import compile
from .cache import TakenError, fcntl, session, writable_folder
from .compile import JIT_ENABLED, MAX_THREADS, kernels

# Argument types as a list writes them: a letter of NumPy's for a number; with a digit, a C-contiguous array of so many
# dimensions; parentheses for a tuple.
_LETTERS = {"?": types.boolean, "B": types.uint8, "l": types.int64, "f": types.float32, "d": types.float64}

_module = ""  # that makes the kernels on the list
_wanted: list[str] = []  # the list: "module.kernel: types"


def write_types(arguments):
    """The argument types of a call as a list writes them: "f2 f2 l ?"."""
    letters = {kind: letter for letter, kind in _LETTERS.items()}
    words = []
    for kind in arguments:
        if isinstance(kind, types.BaseTuple):
            words.append(f"({write_types(kind.types)})")
        else:
            words.append(f"{letters[kind.dtype]}{kind.ndim}" if isinstance(kind, types.Array) else letters[kind])
    return " ".join(words)


def read_types(text):
    """The inverse of `write_types`, as a tuple."""
    words = iter(text.replace("(", "( ").replace(")", " )").split())

    def until(end):
        found: list = []
        for word in words:
            if word == end:
                break
            if word == "(":
                found.append(types.Tuple(until(")")))
            else:
                kind = _LETTERS[word[0]]
                found.append(types.Array(kind, int(word[1:]), "C") if word[1:] else kind)
        return tuple(found)

    return until(None)


def offer(module, lines):
    """When a kernel of these `lines` has to be compiled, let a helper compile the rest; it imports `module` first."""
    global _module, _wanted
    _module, _wanted = module, lines
    if JIT_ENABLED and MAX_THREADS > 1 and fcntl is not None and os.environ.get("SCRATCHNET_COMPILERS") != "1":
        names = {line.partition(":")[0].rpartition(".")[2] for line in lines}
        session.before_compiling.append(lambda name: _start() if name in names else None)


def _start():
    session.before_compiling.clear()  # once
    if not writable_folder():  # nothing that the helper made would be found
        return
    code = f"import sys; sys.path[:] = {sys.path}; import {_module}; from {__name__} import work; work({os.getpid()})"
    if sys.platform == "linux":  # PR_SET_PDEATHSIG: however the job ends, the helper is killed
        code = f"import ctypes; ctypes.CDLL(None).prctl(1, {signal.SIGKILL:d}); {code}"
    environment = {"SCRATCHNET_COMPILERS": "1", "SCRATCHNET_QUIET": "1"}
    none = subprocess.DEVNULL
    try:
        helper = subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | environment,
            stdin=none,
            stdout=none,
            stderr=none,
            start_new_session=True,  # Ctrl-C asks only the job to end
        )
    except OSError:
        return
    atexit.register(_end, helper)


def _end(helper):
    helper.kill()
    helper.wait()


def work(parent):
    """The helper: compile what the list has, from its end, until it is through or the parent is gone."""
    session.skips_taken = True
    for line in reversed(_wanted):
        if os.getppid() != parent:
            return
        _compile(line)


def _compile(line):
    """Compile or load a kernel, unless that is for another process; one of a module that is not here is left out."""
    from . import execute  # noqa: F401 - has kernels on lists, too

    name, _, arguments = line.partition(":")
    if name in kernels:
        with contextlib.suppress(TakenError):
            kernels[name].compile(read_types(arguments))


# --- before a fork ----------------------------------------------------------------------------------------------------

# With these, GNU OpenMP binds the thread in which it is loaded to a core, which forked processes would inherit.
BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY")


def tell(line_is_needed):
    """Call `line_is_needed("module.kernel: types")` for each kernel that this process loads from now on."""

    def listen(kernel, kinds):
        with contextlib.suppress(KeyError, ValueError):  # a type without a letter; no threads yet
            if numba.threading_layer() == "omp" and not any(name in os.environ for name in BINDING):
                line_is_needed(f"{kernel.__module__}.{kernel.__qualname__}: {write_types(kinds)}")

    compile.listeners[:] = [listen]


def load(lines):
    """Load the kernels that `tell` told of, if this process has their modules and they are kept.

    It may fork others from now on, but runs no kernel.
    """
    compile.runs, session.only_loads = False, True
    for line in lines:
        _compile(line)


def begin():
    """In a process that was forked by one that loads: run kernels, and count one's own."""
    compile.runs, session.only_loads, session.loaded = True, False, 0
