"""`workers="auto"`: how many processes, of how many threads, and with how many stages, train fastest?

    plan        one process with all threads, or with one ("do not parallelise"); W processes of cores // W threads
                that share the shards; that have a stage of the model each, or half as many stages twice; or, where
                the strategy has parts, that share those of each shard, or of each stage (not with memory=, since what
                a part holds is not counted). Where devices are named, or the model is on a GPU: workers on the first
                1, 2, 4, ... and on all devices; these are measured and not predicted
    predict     pieces of a step are timed in this process, one after the other; the timetable of model/timetable.py
                plays them for W workers, and a hand-over between processes adds alpha + bytes / beta seconds; beside
                each other pieces take longer, as cores share caches and memory: as much as in the plan before
    measure     a real engine runs the plan on the real model and data for a moment; the timeline says who waited
    choose      the fastest as measured: prediction explains, it does not decide

None of these plans changes a bit, so all of them may be taken. Parts of layers would, as shards would; auto keeps those
that the strategy has. The state of before is put back afterwards.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import ConfigError
from ..kernels import get_num_threads, set_num_threads
from ..native.limits import cores
from .engines import Engine, engine_of
from .groups import run
from .model.plan import traced
from .model.timetable import Sizes, held, idle, timetable
from .model.trace import Trace
from .phases import Phase, Place
from .placement import Placement
from .settings import Settings, Start
from .shards import first_full
from .strategies import Pipeline, Strategy

TRIAL = 0.25  # seconds for which a plan is tried, after its first steps, and
ROUNDS = 3  # the least rounds, of
BATCHES = 50  # at most; the best round counts
MARGIN = 0.95  # a plan with more processes must take less than this part of the time that one process takes
WARM, TIMED = 6, 5  # steps that are run before anything is timed, which compile and record; those whose pieces are
MOST_STAGES = 64  # that are tried where a model does not fit otherwise
LARGE = 1 << 18  # elements of the array by which beta is measured


class Plan(NamedTuple):
    """So many processes, with so many threads each. stages: of the model; 1: those of the strategy. shares_parts: do
    they share the parts of each shard's layers? devices: those on which they compute, one each; "": the cores.
    """

    workers: int
    threads: int
    stages: int = 1
    shares_parts: bool = False
    devices: str = ""

    def __str__(self) -> str:
        if self.devices:
            return f"{self.workers} worker{'s' * (self.workers > 1)} on {self.devices}"
        text = f"{self.workers} worker{'s' * (self.workers > 1)} x {self.threads} thread{'s' * (self.threads > 1)}"
        return text + f", {self.stages} stages" * (self.stages > 1) + ", by parts" * self.shares_parts

    def of(self, strategy: Strategy) -> Strategy:
        """The strategy, in stages if the plan has some, or with its parts shared out."""
        if self.stages == 1 and not self.shares_parts:
            return strategy
        schedule = "1f1b" if self.shares_parts else "zero_bubble"
        return Pipeline(self.stages, schedule=schedule, parts=strategy.parts, plan=strategy.plan)


class Link(NamedTuple):
    """What a hand-over between two processes takes: alpha seconds, and a second for each beta bytes."""

    alpha: float
    beta: float


class Prediction(NamedTuple):
    """Of a plan: seconds a batch, the part of them in which workers wait, and bytes that the fullest worker holds."""

    seconds: float
    waits: float
    bytes: int | None = None


class Row(NamedTuple):
    """A plan; what was predicted of it, and measured: nothing of one process, which is what is compared with."""

    plan: Plan
    seconds: float
    waits: float = math.nan
    predicted: Prediction | None = None

    def __str__(self) -> str:
        if (predicted := self.predicted) is None:
            return f"{self.plan!s:<32}{'':>14}{self.seconds * 1e6:>11,.0f} us"
        error = predicted.seconds / self.seconds - 1
        return (
            f"{self.plan!s:<32}{predicted.seconds * 1e6:>11,.0f} us{self.seconds * 1e6:>11,.0f} us{error:>+8.0%}"
            f"{predicted.waits:>8.0%} {self.waits:>8.0%}"
        )


class Choice(NamedTuple):
    """The plan that was taken and why, all that were measured, and the plans that do not fit, with their bytes."""

    plan: Plan
    rows: list[Row]
    why: str
    too_large: dict[Plan, int] = {}  # noqa: RUF012 - never changed

    @property
    def seconds(self) -> dict[Plan, float]:
        """Measured, a batch."""
        return {row.plan: row.seconds for row in self.rows}

    def explain(self) -> str:
        """A table: what was tried, predicted and measured; and a line: what was taken and why."""
        lines = [f"auto: {'a batch':<26}{'predicted':>14}{'measured':>14}{'error':>8}{'waits':>8} {'measured':>8}"]
        lines += [f"      {row}" for row in self.rows]
        lines += [f"      {plan!s:<32}holds {size / 1e6:,.1f} MB a worker" for plan, size in self.too_large.items()]
        return "\n".join([*lines, f"auto: -> {self.plan}: {self.why}"])

    def compare(self, seconds: float) -> str:
        """One line: what was measured for a moment beside what an epoch took."""
        return f"auto: tried at {self.seconds[self.plan] * 1e6:,.0f} us a batch, the epoch took {seconds * 1e6:,.0f} us"


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


def on_devices(placement: Placement, available: int, most: int) -> list[Plan]:
    """Plans whose workers have the first devices of `placement`, one each; see `plans`."""
    names = placement.names or ()
    counts = dict.fromkeys(plan.workers for plan in plans(len(names), most))
    return [Plan(n, max(1, available // n), devices=", ".join(names[:n])) for n in counts]


def staged(found: Sequence[Plan], available: int, limited: bool) -> list[Plan]:
    """Plans with a stage for each worker, or for two that share its shards. limited: by memory; then there may be more
    workers than cores.
    """
    counts = {plan.workers: plan.threads for plan in found if plan.workers > 1}
    count = 2
    while limited and count <= MOST_STAGES:
        counts.setdefault(count, max(1, available // count))
        count *= 2
    plans_of = ((Plan(n, threads, n), Plan(n, threads, n // 2)) for n, threads in sorted(counts.items()))
    return [
        plan
        for plan in itertools.chain.from_iterable(plans_of)
        if plan.stages == plan.workers or (plan.stages > 1 and 2 * plan.stages == plan.workers <= available)
    ]


def parted(found: Sequence[Plan], parts: int) -> list[Plan]:
    """The same plans, where some workers can share so many parts of a shard."""
    several = (plan for plan in found if plan.workers > 1)
    return [
        plan._replace(shares_parts=True)
        for plan in several
        if Place(0, 0, parts).lanes(plan.stages, plan.workers)[0] > 1
    ]


def choose(settings: Settings, memory: float | None = None) -> Choice:
    """The fastest plan for these settings. Model and optimizer are as before afterwards.

    memory: bytes of arrays that a worker may hold. Raises ConfigError where no plan is that small.
    """
    parts = {"model": settings.model, "optimizer": settings.optimizer}
    before = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    threads, rows, too_large, link, beside = get_num_threads(), list[Row](), dict[Plan, int](), None, 1.0
    available = min(cores(), threads)
    most, has_devices = settings.shards, settings.placement.names is not None
    found = on_devices(settings.placement, available, most) if has_devices else plans(available, most)
    if settings.strategy.is_plain and settings.strategy.stages == 1 and not has_devices:
        found += staged(found, available, memory is not None)
        found += parted(found, settings.strategy.parts) if memory is None else []
    try:
        for plan in found:
            if plan.stages > max(2, available) and any(row.plan.stages > 1 for row in rows):
                break  # a smaller pipeline fits
            trial = dataclasses.replace(
                settings, workers=plan.workers, scheduler=None, timeline=None, strategy=plan.of(settings.strategy)
            )
            try:
                predicted = None
                if (plan.workers > 1 or memory is not None) and not has_devices:
                    link = link or (measured_link() if plan.workers > 1 else None)
                    predicted = predict(trial, plan.threads, link or Link(0.0, math.inf), memory is not None)
                if memory is not None and predicted and (predicted.bytes or 0) > memory:
                    too_large[plan] = predicted.bytes or 0
                    continue
                with _threads(plan.threads if plan.workers == 1 else threads):
                    seconds, waits = measure(trial)
                if plan.workers == 1 or predicted is None:
                    rows.append(Row(plan, seconds, waits))
                    continue
                rows.append(Row(plan, seconds, waits, predicted._replace(seconds=beside * predicted.seconds)))
                beside = slowed(predicted, seconds, waits)
            except ConfigError:
                if plan.workers == 1:
                    raise
    finally:
        for name, part in parts.items():
            part.load_state_dict(before[name])
    return _choice(rows, too_large, memory)


def slowed(predicted: Prediction, seconds: float, waits: float) -> float:
    """How much longer pieces took beside each other, as measured, than alone, as predicted; 1 where nobody knows."""
    alone, together = predicted.seconds * (1 - predicted.waits), seconds * (1 - waits)
    return together / alone if together > 0 and alone > 0 else 1.0


def _choice(rows: list[Row], too_large: dict[Plan, int], memory: float | None) -> Choice:
    if not rows:
        plan = min(too_large, key=too_large.__getitem__)
        raise ConfigError(
            f"Trainer: expected memory of at least {too_large[plan]:,} bytes a worker, the need of {plan}, "
            f"got {memory:,.0f}; smaller batches or more shards need less"
        )
    best = min(rows, key=lambda row: row.seconds)
    alone = min((row for row in rows if row.plan.workers == 1), key=lambda row: row.seconds, default=None)
    if alone is None:
        return Choice(best.plan, rows, "the fastest that fits the memory", too_large)
    kind = "device" if best.plan.devices else "core"
    ratio = alone.seconds / best.seconds if best.seconds else 1.0
    if best.plan.workers == 1 or best.seconds >= MARGIN * alone.seconds:
        why = "do not parallelise" if alone.plan.threads == 1 and len(rows) > 1 else "more processes are not faster"
        return Choice(alone.plan, rows, why if len(rows) > 1 else f"there is one {kind}", too_large)
    return Choice(best.plan, rows, f"{ratio:.2f} times as fast as {alone.plan}", too_large)


# --- predict ----------------------------------------------------------------------------------------------------------


def measured_link() -> Link:
    """alpha and beta of two processes of this machine: an all-reduce of 8 bytes, and of a megabyte."""
    small, large = run(_time_link, workers=2)[0]
    return Link(small / 2, 4 * LARGE / max(large - small, 1e-9))


def _time_link(comm: Any) -> list[float]:
    best = []
    for x in (comm.empty((2,), np.float32), comm.empty((LARGE,), np.float32)):
        times = []
        for _ in range(20):
            comm.barrier()
            start = time.perf_counter()
            comm.all_reduce(x)
            times.append(time.perf_counter() - start)
        best.append(statistics.median(times))
    return best


def predict(settings: Settings, threads: int, link: Link, counts_bytes: bool = False) -> Prediction:
    """What a step of these settings takes, from the time of its pieces in this process.

    threads: of each worker. counts_bytes: say how many bytes a worker holds, too, which traces a forward pass.
    Raises ConfigError as engines do.
    """
    from .pool.steps import Solo, slices_of

    strategy, workers, problem = settings.strategy, settings.workers, None
    with tempfile.TemporaryDirectory() as folder, _threads(threads):
        engine = Solo(dataclasses.replace(settings, timeline=Path(folder, "timeline.json")), Start())
        try:
            _run(engine, settings, (WARM + TIMED) * strategy.span(settings.accumulate))
            events = engine.timeline.events_of(0)  # type: ignore[union-attr]
            own, replica = [pieces.phase for pieces in engine.arena.pieces], engine.replica
        except BaseException as error:
            problem = error
            raise
        finally:
            engine.close(problem)
    times: dict[tuple[str, int | None], list[float]] = {}
    for event in events:
        if event.step >= WARM:
            phase = own[int(event.phase)]
            times.setdefault((phase.name, phase.stage), []).append((event.end - event.start) * phase.pieces)
    links = replica.plan.links if replica.plan else ()
    phases = strategy.phases(settings.shards, slices_of(replica, workers), settings.clip_norm is not None, links)
    sizes = _sizes(replica, counts_bytes)

    def seconds(phase: Phase, piece: int) -> float:
        alone = statistics.median(times[phase.name, phase.stage]) / phase.pieces
        if workers == 1:
            return alone
        return alone + link.alpha + _received(phase, sizes, replica, workers) / link.beta

    spans = timetable(strategy, phases, workers, seconds)
    busy = sum(span.end - span.start for span in spans)
    length = max(max(span.end for span in spans), busy / cores())  # more workers than cores take turns
    most = max(held(strategy, spans, workers, sizes, replica.layout.states)) if counts_bytes else None
    if counts_bytes and workers == 1 and strategy.is_plain:  # one program: updates in place, sums as they come
        whole = sizes[0]
        most = whole.parameters * (2 + replica.layout.states + settings.shards.bit_length() - 1) + whole.activations
    return Prediction(length / strategy.span(settings.accumulate), idle(spans, workers), most)


def _sizes(replica: Any, with_activations: bool) -> list[Sizes]:
    """Of each stage, or of the model as a whole. Views count as if they were copies."""
    extents, plan = list(replica.layout.parameters.values()), replica.plan
    if plan is None:
        nbytes = 0
        if with_activations:
            positions = first_full(next(replica.settings.loader.batch_indices(0)), replica.shards)
            nbytes = sum(made.nbytes for made in traced(replica, positions, _Counts)[0].made)
        return [Sizes(sum(extent.nbytes for extent in extents), nbytes)]
    made = plan.made[max(plan.made)]
    return [
        Sizes(
            sum(extents[i].nbytes for i in stage.parameters),
            sum(made[op].nbytes for op in stage.ops),
            sum(made[op].nbytes for op in stage.leaves),
        )
        for stage in plan.stages
    ]


class _Counts(Trace):
    """Of a model that need not be cut, so it may look at values."""

    def refuse(self, what):
        pass

    def check_no_change(self):
        pass


def _received(phase: Phase, sizes: Sequence[Sizes], replica: Any, workers: int) -> float:
    """Bytes that another worker wrote and that a piece reads."""
    plan = replica.plan
    if phase.name == "slice":  # of the slots of all shards
        extents = list(replica.layout.parameters.values())
        own = range(len(extents)) if plan is None else plan.members(phase.stage)[0]
        share = 1 / max(1, workers // replica.strategy.stages)
        return sum(extents[i].nbytes for i in own) * replica.shards / phase.pieces * (1 - share)
    if phase.stage is None:
        return 0.0
    others = plan.links[phase.stage].after if phase.name == "forward" else [phase.stage]
    return float(sum(sizes[s].sent for s in others))


# --- measure ----------------------------------------------------------------------------------------------------------


def measure(settings: Settings) -> tuple[float, float]:
    """Seconds a batch, and the part of them in which workers wait, if there are several."""
    best, problem = math.inf, None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "timeline.json")
        if settings.workers > 1:
            settings = dataclasses.replace(settings, timeline=file)
        engine = engine_of(settings, Start())
        try:
            _run(engine, settings, WARM)
            start = time.perf_counter()
            _run(engine, settings, 1)
            batches = min(BATCHES, max(2, int(TRIAL / 4 / max(time.perf_counter() - start, 1e-6))))
            end = time.perf_counter() + TRIAL
            for done in itertools.count():
                if done >= ROUNDS and time.perf_counter() >= end:
                    break
                start = time.perf_counter()
                _run(engine, settings, batches)
                best = min(best, (time.perf_counter() - start) / batches)
        except BaseException as error:
            problem = error
            raise
        finally:
            engine.close(problem)
        return best, waited(file, batches) if settings.workers > 1 else math.nan


def _run(engine: Engine, settings: Settings, batches: int) -> None:
    endless = itertools.chain.from_iterable(settings.loader.batch_indices(0) for _ in itertools.count())
    for positions in itertools.islice(endless, batches):
        engine.submit(positions)
    engine.settled()


def waited(file: Path, steps: int) -> float:
    """The part of the newest steps in which workers waited, by the timeline of a run, or NaN."""
    events = json.loads(file.read_bytes())["traceEvents"] if file.exists() else []
    workers = {event["tid"] for event in events if event["ph"] == "M"} - {0}
    spans: dict[int, list[dict[str, Any]]] = {}
    for event in events:
        if "step" in event.get("args", ()):
            spans.setdefault(event["args"]["step"], []).append(event)
    busy = length = 0.0
    for step in sorted(spans)[-steps:]:
        own = spans[step]
        busy += sum(event["dur"] for event in own)
        length += max(event["ts"] + event["dur"] for event in own) - min(event["ts"] for event in own)
    return 1 - busy / (len(workers) * length) if length else math.nan


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = get_num_threads()
    set_num_threads(count)
    try:
        yield
    finally:
        set_num_threads(before)
