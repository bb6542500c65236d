"""workers="auto": which plans are tried, which is taken, and that nothing of a trial is left."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

import scratchnet as sn
from scratchnet.parallel import LocalSGD, Pipeline, TensorParallel, planner
from scratchnet.parallel.placement import Placement
from scratchnet.parallel.planner import (
    Link,
    Plan,
    Prediction,
    choose,
    on_devices,
    parted,
    plans,
    predict,
    staged,
    waited,
)


@pytest.mark.parametrize(
    ("cores", "most", "expected"),
    [
        (1, 8, [(1, 1)]),
        (2, 8, [(1, 2), (1, 1), (2, 1)]),
        (6, 64, [(1, 6), (1, 1), (2, 3), (4, 1), (6, 1)]),
        (8, 2, [(1, 8), (1, 1), (2, 4)]),
        (8, 1, [(1, 8), (1, 1)]),
    ],
)
def test_plans_share_out_the_cores(cores, most, expected):
    assert plans(cores, most) == [Plan(*plan) for plan in expected]


@pytest.mark.parametrize(("names", "most", "workers"), [(1, 8, [1]), (3, 8, [1, 2, 3]), (8, 4, [1, 2, 4])])
def test_plans_on_devices_take_the_first_ones(names, most, workers):
    placement = Placement(["cpu"] * names, "cpu")
    found = on_devices(placement, 4, most)
    assert [(plan.workers, plan.threads) for plan in found] == [(n, max(1, 4 // n)) for n in workers]
    assert str(found[-1]) == f"{workers[-1]} worker{'s' * (workers[-1] > 1)} on {', '.join(['cpu'] * workers[-1])}"


def test_stages_may_have_two_workers_each_which_share_shards_or_parts():
    found = staged(plans(4, 8), 4, limited=False)
    assert found == [Plan(2, 2, 2), Plan(4, 1, 4), Plan(4, 1, 2)]
    shared = parted([*plans(4, 8), *found], 2)
    assert shared == [Plan(2, 2, 1, True), Plan(4, 1, 1, True), Plan(4, 1, 2, True)]
    assert str(shared[-1]) == "4 workers x 1 thread, 2 stages, by parts"
    strategy = shared[-1].of(TensorParallel(2))
    assert (strategy.stages, strategy.parts, strategy.shares_parts(4)) == (2, 2, True)
    assert parted(plans(3, 8), 2) == [Plan(2, 1, 1, True)], "three workers cannot share two parts evenly"
    assert staged(plans(2, 8), 2, limited=True)[:3] == [Plan(2, 1, 2), Plan(4, 1, 4), Plan(8, 1, 8)]


def test_no_plan_is_taken_that_measured_slower_than_one_process():
    tried = [*plans(4, 8), *staged(plans(4, 8), 4, limited=False)]
    tried += parted(tried, 2)
    rng = np.random.default_rng(0)
    for _ in range(200):
        seconds = dict(zip(tried, rng.uniform(1, 2, len(tried)), strict=True))
        choice = planner._choice([planner.Row(plan, own) for plan, own in seconds.items()], {}, None)
        alone = min(seconds[Plan(1, 4)], seconds[Plan(1, 1)])
        best = min(seconds.values())
        assert seconds[choice.plan] == (best if best < planner.MARGIN * alone else alone)


class Clock:
    """An engine whose batches take as long as a table says, on a clock of its own."""

    now = 0.0

    def __init__(self, seconds):
        self.seconds, self.is_left = seconds, False

    def submit(self, positions):
        Clock.now += self.seconds

    def settled(self):
        return []

    def close(self, error):
        self.is_left = True


def small(workers, **options):
    sn.manual_seed(0)
    rng = np.random.default_rng(0)
    data = sn.data.TensorDataset(rng.standard_normal((40, 4)).astype(np.float32), rng.integers(0, 3, 40))
    model = sn.nn.MLP(4, 8, 3, dropout=0.2)
    optimizer = sn.optim.Adam(model.parameters())
    schedule = sn.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=15)
    trainer = sn.Trainer(model, optimizer, sn.nn.CrossEntropyLoss(), schedule, workers, shards=2, **options)
    return trainer, sn.data.DataLoader(data, 8, shuffle=True)


@pytest.fixture
def two_cores(monkeypatch):
    """Of a machine on which a table says what is predicted and measured: {plan: (bytes, seconds)}."""
    monkeypatch.setattr(planner, "cores", lambda: 2)
    monkeypatch.setattr(planner, "get_num_threads", lambda: 2)
    monkeypatch.setattr(planner, "set_num_threads", lambda n: None)
    monkeypatch.setattr(planner, "measured_link", lambda: Link(1e-6, 1e9))

    def use(table):
        def plan_of(settings):
            stages = settings.strategy.stages
            return next(p for p in table if (p.workers, p.stages) == (settings.workers, stages))

        monkeypatch.setattr(planner, "predict", lambda settings, *_: Prediction(1e-3, 0.1, table[plan_of(settings)][0]))
        monkeypatch.setattr(planner, "measure", lambda settings: (table[plan_of(settings)][1], 0.2))

    return use


@pytest.mark.parametrize(
    ("memory", "taken", "why"),
    [
        (None, Plan(2, 1, 2), "1.50 times as fast as 1 worker x 2 threads"),
        (1000, Plan(2, 1, 2), "1.50 times as fast"),
        (90, Plan(2, 1, 2), "the fastest that fits the memory"),
        (60, Plan(2, 1, 2), "the fastest that fits the memory"),
        (40, Plan(4, 1, 4), "the fastest that fits the memory"),
    ],
)
def test_memory_excludes_plans(two_cores, memory, taken, why):
    """One process needs 100 bytes, workers that share shards 80, stages less the more there are."""
    table = {Plan(1, 2): (100, 3e-3), Plan(2, 1): (80, 4e-3), Plan(2, 1, 2): (50, 2e-3), Plan(4, 1, 4): (30, 9e-3)}
    two_cores(table)
    trainer, loader = small(1)
    choice = choose(trainer._settings(loader), memory)
    assert (choice.plan, choice.why[: len(why)]) == (taken, why)
    text = choice.explain()
    assert f"auto: -> {taken}: {why}" in text
    assert all(str(row.plan) in text for row in choice.rows)
    beside = 1.0  # each prediction is of 1 ms, a tenth of it waits; a fifth as measured
    for row in (row for row in choice.rows if row.plan.workers > 1):
        assert row.predicted.seconds == pytest.approx(1e-3 * beside)
        beside = (row.seconds * 0.8) / (1e-3 * 0.9)
    assert sorted(choice.too_large.values()) == sorted(
        size for plan, (size, _) in table.items() for _ in range(1 + (plan == Plan(1, 2))) if memory and size > memory
    )


def test_where_nothing_fits_the_smallest_need_is_named(two_cores):
    two_cores(
        {Plan(1, 2): (100, 1.0), Plan(2, 1): (80, 1.0), **{Plan(n, 1, n): (70 - n, 1.0) for n in (2, 4, 8, 16, 32, 64)}}
    )
    trainer, loader = small(1)
    with pytest.raises(sn.ConfigError) as caught:
        choose(trainer._settings(loader), 0.5)
    assert str(caught.value).startswith("Trainer: expected memory of at least 6 bytes a worker, the need of 64 workers")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("strategy", "stages"),
    [("all_reduce", 2), (TensorParallel(2), 2), (LocalSGD(), 0), (Pipeline(2, schedule="1f1b"), 0)],
    ids=str,
)
def test_only_plans_that_change_no_bit_are_tried(two_cores, strategy, stages):
    given = 2 if isinstance(strategy, Pipeline) else 1
    two_cores({Plan(1, 2, given): (1, 2.0), Plan(2, 1, given): (1, 1.0), Plan(2, 1, 2): (1, 3.0)})
    trainer, loader = small(1, strategy=strategy)
    choice = choose(trainer._settings(loader))
    found = [row.plan for row in choice.rows]
    parts = [Plan(2, 1, 1, True)] * (trainer.strategy.parts > 1)
    assert found == [Plan(1, 2), Plan(1, 1), Plan(2, 1)] + [Plan(2, 1, stages)] * (stages > 0) + parts
    assert all(plan.of(trainer.strategy).shares_parts(2) for plan in parts)
    taken = choice.plan.of(trainer.strategy)
    assert taken == trainer.strategy
    if stages:
        staged = found[3].of(trainer.strategy)
        assert (staged.stages, staged.parts, staged.arithmetic) == (2, trainer.strategy.parts, sn.parallel.AllReduce())


def test_a_prediction_adds_up_the_pieces_that_this_process_timed():
    """Truth: more seconds on a slower link; the bytes are those of pages and slots, by hand."""
    trainer, loader = small(1, strategy=Pipeline(2, ["linear2"], schedule="zero_bubble"))
    settings = dataclasses.replace(trainer._settings(loader), workers=2, scheduler=None)
    found, slow = (predict(settings, 1, Link(alpha, 1e9), True) for alpha in (0.0, 1.0))
    assert 0 < found.seconds < 1 and 0 < found.waits < 1
    assert slow.seconds == pytest.approx(3 * 2 + 1 + 1, abs=0.5)  # F, B and W of each shard, the bubble, and a slice
    first, states, shards = 4 * (4 * 8 + 8), 2, 2
    pages = 2 * first * (1 + states)
    assert pages + shards * first < found.bytes < pages + shards * first + 2000


def test_parts_that_workers_share_are_predicted():
    trainer, loader = small(1, strategy=TensorParallel(2))
    settings = dataclasses.replace(trainer._settings(loader), workers=2, scheduler=None)
    settings = dataclasses.replace(settings, strategy=Plan(2, 1, 1, True).of(settings.strategy))
    found, slow = (predict(settings, 1, Link(alpha, 1e9)) for alpha in (0.0, 1.0))
    assert 0 < found.seconds < 1 < slow.seconds


def test_the_timeline_says_who_waited(tmp_path):
    def span(tid, step, start, length):
        return {"ph": "X", "tid": tid, "ts": start, "dur": length, "args": {"step": step, "shard": 0}}

    names = [{"ph": "M", "tid": tid, "args": {"name": ""}} for tid in (0, 1, 2)]
    spans = [span(1, 0, 0, 9), span(1, 1, 10, 10), span(2, 1, 10, 5), span(1, 2, 20, 10), span(2, 2, 25, 5)]
    (tmp_path / "run.json").write_text(json.dumps({"traceEvents": [*names, *spans]}))
    assert waited(tmp_path / "run.json", 2) == 0.25
    assert np.isnan(waited(tmp_path / "none.json", 2))


@pytest.mark.parametrize(
    ("seconds", "taken"),
    [((3e-3, 1e-3), 2), ((1e-3, 3e-3), 1), ((1e-3, 0.99e-3), 1)],
    ids=["faster", "slower", "even"],
)
def test_the_fastest_plan_is_taken_and_one_process_where_it_is_close(seconds, taken, monkeypatch):
    monkeypatch.setattr(planner.time, "perf_counter", lambda: Clock.now)
    monkeypatch.setattr(planner, "cores", lambda: 2)
    monkeypatch.setattr(planner, "get_num_threads", lambda: 2)
    monkeypatch.setattr(planner, "set_num_threads", lambda n: None)
    monkeypatch.setattr(planner, "predict", lambda *_: Prediction(1e-3, 0.0))
    monkeypatch.setattr(planner, "measured_link", lambda: Link(0.0, 1.0))
    engines = []

    def engine_of(settings, start):
        engines.append(Clock(seconds[settings.workers - 1]))
        return engines[-1]

    monkeypatch.setattr(planner, "engine_of", engine_of)
    trainer, loader = small(workers=1)
    choice = choose(trainer._settings(loader))
    assert choice.plan.workers == taken
    assert all(engine.is_left for engine in engines)
    for workers, expected in enumerate(seconds, 1):
        assert min(s for plan, s in choice.seconds.items() if plan.workers == workers) == pytest.approx(expected)
    assert f"-> {choice.plan}" in choice.explain()
    assert "us a batch, the epoch took 2,000 us" in choice.compare(2e-3)


class Noting:
    every = 1

    def __init__(self):
        self.threads = set()

    def on_step_end(self, run):
        self.threads.add(sn.get_num_threads())


def test_one_process_has_the_threads_of_its_plan_for_the_run_alone(monkeypatch):
    monkeypatch.setattr(planner, "choose", lambda *_: planner.Choice(Plan(1, 1), [], ""))
    before, noting = sn.get_num_threads(), Noting()
    trainer, loader = small("auto", callbacks=[noting], progress=False)
    trainer.fit(loader)
    assert noting.threads == {1} and sn.get_num_threads() == before


def test_a_trial_leaves_nothing_behind(capsys):
    results = []
    for workers in ("auto", 1):
        trainer, loader = small(workers)
        history = trainer.fit(loader, epochs=3)
        assert isinstance(trainer.workers, int)
        states = [trainer.model.state_dict(), *trainer.optimizer.state_dict()["state"]]
        arrays = itertools.chain.from_iterable(state.values() for state in states)
        results.append(([np.asarray(a).tobytes() for a in arrays], history.records, trainer.scheduler.last_step))
    assert results[0] == results[1]
    said = capsys.readouterr().out
    assert all(text in said for text in ("predicted", "measured", "2 workers x 1 thread, 2 stages", "auto: tried at"))
