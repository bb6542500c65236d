"""NumPy's and PyTorch's words for one argument: whoever takes `axis` and `keepdims` takes `dim` and `keepdim`, too.

Where the two libraries mean different things, as by `var`, a function has two meanings: NumPy's words ask for NumPy's,
all else for PyTorch's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from .errors import ConfigError

NUMPYS = {"dim": "axis", "keepdim": "keepdims", "min": "low", "max": "high"}  # by PyTorch's word
Tensor = Any
Function = Callable[..., Tensor]


def in_both(function: Function) -> Function:
    """The function with PyTorch's word beside each of NumPy's that it takes; itself, if it takes none."""
    own = function.__code__.co_varnames[: function.__code__.co_argcount]
    theirs = {word: numpys for word, numpys in NUMPYS.items() if numpys in own and word not in own}
    if not theirs:
        return function
    signature = inspect.signature(function)

    @wraps(function)
    def in_either(*args: Any, **words: Any) -> Any:
        for word in words.keys() & theirs.keys() if words else ():
            numpys = theirs[word]
            if numpys in words:
                raise ConfigError(f"{function.__name__}: expected {word}= or {numpys}=, got both")
            words[numpys] = words.pop(word)
        return function(*args, **words)

    known = signature.parameters
    more = [known[numpys].replace(name=word, kind=inspect.Parameter.KEYWORD_ONLY) for word, numpys in theirs.items()]
    in_either.__signature__ = signature.replace(parameters=[*known.values(), *more])  # type: ignore[attr-defined]
    return in_either


def two_meanings(numpys: Function, pytorchs: Function) -> Function:
    """The function that is `numpys` where one of its own words is used, else `pytorchs`; named after the second."""
    one, other = (dict(list(inspect.signature(f).parameters.items())[1:]) for f in (numpys, pytorchs))
    own = one.keys() - other.keys()

    @wraps(pytorchs)
    def meant(x: Tensor, *args: Any, **words: Any) -> Any:
        if own.isdisjoint(words):
            return pytorchs(x, *args, **words)
        if not words.keys() <= one.keys():
            raise ConfigError(
                f"{pytorchs.__name__}: expected NumPy's words ({', '.join(one)}) or PyTorch's ({', '.join(other)}), "
                f"got {', '.join(words)}"
            )
        return numpys(x, *args, **words)

    signature = inspect.signature(pytorchs)
    more = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for name, p in one.items() if name in own]
    meant.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *more])  # type: ignore[attr-defined]
    return meant
