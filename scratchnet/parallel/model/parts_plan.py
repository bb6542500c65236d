"""Which layers are computed by parts, and how: the plan of tensor parallelism, found or checked."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ... import checks, nn
from ...errors import ConfigError
from ...nn import Module
from ..shards import starts_of
from .parts_layers import KINDS, LOCAL, LOCAL_OF_CHANNELS, Kind

# In modules that are no Sequential: which two layers follow each other, with what is local between them.
PAIRS: dict[type, tuple[str, str]] = {nn.TransformerEncoderLayer: ("linear1", "linear2")}
WHAT = "parts"  # of TensorParallel, or of Pipeline


def is_chain(module: Module) -> bool:
    """Does it apply its items one after the other?"""
    return type(module).forward is nn.Sequential.forward and "forward" not in vars(module)


def children_of(module: Module) -> dict[str, Module]:
    """Its modules by name; one that has two names under both."""
    return {name: child for name, child in vars(module).items() if isinstance(child, Module)}


def plan_of(model: Module, parts: int, plan: Mapping[str, str] | None) -> dict[str, str]:
    """The way in which each layer of the plan is cut, by its dotted name; {} for one part.

    Without a plan: heads of attention, and pairs of columns and rows with only local layers between them, along each
    Sequential, wherever there are at least as many columns or heads as parts; the other layers are computed whole.
    Raises ConfigError.
    """
    if parts == 1 and plan is None:
        return {}
    if plan is not None:
        return _checked(model, parts, plan)
    found = _found(model, parts)
    if not found:
        raise ConfigError(
            f"{WHAT}: expected two layers in a row, or attention, of at least {parts} columns or heads, found none; "
            "plan={'name': 'columns'} says which layers to cut"
        )
    return found


def _checked(model: Module, parts: int, plan: Mapping[str, str]) -> dict[str, str]:
    if not plan:
        raise ConfigError(f"{WHAT}: expected layers in plan, or None to find some, got {{}}; parts=1 cuts none")
    named = dict(model.named_modules())
    for name, kind in plan.items():
        layer = named.get(name)
        if layer is None:
            known = ", ".join(name for name, layer in named.items() if type(layer) in KINDS) or "none that can be cut"
            raise ConfigError(f"{WHAT}: expected names of layers in plan ({known}), got {checks.shown(name)}")
        kinds = KINDS.get(type(layer), {})
        if kind not in kinds:
            expected = " or ".join(map(repr, kinds)) or f"a layer that can be cut ({', '.join(_cut_types())})"
            got = f"{kind!r} for {name!r}, which is {type(layer).__name__}"
            raise ConfigError(f"{WHAT}: plan: expected {expected}, got {got}")
        if (problem := _refused(layer)) is not None:
            raise ConfigError(f"{WHAT}: plan: {name!r}: {problem}")
        if (width := _width(layer, kinds[kind])) < parts:
            raise ConfigError(
                f"{WHAT}: expected at most {width} parts, as {name!r} has {kinds[kind].width}={width}, got {parts}"
            )
    return dict(plan)


def _cut_types() -> list[str]:
    return [layer.__name__ for layer in KINDS]


def _width(layer: Module, kind: Kind) -> int:
    return getattr(layer, kind.width)


def _refused(layer: Any) -> str | None:
    """Why this layer cannot be cut."""
    if layer._hooks:
        return "expected a layer without hooks, which see whole outputs; remove() them"
    if "forward" in vars(layer):
        return "expected the forward of its class, got one that was set; a plan without it leaves it whole"
    if getattr(layer, "groups", 1) != 1:
        return f"expected a convolution of one group, got groups={layer.groups}"
    if getattr(layer, "sparse", False):
        return "expected sparse=False, as a part has a block of the table, got sparse=True"
    return None


def _found(model: Module, parts: int) -> dict[str, str]:
    found: dict[str, str] = {}
    uses = Counter(id(child) for module in model.modules() for child in vars(module).values())

    def has(layer: Module, kind: str) -> bool:
        kinds = KINDS.get(type(layer), {})
        fits = kind in kinds and _width(layer, kinds[kind]) >= parts and _refused(layer) is None
        return fits and uses[id(layer)] <= 1  # one that is called twice may follow two others

    for path, module in model.named_modules():
        inside = {name: f"{path}.{name}" if path else name for name in vars(module)}
        if has(module, "heads"):
            found[path] = "heads"
        elif type(module) in PAIRS:
            first, second = PAIRS[type(module)]
            if has(getattr(module, first), "columns") and has(getattr(module, second), "rows"):
                found |= {inside[first]: "columns", inside[second]: "rows"}
        elif is_chain(module):
            for run in runs(children_of(module), has):
                found |= {inside[run[0]]: "columns", inside[run[-1]]: "rows"}
    return found


def runs(items: Mapping[str, Module], has: Callable[[Module, str], bool]) -> Iterator[list[str]]:
    """The names of neighbours in a chain that a part computes without exchange: by columns, local ones, and by rows.

    has(layer, kind): is the layer to be cut in this way?
    """
    run: list[str] = []
    for name, layer in items.items():
        if run and has(layer, "rows") and _follows(items[run[0]], layer):
            yield [*run, name]
            run = []
        elif has(layer, "columns"):
            run = [name]
        elif run and _is_local(layer, items[run[0]]):
            run.append(name)
        else:
            run = []


def _is_local(layer: Module, first: Module) -> bool:
    """Does a layer see no more than a block of what `first` gives by columns?"""
    of_channels = LOCAL_OF_CHANNELS if KINDS[type(first)]["columns"].axis == 1 else ()
    return type(layer) in (*LOCAL, *of_channels) and not layer._hooks and "forward" not in vars(layer)


def _follows(first: Module, second: Module) -> bool:
    """Are the columns of one the rows of the other?"""
    columns, rows = KINDS[type(first)]["columns"], KINDS[type(second)]["rows"]
    return columns.axis == rows.axis and _width(first, columns) == _width(second, rows)


def table(model: Module, parts: int, plan: Mapping[str, str] | None) -> list[str]:
    """Lines that say which part has what of each layer, and which layers every part computes whole."""
    cut = plan_of(model, parts, plan)
    if not cut:
        return []
    named = dict(model.named_modules())
    rows = [("layer", "cut by", *(f"part {p}" for p in range(parts)))]
    for name, kind in cut.items():
        layer = named[name]
        starts = starts_of(_width(layer, KINDS[type(layer)][kind]), parts)
        blocks = [f"{lo}:{hi}" for lo, hi in itertools.pairwise(starts)]
        rows.append((f"{name} {type(layer).__name__}", f"{kind} of {starts[-1]}", *blocks))
    covered = tuple(f"{name}." for name in cut)
    whole = [
        name
        for name, layer in named.items()
        if name not in cut
        and not name.startswith(covered)
        and any(isinstance(value, nn.Parameter) for value in vars(layer).values())
    ]
    lines = aligned(rows)
    return [*lines, f"whole in every part: {', '.join(whole)}"] if whole else lines


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines whose columns stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
