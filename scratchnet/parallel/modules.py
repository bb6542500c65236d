"""The user's modules as they are when a run begins, for its workers: what they import is what this process has.

A worker that starts later would read a file that has been edited by then, and compute something else, in silence. And
some modules no other process finds by their name: those that a plugin loader or pytest's importlib mode made. So the
code of each module outside the installed packages is sent along. Installed files are only watched. Last, what a program
set for its whole process holds for its workers, too.
"""

import contextlib
import decimal
import functools
import importlib.abc
import importlib.machinery
import inspect
import marshal
import os
import site
import sys
import sysconfig
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import ConfigError

PACKAGE = Path(__file__).parents[1]
MAIN = ("__main__", "__mp_main__")  # the main program, whose functions travel by value; multiprocess names it twice


class Module(NamedTuple):
    """A module of the user's: its compiled code, its file, and where its submodules are if it is a package."""

    code: bytes
    file: str | None
    search: tuple[str, ...] | None


class Modules:
    """The modules that this process has loaded, to be `installed` in another one.

    Raises ConfigError for a module whose file was edited after it was imported: a worker would run the new code, this
    process runs the old one.
    """

    def __init__(self) -> None:
        self.own: dict[str, Module] = {}
        self._stamps: dict[str, tuple[int, int] | None] = {}  # of the files of installed modules
        folders, began = _installed_folders(), _start_of_this_process()
        for name, module in list(sys.modules.items()):
            if name in MAIN or not isinstance(module, types.ModuleType):
                continue
            file, search = getattr(module, "__file__", None), _search_of(module)
            if file is not None and file.startswith(folders):
                self._stamps[file] = _stamp(file)
            elif search is not None and file is None:  # a folder without __init__.py
                if not all(folder.startswith(folders) for folder in search):
                    self.own[name] = Module(_EMPTY, None, search)
            elif file is not None and (code := _code_of(name, module, file, began)) is not None:
                _require_unedited(name, module, file, code, began)
                self.own[name] = Module(marshal.dumps(code), file, search)
            elif file is not None:
                self._stamps[file] = _stamp(file)

    def install(self) -> None:
        """From here on this process imports these modules instead of what is in their files by now."""
        sys.meta_path.insert(0, _Finder(self.own))

    def changed(self) -> str | None:
        """An installed file that is not what it was when the run began, or None."""
        return next((file for file, stamp in self._stamps.items() if _stamp(file) != stamp), None)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, modules: dict[str, Module]):
        self.modules = modules

    def find_spec(self, name, path=None, target=None):
        found = self.modules.get(name)
        if found is None:
            return None
        spec = importlib.machinery.ModuleSpec(name, self, origin=found.file, is_package=found.search is not None)
        spec.has_location = found.file is not None
        if found.search is not None:
            spec.submodule_search_locations = list(found.search)
        return spec

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(marshal.loads(self.modules[module.__name__].code), vars(module))


_EMPTY = marshal.dumps(compile("", "", "exec"))


def of_no_file() -> list[types.ModuleType]:
    """Modules that nobody can import, although `sys.modules` has their names: made in memory, or their file is gone."""
    folders = _installed_folders()
    return [
        module
        for name, module in list(sys.modules.items())
        if type(module) is types.ModuleType
        and name == module.__name__
        and name not in MAIN
        and getattr(module, "__path__", None) is None
        and _is_lost(module, getattr(module, "__file__", None), folders)
    ]


def _is_lost(module: types.ModuleType, file: str | None, installed: tuple[str, ...]) -> bool:
    if file is not None:
        return not file.startswith(installed) and not os.path.exists(file)
    return getattr(getattr(module, "__spec__", None), "origin", None) is None  # else built in, or frozen


@functools.cache
def _installed_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    found = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")} | {str(PACKAGE)}
    with contextlib.suppress(AttributeError):  # an embedded Python may have no `site`
        found |= {*site.getsitepackages(), site.getusersitepackages()}
    return tuple(folder + os.sep for folder in found | {os.path.realpath(folder) for folder in found})


def _search_of(module: types.ModuleType) -> tuple[str, ...] | None:
    search = getattr(module, "__path__", None)
    with contextlib.suppress(TypeError):
        return None if search is None else tuple(map(str, search))
    return None


def _code_of(name: str, module: types.ModuleType, file: str, began: float) -> types.CodeType | None:
    """The code in the module's file; None for an extension module, or a file that is gone.

    Python keeps compiled code, by second and size of the file. An edit may leave both as they are, so a file that was
    written since this process began is compiled anew.
    """
    loader, stamp = getattr(module, "__loader__", None), _stamp(file)
    if type(loader) is not importlib.machinery.SourceFileLoader or (stamp is not None and stamp[0] < began * 1e9):
        with contextlib.suppress(ImportError, OSError, SyntaxError, AttributeError, ValueError, UnicodeDecodeError):
            return loader.get_code(name)  # type: ignore[union-attr]
    with contextlib.suppress(OSError, SyntaxError, ValueError, UnicodeDecodeError):
        if file.endswith(".py"):
            return compile(Path(file).read_bytes(), file, "exec", dont_inherit=True)
    return None


def _stamp(file: str) -> tuple[int, int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


# --- edited files -----------------------------------------------------------------------------------------------------


def _start_of_this_process() -> float:
    """Seconds since the epoch; what was last written before was not edited since its import. 0 where it is unknown."""
    with contextlib.suppress(OSError):
        return os.stat("/proc/self").st_mtime - 1.0
    return 0.0


def _require_unedited(name: str, module: types.ModuleType, file: str, code: types.CodeType, began: float) -> None:
    stamp = _stamp(file)
    if type(getattr(module, "__loader__", None)) is not importlib.machinery.SourceFileLoader:
        return  # another loader may change what it reads
    if stamp is None or stamp[0] < began * 1e9:
        return
    written: dict[str, list[tuple]] = {}  # a name may stand for several functions: lambdas, the branches of an `if`
    for found in _codes_in(code):
        written.setdefault(found.co_qualname, []).append(_meaning(found))
    for function in _functions_of(module):
        now = written.get(function.__code__.co_qualname)
        if now is not None and _meaning(function.__code__) not in now:
            raise ConfigError(
                f"workers: expected {file} as it was when {name} was imported, found {function.__qualname__} edited; "
                f"importlib.reload({name}), or start again"
            )


def _codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _codes_in(constant)


def _functions_of(owner: Any) -> Iterator[types.FunctionType]:
    """The functions and methods that a module defines."""
    module = owner.__name__ if inspect.ismodule(owner) else owner.__module__
    for value in list(vars(owner).values()):
        value = getattr(value, "__func__", value)  # of a classmethod or staticmethod
        if isinstance(value, types.FunctionType) and value.__module__ == module:
            yield value
        elif isinstance(value, type) and value.__module__ == module:
            found = list(vars(value).values())
            yield from (f for f in found if isinstance(f, types.FunctionType) and f.__module__ == module)


def _meaning(code: types.CodeType) -> tuple:
    """What a function does, wherever its lines are."""
    constants = [_meaning(c) if isinstance(c, types.CodeType) else (type(c), repr(c)) for c in code.co_consts]
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, constants


# --- modes of the process ---------------------------------------------------------------------------------------------


def _filters() -> list[tuple]:
    """Of warnings that every process knows: to know a category of another library, it would have to import that."""
    entries = list(warnings.filters)  # at once: other threads have `catch_warnings`, too
    texts = [(getattr(m, "pattern", m) or "", getattr(n, "pattern", n) or "") for _, m, _, n, _ in entries]
    both = zip(entries, texts, strict=True)
    return [(e[0], text, e[2], module, e[4]) for e, (text, module) in both if e[2].__module__ == "builtins"]


def _set_filters(filters: list[tuple]) -> None:
    warnings.resetwarnings()
    for action, text, category, module, line in filters:
        warnings.filterwarnings(action, text, category, module, line, append=True)


# name -> (what it is now, how to set it). A process inherits the environment, the folder, umask and limits by itself.
MODES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "errors of NumPy": (np.geterr, lambda mode: np.seterr(**mode)),
    "warnings": (_filters, _set_filters),
    "decimal": (lambda: decimal.getcontext().copy(), decimal.setcontext),
    "recursion": (sys.getrecursionlimit, sys.setrecursionlimit),
    "digits of an int": (sys.get_int_max_str_digits, sys.set_int_max_str_digits),
}


class Modes:
    """The modes of this process, to be `installed` in another one, which is started afresh."""

    def __init__(self) -> None:
        self.values = {name: get() for name, (get, _) in MODES.items()}

    def install(self) -> None:
        for name, value in self.values.items():
            MODES[name][1](value)
