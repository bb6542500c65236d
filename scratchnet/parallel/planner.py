"""`workers="auto"`: how many processes, and of how many threads, train fastest? Each plan is tried for a moment.

A trial runs a real engine on the real model and data; the state of before is put back afterwards. Plans share out the
cores: one process with all threads, or one thread alone ("do not parallelise"), or W processes of cores // W threads.
Which plan wins depends on how much arithmetic a step has and how much it merges; a model of both takes more code than
trying.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import time
from typing import NamedTuple

from ..errors import ConfigError
from ..kernels import get_num_threads, set_num_threads
from ..native.limits import cores
from .engines import Engine, engine_of
from .settings import Settings, Start

TRIAL = 0.25  # seconds for which a plan is tried, after its first step
BATCHES = 50  # of a round; the best round counts
MARGIN = 0.95  # a plan with more processes must take less than this part of the time that one process takes


class Plan(NamedTuple):
    """So many processes, with so many threads each."""

    workers: int
    threads: int

    def __str__(self) -> str:
        return f"{self.workers} worker{'s' * (self.workers > 1)} x {self.threads} thread{'s' * (self.threads > 1)}"


class Choice(NamedTuple):
    """The plan that was taken, and the seconds a batch of all that were tried."""

    plan: Plan
    seconds: dict[Plan, float]

    def explain(self) -> str:
        """One line: what was tried and what was taken."""
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


def choose(settings: Settings) -> Choice:
    """The fastest plan for these settings. Model and optimizer are as before afterwards."""
    parts = {"model": settings.model, "optimizer": settings.optimizer}
    before = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    threads, seconds = get_num_threads(), {}
    try:
        for plan in plans(min(cores(), threads), settings.shards):
            set_num_threads(plan.threads if plan.workers == 1 else threads)
            trial = dataclasses.replace(settings, workers=plan.workers, scheduler=None, timeline=None)
            try:
                seconds[plan] = _try(engine_of(trial, Start()), trial)
            except ConfigError:
                if plan.workers == 1:
                    raise
    finally:
        set_num_threads(threads)
        for name, part in parts.items():
            part.load_state_dict(before[name])
    alone = min((plan for plan in seconds if plan.workers == 1), key=seconds.__getitem__)
    best = min(seconds, key=seconds.__getitem__)
    return Choice(best if seconds[best] < MARGIN * seconds[alone] else alone, seconds)


def _try(engine: Engine, settings: Settings) -> float:
    """Seconds a batch."""
    best, problem = float("inf"), None
    try:
        endless = itertools.chain.from_iterable(settings.loader.batch_indices(0) for _ in itertools.count())
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
        engine.close(problem)
    return best
