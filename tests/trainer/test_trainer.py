"""The Trainer: the same bits after a resume, a kill or a signal; shards that add up to the batch; clear refusals."""

import functools
import io
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import scratchnet as sn
from scratchnet.parallel.shards import split
from scratchnet.trainer.metrics_log import read_jsonl
from scratchnet.trainer.progress import first_line, progress_bar
from scratchnet.trainer.run import stop_on_signal

SAMPLES, FEATURES, CLASSES = 50, 6, 3


def data(seed=0, n=SAMPLES):
    rng = np.random.default_rng(seed)
    centers = 3 * rng.standard_normal((CLASSES, FEATURES))
    y = rng.integers(0, CLASSES, n)
    return sn.data.TensorDataset((centers[y] + rng.standard_normal((n, FEATURES))).astype(np.float32), y)


def make(
    folder=None, shards=None, dropout=0.3, lr=0.05, batch_size=8, model=None,
    n=SAMPLES, shuffle=True, drop_last=False, loader_seed=3, **options,
):  # fmt: skip
    """A small run that uses all there is to restore: dropout, momentum, a schedule, shuffling, a short last batch."""
    sn.manual_seed(1)
    model = model or sn.nn.MLP(FEATURES, 8, CLASSES, dropout=dropout)
    optimizer = sn.optim.SGD(model.parameters(), lr, momentum=0.9)
    schedule = sn.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=1000)
    loader = sn.data.DataLoader(data(n=n), batch_size, shuffle, drop_last, loader_seed)
    trainer = sn.Trainer(
        model, optimizer, sn.nn.CrossEntropyLoss(), schedule, shards=shards, folder=folder, progress=False, **options
    )
    return trainer, loader


def weights(trainer):
    return {name: array.tobytes() for name, array in trainer.model.state_dict().items()}


def newest(folder):
    return sorted(folder.glob("checkpoint-*.safetensors"))[-1].read_bytes()


# --- resuming ------------------------------------------------------------------------------------------------------


def test_a_config_that_cannot_be_saved_is_refused_before_an_epoch_is_lost(tmp_path):
    for config in ({"a": {1, 2}}, {3: "a"}, {"a": Path("x")}):
        steps = []
        watch = SimpleNamespace(every=1, on_step_end=lambda run, steps=steps: steps.append(run.step))
        trainer, loader = make(tmp_path / "run", config=config, callbacks=[watch])
        with pytest.raises(sn.CheckpointError, match="checkpoint key config"):
            trainer.fit(loader)
        assert steps == []
        trainer.config = {"a": [1, 2]}
    trainer.fit(loader)  # the folder is still that of no run
    assert steps


@pytest.mark.parametrize("new_phase", [False, True])
def test_a_run_that_cannot_be_saved_in_the_folder_is_refused_before_its_log_is_cut(tmp_path, new_phase):
    best = sn.callbacks.BestCheckpoint("train_loss", mode="max")
    trainer, loader = make(tmp_path, callbacks=[best])
    trainer.fit(loader, epochs=4)
    assert best.best_epoch == 1
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    trainer, loader = make(tmp_path)
    with pytest.raises(sn.CheckpointError, match=r"which is saved here already, got .*train in another folder"):
        trainer.fit(loader, epochs=2, resume=best.file, new_phase=new_phase)
    after = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    assert {**after, ".scratchnet-lock": b""} == {**before, ".scratchnet-lock": b""}


def test_ten_epochs_equal_five_and_five(tmp_path):
    trainer, loader = make(tmp_path / "whole")
    whole = trainer.fit(loader, loader, epochs=10)
    trainer, loader = make(tmp_path / "parts")
    trainer.fit(loader, loader, epochs=5)
    trainer, loader = make(tmp_path / "parts")
    parts = trainer.fit(loader, loader, epochs=10, resume="auto")
    assert newest(tmp_path / "whole") == newest(tmp_path / "parts")
    assert whole.records == parts.records


class Stop(Exception):
    pass


class StoppingLoader(sn.data.DataLoader):
    """It raises Stop instead of giving the batch of step `last`."""

    def batch_indices(self, epoch, start=0):
        for number, positions in enumerate(super().batch_indices(epoch, start), epoch * len(self) + start):
            if number == self.last:
                raise Stop
            yield positions


def test_resuming_from_any_step_ends_in_the_same_bytes(tmp_path):
    trainer, loader = make(tmp_path / "whole", save_every=1)
    trainer.fit(loader, epochs=2)
    expected = newest(tmp_path / "whole")
    for step in range(1, 14):
        folder = tmp_path / f"stopped{step}"
        trainer, loader = make(folder, save_every=1)
        loader.__class__, loader.last = StoppingLoader, step
        with pytest.raises(Stop):
            trainer.fit(loader, epochs=2)
        trainer, loader = make(folder, save_every=1)
        trainer.fit(loader, epochs=2, resume="auto")
        assert newest(folder) == expected


CHILD = Path(__file__).parents[1] / "programs" / "trainer_child.py"


def start(folder):
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, CHILD, folder], text=True, **pipes)


def wait_for_step(process, step):
    """There the child stays: however late it is killed, it has done no step more."""
    for line in process.stdout:
        if line == f"step {step}\n":
            return
        process.stdin.write("\n")
        process.stdin.flush()
    raise AssertionError(f"the child ended before step {step}: {process.stderr.read()}")


def test_a_run_killed_three_times_ends_in_the_bytes_of_an_undisturbed_one(tmp_path):
    trainer, loader = make(tmp_path / "whole", save_every=2)
    trainer.fit(loader, epochs=4)
    for step in (3, 8, 19):
        process = start(tmp_path / "killed")
        wait_for_step(process, step)
        process.kill()
        process.communicate()
    trainer, loader = make(tmp_path / "killed", save_every=2)
    trainer.fit(loader, epochs=4, resume="auto")
    assert newest(tmp_path / "killed") == newest(tmp_path / "whole")
    assert [record["epoch"] for record in read_jsonl(tmp_path / "killed" / "metrics.jsonl")] == [1, 2, 3, 4]
    assert not list((tmp_path / "killed").glob("*.scratchnet-tmp"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(tmp_path, number, status):
    process = start(tmp_path / "run")
    wait_for_step(process, 5)
    process.send_signal(number)
    process.communicate()
    assert process.returncode == status
    trainer, loader = make(tmp_path / "run", save_every=2)
    trainer.fit(loader, epochs=4, resume="auto")
    reference, loader = make(save_every=2)
    reference.fit(loader, epochs=4)
    assert weights(trainer) == weights(reference)


def test_a_new_run_in_a_used_folder_is_refused_and_touches_nothing(tmp_path):
    trainer, loader = make(tmp_path)
    trainer.fit(loader, epochs=1)
    before = newest(tmp_path)
    trainer, loader = make(tmp_path)
    with pytest.raises(sn.CheckpointError, match="resume='auto'"):
        trainer.fit(loader, epochs=1)
    assert newest(tmp_path) == before


ANOTHER = {  # name in the message: what differs
    "shards": {"shards": 2},
    "seed": {"seed": 5},
    "batch_size": {"batch_size": 7},
    "samples": {"n": SAMPLES - 1},
    "shuffle": {"shuffle": False},
    "loader_seed": {"loader_seed": 4},
    "drop_last": {"drop_last": True},
    "accumulate": {"accumulate": 2},
    "clip_norm": {"clip_norm": 0.5},
    "nonfinite": {"nonfinite": "skip"},
    "precision": {"precision": "bfloat16"},
    "strategy": {"strategy": sn.parallel.ParameterServer()},
    "order": {"strategy": sn.parallel.AllReduce(order="fast")},
    "compression": {"strategy": sn.parallel.AllReduce(sn.parallel.TopK(0.5))},
}


@pytest.mark.parametrize("name", ANOTHER)
def test_resuming_with_another_arithmetic_is_refused(tmp_path, name):
    trainer, loader = make(tmp_path)
    trainer.fit(loader, epochs=1)
    trainer, loader = make(tmp_path, **ANOTHER[name])
    with pytest.raises(sn.CheckpointError, match=rf"resume: expected {name}="):
        trainer.fit(loader, epochs=2, resume="auto")


def test_each_field_of_the_identity_of_a_run_has_a_test(tmp_path):
    trainer, loader = make(tmp_path)
    trainer.fit(loader, epochs=1)
    identity = sn.load(sorted(tmp_path.glob("checkpoint-*"))[-1])["identity"]
    of_parts = {
        "first samples",
        "some samples",
        "model",
        "layers",
        "frozen",
        "loss",
        "options of the loss",
        "optimizer",
        "options",
        "scheduler",
        "base_lrs",
        "schedule",
        "sampler",
        "products",  # tests/trainer/test_precision.py
    }
    assert set(identity) == {*ANOTHER, *of_parts, "devices", "parts"}  # tests/parallel/pool, tests/parallel/model


def test_resuming_on_other_data_is_refused_also_below_functions_of_it(tmp_path):
    def loader_of(column, names="ab"):
        x, y = data()[:]
        rows = sn.data.TensorDataset(np.roll(x, column, axis=1), y)
        rows.feature_names = list(names)
        return sn.data.DataLoader(rows.map(np.copy), 8)

    make(tmp_path)[0].fit(loader_of(0), epochs=1)
    make(tmp_path)[0].fit(loader_of(0), epochs=2, resume="auto")
    for other in (loader_of(1), loader_of(0, "ba")):
        with pytest.raises(sn.CheckpointError, match="resume: expected first samples="):
            make(tmp_path)[0].fit(other, epochs=3, resume="auto")
    older = sn.load(sorted(tmp_path.glob("checkpoint-*"))[-1])
    for name in ("first samples", "some samples"):
        older["identity"][name] = None  # of a version that looked at no function's data
    sn.save(tmp_path / "older.safetensors", **older)
    make(tmp_path / "other")[0].fit(loader_of(1), epochs=3, resume=tmp_path / "older.safetensors")


@pytest.mark.parametrize("is_mapped", [False, True])
def test_resuming_on_data_that_begin_alike_is_refused(tmp_path, is_mapped):
    def trainer_on(labels):
        trainer, loader = make(tmp_path)
        rows = sn.data.TensorDataset(data().arrays[0], labels)
        loader.dataset = rows.map(np.copy) if is_mapped else rows
        return trainer, loader

    y = data().arrays[1]
    trainer, loader = trainer_on(y)
    trainer.fit(loader, epochs=1)
    trainer, loader = trainer_on(np.append(y[:-1], (y[-1] + 1) % CLASSES))
    with pytest.raises(sn.CheckpointError, match=r"resume: expected some samples=.*new_phase=True"):
        trainer.fit(loader, epochs=2, resume="auto")


def classes_weigh(*weights):
    return sn.nn.CrossEntropyLoss(weight=weights)


def smoothed(part):
    return functools.partial(sn.nn.functional.cross_entropy, label_smoothing=part)


UNPRINTED = {  # what no layer and no loss prints: before, after, the message
    "norm_first": (lambda x: sn.nn.TransformerEncoderLayer(6, 2, 8, norm_first=x), False, True, "layers="),
    "activation": (lambda x: sn.nn.TransformerEncoderLayer(6, 2, 8, activation=x), "relu", "gelu", "layers="),
    "nonlinearity": (lambda x: sn.nn.RNNCell(6, 6, nonlinearity=x), "tanh", "relu", "layers="),
    "weights of classes": (
        lambda x: classes_weigh(1.0, x, 3.0),
        2.0,
        2.5,
        r"weight=\[1. 2. 3.\], as saved, got \[1. *2.5",
    ),
    "a partial": (smoothed, 0.1, 0.2, "label_smoothing=0.1, as saved, got 0.2"),
}


@pytest.mark.parametrize("name", UNPRINTED)
def test_resuming_with_other_options_that_nobody_prints_is_refused(tmp_path, name):
    def run(option):
        made = make_one(option)
        is_layer = name in ("norm_first", "activation", "nonlinearity")
        layers = [sn.nn.Linear(FEATURES, 6), made] if is_layer else [sn.nn.Linear(FEATURES, 6)]
        model = Rows(*layers, sn.nn.Linear(6, CLASSES))
        trainer, loader = make(tmp_path, model=model)
        if not is_layer:
            trainer.loss = made
        return trainer.fit(loader, epochs=2, resume="auto" if any(tmp_path.iterdir()) else None)

    make_one, before, after, message = UNPRINTED[name]
    run(before)
    with pytest.raises(sn.CheckpointError, match=f"resume: expected {message}"):
        run(after)
    run(before)


class Rows(sn.nn.Sequential):
    """Layers of sequences get one of a single step."""

    def forward(self, x):
        for layer in self:
            is_encoder = isinstance(layer, sn.nn.TransformerEncoderLayer)
            x = layer(x.unsqueeze(1)).squeeze(1) if is_encoder else layer(x)
        return x


def test_resuming_with_other_parameters_that_do_not_train_is_a_new_phase(tmp_path):
    def trainer_of(is_frozen):
        model = sn.nn.MLP(FEATURES, 8, CLASSES)
        model.linear1.weight.requires_grad_(not is_frozen)
        return make(tmp_path, model=model)

    trainer, loader = trainer_of(True)
    trainer.fit(loader, epochs=1)
    trainer, loader = trainer_of(False)
    with pytest.raises(
        sn.CheckpointError, match=r"expected frozen=\['linear1.weight'\], as saved, got \[\]; new_phase=True"
    ):
        trainer.fit(loader, epochs=2, resume="auto")
    trainer.fit(loader, epochs=2, resume="auto", new_phase=True)


def test_resuming_another_model_names_the_difference(tmp_path):
    trainer, loader = make(tmp_path)
    trainer.fit(loader, epochs=1)
    trainer, loader = make(tmp_path, model=sn.nn.MLP(FEATURES, 9, CLASSES, dropout=0.3))
    before = weights(trainer)
    with pytest.raises(sn.CheckpointError, match=r"out_features=8, .*, got .*out_features=9"):
        trainer.fit(loader, epochs=2, resume="auto")
    assert weights(trainer) == before


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path):
    trainer, loader = make(tmp_path)
    trainer.fit(loader, epochs=3)
    expected = newest(tmp_path)
    path = sorted(tmp_path.glob("checkpoint-*.safetensors"))[-1]
    path.write_bytes(expected[:-1])
    trainer, loader = make(tmp_path)
    with pytest.warns(RuntimeWarning, match="checkpoint-"):
        trainer.fit(loader, epochs=3, resume="auto")
    assert newest(tmp_path) == expected


@pytest.mark.parametrize("shards", [2, 3])
def test_a_checkpoint_of_an_older_version_loads_and_says_that_bits_differ(shards, tmp_path, caplog):
    trainer, loader = make(tmp_path, shards)
    trainer.fit(loader, epochs=1)
    saved = sn.load(sorted(tmp_path.glob("checkpoint-*.safetensors"))[-1])
    assert saved.pop("version") == sn.__version__
    for name in ("model", "optimizer", "loss", "scheduler", "options", "base_lrs", "schedule", "first samples"):
        del saved["identity"][name]  # version 0.1 knew nothing of them
    sn.save(tmp_path / "older.safetensors", **saved)
    resumed, loader = make(tmp_path / "other", shards)
    resumed.fit(loader, epochs=1, resume=tmp_path / "older.safetensors")
    assert weights(resumed) == weights(trainer)
    assert ("added shards up in another order" in caplog.text) == (shards > 2)


# --- shards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 8, 9])
@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_shards_are_consecutive_and_hold_every_row_once(n, shards):
    x = np.arange(n)
    parts = [split((x,), k, shards)[0] for k in range(shards)]
    assert np.concatenate(parts).tolist() == x.tolist()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


FIRST_LINES = {  # workers, shards
    (1, None): "1 worker, 1 shard a batch: several workers take 8 and get other bits, unless shards=1 is given",
    (2, None): "2 workers, 8 shards a batch: any other number gives the same bits, one with shards=8",
    (2, 4): "2 workers, 4 shards a batch: any number of workers gives the same bits",
    (3, 2): "3 workers, 2 shards a batch (1 worker without one): any number of workers gives the same bits",
}


@pytest.mark.parametrize(("workers", "shards"), FIRST_LINES)
def test_the_first_line_of_a_run_says_on_what_its_bits_depend(workers, shards, capsys):
    trainer, loader = make(workers=workers, shards=shards)
    trainer.progress = True
    trainer.fit(loader, epochs=1)
    assert capsys.readouterr().out.splitlines()[0] == FIRST_LINES[workers, shards]


def test_the_first_line_promises_nothing_of_a_strategy_that_is_not_exact():
    assert first_line(2, "worker", 8, True, is_exact=False).endswith("the bits differ from run to run")


def test_workers_do_not_change_the_number_of_shards_while_a_run_is_in_progress():
    trainer, _ = make(workers=2)
    trainer._is_running = True
    trainer.resize(3)
    with pytest.raises(sn.ConfigError, match=r"shards=K, so that the arithmetic stays, got 3 -> 1 workers"):
        trainer.resize(1)
    assert trainer.workers == 3 and trainer.shards == 8


@pytest.mark.parametrize("shards", [2, 3, 8, 16])
def test_merged_shards_give_the_mean_gradient_of_the_batch(shards):
    """Momentum and dropout off, one step: the change of the weights is -lr times NumPy's gradient of the batch."""
    sn.manual_seed(0)
    model = sn.nn.Linear(FEATURES, CLASSES)
    before = {k: v.astype(np.float64) for k, v in model.state_dict().items()}
    x, y = (array[:11] for array in data().arrays)  # 16 shards of 11 rows: some are empty
    trainer = sn.Trainer(
        model, sn.optim.SGD(model.parameters(), 0.5), sn.nn.CrossEntropyLoss(), shards=shards, progress=False
    )
    history = trainer.fit(sn.data.DataLoader(sn.data.TensorDataset(x, y), 11))
    z = x @ before["weight"] + before["bias"]
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss = -np.log(p[np.arange(len(y)), y]).mean()
    p[np.arange(len(y)), y] -= 1
    np.testing.assert_allclose(model.state_dict()["weight"], before["weight"] - 0.5 * x.T @ p / len(x), atol=1e-5)
    np.testing.assert_allclose(model.state_dict()["bias"], before["bias"] - 0.5 * p.mean(0), atol=1e-5)
    assert history["train_loss"] == [pytest.approx(loss, rel=1e-5)]


def test_running_statistics_of_shards_are_averaged_from_the_same_start():
    sn.manual_seed(0)
    model = sn.nn.Sequential(sn.nn.BatchNorm1d(FEATURES), sn.nn.Linear(FEATURES, CLASSES))
    trainer = sn.Trainer(
        model, sn.optim.SGD(model.parameters(), 0.1), sn.nn.CrossEntropyLoss(), shards=2, progress=False
    )
    x, y = (array[:10] for array in data().arrays)
    trainer.fit(sn.data.DataLoader(sn.data.TensorDataset(x, y), 10))
    mean = 0.5 * (0.1 * x[:5].mean(0)) + 0.5 * (0.1 * x[5:].mean(0))
    np.testing.assert_allclose(model.state_dict()["0.running_mean"], mean, rtol=1e-5, atol=1e-6)


def images(n=50, seed=0):
    rng = np.random.default_rng(seed)
    return sn.data.TensorDataset(
        rng.integers(0, 256, (n, FEATURES), np.uint8), rng.integers(0, CLASSES, n), scale=1 / 255
    )


class Unknown(sn.data.Dataset):
    """Images that only `gather` can give."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset[index]


@pytest.mark.parametrize("wrap", [
    lambda d: d,
    lambda d: d.map(sn.data.Standardize.fit(d)),
    lambda d: sn.data.random_split(d, [40, 10])[0].map(sn.data.Standardize.fit(d, per_feature=False)),
    lambda d: d.map(lambda x: x * 2),
    Unknown,
])  # fmt: skip
@pytest.mark.parametrize("shards", [1, 3])
def test_a_step_that_gathers_its_rows_itself_keeps_the_bits(wrap, shards):
    results = []
    for jit in (True, False):
        trainer, _ = make(shards=shards, jit=jit)
        history = trainer.fit(sn.data.DataLoader(wrap(images()), 8, shuffle=True, seed=1), epochs=3)
        results.append((weights(trainer), history.records))
    assert results[0] == results[1]


def test_bits_do_not_depend_on_threads():
    results = []
    for threads in (1, 2):
        sn.set_num_threads(threads)
        trainer, loader = make(model=sn.nn.MLP(FEATURES, 8, CLASSES), shards=2)
        sn.manual_seed(1)
        trainer, loader = make(shards=2)
        trainer.fit(loader, epochs=2)
        results.append(weights(trainer))
    assert results[0] == results[1]


# --- learning, evaluation, bad input ----------------------------------------------------------------------------------


def test_it_learns_and_reports(tmp_path):
    trainer, loader = make(tmp_path, dropout=0.0)
    history = trainer.fit(loader, loader, epochs=20)
    assert history["train_loss"][-1] < 0.5 * history["train_loss"][0]
    assert trainer.evaluate(loader)["accuracy"] == history["val_accuracy"][-1] > 0.9
    record = read_jsonl(tmp_path / "metrics.jsonl")[-1]
    assert set(record) == {
        "epoch", "step", "train_loss", "val_loss", "val_accuracy", "seconds", "samples_per_second",
    }  # fmt: skip


def test_the_progress_line_shows_what_each_worker_does(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def engine(busy, waiting):
        rows = [{"computing": b, "merging": 0.0, "waiting": w} for b, w in zip(busy, waiting, strict=True)]
        return SimpleNamespace(report=lambda: rows)

    pytest.importorskip("tqdm")
    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setattr("scratchnet.trainer.progress.SHOW_EVERY", 0.0)
    with progress_bar(0, 3, batch=0, batches=10, show=True) as bar:
        bar.show_workers(engine([3.0, 1.0], [1.0, 1.0]))
        bar.show_workers(engine([4.0, 2.0], [4.0, 1.0]))  # since then: 1 s busy and 3 s waiting, and 1 s busy
        bar.refresh()
    assert "epoch 1/3" in sys.stderr.getvalue()
    assert "busy 25% 100%" in sys.stderr.getvalue()


def test_predict_returns_logits_and_leaves_the_mode_alone():
    trainer, loader = make(dropout=0.5)
    x, _ = next(loader.batches(0))
    trainer.model.train()
    first, second = trainer.predict(x), trainer.predict(x, batch_size=3)
    assert trainer.model.training
    assert first.shape == (len(x), CLASSES)
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("jit", [True, False])
def test_a_loss_that_is_not_finite_names_the_step_and_the_op_and_changes_nothing(jit):
    features, labels = data().arrays
    features = features.copy()
    features[17] = 1e12  # in the third batch

    def run(n):
        trainer, _ = make(dropout=0.0, jit=jit)
        ordinary = trainer.loss
        trainer.loss = lambda output, target: ordinary(output, target) + (1e6 - output.abs().max()).log() * 0.0
        return trainer, sn.data.DataLoader(sn.data.TensorDataset(features[:n], labels[:n]), 8)

    before, loader = run(16)
    before.fit(loader, epochs=1)
    trainer, loader = run(len(features))
    with pytest.raises(sn.NonFiniteError, match=r"nan at step 2, shard 0, from log"):
        trainer.fit(loader, epochs=1)
    assert weights(trainer) == weights(before)
    assert [slot["step"] for slot in trainer.optimizer.state_dict()["state"]] == [2] * 4
    assert trainer.scheduler.last_step == 2


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"workers": 1.5}, {"shards": 0}, {"strategy": "gossip"}, {"save_every": 0}]
)
def test_arguments_outside_their_range_are_refused(options):
    with pytest.raises(sn.ConfigError, match="Trainer: expected"):
        make(**options)


@pytest.mark.parametrize("options", [{}, {"jit": False}, {"strategy": "local_sgd"}])
def test_a_gradient_of_the_last_step_that_is_not_finite_is_no_success(options):
    """The loss is finite, its gradient is not: the square root of 0."""
    trainer, loader = make(dropout=0.0, **options)
    trainer.loss = lambda output, target: (output * 0).abs().sum(axis=1).sqrt().mean()
    steps = len(loader)
    with pytest.raises(sn.NonFiniteError, match=r"expected (a finite|finite parameters)"):
        trainer.fit(sn.data.DataLoader(loader.source, loader.batch_size * steps), epochs=1)


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    """The loss is finite, its gradient is not: the square root of 0."""
    trainer, loader = make(tmp_path, dropout=0.0, save_every=1, jit=False)
    trainer.loss = lambda output, target: (output * 0).abs().sum(axis=1).sqrt().mean()
    with pytest.raises(sn.NonFiniteError, match=r"step 1: expected finite parameters, got others in 'linear1.weight'"):
        trainer.fit(loader, epochs=1)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_loss_that_is_no_mean_is_refused():
    trainer, loader = make()
    trainer.loss = sn.nn.CrossEntropyLoss(reduction="none")
    with pytest.raises(sn.ConfigError, match="a mean over the batch"):
        trainer.fit(loader, epochs=1)
    trainer.loss = lambda output, target: sn.nn.functional.cross_entropy(output, target, reduction="none")
    with pytest.raises(sn.ShapeError, match="loss of one element"):
        trainer.fit(loader, epochs=1)


def test_a_resumed_run_is_the_one_that_was_saved_and_says_what_is_not(tmp_path):
    """A scheduler sets lr and momentum; what it does not set, and its own rates, have to be those of before."""

    def parts(lr=0.1, weight_decay=0.0, step_size=3, momentum=0.5, loss=sn.nn.CrossEntropyLoss):
        model = sn.nn.MLP(FEATURES, 8, CLASSES)
        optimizer = sn.optim.SGD(model.parameters(), lr, momentum, weight_decay=weight_decay)
        schedule = sn.optim.lr_scheduler.StepLR(optimizer, step_size) if step_size else None
        return sn.Trainer(model, optimizer, loss(), schedule, folder=tmp_path / f"{step_size}", progress=False)

    loader = sn.data.DataLoader(data(), 8)
    for step_size in (3, None):
        trainer = parts(step_size=step_size)
        trainer.fit(loader, epochs=1)
        trainer.fit(loader, epochs=2, resume="auto")  # the same object, whose rate has changed by now
        with pytest.raises(sn.CheckpointError, match=r"^resume: expected first samples="):
            parts(step_size=step_size).fit(sn.data.DataLoader(data(seed=5), 8), epochs=3, resume="auto")
        for other in ({"lr": 0.2}, {"momentum": 0.6}, {"weight_decay": 0.1}, {"loss": sn.nn.BCEWithLogitsLoss}):
            (name,) = other
            with pytest.raises(sn.CheckpointError, match=rf"^resume: expected (base_)?{name}s?=.*, as saved, got .*$"):
                parts(step_size=step_size, **other).fit(loader, epochs=3, resume="auto")


def test_a_signal_that_is_ignored_stays_ignored():
    """As nohup, or a shell that starts a program in the background, wants it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signal() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.asked is None and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("stream", [None, "closed", "full"])
def test_a_run_goes_on_without_its_output(stream, monkeypatch):
    out = stream and (open("/dev/full", "w") if stream == "full" else io.StringIO())  # noqa: SIM115
    if stream == "closed":
        out.close()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", None)
    trainer, loader = make()
    trainer.progress = True
    assert len(trainer.fit(loader, loader, epochs=1)) == 1


def test_epochs_start_no_threads():
    trainer, loader = make()
    trainer.progress = True
    trainer.fit(loader, epochs=1)
    before = threading.active_count()
    trainer.fit(loader, epochs=20)
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [1, 2])
def test_a_timeline_that_cannot_be_written_is_refused_before_the_training(workers, tmp_path):
    for path in (tmp_path, tmp_path / "none" / "x.json"):
        trainer, loader = make(shards=2, workers=workers, timeline=path)
        with pytest.raises(sn.ConfigError, match=r"^timeline: expected a file that can be written, got .*$"):
            trainer.fit(loader, epochs=1)


# --- data of other kinds ----------------------------------------------------------------------------------------------


class Poems(sn.data.Dataset):
    """Dicts of words, of several lengths, a picture, and a label."""

    def __len__(self):
        return 22

    def __getitem__(self, i):
        picture = np.random.default_rng(i).random((4, 4), dtype=np.float32)
        return {"picture": picture, "words": np.arange(i % 5 + 1), "label": i % 2}


def collate(samples):
    words = sn.data.pad_sequence([sample["words"] for sample in samples], batch_first=True)
    rest = sn.data.default_collate([{"picture": s["picture"], "label": s["label"]} for s in samples])
    return {"picture": rest["picture"], "words": words, "label": rest["label"]}


class Reader(sn.nn.Module):
    def __init__(self):
        self.embedding, self.head = sn.nn.Embedding(5, 3), sn.nn.Linear(9 + 3, 2)

    def forward(self, *, words, picture):
        return self.head(sn.cat([self.embedding(words).mean(axis=1), picture.reshape(len(picture), 9)], axis=1))


def test_dicts_collated_and_augmented_have_the_same_bits_with_1_2_and_3_workers():
    def weights_with(workers, jit=True):
        sn.manual_seed(1)
        functions = [sn.data.RandomCrop(3), sn.data.RandomHorizontalFlip()]
        poems = sn.data.Augmented(Poems(), functions, seed=4)
        lengths = [i % 5 for i in range(22)]
        loader = sn.data.DataLoader(poems, 8, sampler=sn.data.BucketSampler(lengths, 8), collate_fn=collate)
        model = Reader()
        optimizer = sn.optim.SGD(model.parameters(), 0.1)
        trainer = sn.Trainer(
            model, optimizer, sn.nn.CrossEntropyLoss(), None, workers, shards=3, progress=False, jit=jit
        )
        trainer.fit(loader, epochs=2)
        assert 0 <= trainer.evaluate(loader)["accuracy"] <= 1
        return weights(trainer)

    expected = weights_with(1)
    assert weights_with(1, jit=False) == expected
    assert weights_with(2) == expected
    assert weights_with(3) == expected


def test_a_run_with_another_sampler_is_another_run(tmp_path):
    trainer, loader = make(tmp_path)
    loader.shuffle, loader.sampler = False, sn.data.RandomSampler(loader.dataset, seed=1)
    trainer.fit(loader, epochs=1)
    trainer, loader = make(tmp_path)
    loader.shuffle, loader.sampler = False, sn.data.RandomSampler(loader.dataset, seed=2)
    with pytest.raises(sn.CheckpointError, match=r"expected sampler=.*seed=1\).* got .*seed=2"):
        trainer.fit(loader, epochs=2, resume="auto")


class Halves(sn.data.Sampler):
    """Every second sample; it keeps the object that it samples from, as samplers written for PyTorch do."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return SAMPLES // 2

    def indices(self, epoch):
        return np.arange(SAMPLES // 2) * 2


def test_a_sampler_that_keeps_an_object_is_the_same_one_after_a_resume(tmp_path):
    for epochs in (1, 2):
        trainer, loader = make(tmp_path)
        loader.shuffle, loader.sampler = False, Halves(SimpleNamespace(rows=object()))  # another address each time
        trainer.fit(loader, epochs=epochs, resume="auto")


@pytest.mark.parametrize(("workers", "dtype"), [(1, "float32"), (1, "float64"), (2, "float32")])
def test_floats_are_cast_to_the_type_of_the_model_with_one_sentence(workers, dtype):
    other = {"float32": np.float64, "float64": np.float32}[dtype]
    x, y = data().arrays
    found = []
    for features in (x.astype(other), x.astype(dtype)):
        sn.manual_seed(2)
        model = sn.nn.MLP(FEATURES, 8, CLASSES).to("numpy", dtype)
        trainer, loader = make(model=model, shards=2, workers=workers)
        loader.dataset = sn.data.TensorDataset(features, y)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            trainer.fit(loader, loader, epochs=1)
        found.append((weights(trainer), [str(w.message) for w in said]))
    (cast, (sentence,)), (plain, silence) = found
    assert cast == plain and silence == []
    assert sentence.startswith(f"Trainer: field 0 of the samples is {np.dtype(other)} and the model {dtype}")


def test_threads_of_a_loader_rest_in_a_trainer_which_says_so(capsys):
    trainer, loader = make()
    trainer.progress, loader.num_workers = True, 2
    trainer.fit(loader)
    assert "num_workers of the loader rests: workers of the Trainer read their own samples" in capsys.readouterr().out


# --- threads ----------------------------------------------------------------------------------------------------------


def test_threads_that_train_at_the_same_time_have_the_bits_of_one_alone():
    program = Path(__file__).parents[1] / "programs" / "threads_train.py"
    ended = subprocess.run([sys.executable, program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    together, alone = ended.stdout.splitlines()
    assert set(together.split()) == {alone}


UPDATES = {
    "amsgrad": lambda p: sn.optim.AdamW(p, 0.05, amsgrad=True),
    "adagrad": lambda p: sn.optim.Adagrad(p, 0.1, lr_decay=0.1, initial_accumulator_value=0.1),
    "adadelta, climbing": lambda p: sn.optim.Adadelta(p, maximize=True),
}


@pytest.mark.parametrize("name", UPDATES)
def test_every_update_has_the_same_bits_with_two_workers(name):
    def trained(**options):
        sn.manual_seed(0)
        model = sn.nn.MLP(4, 5, 3)
        optimizer = UPDATES[name](model.parameters())
        x = np.random.default_rng(0).standard_normal((32, 4)).astype(np.float32)
        data = sn.data.TensorDataset(x, np.arange(32) % 3)
        trainer = sn.Trainer(model, optimizer, sn.nn.CrossEntropyLoss(), shards=4, progress=False, **options)
        trainer.fit(sn.data.DataLoader(data, 16), epochs=2)
        arrays = [*model.state_dict().values(), *(a for state in optimizer.states for a in state.arrays)]
        return [a.tobytes() for a in arrays]

    expected = trained()
    assert trained(workers=2) == expected and trained(jit=False) == expected and trained(clip_norm=1e9) == expected


def test_samples_of_the_users_are_cast_with_one_sentence_and_read_no_more_than_needed():
    class Samples(sn.data.Dataset):
        asked: list = []  # noqa: RUF012

        def __len__(self):
            return 8

        def __getitem__(self, i):
            self.asked.append(i)
            return np.full(FEATURES, i / 8), i % CLASSES

    trainer, _ = make(model=sn.nn.MLP(FEATURES, CLASSES).to("numpy"))
    loader = sn.data.DataLoader(Samples(), 4)
    with pytest.warns(UserWarning, match="Trainer: field 0 of the samples is float64 and the model float32") as said:
        trainer.fit(loader, epochs=2)
    assert len(said) == 1 and Samples.asked == [*range(8)] * 2


def test_the_log_of_a_run_that_goes_on_from_an_older_checkpoint_has_each_epoch_once(tmp_path):
    trainer, loader = make(tmp_path)
    trainer.fit(loader, epochs=2)
    sorted(tmp_path.glob("checkpoint-*"))[-1].unlink()  # what a kill between the log and the checkpoint leaves
    trainer, loader = make(tmp_path)
    trainer.fit(loader, epochs=3, resume="auto")
    assert [record["epoch"] for record in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3]


# --- a new phase ------------------------------------------------------------------------------------------------------


def phase(folder, epochs, resume=None, new_phase=False, workers=1, steps=1000, lr=0.05, **options):
    trainer, loader = make(folder, shards=2, lr=lr, workers=workers, **options)
    trainer.scheduler = sn.optim.lr_scheduler.OneCycleLR(trainer.optimizer, lr, total_steps=steps)
    history = trainer.fit(loader, epochs=epochs, resume=resume, new_phase=new_phase)
    return trainer, history


def test_a_new_phase_goes_on_from_weights_and_momentum_with_a_new_schedule(tmp_path):
    first, _ = phase(tmp_path, 1, dropout=0.0)
    settings = {"lr": 0.2, "batch_size": 16, "dropout": 0.0}
    second, history = phase(tmp_path, 3, "auto", True, steps=8, **settings)
    assert history["epoch"] == [1, 2, 3] and second.scheduler.last_step == 2 * 4

    _, loader = make(**settings)
    schedule = sn.optim.lr_scheduler.OneCycleLR(first.optimizer, 0.2, total_steps=8)
    for epoch in (1, 2):
        for x, y in loader.batches(epoch):
            first.optimizer.zero_grad()
            first.loss(first.model(sn.Tensor(x)), sn.Tensor(y)).backward()
            first.optimizer.step()
            schedule.step()
    for mine, by_hand in zip(second.model.parameters(), first.model.parameters(), strict=True):
        np.testing.assert_allclose(mine.detach().numpy(), by_hand.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kill_at", [None, 2])
def test_a_new_phase_has_the_bits_of_one_process_and_is_resumed_like_any_run(tmp_path, kill_at):
    settings = {"lr": 0.02, "batch_size": 16, "steps": 8, "dropout": 0.3}
    for name, workers in (("one", 1), ("two", 2)):
        phase(tmp_path / name, 1)
        if kill_at is None:
            phase(tmp_path / name, 3, "auto", True, workers=workers, **settings)
        else:
            phase(tmp_path / name, kill_at, "auto", True, workers=workers, **settings)
            phase(tmp_path / name, 3, "auto", workers=workers, **settings)
    assert newest(tmp_path / "one") == newest(tmp_path / "two")


def test_random_numbers_of_a_new_phase_are_not_those_of_the_one_before(tmp_path):
    phase(tmp_path, 2)
    phase(tmp_path, 3, "auto", True, batch_size=16)
    position = sn.load(sorted(tmp_path.glob("checkpoint-*"))[-1])["position"]
    assert (position["phase_epoch"], position["phase_batch"], position["epoch_batches"]) == (2, 2 * 7, 4)


def test_a_run_says_what_a_new_phase_changes(tmp_path, capsys):
    phase(tmp_path, 1)
    trainer, loader = make(tmp_path, shards=2, lr=0.2, batch_size=16)
    trainer.progress = True
    trainer.fit(loader, epochs=2, resume="auto", new_phase=True)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("new phase after epoch 1: "))
    assert "batch_size 8 -> 16" in line and "base_lrs 0.05 -> 0.2" in line


def test_other_settings_without_a_new_phase_are_refused_with_the_remedy(tmp_path):
    phase(tmp_path, 1)
    with pytest.raises(sn.CheckpointError, match=r"total_steps=1000, as saved, got 500; new_phase=True"):
        phase(tmp_path, 2, "auto", steps=500)
    with pytest.raises(sn.CheckpointError, match=r"expected seed=0, as saved, got 5$"):
        phase(tmp_path, 2, "auto", True, seed=5)
    with pytest.raises(sn.ConfigError, match="expected resume='auto' or a file with new_phase=True"):
        phase(tmp_path / "new", 1, None, True)


def test_a_new_phase_begins_at_the_end_of_an_epoch(tmp_path):
    class Stops:
        def on_step_end(self, run):
            if run.step == 3:
                run.stop("here")

    phase(tmp_path, 1, callbacks=[Stops()])
    with pytest.raises(sn.CheckpointError, match=r"got one after batch 3 of epoch 1; finish that epoch first"):
        phase(tmp_path, 2, "auto", True, lr=0.2)
