"""In which type products are computed: a mode of each context, of a thread and of an asyncio task, as in grad_mode.py.

There is no list of casts to guess at: TYPES says which rows of the op table compute in another type, and all the others
compute in that of their inputs. A product keeps its precision: its gradients have it, wherever `backward` is called.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from . import checks

PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
TYPES: dict[str, dict[str, str]] = {  # precision -> the ops that have it, with the type in which they read operands
    "float32": {},
    "bfloat16": {
        "matmul": "bfloat16"
    },  # by which go x @ y, linear, attention, einsum and the inputs of recurrent layers
}

_precision: ContextVar[str] = ContextVar("precision", default="float32")
_outer: ContextVar[tuple[str, ...]] = ContextVar("outer precisions", default=())  # before each open `precision`
current_precision = _precision.get


def checked_precision(what: str, value: Any) -> str:
    """value, a precision that there is. Raises ConfigError."""
    name = checks.one_of(what, value, PRECISIONS)
    if name not in TYPES:
        checks.refuse(what, f"{' or '.join(map(repr, TYPES))}, which all devices have", name)
    return name


class precision:
    """Inside, matrix products of float32 read their operands in this type, and add up in float32.

        with sn.precision("bfloat16"):
            loss = loss_of(model(x), y)

    name: "float32", or "bfloat16": operands are rounded to its 8 significant bits, to the nearest, ties to even.
    Parameters, gradients, sums and all other ops stay float32. Raises ConfigError, also for "tf32" and "float16", which
    no device has yet; a product of float64 inside raises DtypeError.
    """

    def __init__(self, name: str):
        self._name = checked_precision("precision", name)

    def __enter__(self) -> None:
        _outer.set((*_outer.get(), current_precision()))
        _precision.set(self._name)

    def __exit__(self, *exc_info: Any) -> None:
        *outer, before = _outer.get()
        _outer.set(tuple(outer))
        _precision.set(before)


def options_of(op: str) -> dict[str, str]:
    """What a row of the op table is given beside its inputs, if it computes in another type than theirs."""
    found = TYPES[current_precision()].get(op)
    return {"precision": found} if found else {}
