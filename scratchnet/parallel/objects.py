"""Objects that travel to other processes of a job, as bytes.

Functions and classes travel by value where another process could not import them (cloudpickle), with the globals that
they name. So a worker never runs the caller's main program: it may be a script without `if __name__ == "__main__"`, a
notebook, a prompt or stdin. A class of the main program that comes back is the very class that was sent.
"""

import contextlib
import functools
import io
import mmap
import os
import pickle
import random
import threading
import types
import weakref
from collections.abc import Iterator
from typing import Any

import cloudpickle
import numpy as np

from ..errors import ConfigError
from .comm.memory import SharedMemory, round_up
from .modules import MAIN, Modes, Modules, of_no_file

LARGE = 1 << 16  # bytes from which an array lies beside the others, see SharedObject
DEPTH = 8  # of the path to what cannot be sent
_registering = threading.RLock()


def _code(code: types.CodeType) -> tuple[Any, ...]:
    """As cloudpickle, which forgets the file: a traceback of a worker shows the user's lines."""
    make, *rest = cloudpickle.Pickler.dispatch_table[types.CodeType](code)
    return make, tuple([code.co_filename if x == "<dynamic-code>" else x for x in rest[0]]), *rest[1:]


def _cached(function: Any) -> Any:
    """A function below `functools.cache`, which pickle knows by its name alone, by value as cloudpickle does others."""
    is_local = "<locals>" in function.__qualname__
    if is_local or function.__module__ in (*MAIN, *cloudpickle.list_registry_pickle_by_value()):
        return _cache_again, (function.__wrapped__, function.cache_parameters())
    return function.__reduce__()


def _cache_again(function: Any, options: dict[str, Any]) -> Any:
    return functools.lru_cache(**options)(function)


class _Pickler(cloudpickle.Pickler):
    # A process has locks of its own: whoever holds one here holds nothing there.
    dispatch_table = cloudpickle.Pickler.dispatch_table.new_child(
        {
            type(functools.cache(len)): _cached,
            weakref.WeakKeyDictionary: lambda weak: (weakref.WeakKeyDictionary, (dict(weak),)),
            weakref.WeakValueDictionary: lambda weak: (weakref.WeakValueDictionary, (dict(weak),)),
            weakref.WeakSet: lambda weak: (weakref.WeakSet, (list(weak),)),
            types.CodeType: _code,
            type(threading.Lock()): lambda lock: (threading.Lock, ()),
            type(threading.RLock()): lambda lock: (threading.RLock, ()),
            threading.local: lambda local: (threading.local, (), vars(local) or None),
        }
    )


def dumps(value: Any, large: list[pickle.PickleBuffer] | None = None) -> bytes:
    """`value` as bytes. Arrays of `LARGE` bytes or more are appended to the list `large` instead, if there is one."""
    stream = io.BytesIO()

    def stays_inside(buffer: pickle.PickleBuffer) -> bool:
        if large is None or buffer.raw().nbytes < LARGE:
            return True
        large.append(buffer)
        return False

    with _by_value():
        _Pickler(stream, pickle.HIGHEST_PROTOCOL, buffer_callback=stays_inside).dump(value)
    return stream.getvalue()


loads = pickle.loads  # what `dumps` made


@contextlib.contextmanager
def _by_value() -> Iterator[None]:
    """Inside, functions and classes of modules that nobody can import travel by value."""
    with _registering:
        mine = [module for module in of_no_file() if module.__name__ not in cloudpickle.list_registry_pickle_by_value()]
        for module in mine:
            cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            for module in mine:
                cloudpickle.unregister_pickle_by_value(module)


class SharedObject:
    """An object in shared memory: it is written once, and any number of processes `open` it.

    Its large arrays are there once for all processes. A process that writes to one gets a copy of the pages that it
    changes, so nobody else sees it.

    expected: begins the message of the ConfigError that is raised if the object cannot be sent.
    """

    def __init__(self, value: Any, expected: str):
        large: list[pickle.PickleBuffer] = []
        try:
            self.modules = Modules()
            data = dumps((value,), large)
        except ConfigError:
            raise
        except Exception as error:  # whatever a __reduce__ may raise
            reason = (str(error) or "no reason given").splitlines()[0]
            where = culprit(value) or "it"
            raise ConfigError(
                f"{expected}: {type(error).__name__}: {reason}, in {where}; make it in the worker, at its first use, "
                "or leave it out by __getstate__"
            ) from None
        parts = [memoryview(data), memoryview(dumps((self.modules, Modes()))), *(buffer.raw() for buffer in large)]
        self.extents: list[tuple[int, int, bool]] = []  # offset, bytes, read-only
        size = 0
        for part in parts:
            self.extents.append((size, part.nbytes, part.readonly))
            size = round_up(size + part.nbytes)
        self.memory, self._owner = SharedMemory(size), os.getpid()
        for (offset, nbytes, _), part in zip(self.extents, parts, strict=True):
            self.memory.array(offset, nbytes, np.uint8)[...] = np.frombuffer(part, np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "modules"}

    def open(self) -> Any:
        memory = memoryview(mmap.mmap(self.memory.fd, self.memory.size, mmap.MAP_PRIVATE))
        parts = [memory[offset : offset + nbytes] for offset, nbytes, _ in self.extents]
        if os.getpid() != self._owner:
            for part in loads(parts[1]):
                part.install()
        read_only = [readonly for *_, readonly in self.extents]
        buffers = [part.toreadonly() if alone else part for part, alone in zip(parts, read_only, strict=True)]
        return loads(parts[0], buffers=buffers[2:])[0]


def culprit(value: Any, path: str = "", depth: int = DEPTH) -> str:
    """The path to the innermost part of `value` that cannot be sent, such as "dataset.file"; empty if it can be."""
    for name, part in _parts(value):
        try:
            dumps(part)
        except Exception:
            inner = f"{path}{name}"
            return culprit(part, inner, depth - 1) if depth else inner
    return path.lstrip(".")


GENERATORS = (np.random.Generator, np.random.RandomState, random.Random)


def generator_in(value: Any, path: str, depth: int = 6) -> str | None:
    """The path to a generator of random numbers that an object keeps; None if none is found a few steps from it."""
    if isinstance(value, GENERATORS):
        return path
    if depth and not (isinstance(value, list | tuple | dict) and len(value) > 100):
        parts = [(name, x) for name, x in _parts(value) if not isinstance(x, types.ModuleType | types.FunctionType)]
        return next(filter(None, (generator_in(part, path + name, depth - 1) for name, part in parts)), None)
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object is made of, and how one gets there from it; another thread may change it meanwhile."""
    if isinstance(value, types.FunctionType):
        names = value.__code__.co_names
        yield from ((f".{name}", value.__globals__[name]) for name in names if name in value.__globals__)
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # an empty cell
                yield f".{name}", cell.cell_contents
    elif isinstance(value, dict):
        yield from ((f"[{key!r}]", part) for key, part in list(value.items()))
    elif isinstance(value, list | tuple):
        yield from ((f"[{i}]", part) for i, part in enumerate(value))
    elif not isinstance(value, type | types.ModuleType):
        yield from ((f".{name}", part) for name, part in list(getattr(value, "__dict__", {}).items()))
