"""What goes into a step and what comes out: values in tuples, lists, dictionaries, named tuples and dataclasses."""

from __future__ import annotations

import copy
import dataclasses
import enum
import struct
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any

import numpy as np

from ..errors import JitError
from ..kernels import Device
from ..stateful import Stateful
from ..tensor import Tensor

LEAVES = frozenset({Tensor, np.ndarray, FunctionType, int, float, str, type(None)})  # what most values are
PLAIN = (int, bool, str, bytes, type(None), type(Ellipsis), enum.Enum, np.dtype, type, range, Device)


def key_of(value: Any, arrays: list[np.ndarray]) -> Any:
    """What a program depends on beside the content of arrays; those are added to `arrays`, each once."""
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise JitError("jit: expected arguments that do not require grad: no gradient comes out of a recorded step")
        return type(value), value._data.shape, value._data.dtype, value._device, _number(value._data, arrays)
    if isinstance(value, np.ndarray):
        return type(value), value.shape, value.dtype, value.flags.writeable, _number(value, arrays)
    if isinstance(value, float):  # 0.0 == -0.0, and NaN is not equal to itself
        return type(value), struct.pack("d", value)
    if isinstance(value, complex | np.generic):
        return type(value), np.asarray(value).tobytes()
    if isinstance(value, tuple | list):
        return type(value), tuple([key_of(item, arrays) for item in value])
    if isinstance(value, dict):
        return type(value), tuple([(name, key_of(item, arrays)) for name, item in value.items()])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value), tuple([key_of(getattr(value, field.name), arrays) for field in dataclasses.fields(value)])
    try:
        hash(value)
    except TypeError:
        raise JitError(f"jit: expected tensors, arrays or hashable values, got {type(value).__name__}") from None
    return type(value), value if isinstance(value, PLAIN) or callable(value) else Same(value)


class Same:
    """A key that is equal for one and the same object only: others may be equal to it and behave otherwise."""

    __slots__ = ("thing",)

    def __init__(self, thing: Any):
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.thing is self.thing

    def __hash__(self) -> int:
        return id(self.thing)


def _number(array: np.ndarray, arrays: list[np.ndarray]) -> int:
    """The position of an array among those given; an array that is given twice has one."""
    for i, known in enumerate(arrays):
        if known is array:
            return i
    arrays.append(array)
    return len(arrays) - 1


def detached(result: Any) -> Any:
    """The result of a step that was called as it is, without a record, as a replay gives it."""
    return mapped(result, lambda x: x.detach() if isinstance(x, Tensor) else x)


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same with `change` of each value that is no container in it."""
    if type(value) in LEAVES:
        return change(value)
    if isinstance(value, Argument):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[mapped(item, change) for item in value])
    if isinstance(value, tuple | list):
        return type(value)([mapped(item, change) for item in value])
    if isinstance(value, dict):
        new = {name: mapped(item, change) for name, item in value.items()}
        if type(value) is dict:
            return new
        like = copy.copy(value)  # with what else a subclass keeps
        like.update(new)
        return like
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        twin: Any = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(twin, field.name, mapped(getattr(value, field.name), change))
        return twin
    return change(value)


def leaves_of(value: Any) -> list[Any]:
    """The values in a value that are no containers, in order."""
    found: list[Any] = []
    mapped(value, found.append)
    return found


def content_of(array: np.ndarray) -> bytes:
    """The numbers of an array, and the mask of a masked one; asked for its bytes, that would fill itself in."""
    mask = np.ma.getmaskarray(array).tobytes() if isinstance(array, np.ma.MaskedArray) else b""
    return np.asarray(array).tobytes() + mask


def is_constant(value: Any) -> bool:
    """May a replay return this very value, if it is the same in two calls?"""
    return isinstance(value, (*PLAIN, float, complex, np.generic, Stateful)) or callable(value)


def is_same(a: Any, b: Any) -> bool:
    """Are these one and the same object, or numbers or texts with the same bits?"""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, complex | np.generic):
        return np.asarray(a).tobytes() == np.asarray(b).tobytes()
    if isinstance(a, np.ndarray):
        return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, MethodType):  # made anew each time that it is read
        return a.__func__ is b.__func__ and a.__self__ is b.__self__
    if isinstance(a, tuple):
        return len(a) == len(b) and all(is_same(x, y) for x, y in zip(a, b, strict=True))
    return isinstance(a, int | str | bytes | range | np.dtype | slice) and a == b


# --- array arguments while a step is recorded -------------------------------------------------------------------------

SHAPE = {"shape", "dtype", "ndim", "size", "nbytes", "itemsize"}  # strides and flags are those of a copy
VIEWS = {"reshape", "transpose", "squeeze", "swapaxes", "ravel", "view", "diagonal"}
CHANGES = {"sort", "fill", "put", "partition", "resize", "setflags", "setfield", "itemset", "byteswap"}
LOOKS = {"item", "tolist", "tobytes", "tofile", "dump", "dumps"}
REFLECTED = (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "divmod", "pow", "matmul", "and", "or", "xor",
    "lshift", "rshift",
)  # fmt: skip
OTHERS = "neg", "pos", "abs", "invert", "lt", "le", "eq", "ne", "gt", "ge", "copy"
OPERATORS = {f"__{name}__" for name in REFLECTED + OTHERS} | {f"__r{name}__" for name in REFLECTED}


class Argument:
    """Stands for an array that was given to a step, while the step is recorded, or for what NumPy made of one.

    Its shape may be read and views may be made; a tensor made of it shares its memory. What NumPy computes with it is
    noted by the trace, as a replay has to compute it again. All else looks at its numbers and is refused.
    """

    __slots__ = ("_given", "_kind", "_trace")
    __class__ = property(lambda self: self._kind)  # type: ignore[assignment]  # isinstance(x, np.ndarray) stays true

    def __init__(self, given: np.ndarray, trace: Any, kind: type = np.ndarray):
        """kind: np.ndarray, or the type of a NumPy number, whose array has no axes."""
        object.__setattr__(self, "_given", given)
        object.__setattr__(self, "_trace", trace)
        object.__setattr__(self, "_kind", kind)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._given if self._kind is np.ndarray else self._given[()], name)
        if name in SHAPE:
            return found
        if name == "T":
            return Argument(found, self._trace) if isinstance(found, np.ndarray) else self
        if not callable(found) or name in CHANGES | LOOKS:
            self._trace.refuse("NumPy with an argument" if name[0] == "_" else f"NumPy's {name} of an argument")
            return found
        if name in VIEWS:
            return lambda *args, **options: self._view(name, found(*args, **options), args, options)
        return lambda *args, **options: self._computed(name, _method(name), (self, *args), options)

    def __setattr__(self, name: str, value: Any) -> None:
        self._trace.refuse(f"NumPy's {name} of an argument")
        setattr(self._given, name, value)

    def __len__(self) -> int:
        return len(self._given)

    def __getitem__(self, key: Any) -> Any:
        return self._view("__getitem__", self._given[_opened(key)], (key,), {})

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __array_function__(self, function: Callable, types: Any, args: tuple, kwargs: dict) -> Any:
        if function in (np.shape, np.ndim, np.size):
            return function(*_opened(args), **_opened(kwargs))
        return self._computed(function.__name__, function, args, kwargs)

    def __array_ufunc__(self, function: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._computed(function.__name__, getattr(function, method), args, kwargs)

    @property
    def _numba_type_(self) -> Any:
        self._trace.refuse("Numba with an argument")
        raise AttributeError("_numba_type_")

    def _view(self, name: str, found: Any, args: tuple, options: dict) -> Any:
        if isinstance(found, np.ndarray) and np.may_share_memory(found, self._given):
            return Argument(found, self._trace)
        return self._computed(name, _method(name), (self, *args), options)

    def _computed(self, what: str, function: Callable, args: tuple, options: dict) -> Any:
        """What NumPy computes with arguments, in this call and in each replay."""
        if options.get("out") is not None or what in ("put", "copyto", "place", "putmask", "put_along_axis", "at"):
            self._trace.refuse(f"NumPy's {what} into an array")
            return function(*_opened(args), **_opened(options))
        leaves = leaves_of((args, options))

        def compute(*arrays: np.ndarray) -> Any:
            left = iter(arrays)
            a, o = mapped((args, options), lambda x: next(left) if type(x) is Argument else x)
            return function(*a, **o)

        given = [x._given for x in leaves if type(x) is Argument]
        others = [x for x in leaves if type(x) is not Argument]
        out, kind = self._trace.repeat(what, compute, given, others)
        return Argument(out, self._trace, kind) if isinstance(out, np.ndarray) else out


def _method(name: str) -> Callable[..., Any]:
    return lambda x, *args, **options: getattr(x, name)(*args, **options)


def _opened(value: Any) -> Any:
    """With the arrays in place of what stands for them."""
    return mapped(value, lambda x: x._given if type(x) is Argument else x)


def _special(name: str) -> Callable[..., Any]:
    def special(self: Argument, *args: Any) -> Any:
        if name in OPERATORS:
            if args and (isinstance(args[0], Tensor) or args[0] is None):
                return NotImplemented  # the tensor's own operator takes it
            return self._computed(name, _method(name), (self, *args), {})
        self._trace.refuse(f"NumPy's {name} of an argument")
        return getattr(self._given, name)(*_opened(args))

    return special


_OF_OBJECTS = {f"__{name}__" for name in ("eq", "ne", "lt", "le", "gt", "ge", "repr", "str", "format", "hash")}
for _name in (set(dir(np.ndarray)) - set(dir(object)) | _OF_OBJECTS) - vars(Argument).keys():
    if _name.startswith("__") and callable(getattr(np.ndarray, _name)):
        setattr(Argument, _name, _special(_name))
