"""What each strategy computes, against the formulas in NumPy; that exact ones keep their bits; that all learn."""

import dataclasses
import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
from linear import BATCH, CLASSES, ROWS, START, Linear, X, Y, batches, gradient, products, shard, squares, train
from residue import no_residue

import scratchnet as sn
from scratchnet.parallel import AllReduce, Float16, Hogwild, LocalSGD, ParameterServer, PowerSGD, TopK
from scratchnet.parallel.failpoints import VARIABLE
from scratchnet.parallel.pool import pool, steps, worker
from scratchnet.parallel.pool.training_arena import COMPUTE, SHARDS
from scratchnet.parallel.strategies import Strategy

# --- formulas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [AllReduce(), ParameterServer()])
def test_a_synchronous_step_descends_the_gradient_of_the_batch(strategy):
    weight, velocity = START.copy(), 0.0
    for x, y in batches():
        velocity = 0.9 * velocity + gradient(weight, x, y)
        weight = weight - 0.1 * velocity
    np.testing.assert_allclose(train(strategy, momentum=0.9, accumulate=1)[0], weight, rtol=1e-12)


@pytest.mark.parametrize("delay", [1, 2, 5])
def test_gradients_of_a_delayed_server_come_from_older_parameters(delay):
    old = [START.copy()]
    for t, (x, y) in enumerate(batches()):
        old.append(old[-1] - 0.1 * gradient(old[max(t - delay, 0)], x, y))
    np.testing.assert_allclose(train(ParameterServer(delay))[0], old[-1], rtol=1e-12)


@pytest.mark.parametrize("warmup", [0, 2])
def test_local_sgd_averages_copies_and_their_momentum(warmup):
    weight, velocity, steps, shards = START.copy(), np.zeros_like(START), 0, 2
    for _ in range(2):
        rest = list(batches(1))
        while rest:
            if steps < warmup:
                x, y = rest.pop(0)
                velocity = 0.9 * velocity + gradient(weight, x, y)
                weight = weight - 0.1 * velocity
            else:
                took, rest = rest[:2], rest[2:]
                copies = []
                for k in range(shards):
                    w, v = weight, velocity
                    for x, y in took:
                        v = 0.9 * v + gradient(w, *shard(k, shards, x, y))
                        w = w - 0.1 * v
                    copies.append((w, v))
                weight, velocity = (sum(parts) / shards for parts in zip(*copies, strict=True))
            steps += 1
    found, history = train(LocalSGD(every=2, warmup=warmup), momentum=0.9)
    np.testing.assert_allclose(found, weight, rtol=1e-12)
    assert history["step"][-1] == steps


@pytest.mark.parametrize("shards", [3, 8])
def test_local_sgd_averages_the_copies_that_took_a_step(shards):
    """Of 8 shards of the last batch, 6 samples, two are empty: where it is a round of its own, they took none."""
    weight, optimizer_state = START.copy(), np.zeros_like(START)
    for x, y in batches(2):
        copies = []
        for part in (shard(k, shards, x, y) for k in range(shards)):
            if len(part[0]):
                v = 0.9 * optimizer_state + gradient(weight, *part)
                copies.append((weight - 0.1 * v, v))
        weight, optimizer_state = (sum(parts) / len(copies) for parts in zip(*copies, strict=True))
    found, _ = train(LocalSGD(every=1), shards=shards, momentum=0.9)
    np.testing.assert_allclose(found, weight, rtol=1e-12)


@pytest.mark.parametrize("shards", [1, 3])
def test_accumulated_batches_make_one_step_of_their_mean_gradient(shards):
    weight = START.copy()
    for _ in range(2):
        whole = list(batches(1))
        for group in (whole[:2], whole[2:]):
            x, y = (np.concatenate(parts) for parts in zip(*group, strict=True))
            weight = weight - 0.1 * gradient(weight, x, y)
    found, history = train(AllReduce(), accumulate=2, shards=shards)
    np.testing.assert_allclose(found, weight, rtol=1e-12)
    assert history["step"] == [2, 4]


@pytest.mark.parametrize("limit", [0.05, 0.3, 100.0])
def test_clipping_scales_the_merged_gradient(limit):
    weight = START.copy()
    for x, y in batches():
        g = gradient(weight, x, y)
        weight = weight - 0.1 * g * min(1, limit / (np.linalg.norm(g) + 1e-6))
    np.testing.assert_allclose(train(AllReduce(), clip_norm=limit)[0], weight, rtol=1e-9)


@pytest.mark.parametrize("workers", [1, 3])
def test_each_push_of_an_asynchronous_worker_is_an_update(workers):
    """Gradients that depend on nothing add up to the same in any order."""
    weight = START - 0.1 * sum(x.T @ y / y.size for x, y in batches())
    found, _ = train(ParameterServer(None), products, workers=workers, shards=3)
    np.testing.assert_allclose(found, weight, rtol=1e-12)


def test_hogwild_alone_loses_nothing():
    weight = START - 0.1 * sum(x.T @ y / y.size for x, y in batches())
    np.testing.assert_allclose(train(Hogwild(), products, shards=3)[0], weight, rtol=1e-12)


@dataclasses.dataclass(frozen=True)
class EverySecond(AllReduce):
    """Merges after two batches."""

    name = "every_second"

    def span(self, accumulate):
        return 2


@dataclasses.dataclass(frozen=True)
class LocalAlways(Strategy):
    """One local step of each shard, then their mean; more pages and slices than others."""

    name = "local_always"
    merges_gradients = False
    has_local_steps = True
    pages = 4

    def trains_locally(self, step):
        return True

    def slices(self, workers):
        return 3


@pytest.mark.parametrize("workers", [1, 2])
def test_a_new_strategy_is_a_class(workers):
    found, history = train(EverySecond(), workers=workers, shards=3)
    assert found.tobytes() == train(AllReduce(), accumulate=2, shards=3)[0].tobytes()
    assert history["step"] == [2, 4]
    found, _ = train(LocalAlways(), workers=workers, momentum=0.9)
    assert found.tobytes() == train(LocalSGD(every=1), momentum=0.9)[0].tobytes()


# --- the same bits ----------------------------------------------------------------------------------------------------

EXACT = {
    "all_reduce": {"strategy": AllReduce()},
    "clipped": {"strategy": AllReduce(), "clip_norm": 0.05, "accumulate": 2},
    "parameter_server": {"strategy": ParameterServer()},
    "delayed": {"strategy": ParameterServer(2)},
    "local_sgd": {"strategy": LocalSGD(2, warmup=1)},
    "top_k": {"strategy": AllReduce(TopK(0.3))},
    "power_sgd": {"strategy": AllReduce(PowerSGD(1))},
}


@pytest.mark.parametrize("case", EXACT.values(), ids=EXACT)
def test_bits_do_not_depend_on_workers(case):
    with no_residue():
        results = [train(momentum=0.9, shards=4, shuffle=True, workers=workers, **case) for workers in (1, 3)]
    (one, history), (several, other) = results
    assert one.tobytes() == several.tobytes()
    assert history.records == other.records
    assert sum(row["shards"] for row in other.workers) >= 4


def test_the_parameter_server_has_the_bits_of_all_reduce():
    both = [train(strategy, momentum=0.9, shards=4)[0].tobytes() for strategy in (AllReduce(), ParameterServer())]
    assert both[0] == both[1]


class Resizing(sn.data.DataLoader):
    """A loader that changes the trainer's workers before some batches."""

    def batch_indices(self, epoch, start=0):
        for number, positions in enumerate(super().batch_indices(epoch, start), start):
            if (epoch, number) in self.plan:
                self.trainer.resize(self.plan[epoch, number])
            yield positions


@pytest.mark.parametrize("strategy", [AllReduce(), AllReduce(TopK(0.3)), LocalSGD(2), ParameterServer(2)], ids=repr)
def test_workers_come_and_go_without_changing_a_bit(strategy):
    results = []
    for plan in ({}, {(0, 1): 3, (1, 0): 2, (1, 2): 1, (2, 1): 2}):
        model = Linear(START)
        loader = Resizing(sn.data.TensorDataset(X, Y), BATCH, shuffle=True, seed=5)
        trainer = sn.Trainer(
            model, sn.optim.Adam(model.parameters()), squares, shards=4, strategy=strategy, progress=False
        )
        loader.plan, loader.trainer = plan, trainer
        with no_residue():
            history = trainer.fit(loader, epochs=3)
        assert trainer.workers == (2 if plan else 1)
        assert not plan or len(history.workers) == 2
        results.append((model.weight.detach().numpy().tobytes(), history.records))
    assert results[0] == results[1]


@pytest.mark.parametrize("case", EXACT.values(), ids=EXACT)
def test_a_resumed_run_ends_in_the_same_bytes(case, tmp_path):
    """Residuals of compression and the age of gradients are restored, too."""
    common = {"momentum": 0.9, "shards": 4, "shuffle": True, **case}
    whole, history = train(**common, epochs=4, save_every=2, folder=tmp_path / "whole")
    train(**common, epochs=2, save_every=2, folder=tmp_path / "parts")
    model = Linear(START)
    optimizer = sn.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    loader = sn.data.DataLoader(sn.data.TensorDataset(X, Y), BATCH, shuffle=True, seed=5)
    trainer = sn.Trainer(
        model, optimizer, squares, shards=4, progress=False, save_every=2, folder=tmp_path / "parts", **case
    )
    parts = trainer.fit(loader, epochs=4, resume="auto")
    assert model.weight.detach().numpy().tobytes() == whole.tobytes()
    assert parts.records == history.records


# --- learning, on real images -----------------------------------------------------------------------------------------

LEARNERS = {
    "parameter_server": {"strategy": ParameterServer()},
    "delayed": {"strategy": ParameterServer(1), "lr": 0.01, "epochs": 8},  # a lower rate, and longer
    "asynchronous": {"strategy": ParameterServer(None), "lr": 0.005, "epochs": 14},  # likewise, the more so
    "local_sgd": {"strategy": LocalSGD(4, warmup=20)},
    "hogwild": {"strategy": Hogwild(), "lr": 0.005, "epochs": 14},  # on a busy machine delays are long
    "float16": {"strategy": AllReduce(Float16())},
    "top_k": {"strategy": AllReduce(TopK(0.1))},
    "power_sgd": {"strategy": AllReduce(PowerSGD(2))},
    "clipped": {"strategy": AllReduce(), "clip_norm": 1.0},
}


def accuracy_on_images(workers, lr=0.02, epochs=4, **options):
    sn.manual_seed(0)
    images, test = sn.data.load("fashion-mnist-mini")
    model = sn.nn.MLP(784, 32, 10)
    trainer = sn.Trainer(
        model, sn.optim.SGD(model.parameters(), lr, momentum=0.9), sn.nn.CrossEntropyLoss(), workers=workers,
        shards=2, progress=False, **options,
    )  # fmt: skip
    trainer.fit(sn.data.DataLoader(images, 64, shuffle=True), epochs=epochs)
    return trainer.evaluate(sn.data.DataLoader(test, 1000))["accuracy"]


@pytest.fixture(scope="module")
def alone():
    return accuracy_on_images(1)


@pytest.mark.parametrize("options", LEARNERS.values(), ids=LEARNERS)
def test_it_learns_as_one_process_does(options, alone):
    workers = 1 if options["strategy"] == AllReduce() or options["strategy"].compression else 2
    assert alone > 0.8
    assert accuracy_on_images(workers, **options) > alone - 0.04


# --- what is not finite, looking inside, bad input --------------------------------------------------------------------


def roots(output, target):
    """Finite at 0, where its gradient is not."""
    return (output * output).sum(axis=1).sqrt().mean()


BAD = np.where(np.arange(ROWS)[:, None] == 10, 0.0, X)  # a row of zeros, in the second batch


@pytest.mark.parametrize("workers", [1, 2])
def test_a_gradient_that_is_not_finite_names_shard_and_parameter(workers):
    options = {"workers": workers, "strategy": AllReduce(), "x": BAD, "loss": roots}
    with pytest.raises(sn.NonFiniteError, match=r"step 1, shard 0: expected a finite gradient of 'weight'"):
        train(**options, clip_norm=1.0) if workers == 1 else train(**options)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_step_that_is_not_finite_is_skipped_if_asked(workers, caplog):
    weight = START.copy()
    for i, (x, _) in enumerate(batches(1)):
        if i != 1:
            z = x @ weight
            weight = weight - 0.1 * x.T @ (z / np.linalg.norm(z, axis=1, keepdims=True)) / len(x)
    with caplog.at_level(logging.WARNING, "scratchnet.parallel"):
        found, history = train(AllReduce(), roots, workers, epochs=1, x=BAD, nonfinite="skip")
    np.testing.assert_allclose(found, weight, rtol=1e-12)
    assert "step 1 was skipped: in shard 0 the gradient of 'weight' is not finite" in caplog.text
    assert np.isfinite(history["train_loss"]).all()


class Normed(Linear):
    """Running statistics of its output, beside it."""

    def __init__(self, start):
        super().__init__(start)
        self.norm = sn.nn.BatchNorm1d(CLASSES)

    def forward(self, x):
        z = super().forward(x)
        return z + self.norm(z.astype("float32")).astype("float64") * 0.0


@pytest.mark.parametrize("compression", [Float16(), TopK(0.4), PowerSGD(1)])
@pytest.mark.parametrize("workers", [1, 2])
def test_what_compression_remembers_stays_where_a_step_is_skipped(compression, workers):
    """As if the batch of rows 8 to 15 were not there; there are more steps after it, which need finite residuals."""
    options = {"loss": roots, "epochs": 3, "nonfinite": "skip"}
    expected, _ = train(AllReduce(compression), **options, x=np.delete(X, range(8, 16), 0), y=np.delete(Y, range(8), 0))
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(train(AllReduce(compression), **options, workers=workers, x=BAD)[0], expected)


def test_running_statistics_stay_where_a_step_is_skipped():
    """As if the batch of rows 8 to 15 were not there."""
    results = []
    for x in (BAD, np.delete(X, range(8, 16), 0)):
        model = Normed(START)
        loader = sn.data.DataLoader(sn.data.TensorDataset(x, x[:, :CLASSES].copy()), BATCH)
        optimizer = sn.optim.SGD([model.weight], 0.1)
        trainer = sn.Trainer(model, optimizer, roots, nonfinite="skip", progress=False)
        trainer.fit(loader, epochs=2)
        results.append({name: array.tobytes() for name, array in model.state_dict().items() if "running" in name})
    assert results[0] == results[1]


def test_a_slow_worker_gets_fewer_shards_and_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(pool, "SLOW", 1.1)  # how much slower it is depends on what else the machine does
    monkeypatch.setenv(VARIABLE, "shard.claimed:*:0:!sleep=0.0001,shard.claimed:*:1:!sleep=0.06")
    with caplog.at_level(logging.WARNING, "scratchnet.parallel"):
        slow, history = train(AllReduce(), workers=2, shards=8, epochs=30)
    monkeypatch.delenv(VARIABLE)
    assert slow.tobytes() == train(AllReduce(), shards=8, epochs=30)[0].tobytes()
    fast, slow = (row["shards"] for row in history.workers)
    assert fast > 2 * slow
    assert "worker 1 takes" in caplog.text


@pytest.mark.parametrize(
    ("seconds", "shards", "slow"),
    [
        ((1.0, 1.0, 5.2), 10, [2]),
        ((1.0, 1.0, 4.9), 10, []),
        ((1.0, 1.0, 5.2), 9, []),
        ((0.1, 1.0, 5.2), 10, [2]),
        ((1.0, 5.2), 10, [1]),
        ((1.0,), 10, []),
    ],
)
def test_a_worker_that_takes_five_times_as_long_as_the_others_is_said_to_be_slow_once(seconds, shards, slow, caplog):
    times = np.zeros((len(seconds), 8))
    times[:, SHARDS] = shards
    times[:, COMPUTE] = np.multiply(seconds, shards)
    watching = SimpleNamespace(
        arena=SimpleNamespace(times=times), workers=len(seconds), placement=SimpleNamespace(are_mixed=False),
        replica=SimpleNamespace(plan=None), _slow=set(),
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, "scratchnet.parallel"):
        for _ in range(2):
            pool.Pool._look_for_slow(watching)
    assert [record.args[0] for record in caplog.records] == slow


def test_a_timeline_shows_each_piece_of_each_worker(tmp_path):
    train(AllReduce(), workers=2, shards=3, epochs=2, timeline=tmp_path / "timeline.json")
    events = json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
    names = {event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names == {"parent", "worker 0", "worker 1"}
    spans = [event for event in events if event["ph"] == "X" and event["name"] != "wait"]
    assert sum(event["name"] == "compute" for event in spans) == 6 * 3
    assert sum(event["name"] == "update" for event in spans) == 6 * 2
    assert all(event["dur"] >= 0 for event in spans)
    by_step = {step: [e["ts"] for e in spans if e["args"]["step"] == step] for step in range(6)}
    assert all(max(by_step[step]) <= min(by_step[step + 1]) for step in range(5))


def test_whoever_sees_a_piece_done_sees_its_event(tmp_path, monkeypatch):
    """A parent that writes the file as soon as the last step is done misses none."""
    counts, workers = [], []

    class Watched(worker.Worker):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            workers.append(self)

    def noted(*where):
        counts.append(int(workers[0].times[-1]))
        publish(*where)

    publish = worker.publish
    monkeypatch.setattr(worker, "publish", noted)
    monkeypatch.setattr(steps, "Worker", Watched)
    train(AllReduce(), shards=3, epochs=2, timeline=tmp_path / "timeline.json")
    assert counts == list(range(1, 6 * (3 + 1) + 1))


def test_positions_outside_the_data_are_refused():
    class Beyond(sn.data.DataLoader):
        def batch_indices(self, epoch, start=0):
            return iter([np.arange(ROWS - 4, ROWS + 4)])

    model = Linear(START)
    trainer = sn.Trainer(
        model, sn.optim.SGD(model.parameters(), 0.1), squares, shards=2, strategy=ParameterServer(), progress=False
    )
    with pytest.raises(sn.IndexOutOfRangeError, match="positions from 0 to 21, got 18 to 25"):
        trainer.fit(Beyond(sn.data.TensorDataset(X, Y), BATCH))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"strategy": "gossip"},
            "strategy to be one of all_reduce, parameter_server, asynchronous, local_sgd",
        ),
        ({"strategy": AllReduce}, r"got the class AllReduce; call it: AllReduce\(\)"),
        ({"strategy": LocalSGD(2), "clip_norm": 1.0}, "expected a strategy that merges gradients"),
        ({"strategy": Hogwild(), "accumulate": 2}, "expected a strategy that merges gradients"),
        ({"strategy": AllReduce(), "clip_norm": -1.0}, "clip_norm > 0"),
        ({"strategy": AllReduce(), "accumulate": 0}, "accumulate to be an integer of at least 1"),
        ({"strategy": AllReduce(), "nonfinite": "ignore"}, "'raise' or 'skip'"),
        ({"strategy": AllReduce(), "workers": "many"}, "'auto' or an integer"),
    ],
)
def test_arguments_outside_their_range_are_refused(options, message):
    with pytest.raises(sn.ConfigError, match=message):
        train(**options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LocalSGD(every=0), lambda: LocalSGD(warmup=-1), lambda: ParameterServer(-1), lambda: TopK(0),
        lambda: PowerSGD(0), lambda: AllReduce("float16"), lambda: ParameterServer(2, Float16()),
    ],
)  # fmt: skip
def test_strategies_outside_their_range_are_refused(make):
    with pytest.raises(sn.ConfigError, match="expected"):
        make()
