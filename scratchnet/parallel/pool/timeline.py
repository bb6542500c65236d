"""A file that shows what each worker did when; https://ui.perfetto.dev and chrome://tracing open it.

The format is Google's "Trace Event Format": a JSON list of events, each with a name, microseconds and a thread.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...formats.atomic import write_atomically
from .training_arena import EVENT_RANKS, EVENTS, Event, TrainingArena

NAMES = {"shard": "compute", "live": "compute", "slice": "update", "serve": "update"}  # of phases; others keep theirs
WAIT = 20e-6  # seconds: shorter pauses between two pieces are not shown


class Timeline:
    """Collects the newest EVENTS events of each worker and writes them to `path`.

    Raises ConfigError for a path that takes no file: now, not after the training.
    """

    def __init__(self, path: str | Path, arena: TrainingArena):
        self.path, self.arena, self.began = Path(path), arena, time.perf_counter()
        _require_room(self.path)
        self.notes: list[dict[str, Any]] = []

    def note(self, what: str, start: float, end: float) -> None:
        """Add something that the parent did, such as starting a worker again."""
        self.notes.append(self._span(what, "parent", -1, start, end))

    def write(self, workers: int) -> None:
        """Write the file: one thread for each worker, and one for the parent."""
        threads = {-1: "parent"} | {rank: f"worker {rank}" for rank in range(workers)}
        events: list[dict[str, Any]] = [
            {"ph": "M", "name": "thread_name", "pid": 0, "tid": rank + 1, "args": {"name": name}}
            for rank, name in threads.items()
        ]
        for rank in range(min(workers, EVENT_RANKS)):
            last = None
            for event in self.events_of(rank):
                if last is not None and event.start - last > WAIT:
                    events.append(self._span("wait", "wait", rank, last, event.start))
                phase = self.arena.pieces[int(event.phase)].phase.name
                name = NAMES.get(phase, phase)
                numbers = {"step": int(event.step), phase: int(event.piece)}
                events.append(self._span(name, name, rank, event.start, event.end) | {"args": numbers})
                last = event.end
        text = json.dumps({"traceEvents": events + self.notes, "displayTimeUnit": "ms"})
        write_atomically(self.path, text.encode())

    def events_of(self, rank: int) -> list[Event]:
        """What a worker did, the newest EVENTS."""
        count = int(self.arena.times[rank, -1])
        kept = self.arena.events[rank, : min(count, EVENTS)]
        return sorted((Event(*fields) for fields in kept.tolist()), key=lambda event: event.start)

    def _span(self, name: str, category: str, rank: int, start: float, end: float) -> dict[str, Any]:
        at = {"ts": (start - self.began) * 1e6, "dur": (end - start) * 1e6}
        return {"ph": "X", "name": name, "cat": category, "pid": 0, "tid": rank + 1, **at}


def _require_room(path: Path) -> None:
    folder = path.absolute().parent
    problem = "a folder" if path.is_dir() else None if folder.is_dir() else "no such folder"
    if problem is None and not os.access(path if path.exists() else folder, os.W_OK):
        problem = "no permission to write"
    if problem:
        raise ConfigError(f"timeline: expected a file that can be written, got {path}: {problem}")
