"""Who does what in a run whose model is divided, as a table to read: data x pipeline x parts."""

from __future__ import annotations

from typing import Any

from ..comm.job import started_as
from ..strategies import Strategy
from .parts_plan import aligned
from .timetable import GRADIENTS, idle, timetable


def roster(engine: Any, strategy: Strategy, shards: int) -> list[str]:
    """Lines that say which stages, parts and shards each worker, or rank, has; none for a model in one piece."""
    if strategy.stages == strategy.parts == 1:
        return []
    workers = max(engine.workers, (started_as() or (0, 1))[1])  # under MPI, of each rank one
    plan = getattr(getattr(engine, "replica", None), "plan", None)
    if plan is None:
        return [f"data x pipeline x parts: {workers} x 1 x 1, a worker computes all parts of a shard"]
    places = sorted({stage.place for stage in plan.stages})
    lanes, replicas = max(place.lanes(strategy.stages, workers) for place in places)
    rows = [("worker", "stage", "begins with", "parts", "shards")]
    for rank in range(workers):
        for stage, name in enumerate(plan.names):
            own = {
                place.part: [k for k in range(shards) if strategy.owner(place, k, workers) == rank]
                for place in places
                if place.stage == stage
            }
            parts = [str(part) for part, mine in own.items() if mine]
            mine = sorted(set().union(*own.values()))
            if mine:
                shown = "all" if len(parts) == len(own) else " ".join(parts)
                rows.append((str(rank), str(stage), name or "the input", shown, " ".join(map(str, mine))))
    first = f"data x pipeline x parts: {replicas} x {min(workers, strategy.stages)} x {lanes}"
    return [first, *aligned(rows), *_bubble(strategy, shards, workers // lanes)]


def _bubble(strategy: Strategy, shards: int, workers: int) -> list[str]:
    """How long workers wait while the pipeline fills and drains, if all stages take equal time, and a backward pass
    that of two forwards. Those that share the parts of a stage count as one."""
    if workers == 1 or strategy.stages == 1:
        return []
    phases = [p for p in strategy.phases(shards, strategy.slices(workers), False) if p.name in GRADIENTS]
    spans = timetable(strategy, phases, workers, lambda phase, piece: 2.0 if phase.name == "backward" else 1.0)
    few = (
        f"; {shards} of {strategy.stages} stages are busy at most: more shards help" if shards < strategy.stages else ""
    )
    return [f"bubble: workers wait for {idle(spans, workers):.0%} of a step, if stages take equal time{few}"]
