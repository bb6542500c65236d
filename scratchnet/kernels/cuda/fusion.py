"""Fewer launches: calls of a program that become one, each rule a function from two calls to one, or to None.

A rule sees a call and a later one. The earlier is brought down to the later, so what stands between them and depends on
it comes after both. The arithmetic of each element stays as it is, and with it every bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

from ..scalars import kernels_of
from ..signatures import arrays_of
from . import elementwise, gemm, gemm_few, optim, reduce, rows
from .ends import End
from .memory import DeviceArray


@dataclass(eq=False)
class Item:
    """One call. kind: what rules know it by. parts: what it reads and writes, as the rules need it, by name.

    names: the kernels that it computes.
    """

    kind: str
    reads: Sequence[DeviceArray]
    writes: Sequence[DeviceArray]
    run: Callable[[], None]
    parts: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    @cached_property
    def touched(self) -> set[int]:
        return {memory_of(x) for x in (*self.reads, *self.writes)}

    @cached_property
    def written(self) -> set[int]:
        return {memory_of(x) for x in self.writes}

    def conflicts(self, other: Item) -> bool:
        """Must these two stay in order?"""
        return bool(self.written & other.touched or other.written & self.touched)


def memory_of(x: DeviceArray) -> int:
    """Which memory an array lies in."""
    return id(x if x.base is None else x.base)


def _is_same(x: DeviceArray, y: DeviceArray) -> bool:
    """The same elements in the same order?"""
    return (x.address, x.size, x.dtype) == (y.address, y.size, y.dtype) and bool(y.flags.c_contiguous)


def item(name: str, run: Callable[[], None], arguments: tuple) -> Item:
    """The call `run` of a kernel of the table."""
    inputs, count = arrays_of(name)
    arrays, others = arguments[:count], arguments[count:]
    reads, writes = arrays[:inputs], arrays[inputs:]
    parts: dict[str, Any] = {"name": name, "reads": reads, "others": others}
    if name in ("matmul", "linear"):
        bias = reads[2] if name == "linear" else None
        transposed = (bool(others[0]), bool(others[1])) if name == "matmul" else (False, False)
        (m, n), k = writes[0].shape, reads[0].shape[0 if transposed[0] else 1]
        if writes[0].dtype.kind != "f" or not gemm.is_few(writes[0].dtype, m, n, k):
            return Item(name, reads, writes, run, names=(name,))
        parts |= {"bias": bias, "transposed": transposed, "k": k}
        return Item("product", reads, writes, run, parts, (name,))
    if (
        name == "sum"
        and reads[0].dtype == writes[0].dtype
        and reads[0].dtype.kind == "f"
        and reduce.is_single(reads[0])
    ):
        return Item("single sum", reads, writes, run, parts, (name,))
    kind = "unary" if name in kernels_of(1) else "binary" if name in kernels_of(2) else name
    kind = "update" if name in optim.CONSTANTS else kind
    return Item(kind, reads, writes, run, parts, (name,))


# --- rules ------------------------------------------------------------------------------------------------------------


def _ended(a: Item, b: Item) -> Item | None:
    """A product or a sum, and what is done with each element of it."""
    (made,) = a.writes
    if b.kind == "update":
        param, grad, *rest = [*b.reads, *b.writes]
        if not _is_same(made, grad):
            return None
        out, more = param, (param, *rest)
        end = partial(_update_end, b.parts["name"], param.dtype, b.parts["others"][0], more)
    else:
        (out,), (first, *others) = b.writes, b.reads
        if not _is_same(made, first) or any(x.size != made.size for x in others) or out.size != made.size:
            return None
        if any(memory_of(x) in a.written for x in others) or any(x.dtype != made.dtype for x in (out, *others)):
            return None
        more, end = tuple(others), partial(End, b.parts["name"], tuple(others))
    reads = [*a.reads, *[x for x in b.reads if memory_of(x) not in a.written]]
    update = (b.parts["others"][0], b.parts["name"]) if b.kind == "update" else (None, None)
    parts = {"end": end, "update": update, "more": more, "product": a, "made and out": (made, out)}
    if a.kind == "single sum":
        run = partial(_run_sum, a.reads[0], out, end)
        return Item("ended sum", reads, b.writes, run, parts)
    if out.shape != made.shape:
        return None
    run = partial(_run_product, a, made, out, end)
    return Item("ended product", reads, b.writes, run, parts)


def _update_end(name: str, dtype: Any, numbers: Any, more: tuple, beside: tuple = ()) -> End:
    return End(name, more, optim.constants_of(name, dtype, numbers), beside)


def _run_sum(x: DeviceArray, out: DeviceArray, end: Callable[[], End]) -> None:
    reduce.folded("sum", x, out.reshape(x.shape[0], x.shape[2]), end())


def _run_product(a: Item, made: DeviceArray, out: DeviceArray, end: Callable[[], End]) -> None:
    left, right = a.reads[:2]
    transpose_a, transpose_b = a.parts["transposed"]
    gemm.multiply(left, right, a.parts["bias"], out, transpose_a, transpose_b, end())


def _with_bias(a: Item, b: Item) -> Item | None:
    """The update of a weight by a product, and of the bias by the sum of the rows of its second factor."""
    weight, bias = (a, b) if a.kind == "ended product" else (b, a)
    numbers, name = weight.parts["update"]
    if numbers is None or bias.parts["update"][0] is not numbers or bias.parts["update"][1] != name:
        return None
    product, (x, *_) = weight.parts["product"], bias.reads
    factor = product.reads[1]
    fits = _is_same(x, factor) and x.shape == (1, *factor.shape) and not product.parts["transposed"][1]
    if not fits or not gemm_few.takes_beside(x.dtype):
        return None
    end = partial(weight.parts["end"], beside=bias.parts["more"])
    made, out = weight.parts["made and out"]
    run = partial(_run_product, product, made, out, end)
    return Item("layer", [*weight.reads, *bias.reads], [*weight.writes, *bias.writes], run)


def _repeated(a: Item, b: Item) -> Item | None:
    """A number made of two numbers, and copies of it."""
    (made,), (source,), (out,) = a.writes, b.reads, b.writes
    if made.size != 1 or source.address != made.address or {x.dtype for x in (*a.reads, made)} != {out.dtype}:
        return None
    return Item("binary", a.reads, [out], partial(elementwise.KERNELS[a.parts["name"]], *[*a.reads, out]), a.parts)


def _loss(a: Item, b: Item) -> Item | None:
    """Cross-entropy and its gradient."""
    (x, labels), (losses,), (g, same_x, same_labels), (out,) = a.reads, a.writes, b.reads, b.writes
    if not (_is_same(x, same_x) and _is_same(labels, same_labels)):
        return None
    return Item("loss", [g, x, labels], [losses, out], partial(rows.loss_and_grad, losses, (g,), x, labels, out))


def _loss_of_mean(a: Item, b: Item) -> Item | None:
    """The gradient of a mean, a number divided by a count, and the loss."""
    (g, x, labels), (losses, out) = b.reads, b.writes
    if a.parts["name"] != "div" or not _is_same(a.writes[0], g) or any(y.size != 1 for y in a.reads):
        return None
    run = partial(rows.loss_and_grad, losses, tuple(a.reads), x, labels, out)
    return Item("loss of a mean", [*a.reads, x, labels], [losses, out], run)


class Rule(NamedTuple):
    """joins: makes one call of two. is_chain: the second call alone reads what the first one wrote, which vanishes."""

    joins: Callable[[Item, Item], Item | None]
    is_chain: bool = True


RULES = {  # by the kinds of the two calls
    **{(made, use): Rule(_ended) for made in ("product", "single sum") for use in ("unary", "binary", "update")},
    ("ended product", "ended sum"): Rule(_with_bias, is_chain=False),
    ("ended sum", "ended product"): Rule(_with_bias, is_chain=False),
    ("cross_entropy", "cross_entropy_grad"): Rule(_loss, is_chain=False),
    ("binary", "copy"): Rule(_repeated),
    ("binary", "loss"): Rule(_loss_of_mean),
}


def fused(items: list[Item], is_private: Callable[[DeviceArray], bool]) -> list[Item]:
    """The same in fewer calls. is_private: does nobody else see this memory, before or after?"""
    items = _alive(items, is_private)
    while (fewer := _once(items, is_private)) is not items:
        items = fewer
    return items


def _alive(items: list[Item], is_private: Callable[[DeviceArray], bool]) -> list[Item]:
    """Those that something depends on."""
    wanted: set[int] = set()
    alive = []
    for x in reversed(items):
        if not x.writes or x.written & wanted or not all(map(is_private, x.writes)):
            wanted |= x.touched
            alive.append(x)
    return alive[::-1]


def _once(items: list[Item], is_private: Callable[[DeviceArray], bool]) -> list[Item]:
    """With the first pair joined that a rule takes, and each later one; the list itself if there is none."""
    found = items
    i = 0
    while i < len(found):
        for j in range(i + 1, len(found)):
            rule = RULES.get((found[i].kind, found[j].kind))
            fewer = rule and _joined(found, i, j, rule, is_private)
            if fewer:
                found = fewer
                break
        else:
            i += 1
    return found


def _joined(
    items: list[Item], i: int, j: int, rule: Rule, is_private: Callable[[DeviceArray], bool]
) -> list[Item] | None:
    a, b = items[i], items[j]
    if rule.is_chain:
        users = [x for x in items if a.written & x.touched]
        if not all(map(is_private, a.writes)) or users != [a, b] or b.written & {memory_of(x) for x in a.reads}:
            return None
    elif a.conflicts(b):
        return None
    one = rule.joins(a, b)
    if one is None:
        return None
    one.names = (*a.names, *b.names)
    before: list[Item] = []
    after: list[Item] = []
    for x in items[i + 1 : j]:
        (after if any(x.conflicts(y) for y in (a, *after)) else before).append(x)
    if any(b.conflicts(x) for x in after):
        return None
    return [*items[:i], *before, one, *after, *items[j + 1 :]]
