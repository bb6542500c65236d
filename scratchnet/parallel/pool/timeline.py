"""What each worker did, and when, as a picture of time: a file that https://ui.perfetto.dev and chrome://tracing open.

The format is Google's "Trace Event Format": a JSON list of events with a name, microseconds, and a row each.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ...formats.atomic import write_atomically
from .training_arena import EVENT_RANKS, EVENTS, Event, TrainingArena

NAMES = {"shard": "compute", "live": "compute", "slice": "update", "serve": "update"}  # others keep their phase's name
WAIT = 20e-6  # seconds between two pieces from which on a wait is shown


class Timeline:
    """Collects the events of a pool and writes them to `path`. Of each worker the newest EVENTS are kept."""

    def __init__(self, path: str | Path, arena: TrainingArena):
        self.path, self.arena, self.began = Path(path), arena, time.perf_counter()
        self.notes: list[dict[str, Any]] = []

    def note(self, what: str, start: float, end: float) -> None:
        """Something that the parent did, such as to start a worker again."""
        self.notes.append(self._span(what, "parent", -1, start, end))

    def write(self, workers: int) -> None:
        """One row for each worker, and one for the parent."""
        rows = {-1: "parent"} | {rank: f"worker {rank}" for rank in range(workers)}
        events: list[dict[str, Any]] = [
            {"ph": "M", "name": "thread_name", "pid": 0, "tid": rank + 1, "args": {"name": name}}
            for rank, name in rows.items()
        ]
        for rank in range(min(workers, EVENT_RANKS)):
            last = None
            for event in self._of(rank):
                if last is not None and event.start - last > WAIT:
                    events.append(self._span("wait", "wait", rank, last, event.start))
                phase = self.arena.pieces[int(event.phase)].phase.name
                name = NAMES.get(phase, phase)
                numbers = {"step": int(event.step), phase: int(event.piece)}
                events.append(self._span(name, name, rank, event.start, event.end) | {"args": numbers})
                last = event.end
        text = json.dumps({"traceEvents": events + self.notes, "displayTimeUnit": "ms"})
        write_atomically(self.path, text.encode())

    def _of(self, rank: int) -> list[Event]:
        count = int(self.arena.times[rank, -1])
        kept = self.arena.events[rank, : min(count, EVENTS)]
        return sorted((Event(*row) for row in kept.tolist()), key=lambda event: event.start)

    def _span(self, name: str, category: str, rank: int, start: float, end: float) -> dict[str, Any]:
        at = {"ts": (start - self.began) * 1e6, "dur": (end - start) * 1e6}
        return {"ph": "X", "name": name, "cat": category, "pid": 0, "tid": rank + 1, **at}
