"""In which type products are computed: a mode of each context, of a thread and of an asyncio task, as in grad_mode.py.

There is no list of casts to guess at: TYPES says which rows of the op table compute in another type, and all the others
compute in that of their inputs. A product keeps its precision: its gradients have it, wherever `backward` is called.

Gradients of float16 end at 6e-8 below. So a Trainer multiplies the loss by a scale, a power of two, and divides the
gradients of parameters, which are float32, by it: `next_scale` is its law.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from typing import Any

from . import checks
from .errors import ConfigError

TYPES: dict[str, dict[str, str]] = {  # precision -> the ops that have it, with the type in which they read operands
    "float32": {},
    # By matmul go x @ y, linear, attention, einsum and the inputs of recurrent layers. tf32x3: three products in TF32.
    **{name: {"matmul": name, "conv2d": name} for name in ("bfloat16", "float16", "tf32", "tf32x3")},
}
PRECISIONS = tuple(TYPES)
DEVICES = dict.fromkeys(("float16", "tf32", "tf32x3"), ("cuda",))  # of a precision that not all devices have
# A product that is rounded has no side (m, k, n) shorter than this, and more multiplications than that. Rounding an
# element takes as long as 24 of them, and a matrix unit sums up 32 terms at once. A layer's product and the two of its
# gradients have the same three sides, so all of them are rounded, or none. What GPUs alone have needs no limit.
# A CPU without units for bfloat16 wins nothing: there each side is so long that rounding takes no more than a fiftieth
# of the time; vectors of pairs win less than a matrix unit does (docs/precision.md). LEAST has what a precision needs,
# what an order of sums (kernels.order_of) does, and what a convolution does, whose tiles would else be empty: it is
# rounded on a GPU alone.
LEAST = {"bfloat16": (32, 1 << 18), "pairs": (64, 3 << 19), "widened": (1024, 1 << 18), "conv2d": (16, 1 << 18)}
SCALED = "float16"  # the precision whose loss is scaled

FIRST_SCALE, LEAST_SCALE, MOST_SCALE = 2.0**16, 1.0, 2.0**24
GROWS_AFTER = 2000  # steps without one that was skipped

_precision: ContextVar[str] = ContextVar("precision", default="float32")
_outer: ContextVar[tuple[str, ...]] = ContextVar("outer precisions", default=())  # before each open `precision`
current_precision = _precision.get


def checked_precision(what: str, value: Any) -> str:
    """value, a precision that there is. Raises ConfigError."""
    return checks.one_of(what, value, PRECISIONS)


def check_device(what: str, name: str | None, kinds: Iterable[str]) -> None:
    """Raises ConfigError unless devices of all these kinds have the precision."""
    have = DEVICES.get(name or "", ())
    if have and (others := [kind for kind in kinds if kind not in have]):
        expected = f"tensors on {' or '.join(map(repr, have))} in precision {name!r}"
        raise ConfigError(f"{what}: expected {expected}, got {others[0]!r}; all devices have 'bfloat16'")


def least(*names: str | None) -> tuple[int, int]:
    """(the shortest side, multiplications) of LEAST that a product needs by all of these names."""
    return max(LEAST.get(name or "", (0, 0)) for name in names)


def is_rounded(precision: str, order: str | None, *sides: int) -> bool:
    """Does a product of sides (m, k, n) read its operands in the precision? One that is small stays float32.

    order: of its sums, as `kernels.order_of` says.
    """
    side, multiplications = least(precision, order)
    return min(sides) >= side and math.prod(sides) > multiplications


def next_scale(state: Sequence[float], overflowed: bool) -> tuple[float, float, float]:
    """(scale, steps since it changed, steps skipped in all) after a step. One with a gradient that is not finite is
    skipped and halves the scale; GROWS_AFTER others double it (Micikevicius et al. 2018, section 3.2).
    """
    scale, good, skipped = state
    if overflowed:
        return max(scale / 2, LEAST_SCALE), 0.0, skipped + 1
    if good + 1 >= GROWS_AFTER:
        return min(scale * 2, MOST_SCALE), 0.0, skipped
    return scale, good + 1, skipped


class precision:
    """Inside, matrix products of float32, and on "cuda" convolutions, read operands in this type and sum up in float32.

        with sn.precision("bfloat16"):
            loss = loss_of(model(x), y)

    name: "float32"; "bfloat16": operands are rounded to its 8 significant bits, to the nearest, ties to even, but for
    small products, of a side below 32 (with vectors of pairs 64, on a CPU without units 1,024) or of few
    multiplications, which rounding would make slower; or on "cuda" "tf32", of 11 bits with the range of float32,
    "tf32x3", two such numbers each, which loses little of float32, or "float16", of 11 bits, whose loss a loop of your
    own has to scale. Parameters, gradients, sums and all other ops
    stay float32. Raises ConfigError; a product of float64 inside raises DtypeError, one of the others on
    another device ConfigError.
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
