"""Modules that hold others by position or by name: their parameters are found, saved and moved with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

from .. import checks
from ..errors import ConfigError, IndexOutOfRangeError
from ..tensor import ArrayLike, Tensor, as_tensor
from .module import Module, Parameter


class Container(Module):
    """Base of all: its items are attributes, named by their position or their key, in order."""

    _kind: type = Module

    def _add(self, name: Any, item: Any) -> None:
        what = type(self).__name__
        if not isinstance(name, str) or not name or "." in name or name in vars(self) or hasattr(type(self), name):
            expected = f"a new name without a dot that {what} has no attribute of"
            raise ConfigError(f"{what}: expected {expected}, got {checks.shown(name)}")
        setattr(self, name, self._checked(item))

    def _checked(self, item: Any) -> Any:
        what, kind = type(self).__name__, f"{self._kind.__name__.lower()}s"
        remedy = f"write {what}(*layers)" if isinstance(item, list | tuple) else ""
        return checks.instance(what, item, self._kind, kind, remedy)

    def _items(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if isinstance(value, self._kind)}

    def __len__(self) -> int:
        return len(self._items())


class Positions(Container):
    """Base of those that are like a list: indexing, slicing, `len`, `del` and iteration work as there."""

    def _name_at(self, i: int) -> str:
        what, n = type(self).__name__, len(self)
        if not -n <= checks.integer(f"{what}: a position", i) < n:
            raise IndexOutOfRangeError(f"{what}: expected a position in [{-n}, {n}), got {i}")
        return [*self._items()][i]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items().values())

    def __getitem__(self, i: int | slice) -> Any:
        return type(self)([*self][i]) if isinstance(i, slice) else self._items()[self._name_at(i)]

    def __setitem__(self, i: int, item: Any) -> None:
        setattr(self, self._name_at(i), self._checked(item))

    def __delitem__(self, i: int) -> None:
        name = self._name_at(i)
        self._refill([item for key, item in self._items().items() if key != name])

    def _refill(self, items: Iterable[Any]) -> None:
        """These items instead of those that it has, named by their positions."""
        items = list(items)
        for name in self._items():
            delattr(self, name)
        for i, item in enumerate(items):
            self._add(str(i), item)

    def append(self, module: Any) -> Self:
        """Adds one at the end, named by its position."""
        self._add(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Any]) -> Self:
        """Adds several at the end."""
        added = [self._checked(m) for m in checks.items(f"{type(self).__name__}: extend", modules, "a list of them")]
        for module in added:
            self.append(module)
        return self

    __iadd__ = extend

    def insert(self, index: int, module: Any) -> None:
        """Adds one before a position; those behind it get new names."""
        items = list(self)
        what = f"{type(self).__name__}: a position"
        items.insert(checks.integer(what, index, -len(items), len(items)), self._checked(module))
        self._refill(items)


class Sequential(Positions):
    """Modules applied one after the other: Sequential(a, b) or, with names, Sequential({"first": a, "second": b}).

    Indexing and slicing give modules and parts; `len`, iteration, `append`, `insert` and `del` work as on a list.
    """

    def __init__(self, *modules: Module | Mapping[str, Module]):
        named = modules[0] if len(modules) == 1 and isinstance(modules[0], Mapping) else dict(enumerate(modules))
        for name, module in named.items():
            self._add(str(name), module)

    def __getitem__(self, i: int | slice) -> Any:
        return Sequential(dict([*self._items().items()][i])) if isinstance(i, slice) else super().__getitem__(i)

    def forward(self, x: ArrayLike) -> Tensor:
        for layer in self._items().values():
            x = layer(x)
        return as_tensor(x)


class ModuleList(Positions):
    """A list of modules whose parameters are found. It computes nothing itself: loop over it in `forward`.

    >>> self.layers = ModuleList([Linear(4, 4) for _ in range(3)])
    """

    def __init__(self, modules: Iterable[Module] = ()):
        self.extend(modules)


class ParameterList(Positions):
    """A list of parameters that are found; arrays and tensors in it become parameters."""

    _kind = Parameter

    def __init__(self, values: Iterable[ArrayLike] = ()):
        self.extend(values)

    def _checked(self, item: Any) -> Parameter:
        return item if isinstance(item, Parameter) else Parameter(item)


class ModuleDict(Container):
    """A dictionary of modules whose parameters are found: keys are names without a dot.

    >>> self.heads = ModuleDict({"words": Linear(4, 9), "tags": Linear(4, 3)})
    """

    def __init__(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]] = ()):
        self.update(modules)

    def update(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]]) -> None:
        """Takes over the modules of a dictionary, or of pairs of a key and a module."""
        pairs = modules.items() if isinstance(modules, Mapping | ModuleDict) else modules
        given = checks.items("ModuleDict", pairs, "a dict of modules")
        if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in given):
            checks.refuse("ModuleDict", "a dict of modules", modules)
        for name, module in given:
            self[name] = module

    def __getitem__(self, name: str) -> Any:
        items = self._items()
        if not isinstance(name, str) or name not in items:
            known = ", ".join(items) or "none"
            raise IndexOutOfRangeError(f"ModuleDict: expected a key of {known}, got {checks.shown(name)}")
        return items[name]

    def __setitem__(self, name: str, module: Module) -> None:
        if isinstance(name, str) and name in self._items():
            setattr(self, name, self._checked(module))
        else:
            self._add(name, module)

    def __delitem__(self, name: str) -> None:
        self.pop(name)

    def pop(self, name: str) -> Module:
        """Removes a module and returns it."""
        module = self[name]
        delattr(self, name)
        return module

    def __contains__(self, name: object) -> bool:
        return name in self._items()

    def __iter__(self) -> Iterator[str]:
        return iter(self._items())

    def keys(self) -> list[str]:
        """The names."""
        return [*self._items()]

    def values(self) -> list[Module]:
        """The modules."""
        return [*self._items().values()]

    def items(self) -> list[tuple[str, Module]]:
        """Pairs of a name and a module."""
        return [*self._items().items()]
