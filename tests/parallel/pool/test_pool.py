"""Training in a pool, from outside: the bytes of one process, whatever the number of workers; and errors that speak.

What kills do to it is shown by scripts/drill/drill.py, and by test_drill.py.
"""

import functools
import hashlib
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import multiprocess
import numpy as np
import pytest
from mpi_job import ByRows
from residue import no_residue

import scratchnet as sn
from scratchnet.formats import checkpoint
from scratchnet.native.compile import JIT_ENABLED, compile_stats
from scratchnet.parallel import failpoints, planner
from scratchnet.parallel.comm import memory, server
from scratchnet.parallel.modules import Modules
from scratchnet.parallel.pool import pool

SAMPLES, FEATURES, CLASSES, BATCH = 50, 6, 3, 16  # the last batch has 2 samples: with 4 or 8 shards, some are empty
MORE_SAMPLES = 58  # the last batch has 10: with 4 shards, 2 or 3 each

OPTIMIZERS = {
    "SGD": lambda p: sn.optim.SGD(p, 0.05),
    "nesterov": lambda p: sn.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": lambda p: sn.optim.Adam(p, 0.01),
    "AdamW": lambda p: sn.optim.AdamW(p, 0.01, weight_decay=0.1),
    "RMSprop": lambda p: sn.optim.RMSprop(p, 0.01),
}


@pytest.fixture(autouse=True)
def nothing_is_left():
    with no_residue():
        yield


class Sampled:
    """A dataset that is asked sample by sample."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset[index]


def samples(n=SAMPLES, bad=None):
    """Rows around a center for each class; `bad`: a sample whose square is infinite."""
    rng = np.random.default_rng(0)
    centers = 3 * rng.standard_normal((CLASSES, FEATURES))
    y = rng.integers(0, CLASSES, n)
    x = (centers[y] + rng.standard_normal((n, FEATURES))).astype(np.float32)
    if bad is not None:
        x[bad] = 1e30
    return sn.data.TensorDataset(x, y)


def network(norm=sn.nn.LayerNorm):
    sn.manual_seed(1)
    return sn.nn.Sequential(
        sn.nn.Linear(FEATURES, 8), norm(8), sn.nn.ReLU(), sn.nn.Dropout(0.3), sn.nn.Linear(8, CLASSES)
    )


def make(workers, shards, optimizer="Adam", model=None, dataset=None, loss=None, batch=BATCH, **options):
    model = model or network()
    rule = OPTIMIZERS[optimizer](model.parameters())
    schedule = sn.optim.lr_scheduler.OneCycleLR(rule, 0.05, total_steps=1000)
    loader = sn.data.DataLoader(dataset or samples(), batch, shuffle=True, seed=3)
    loss = loss or sn.nn.CrossEntropyLoss()
    trainer = sn.Trainer(model, rule, loss, schedule, workers=workers, shards=shards, progress=False, **options)
    return trainer, loader


def digest(trainer, history):
    """SHA-256 of parameters and buffers, optimizer state and loss history."""
    state = {"model": trainer.model, "optimizer": trainer.optimizer, "history": history.records}
    return hashlib.sha256(checkpoint.dumps(state)).hexdigest()


def trained(workers, shards, *job, epochs=2, **options):
    trainer, loader = make(workers, shards, *job, **options)
    return digest(trainer, trainer.fit(loader, loader, epochs=epochs))


# --- the promise ------------------------------------------------------------------------------------------------------


JOBS = {  # what to train, and numbers of workers: as many as cores, no divisor of the shards, more than shards
    "4 shards, batch norm, dropout": (
        lambda: (4, "nesterov", network(sn.nn.BatchNorm1d), samples(MORE_SAMPLES)), (2, 3, 7),
    ),
    "8 shards, some of them empty": (lambda: (8, "Adam", network(), samples()), (3, 4)),
}  # fmt: skip


@pytest.mark.parametrize("job", JOBS)
def test_bytes_do_not_depend_on_the_number_of_workers(job):
    make_job, numbers = JOBS[job]
    expected = trained(1, *make_job())
    for workers in numbers:
        with no_residue():
            assert trained(workers, *make_job()) == expected, workers


BY_ROWS = {
    "all_reduce": {},
    "server": {"strategy": sn.parallel.ParameterServer(1), "nonfinite": "skip"},
}


@pytest.mark.parametrize("name", BY_ROWS)
def test_gradients_by_rows_are_merged_to_the_bytes_of_one_process_though_a_worker_is_killed(name, monkeypatch):
    sn.manual_seed(2)
    options, models = BY_ROWS[name], [ByRows() for _ in range(3)]
    for model in models:
        model.load_state_dict(models[0].state_dict())
    expected = trained(1, 4, "Adam", models[0], **options)
    assert trained(1, 4, "Adam", models[1], jit=False, **options) == expected
    monkeypatch.setenv(failpoints.VARIABLE, "slice.half_written:2:*:SIGKILL")
    assert trained(2, 4, "Adam", models[2], **options) == expected


@pytest.mark.parametrize("strategy", [sn.parallel.AllReduce(), sn.parallel.LocalSGD(2)], ids=lambda s: s.name)
def test_batches_may_have_fewer_samples_than_there_are_shards(strategy):
    """Each of them then has empty shards, among them the first one."""
    options = {"batch": 3, "strategy": strategy, "dataset": samples(10), "epochs": 1}
    assert trained(2, 8, **options) == trained(1, 8, **options)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "RMSprop"])
def test_bytes_of_every_optimizer_are_those_of_one_process(optimizer):
    assert trained(2, 4, optimizer) == trained(1, 4, optimizer)


def test_a_dataset_that_is_asked_sample_by_sample_gives_the_same_bytes():
    assert trained(2, 4, dataset=Sampled(samples())) == trained(1, 4)


class Noisy(Sampled):
    """Draws from scratchnet's own random numbers."""

    def __getitem__(self, index):
        x, y = self.dataset[index]
        return x + sn.randn(FEATURES).numpy(), y


def test_a_dataset_that_draws_our_random_numbers_gives_the_same_bytes():
    def noisy(workers):
        return trained(workers, 4, dataset=Noisy(samples()), epochs=1)

    assert noisy(2) == noisy(1) == noisy(1) != trained(1, 4, dataset=Sampled(samples()), epochs=1)


def test_a_dataset_that_keeps_a_generator_is_named(caplog):
    dataset = Sampled(samples())
    dataset.draws = np.random.default_rng(0)
    trained(2, 4, dataset=dataset, epochs=1)
    assert "draws is a generator of which each worker has its own copy" in caplog.text


def test_without_shards_several_workers_have_the_bits_of_eight(monkeypatch):
    monkeypatch.setattr(planner, "plans", lambda available, most: [planner.Plan(1, 1)])  # auto takes one process
    eight = trained(1, 8)
    assert [trained(workers, None) for workers in (2, 3, "auto")] == 3 * [eight]
    assert trained(1, None) == trained(1, 1) != eight


def test_without_shards_smaller_batches_have_one_a_sample():
    assert trained(2, None, batch=5) == trained(1, 5, batch=5)


def test_the_number_of_shards_does_enter_the_arithmetic():
    """Else the digests above might hold too little to tell one run from another."""
    assert trained(1, 4) != trained(1, 8)


class Line(sn.nn.Module):
    """In float64."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = sn.nn.Parameter(weight), sn.nn.Parameter(bias)

    def __call__(self, x):
        return x @ self.weight + self.bias


def test_a_step_is_gradient_descent_on_the_true_mean_of_a_batch_of_uneven_shards():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((11, 3)), rng.standard_normal((11, 1))
    model = Line(weight := rng.standard_normal((3, 1)), bias := np.zeros(1))
    trainer = sn.Trainer(
        model, sn.optim.SGD(model.parameters(), 0.1), sn.nn.MSELoss(), workers=2, shards=4, progress=False
    )
    trainer.fit(sn.data.DataLoader(sn.data.TensorDataset(x, y), 11, shuffle=False), epochs=3)
    for _ in range(3):
        error = 2 * (x @ weight + bias - y) / len(x)  # of the mean of squares
        weight, bias = weight - 0.1 * x.T @ error, bias - 0.1 * error.sum(axis=0)
    np.testing.assert_allclose(model.weight.detach().numpy(), weight, rtol=1e-12)
    np.testing.assert_allclose(model.bias.detach().numpy(), bias, rtol=1e-12)


def test_a_run_goes_on_with_another_number_of_workers(tmp_path):
    for epochs, workers in ((1, 3), (2, 1), (3, 2)):
        trainer, loader = make(workers, 4, folder=tmp_path / "parts", save_every=3)
        history = trainer.fit(loader, loader, epochs=epochs, resume="auto")
    assert digest(trainer, history) == trained(1, 4, epochs=3)


def test_a_trainer_goes_on_where_it_stopped_without_a_folder():
    """The caller's model and optimizer hold the state, and a second pool starts from it."""
    alone, loader = make(1, 4)
    both = [alone.fit(loader, epochs=1), alone.fit(loader, epochs=1)]
    pooled, loader = make(2, 4)
    assert [pooled.fit(loader, epochs=1).records, pooled.fit(loader, epochs=1).records] == [h.records for h in both]
    assert digest(pooled, both[1]) == digest(alone, both[1])


class Reporting:
    """A loss that, at the end of a worker that it came to, writes down how many kernels that worker compiled."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, output, target):
        return sn.nn.functional.cross_entropy(output, target)

    def __setstate__(self, state):
        self.__dict__.update(state)
        multiprocess.util.Finalize(None, self.report, exitpriority=0)

    def report(self):
        (self.folder / str(os.getpid())).write_text(str(compile_stats().compiled))


@pytest.mark.skipif(not JIT_ENABLED, reason="without the JIT nothing is compiled")
def test_a_fresh_worker_compiles_nothing(tmp_path):
    trainer, loader = make(2, 4, loss=Reporting(tmp_path))
    trainer.fit(loader, epochs=1)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["0", "0"]


# --- main programs of every kind --------------------------------------------------------------------------------------

PROGRAM = (Path(__file__).parents[2] / "programs" / "unguarded_main.py").read_text()
EXPECTED = "main program runs\nTrue\n"


def python(*arguments, text=None, cwd=None, **variables):
    done = subprocess.run(
        [sys.executable, *arguments], input=text, capture_output=True, text=True, cwd=cwd,
        env=os.environ | {"SCRATCHNET_QUIET": "1"} | variables,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_a_script_without_a_guard_trains_and_runs_once(tmp_path):
    (tmp_path / "script.py").write_text(PROGRAM)
    done = python("script.py", cwd=tmp_path)
    assert (done.stdout, done.stderr) == (EXPECTED, "")


def test_a_program_from_stdin_trains():
    assert python("-", text=PROGRAM).stdout == EXPECTED


def test_an_interactive_prompt_trains():
    assert python("-i", "-q", text=PROGRAM).stdout == EXPECTED


WITHOUT_JIT = """
import scratchnet as sn

model = sn.nn.Linear(1, 1)
trainer = sn.Trainer(model, sn.optim.Adam(model.parameters()), sn.nn.MSELoss(), workers=2, shards=2)
trainer.fit(sn.data.DataLoader(sn.data.TensorDataset([[0.0], [1.0]], [[1.0], [0.0]]), 2), epochs=1)
print("trained")
"""


def test_a_pool_with_adam_trains_without_the_jit():
    assert python("-c", WITHOUT_JIT, NUMBA_DISABLE_JIT="1").stdout.endswith("trained\n")


ENDLESS = """
import os, signal, sys
import numpy as np
import scratchnet as sn
from scratchnet.parallel.pool.claims import Pieces

Pieces.release = lambda *args: None  # what a dead worker had claimed is never done

class Deadly(sn.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, i):
        if os.getpid() != parent and i == 63:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.ones(2, np.float32), 0

parent = os.getpid()
model = sn.nn.Linear(2, 2)
trainer = sn.Trainer(
    model, sn.optim.SGD(model.parameters(), 0.1), sn.nn.CrossEntropyLoss(), workers=2, patience=5.0, progress=False
)
trainer.fit(sn.data.DataLoader(Deadly(), 16), epochs=1)
"""


def test_a_wait_that_would_not_end_is_left_when_the_run_was_asked_to_stop():
    child = subprocess.Popen([sys.executable, "-c", ENDLESS], stderr=subprocess.PIPE, text=True)
    try:
        while "ended by SIGKILL" not in (line := child.stderr.readline()):
            assert line, "ended"
        child.terminate()
        rest = child.communicate()[1]
    finally:
        child.kill()
    assert "the run ends, as it was asked to" in rest
    assert child.returncode == 128 + signal.SIGTERM


# --- bad input --------------------------------------------------------------------------------------------------------


def error_of(kind, trainer, loader, limit=30):
    """The one line that fit raises, and how it was noted; in bounded time."""
    start = time.monotonic()
    with pytest.raises(kind) as caught:
        trainer.fit(loader, epochs=2)
    assert time.monotonic() - start < limit
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("workers", [0, -1, 1.5, "2", True])
def test_a_number_of_workers_that_is_none_is_refused(workers):
    with pytest.raises(sn.ConfigError, match=r"^Trainer: expected workers .*, got .*$"):
        make(workers, 4)


@pytest.mark.parametrize("shards", [0, -1, 1.5, "2"])
def test_a_number_of_shards_that_is_none_is_refused(shards):
    with pytest.raises(sn.ConfigError, match=r"^Trainer: expected shards .*, got .*$"):
        make(2, shards)


class Unsendable(sn.nn.Linear):
    def __init__(self):
        super().__init__(FEATURES, CLASSES)
        self.stream = (i for i in range(3))


def test_a_model_that_cannot_be_sent_to_a_worker_is_refused():
    error = error_of(sn.ConfigError, *make(2, 4, model=Unsendable()))
    assert "expected a model, loss and data that can be sent to a worker" in str(error)
    assert "generator" in str(error)


def test_a_machine_with_too_little_memory_is_said(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 4096)
    assert "shared memory: expected" in str(error_of(sn.SharedMemoryError, *make(2, 4)))


def test_shared_memory_that_the_system_refuses_is_said(monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # half a module would be there for all who import it later
    trainer, loader = make(2, 4, model=sn.nn.MLP(FEATURES, 4096, CLASSES))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # it binds files in memory, too
    try:
        error = error_of(sn.SharedMemoryError, trainer, loader)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "shared memory: expected" in str(error) and "File too large" in str(error)


def mean_of_squares(output, target):
    return (output**2).mean()


def test_a_loss_that_is_not_finite_names_step_shard_and_op():
    model = sn.nn.MLP(FEATURES, 4, CLASSES)
    error = error_of(sn.NonFiniteError, *make(2, 4, model=model, dataset=samples(bad=17), loss=mean_of_squares))
    steps = enumerate(make(1, 4)[1].batch_indices(0))
    step, place, n = next((i, list(batch).index(17), len(batch)) for i, batch in steps if 17 in batch)
    shard = next(k for k in range(4) if place < (k + 1) * n // 4)
    assert f"got inf at step {step}, shard {shard}, from " in str(error)


def raises_in_a_worker(output, target):
    if multiprocess.parent_process() is not None:
        raise ValueError("the user's code\nis not right")
    return output.sum()


def test_user_code_that_raises_in_a_worker_is_one_line_with_its_traceback():
    error = error_of(sn.WorkerError, *make(2, 4, loss=raises_in_a_worker))
    assert error.rank in (0, 1)
    assert f"worker {error.rank}, step 0, shard {error.rank}: ValueError: the user's code" in str(error)
    assert "raise ValueError(\"the user's code" in error.traceback and error.__notes__ == [error.traceback]


def test_workers_that_take_longer_to_start_than_a_piece_may_take_are_left_alone(monkeypatch, caplog):
    expected = trained(1, 4)
    monkeypatch.setattr(pool, "Pool", functools.partial(pool.Pool, patience=1.0))
    monkeypatch.setattr(pool, "STARTING", 1000)
    monkeypatch.setenv(failpoints.VARIABLE, "start:*:*:!sleep=2")
    with caplog.at_level(logging.WARNING, "scratchnet.parallel"):
        assert trained(2, 4) == expected
    assert "over no piece" not in caplog.text


def test_waves_of_kills_faster_than_workers_start_change_no_bit(monkeypatch):
    """All workers, four times: none has done a shard, because those of a wave wait to be killed."""
    expected = trained(1, 4)
    monkeypatch.setenv(failpoints.VARIABLE, "start:*:*:!sleep=600")
    killed = []

    def living():
        return [p for p in multiprocess.active_children() if p.name != server.NAME and p not in killed]

    def kill():
        for wave in range(4):
            while len(found := living()) < 2:
                time.sleep(0.001)
            if wave == 3:
                del os.environ[failpoints.VARIABLE]
            for process in found:
                process.kill()
            killed.extend(found)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    assert trained(2, 4) == expected
    thread.join()
    assert len(killed) == 8


class Slow(Sampled):
    def __getitem__(self, index):
        time.sleep(0.05)
        return super().__getitem__(index)


def test_samples_that_take_longer_than_the_patience_are_waited_for(monkeypatch, caplog):
    """This process has read the first shard, and knows how long that takes."""
    monkeypatch.setattr(pool, "STARTING", 1000)  # a start on a busy machine takes longer, too
    with caplog.at_level(logging.WARNING, "scratchnet.parallel"):
        trainer, loader = make(2, 4, dataset=Slow(samples()), patience=0.15)
        trainer.fit(loader, epochs=1)
    assert "without progress" not in caplog.text


@pytest.mark.parametrize("patience", [0, -1.0, float("nan"), "1", True])
def test_a_patience_that_is_none_is_refused(patience):
    with pytest.raises(sn.ConfigError, match=r"^Trainer: patience: expected a number in \(0, inf\], got .*$"):
        make(2, 4, patience=patience)


def leaves(output, target):
    if multiprocess.parent_process() is not None:
        sys.exit("bye")
    return output.sum()


def test_user_code_that_leaves_with_words_is_an_error_with_these_words():
    assert ": SystemExit: bye" in str(error_of(sn.WorkerError, *make(2, 4, loss=leaves)))


def test_files_that_change_while_a_run_goes_on_end_it_when_a_worker_has_to_start(monkeypatch):
    monkeypatch.setattr(Modules, "changed", lambda self: "a/file.py")
    monkeypatch.setenv(failpoints.VARIABLE, "shard.claimed:1:0:SIGKILL")
    assert "but a/file.py was changed since the run began" in str(
        error_of(sn.WorkerError, *make(1, 4, devices=["cpu"]))
    )
