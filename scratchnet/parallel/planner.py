"""`workers="auto"`: how many processes, and of how many threads, train fastest? Each plan is tried for a moment.

A trial is a real engine on the real model and data, with everything put back afterwards, so that nothing of it is in
the result. Plans share out the cores: one process with all threads, or one thread alone ("do not parallelise"), or W
processes with cores // W threads each. Which plan wins depends on how much arithmetic a step has, and how much is to be
merged; to model both costs more code than to look.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ..errors import ConfigError
from ..kernels import get_num_threads, set_num_threads
from .comm.memory import cores

TRIAL = 0.25  # seconds that a plan is tried, after its first step
BATCHES = 50  # of a round; the best round counts
MARGIN = 0.95  # of the time of the plan with fewest processes that one with more must need, to be worth it


class Plan(NamedTuple):
    """Processes, and threads of each."""

    workers: int
    threads: int

    def __str__(self) -> str:
        return f"{self.workers} worker{'s' * (self.workers > 1)} x {self.threads} thread{'s' * (self.threads > 1)}"


class Choice(NamedTuple):
    """The plan that was fastest, and seconds a batch of all that were tried."""

    plan: Plan
    seconds: dict[Plan, float]

    def explain(self) -> str:
        """One line: what was tried, and what was taken."""
        tried = ", ".join(f"{plan} {seconds * 1e6:,.0f} us a batch" for plan, seconds in self.seconds.items())
        note = " (do not parallelise)" if self.plan == Plan(1, 1) and len(self.seconds) > 1 else ""
        return f"auto: {tried} -> {self.plan}{note}"

    def compare(self, seconds: float) -> str:
        """One line: the prediction beside what was measured."""
        return f"auto: predicted {self.seconds[self.plan] * 1e6:,.0f} us a batch, measured {seconds * 1e6:,.0f} us"


def plans(available: int, most: int) -> list[Plan]:
    """What to try with `available` cores, and at most `most` workers (shards; more would have nothing to do)."""
    found = [Plan(1, available), Plan(1, 1)]
    workers = 2
    while workers <= min(available, most):
        found.append(Plan(workers, available // workers))
        workers *= 2
    if available <= most:
        found.append(Plan(available, 1))
    return list(dict.fromkeys(found))


def choose(most: int, engine_of: Callable[[int], Any], batches: Callable[[], Iterator[Any]]) -> Choice:
    """The fastest plan.

    most: workers, at most. engine_of(workers): makes an engine (see trainer.py) and, at its exit, puts back what it
    changed. batches(): positions of samples of batch after batch.
    """
    before, seconds = get_num_threads(), {}
    try:
        for plan in plans(min(cores(), before), most):
            set_num_threads(plan.threads if plan.workers == 1 else before)
            try:
                seconds[plan] = _try(engine_of(plan.workers), batches)
            except ConfigError:
                if plan.workers == 1:
                    raise
    finally:
        set_num_threads(before)
    alone = min((plan for plan in seconds if plan.workers == 1), key=seconds.__getitem__)
    best = min(seconds, key=seconds.__getitem__)
    return Choice(best if seconds[best] < MARGIN * seconds[alone] else alone, seconds)


def _try(engine: Any, batches: Callable[[], Iterator[Any]]) -> float:
    """Seconds a batch."""
    best, problem = float("inf"), None
    try:
        endless = itertools.chain.from_iterable(batches() for _ in itertools.count())
        engine.submit(next(endless))
        engine.settled()
        end = time.perf_counter() + TRIAL
        while time.perf_counter() < end:
            start = time.perf_counter()
            for positions in itertools.islice(endless, BATCHES):
                engine.submit(positions)
            engine.settled()
            best = min(best, (time.perf_counter() - start) / BATCHES)
    except BaseException as error:
        problem = error
        raise
    finally:
        engine.__exit__(type(problem) if problem else None, problem, None)
    return best
