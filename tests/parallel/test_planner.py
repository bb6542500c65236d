"""workers="auto": which plans are tried, which is taken, and that nothing of a trial is left."""

import itertools

import numpy as np
import pytest

import scratchnet as sn
from scratchnet.parallel import planner
from scratchnet.parallel.planner import Plan, choose, plans


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


def small(workers):
    sn.manual_seed(0)
    rng = np.random.default_rng(0)
    data = sn.data.TensorDataset(rng.standard_normal((40, 4)).astype(np.float32), rng.integers(0, 3, 40))
    model = sn.nn.MLP(4, 8, 3, dropout=0.2)
    optimizer = sn.optim.Adam(model.parameters())
    schedule = sn.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=15)
    trainer = sn.Trainer(model, optimizer, sn.nn.CrossEntropyLoss(), schedule, workers, shards=2)
    return trainer, sn.data.DataLoader(data, 8, shuffle=True)


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
    assert "us a batch" in choice.compare(2e-3)


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
    assert "auto: predicted" in capsys.readouterr().out
