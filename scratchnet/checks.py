"""Checks of arguments: one call an argument gives it back as a plain value, or says in one line what is wrong with it.

    p = number("Dropout: p", p, "[0, 1]")        # ConfigError: Dropout: p: expected a number in [0, 1], got 1.5

Python would take True for 1, "False" for true, 2.9 for 2 and the letters of a string for a list. Here they are refused.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from .errors import ConfigError, DtypeError, IndexOutOfRangeError, ScratchnetError, ShapeError

LONGEST = 60  # characters of a value in a message


def shown(value: Any) -> str:
    """A value as error messages show it: on one line, short, arrays by dtype and shape."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | slice | np.number | np.bool_):
        text = repr(value)
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    if isinstance(value, np.dtype):
        return str(value)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        kind = "an array" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        return f"{kind} of {value.dtype} {tuple(value.shape)}"
    if type(value) in (tuple, list):
        items = ", ".join(shown(item) for item in value[:6]) + ", ..." * (len(value) > 6)
        text = f"[{items}]" if isinstance(value, list) else f"({items}{',' * (len(value) == 1)})"
        return text if len(text) <= 2 * LONGEST else f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, dict):
        return f"a dict of {', '.join(shown(key) for key in [*value][:6])}" if value else "an empty dict"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    return f"a {type(value).__name__}"


def refuse(
    what: str, expected: str, value: Any, error: type[ScratchnetError] = ConfigError, remedy: str = ""
) -> NoReturn:
    """Raises the error: what was expected, what came, and what to do."""
    raise error(f"{what}: expected {expected}, got {shown(value)}{f'; {remedy}' if remedy else ''}")


# --- numbers ----------------------------------------------------------------------------------------------------------


def integer(
    what: str,
    value: Any,
    least: int | None = None,
    most: int | None = None,
    error: type[ScratchnetError] = ConfigError,
    remedy: str = "",
) -> int:
    """value as an int in [least, most]."""
    if (
        isinstance(value, int | np.integer)
        and not isinstance(value, bool)
        and (least is None or value >= least)
        and (most is None or value <= most)
    ):
        return int(value)
    bounds = "" if least is None else f" >= {least}" if most is None else f" from {least} to {most}"
    refuse(what, f"an integer{bounds}", value, error, remedy)


def number(what: str, value: Any, interval: str = "(-inf, inf)") -> float:
    """value as a float in an interval, written as in mathematics: "[0, 1)"; NaN is in none."""
    low, high, has_low, has_high = _bounds(interval)
    if is_number(value):
        try:
            x = float(value)
        except OverflowError:
            x = math.nan
        if (low < x or (has_low and x == low)) and (x < high or (has_high and x == high)):
            return x
    refuse(what, "a finite number" if interval == "(-inf, inf)" else f"a number in {interval}", value)


def is_number(value: Any) -> bool:
    """Is value a real number of Python or NumPy? True and False are none."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


@functools.cache
def _bounds(interval: str) -> tuple[float, float, bool, bool]:
    low, high = interval[1:-1].split(",")
    return float(low), float(high), interval[0] == "[", interval[-1] == "]"


def flag(what: str, value: Any) -> bool:
    """value as a bool: True or False, and nothing that Python takes for one."""
    if value is True or value is False:
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    refuse(what, "True or False", value)


def axis(what: str, value: Any, ndim: int) -> int:
    """The number of one axis, in [0, ndim); -1 is the last. A number, which has none, takes 0 and -1, as in PyTorch."""
    if not _is_axis(value, ndim):
        refuse(what, f"an axis in [{-ndim or -1}, {ndim or 1})", value, IndexOutOfRangeError)
    return int(value) % (ndim or 1)


def axes(what: str, value: Any, ndim: int) -> tuple[int, ...]:
    """Axes (None: all; one, or several, each once) as sorted numbers in [0, ndim)."""
    if value is None:
        return tuple(range(ndim))
    values = value if isinstance(value, tuple | list) else (value,)
    for a in values:
        if not _is_axis(a, ndim):
            bounds = f"[{-ndim or -1}, {ndim or 1})"
            refuse(what, f"an axis in {bounds} for {ndim} dimensions", a, IndexOutOfRangeError)
    numbers = sorted([int(a) % (ndim or 1) for a in values])
    if len(set(numbers)) != len(numbers):
        refuse(what, "each axis once", value, ShapeError)
    return tuple(numbers) if ndim else ()


def _is_axis(value: Any, ndim: int) -> bool:
    return (
        isinstance(value, int | np.integer)
        and not isinstance(value, bool)
        and bool(-(ndim or 1) <= value < (ndim or 1))
    )


def lengths(what: str, values: Iterable[Any], least: int = 0) -> tuple[int, ...]:
    """The lengths of a shape."""
    given = items(what, values, "lengths as integers")
    return elements(what, tuple([integer(what, n, least, 2**48, error=ShapeError) for n in given]))


def elements(what: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an array, whose elements can be counted."""
    if math.prod(shape) > 2**48:
        raise ShapeError(f"{what}: expected an array of at most {2**48} elements, got shape {shape}")
    return shape


# --- names, objects, functions ----------------------------------------------------------------------------------------


def one_of(what: str, value: Any, names: Iterable[Any]) -> Any:
    """value itself, one of some names."""
    names = list(names)
    if isinstance(value, str) and value in names:
        return value
    refuse(what, f"one of {', '.join(map(str, names))}", value)


def instance(what: str, value: Any, kinds: Any, expected: str, remedy: str = "") -> Any:
    """value itself, an object of one of these classes."""
    if isinstance(value, kinds):
        return value
    if not remedy and isinstance(value, type) and issubclass(value, kinds):
        remedy = f"write {value.__name__}(...)"
    refuse(what, expected, value, remedy=remedy)


def function(what: str, value: Any) -> Callable[..., Any]:
    """value itself, something to call; a class would make an object of each call."""
    if callable(value) and not isinstance(value, type):
        return value
    refuse(what, "a function", value, remedy=f"write {value.__name__}()" if isinstance(value, type) else "")


def items(what: str, values: Any, expected: str) -> list[Any]:
    """The items of a list, tuple, generator or array; a string, a dict or a set is none."""
    if not isinstance(values, str | bytes | dict | set | frozenset):
        try:
            return list(values)
        except TypeError:
            pass
    refuse(what, expected, values)


def path(what: str, value: Any) -> str:
    """value as the name of a file."""
    if isinstance(value, str | bytes | os.PathLike):
        name = os.fsdecode(value)
        if name and "\0" not in name:
            return name
    refuse(what, "a path", value)


# --- arrays -----------------------------------------------------------------------------------------------------------


def dtype(what: str, value: Any) -> np.dtype:
    """value as a NumPy dtype; None, which NumPy takes for float64, is none."""
    if not is_dtype(value):
        refuse(what, "a dtype such as 'float32'", value, DtypeError)
    return np.dtype(value)


def is_dtype(value: Any) -> bool:
    """Does value name a dtype?"""
    try:
        return isinstance(value, str | type | np.dtype) and np.dtype(value).kind != "O"
    except TypeError:
        return False


def array(what: str, value: Any, kinds: str = "biuf") -> np.ndarray:
    """What NumPy makes of value, if its dtype is of these kinds."""
    check_masks(what, value)
    try:
        made = np.asarray(value)
    except ScratchnetError:  # what is recorded by jit says itself why it is no array
        raise
    except ValueError as error:  # ragged lists
        raise ShapeError(f"{what}: expected a rectangular array of numbers, got {str(error).splitlines()[0]}") from None
    except (TypeError, RuntimeError) as error:  # PyTorch's that require grad or are bfloat16, CuPy's on a GPU
        first = (str(error).splitlines() or [""])[0]
        remedy = "; .float() makes float32 of it" if "bfloat16" in str(getattr(value, "dtype", "")) else ""
        raise DtypeError(f"{what}: expected what NumPy can read, got {shown(value)} ({first:.100}){remedy}") from None
    if made.dtype.kind in kinds or (made.dtype == ml_dtypes.bfloat16 and "f" in kinds):  # which is no kind of NumPy's
        return made
    if made.dtype == object and not made.ndim:  # NumPy makes one of anything
        refuse(what, "numbers", value, DtypeError)
    remedy = "; convert them, as with .astype('float32')" if made.dtype.kind in "OUSV" else ""
    raise DtypeError(f"{what}: expected numbers, got dtype {made.dtype}{remedy}")


def check_masks(what: str, value: Any) -> None:
    """Raises DtypeError for an array of `np.ma` with masked elements, whose numbers NumPy would take for good, and for
    lists of them.
    """
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        refuse(what, "an array without masked elements", value, DtypeError, "x.filled(value) puts a number there")
    if isinstance(value, list | tuple) and value and not isinstance(value[0], int | float | np.number):
        for item in value:
            check_masks(what, item)
