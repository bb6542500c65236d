"""Ranks that are threads of this process: an all-reduce runs, and its messages, bytes and steps are counted.

The links are queues. Each keeps a logical clock (Lamport, Communications of the ACM 21, 1978): a send or a receive is a
step, and a message arrives in the step in which it was sent, at the earliest.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ... import checks
from ...errors import CollectiveError, ConfigError, DtypeError, ShapeError
from .collectives import ALGORITHMS, DTYPES, UFUNCS, Cost, Link, reduce_by_messages

PATIENCE = 10.0  # seconds that a rank waits for a message
RANKS = 64  # threads, at most


class Stuck(Exception):
    """A rank waits for a message that nobody sends."""


class VirtualLink:
    """A rank's end of queues between threads. It counts what it sends, and keeps a clock of steps."""

    def __init__(self, rank: int, size: int, boxes: dict[tuple[int, int], queue.Queue], patience: float = PATIENCE):
        self.rank, self.size, self.boxes, self.patience = rank, size, boxes, patience
        self.messages = self.bytes = self.clock = 0

    def _put(self, array: np.ndarray, receiver: int, clock: int) -> None:
        self.messages += 1
        self.bytes += array.nbytes
        self.boxes[self.rank, receiver].put((array.copy(), clock))

    def send(self, array: np.ndarray, receiver: int) -> None:
        """Sends a copy, and does not wait."""
        self.clock += 1
        self._put(array, receiver, self.clock)

    def receive(self, array: np.ndarray, sender: int) -> None:
        """Waits for the next message of the sender, and writes it to array."""
        try:
            array[...], clock = self.boxes[sender, self.rank].get(timeout=self.patience)
        except queue.Empty:
            raise Stuck(f"rank {self.rank} waits for a message from rank {sender}, which sends none") from None
        self.clock = max(self.clock + 1, clock)

    def exchange(self, outgoing: np.ndarray, receiver: int, incoming: np.ndarray, sender: int) -> None:
        """Sends and receives in one step."""
        self._put(outgoing, receiver, self.clock + 1)
        self.receive(incoming, sender)


def simulate_all_reduce(
    algorithm: str | Callable[[Link, np.ndarray, Any], Any],
    arrays: Sequence[np.ndarray],
    op: str = "sum",
    patience: float = PATIENCE,
) -> Cost:
    """All-reduces `arrays`, one a rank, in place, by ranks that are threads; returns what it cost, as counted.

    algorithm: the name of one that sends messages ("naive", "tree", "ring", "recursive_doubling", "rabenseifner"), or
        a function algorithm(link, x, combine) of your own, as in `scratchnet.parallel.collectives`: it reduces the flat
        array x in place, by `link.send(array, receiver)`, `link.receive(array, sender)`, `link.exchange(...)` and
        `combine(low, high, out)`; link has `rank` and `size`.
    arrays: flat arrays of one length and dtype; at most 64.
    op: "sum", "mean", "max" or "min".
    patience: seconds that a rank waits for a message before the call fails.

    Raises CollectiveError if a rank fails or waits for a message that nobody sends, or if messages are left over;
    ShapeError, DtypeError or ConfigError for other arguments.
    """
    arrays = checks.items("simulate_all_reduce: arrays", arrays, "a list of arrays, one a rank")
    if not 1 <= len(arrays) <= RANKS:
        raise ConfigError(f"simulate_all_reduce: expected 1 to {RANKS} arrays, one a rank, got {len(arrays)}")
    for x in arrays:
        if not isinstance(x, np.ndarray) or x.dtype not in DTYPES:
            checks.refuse("simulate_all_reduce", f"arrays of {', '.join(DTYPES)}", x, DtypeError)
        if x.ndim != 1 or (x.shape, x.dtype) != (arrays[0].shape, arrays[0].dtype):
            checks.refuse("simulate_all_reduce", "flat arrays of one length and dtype", x, ShapeError)
    checks.one_of("simulate_all_reduce: op", op, UFUNCS)
    patience = checks.number("simulate_all_reduce: patience", patience, "(0, 1e6]")
    if isinstance(algorithm, str):
        known = {name: known.run for name, known in ALGORITHMS.items() if known.run}
        run = known[checks.one_of("simulate_all_reduce: algorithm", algorithm, known)]
    else:
        run = checks.function("simulate_all_reduce: algorithm", algorithm)
    links = _run(run, arrays, op, patience)
    if left := sum(box.qsize() for box in links[0].boxes.values()):
        raise CollectiveError(f"simulate_all_reduce: expected every message to be received, but {left} were left over")
    return Cost(sum(x.messages for x in links), max(x.bytes for x in links), max(x.clock for x in links))


def _run(run: Callable, arrays: list[np.ndarray], op: str, patience: float) -> list[VirtualLink]:
    ranks = range(len(arrays))
    boxes: dict[tuple[int, int], queue.Queue] = {(a, b): queue.Queue() for a in ranks for b in ranks}
    links = [VirtualLink(rank, len(arrays), boxes, patience) for rank in ranks]
    problems: dict[int, Exception] = {}

    def work(rank: int) -> None:
        try:
            reduce_by_messages(run, links[rank], arrays[rank], op)
        except Exception as error:
            problems[rank] = error

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        rank, problem = min(problems.items(), key=lambda item: (isinstance(item[1], Stuck), item[0]))
        text = str(problem) if isinstance(problem, Stuck) else f"rank {rank}: {type(problem).__name__}: {problem}"
        raise CollectiveError(f"simulate_all_reduce: expected every rank to end, but {text}") from problem
    return links
