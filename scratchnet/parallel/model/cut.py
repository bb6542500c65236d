"""Where a model is cut into stages, and what crosses the cuts.

cut "auto"          stages of equal measured time; of parameters of equal size with "parameters"
cut ["4", "head"]   a stage begins where the module of this name is called: S - 1 names for S stages
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from ...errors import ConfigError
from ...nn import Module, Parameter
from .trace import WHO, Trace


def cut_into(trace: Trace, model: Module, stages: int, cut: Any) -> list[int]:
    """The positions in trace.calls of the calls with which stages 1, 2, ... begin.

    Raises ConfigError for a cut that does not exist, and where there are not as many layers.
    """
    names = {id(module): name for name, module in model.named_modules()}
    called: dict[str, int] = {}  # the first call of each module
    for position, (module, _) in enumerate(trace.calls):
        if (name := names.get(id(module))) is not None:
            called.setdefault(name, position)
    if isinstance(cut, str):
        return _balanced(trace, model, called, stages, cut)
    found = []
    for name in map(str, cut):
        if name not in called:
            known = ", ".join(name for name in called if name)
            raise ConfigError(f"{WHO}: expected cut to name modules that the model calls ({known}), got {name!r}")
        found.append(called[name])
    ops = [trace.calls[position][1] for position in found]
    for name, op, before in zip(cut, ops, [0, *ops], strict=False):
        if op <= before:
            raise ConfigError(
                f"{WHO}: expected cut in the order in which modules are called, each stage with something to compute, "
                f"got {list(cut)}, where nothing is left for the stage before {name!r}"
            )
    bounds = [0, *ops, len(trace.made)]
    if found_shared := shared(trace, bounds):
        kind, i, stages_of = found_shared
        named = [name for name, _ in (model.named_parameters() if kind == "parameters" else model.named_buffers())]
        raise ConfigError(
            f"{WHO}: expected a cut after which each parameter and buffer is in one stage, got {list(cut)}, which "
            f"leaves {named[i]!r} in stages {', '.join(map(str, stages_of))}; cut='auto' keeps such layers together"
        )
    return found


def shared(trace: Trace, bounds: Sequence[int]) -> tuple[str, int, list[int]] | None:
    """The first parameter or buffer that several stages read: (kind, its position, the stages)."""
    for kind in ("parameters", "buffers"):
        stages: dict[int, set[int]] = {}
        for s, (lo, hi) in enumerate(itertools.pairwise(bounds)):
            for uses in trace.uses[lo:hi]:
                for i in uses[kind]:
                    stages.setdefault(i, set()).add(s)
        for i, found in stages.items():
            if len(found) > 1:
                return kind, i, sorted(found)
    return None


def _balanced(trace: Trace, model: Module, called: dict[str, int], stages: int, cut: str) -> list[int]:
    """The cut, before modules that have parameters of their own, whose most expensive stage is the cheapest."""
    by_name = dict(model.named_modules())
    layers = [p for name, p in called.items() if _is_layer(by_name[name])]
    starts: dict[int, int] = {}  # of each op that begins a layer, the call
    for position in sorted(layers)[1:]:
        op = trace.calls[position][1]
        if op and not shared(trace, [0, op, len(trace.made)]):
            starts.setdefault(op, position)
    if len(starts) + 1 < stages:
        raise ConfigError(
            f"{WHO}: expected at most {len(starts) + 1} stages, one for each layer that can be cut off, got {stages}"
        )
    costs = _sizes(trace) if cut == "parameters" else trace.seconds
    sums = [0.0, *itertools.accumulate(costs)]
    ops, end = sorted(starts), len(trace.made)
    # best[i]: (cost of the most expensive stage, cuts) of the ops before ops[i], or all, in s stages
    points = [*ops, end]
    best: list[tuple[float, tuple[int, ...]] | None] = [(sums[point], ()) for point in points]
    for s in range(1, stages):
        after: list[tuple[float, tuple[int, ...]] | None] = []
        for i, point in enumerate(points):
            found = [
                (max(before[0], sums[point] - sums[points[j]]), (*before[1], points[j]))
                for j in range(s - 1, i)
                if (before := best[j]) is not None
            ]
            after.append(min(found) if found else None)
        best = after
    chosen = best[-1]
    assert chosen is not None
    return [starts[op] for op in chosen[1]]


def _is_layer(module: Module) -> bool:
    """Has it parameters of its own?"""
    return any(isinstance(value, Parameter) for value in vars(module).values())


def _sizes(trace: Trace) -> list[float]:
    """Of each op the elements of the parameters that it is the first to read."""
    seen: set[int] = set()
    sizes = []
    parameters = trace._of["parameters"]
    for uses in trace.uses:
        new = uses["parameters"] - seen
        seen |= new
        sizes.append(float(sum(parameters[i].size for i in new)))
    return sizes
