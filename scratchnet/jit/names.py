"""Names: the Python values that a step can reach by name, and whether they are those that they were.

A replay runs no Python, so what Python would read must be as it was when the step was recorded: globals, variables of
enclosing functions, attributes of objects, options of layers. They are found by walking from the step over the code of
the user's functions; code of this package, of NumPy and of the standard library is not entered. Of tensors it only
matters which they are, as kernels read their memory where it lies.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dis
import functools
import operator
import random
import sys
import types
from collections.abc import Callable, Iterable
from importlib.util import resolve_name
from typing import Any

import numpy as np

from ..nn import Module
from ..optim import Optimizer
from ..stateful import Stateful, changes
from ..tensor import Tensor
from .trace import memory_of
from .values import content_of, is_same

MANY = 256  # a container of more entries is known by its length alone
LARGE = 1 << 14  # bytes; an array of more is not compared: its memory may be read where it lies, or not at all
TRUSTED = {"scratchnet", "numpy", "scipy", "numba", "multiprocess", "dill", "tqdm", *sys.stdlib_module_names} - {
    "__main__"
}
# Of the standard library, what holds values of the user: as attributes, in an attribute, as a container.
HOLDERS = (types.SimpleNamespace, argparse.Namespace)
HOLDERS_IN = {collections.UserDict: "data", collections.UserList: "data", collections.ChainMap: "maps"}
MAPPINGS = (dict, types.MappingProxyType)
CONTAINERS = (*MAPPINGS, list, tuple, set, frozenset, collections.deque)
# Who uses these may read any attribute.
DYNAMIC = {"getattr", "hasattr", "vars", "dir", "attrgetter", "methodcaller", "__dict__"}
MADE_WITH = "_arguments"  # of a layer, for whoever saves it: no step reads them
MAKERS = {"__init__", "__new__"}  # run where a class is called; its objects are made already
GETTERS = (operator.attrgetter, operator.methodcaller)  # made before the step
GENERATORS = (np.random.Generator, np.random.RandomState, random.Random)
_MISSING = object()


class Names:
    """What the functions and objects of a step can reach; made before it runs.

    seeded: the step seeds `random` and `np.random` itself, and looks whether they were drawn from.
    """

    def __init__(self, roots: Iterable[Any], seeded: bool = False):
        roots = list(roots)
        used: set[str] = set()
        while True:  # until no function is found that uses names which nobody looked for
            walk = _Walk(used)
            for root in roots:
                owner = getattr(root, "__self__", root)
                walk.visit(root, getattr(owner, "__name__", type(owner).__name__))
            if walk.used == used:
                break
            used = walk.used
        self.always, self.of_modules, self.arrays = walk.always, walk.of_modules, walk.arrays
        self._looks = [(holder.get, key, value) for holder, key, value, _ in self.always]
        generators: list[Any] = [x for x in walk.kept.values() if isinstance(x, GENERATORS)]
        generators += [] if seeded else [np.random, random]
        self._generators: list[tuple[Any, Any]] = [(x, _state(x)) for x in generators]
        self._kept, self._changes = walk.kept, changes()

    def hold(self) -> bool:
        """Is all as it was?"""
        for get, key, value in self._looks:
            if get(key, _MISSING) is not value:
                return self.changed() is None
        return (self._changes == changes() and not self.arrays) or self.changed() is None

    def changed(self) -> str | None:
        """The name of the first value that is another one now; None if all are as they were."""
        for holder, key, value, name in [*self.always, *self.of_modules]:
            if not is_same(holder.get(key, _MISSING), value):
                return name
        for array, numbers, name in self.arrays:
            if content_of(array) != numbers:
                return name
        self._changes = changes()
        return None

    def drew(self) -> str | None:
        """Which random numbers, of others than this package, were drawn since."""
        for generator, state in self._generators:
            if _state(generator) != state:
                return f"random numbers of {getattr(generator, '__name__', type(generator).__name__)}"
        return None

    def pass_over(self, memory: Iterable[int]) -> None:
        """Arrays in memory with these ids are written by kernels: their numbers may change."""
        written = set(memory)
        self.arrays = [entry for entry in self.arrays if id(memory_of(entry[0])) not in written]


class _Cell:
    """A variable of an enclosing function, as a mapping."""

    def __init__(self, cell: types.CellType):
        self.cell = cell

    def get(self, key: str, default: Any) -> Any:
        try:
            return self.cell.cell_contents
        except ValueError:  # not assigned yet
            return default


class _Items:
    """The items of a container as a mapping with one key: what they were, as long as they are. Of many the count."""

    def __init__(self, items: Any):
        self.items, self.size = items, len(items)
        few = self.size <= MANY
        self.keys = tuple(items) if few else ()  # of a dictionary the keys, else the items themselves
        self.were = tuple(items.values()) if few and isinstance(items, MAPPINGS) else self.keys

    def get(self, key: str, default: Any) -> Any:
        items = self.items
        if len(items) != self.size:
            return default
        if self.size > MANY or (self._agree(operator.is_) or self._agree(is_same)):
            return self.were
        return default

    def _agree(self, same: Callable[[Any, Any], bool]) -> bool:
        if not all(map(same, self.items, self.keys)):
            return False
        return not isinstance(self.items, MAPPINGS) or all(map(same, self.items.values(), self.were))


class _Attributes:
    """Attributes as a mapping: of objects with slots, of tensors, of modules and classes."""

    def __init__(self, thing: Any):
        self.get = functools.partial(getattr, thing)


class _Keys:
    """Which names a dictionary of attributes has, as a mapping with one key: a new one may hide that of a class."""

    def __init__(self, attributes: Any):
        self.attributes, self.were = attributes, tuple(attributes)

    def get(self, key: str, default: Any) -> Any:
        return self.were if tuple(self.attributes) == self.were else default


class _Walk:
    """One walk over all that can be reached. used: the attributes that somebody may read."""

    def __init__(self, used: set[str]):
        self.used, self._everything = set(used), bool(used & DYNAMIC)
        self.always: list[tuple[Any, Any, Any, str]] = []  # (mapping, key, value, name)
        self.of_modules: list[tuple[Any, Any, Any, str]] = []  # the same, but changes of these are counted
        self.arrays: list[tuple[np.ndarray, bytes, str]] = []
        self.classes: dict[int, type] = {}  # whose methods were visited
        self.kept: dict[int, Any] = {}  # all that was visited, so that ids stay

    def visit(self, value: Any, name: str) -> None:
        if id(value) in self.kept or isinstance(value, int | float | str | bytes | None):
            return
        self.kept[id(value)] = value
        if isinstance(value, types.MethodType):
            self.visit(value.__self__, name)
            self.visit(value.__func__, name)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                self.visit(part, name)
        elif isinstance(value, GETTERS):
            self.used.add("getattr")
        elif isinstance(value, Tensor):
            always = type(value) is Tensor  # changes of parameters and buffers are counted
            for attribute in ("_requires_grad",) if always else ("_requires_grad", "_data", "_device"):
                entries = self.always if always else self.of_modules
                entries.append((_Attributes(value), attribute, getattr(value, attribute), name))
        elif isinstance(value, np.ndarray):
            if value.nbytes <= LARGE:
                self.arrays.append((value, content_of(value), name))
        elif hasattr(type(value), "__cuda_array_interface__"):
            return  # memory of a GPU, which the host cannot read; that it is this array was noted with its name
        elif isinstance(value, Module):
            self._items(self.of_modules, vars(value), name)
            self._methods(type(value), name)
        elif isinstance(value, Optimizer):
            self._items(self.always, value.states, f"{name}.states", enter=False)
            self._items(self.always, value.param_groups, f"{name}.param_groups", enter=False)
        elif isinstance(value, CONTAINERS):
            self._items(self.always, value, name)
            if not _is_trusted(value):
                self._object(value, name)
        elif "__wrapped__" in _attributes(value):
            self.visit(value.__wrapped__, name)
        elif not isinstance(value, Stateful) and (not _is_trusted(value) or _holds(value)):
            self._object(value, name)

    def _function(self, function: types.FunctionType) -> None:
        if _is_trusted(function):
            return
        names, attributes, imports = names_in(function.__code__)
        self.used |= attributes
        scope = function.__globals__
        for name in names & scope.keys():
            self._read(self.always, scope, name, name)
        for imported in imports:
            with contextlib.suppress(ImportError):  # a script is in no package
                module = resolve_name(imported, scope.get("__package__"))
                self.visit(sys.modules.get(module), module)
        for key in vars(function):
            if (key in self.used or self._everything) and not key.startswith("__"):
                self._read(self.always, vars(function), key, f"{function.__name__}.{key}")
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self._read(self.always, _Cell(cell), name, name)
        for part in ("__code__", "__defaults__", "__kwdefaults__"):
            self.always.append((_Attributes(function), part, getattr(function, part), function.__name__))
        for default in [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]:
            self.visit(default, function.__name__)
        self.visit(getattr(function, "__wrapped__", None), function.__name__)

    def _object(self, thing: Any, name: str) -> None:
        """The attributes that are used of an object, a class or a Python module."""
        attributes = _attributes(thing)
        slots = [slot for kind in type(thing).__mro__ for slot in _slots_of(kind)]
        inner = {key for kind, key in HOLDERS_IN.items() if isinstance(thing, kind)}  # its own methods read it
        if not isinstance(thing, types.ModuleType):
            self.always.append((_Attributes(thing), "__class__", type(thing), name))
            self._keys(attributes, name)
        for key in [*attributes, *slots]:
            if (key in self.used or key in inner or self._everything) and not key.startswith("__"):
                where = attributes if key in attributes and isinstance(attributes, dict) else _Attributes(thing)
                self._read(self.always, where, key, f"{name}.{key}")
        self._methods(thing if isinstance(thing, type) else type(thing), name)
        for parent in thing.__mro__ if isinstance(thing, type) else ():
            for key in MAKERS & vars(parent).keys() if not _is_trusted(parent) else ():
                self._of_class(parent, key)

    def _keys(self, attributes: Any, name: str) -> None:
        holder = _Keys(attributes)
        self.always.append((holder, "names", holder.were, name))

    def _methods(self, kind: type, name: str) -> None:
        """The functions and values of a class that its objects may use."""
        for parent in kind.__mro__:
            if _is_trusted(parent) or id(parent) in self.classes:
                continue
            self.classes[id(parent)] = parent
            self._keys(vars(parent), name)
            for key, value in list(vars(parent).items()):
                is_special = key[:2] == "__"  # Python itself calls these: operators, len(x), x[i], `with x`
                wanted = isinstance(value, types.FunctionType) if is_special else key in self.used or self._everything
                if (wanted or key == "forward") and key not in MAKERS:
                    self._of_class(parent, key)

    def _of_class(self, kind: type, key: str) -> None:
        self._read(self.always, vars(kind), key, f"{kind.__name__}.{key}")
        value = vars(kind)[key]
        for inner in ("__func__", "fget", "func"):  # of class methods and static ones, properties, partial methods
            self.visit(getattr(value, inner, None), f"{kind.__name__}.{key}")

    def _items(self, entries: list, items: Any, name: str, enter: bool = True) -> None:
        holder = _Items(items)
        entries.append((holder, "items", holder.were, name))
        for key, item in zip(items, items.values(), strict=True) if isinstance(items, MAPPINGS) else enumerate(items):
            if enter and holder.were and key != MADE_WITH:
                self.visit(item, f"{name}.{key}" if isinstance(key, str) else f"{name}[{key!r}]")

    def _read(self, entries: list, holder: Any, key: Any, name: str) -> None:
        value = holder.get(key, _MISSING)
        entries.append((holder, key, value, name))
        self.visit(value, name)


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return repr(generator.bit_generator.state)
    if hasattr(generator, "getstate"):
        return generator.getstate()
    name, words, *rest = generator.get_state()
    return name, words.tobytes(), *rest


@functools.cache
def names_in(code: types.CodeType) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """The globals and the attributes that code, and functions within it, may read; the Python modules it imports."""
    names, attributes, imports = set[str](), set[str](), set[str]()
    instructions = [x for x in dis.get_instructions(code) if x.opname != "EXTENDED_ARG"]  # a part of the next one
    for i, instruction in enumerate(instructions):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names.add(instruction.argval)
            attributes.add(instruction.argval)  # getattr, vars
        elif "ATTR" in instruction.opname or "METHOD" in instruction.opname or instruction.opname == "IMPORT_FROM":
            attributes.add(instruction.argval)
        elif instruction.opname == "IMPORT_NAME":  # what is before it on the stack: the level, the names
            imports.add("." * instructions[i - 2].argval + instruction.argval)
    if "globals" in names:  # `globals()["scale"]`
        names |= {text for text in code.co_consts if isinstance(text, str)}
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            for mine, its in zip((names, attributes, imports), names_in(inner), strict=True):
                mine |= its
    return frozenset(names), frozenset(attributes), frozenset(imports)


def _attributes(thing: Any) -> Any:
    """What an object, a class or a Python module has itself; no code of its class is run."""
    try:
        return object.__getattribute__(thing, "__dict__")
    except AttributeError:
        return {}


def _slots_of(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _holds(value: Any) -> bool:
    """May a step reach the user's values through this object: of this package, such as a Trainer, or of HOLDERS?"""
    is_object = not isinstance(value, types.ModuleType | type | types.FunctionType)
    return isinstance(value, (*HOLDERS, *HOLDERS_IN)) or (_package(value) == "scratchnet" and is_object)


def _is_trusted(value: Any) -> bool:
    """Does it belong to code that is not entered?"""
    return _package(value) in TRUSTED


def _package(value: Any) -> str:
    """The top-level package that a Python module, a class, a function or the class of an object is of."""
    if isinstance(value, types.ModuleType):
        return value.__name__.partition(".")[0]
    module = getattr(value if isinstance(value, type | types.FunctionType) else type(value), "__module__", None)
    return (module or "builtins").partition(".")[0]
