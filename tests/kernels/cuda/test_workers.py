"""Training with workers on GPUs, which are names in a simulator here: real processes, each with an interpreter."""

import functools
import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import stub_driver
from jobs import WRAPPER, program
from losses import Divided, Interpreted, Vertical, Where
from servants import NO_MPI, mpirun
from sizes import THOROUGH

import scratchnet as sn
from scratchnet.parallel import (
    AllReduce,
    Hogwild,
    LocalSGD,
    ParameterServer,
    Pipeline,
    PowerSGD,
    TopK,
    engines,
    planner,
)
from scratchnet.parallel.failpoints import LOG, VARIABLE
from scratchnet.parallel.pool import device_memory, steps
from scratchnet.parallel.pool.pool import Pool

NEEDS = "simulated"
ROOT = Path(__file__).parents[3]

from residue import no_residue  # noqa: E402

FEATURES, CLASSES, BATCH = 5, 3, 8
FEW, MORE = 12, 20  # samples: two batches or three, of which the last one has 4; the interpreter takes a second a step
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((MORE, FEATURES)).astype(np.float32), RNG.integers(0, CLASSES, MORE)
EPS = np.finfo(np.float32).eps


@pytest.fixture(autouse=True)
def nothing_is_left():
    with no_residue():
        yield


def make(
    device="cpu",
    workers=1,
    devices=None,
    *,
    norm=sn.nn.LayerNorm,
    loss=None,
    shards=3,
    optimizer=None,
    samples=FEW,
    **options,
):
    sn.manual_seed(1)
    first = sn.nn.Linear(FEATURES, 4, bias=False)
    model = sn.nn.Sequential(first, norm(4), sn.nn.Tanh(), sn.nn.Dropout(0.3), sn.nn.Linear(4, CLASSES)).to(device)
    rule = (optimizer or sn.optim.SGD)(model.parameters(), 0.1, momentum=0.9)
    loader = sn.data.DataLoader(sn.data.TensorDataset(X[:samples], Y[:samples]), BATCH, shuffle=True, seed=3)
    schedule = sn.optim.lr_scheduler.StepLR(rule, 2, 0.5)
    trainer = sn.Trainer(
        model, rule, loss or Interpreted(), schedule, workers, shards, devices=devices, progress=False, **options
    )
    return trainer, loader


def trained(*args, epochs=1, **options):
    """All that training left behind: parameters, buffers, the optimizer's state and losses."""
    trainer, loader = make(*args, **options)
    history = trainer.fit(loader, epochs=epochs)
    momentum = {f"momentum {i}": s["velocity"] for i, s in enumerate(trainer.optimizer.state_dict()["state"])}
    return trainer.model.state_dict() | momentum | {"losses": np.array(history["train_loss"])}, history


@functools.cache
def by_two_gpus(shards=3):
    """What several tests compare with: the interpreter takes seconds for it."""
    return trained("cuda", 2, shards=shards)[0]


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].tobytes() == x.tobytes(), name


def assert_near(found, expected):
    """Sums of less than 20 numbers of order 1 a layer, in a few steps."""
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, rtol=100 * EPS, atol=100 * EPS, err_msg=name)


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_workers_on_gpus_learn_what_the_cpu_learns_and_their_number_changes_no_bit():
    options = {"norm": sn.nn.BatchNorm1d, "shards": 2}
    one, _ = trained("cuda", 1, ["cuda:1"], **options)
    two, history = trained("cuda", 2, **options)
    assert_same(two, one)
    assert sum(row["shards"] for row in history.workers) == 4
    assert_near(one, trained("cpu", **options)[0])
    assert_near(one, trained("cuda", **options)[0])  # in this process, where the update is made on the GPU, too


def test_the_parent_of_workers_on_gpus_may_have_its_model_on_the_cpu():
    here, _ = trained("cpu", 2, ["cuda:0", "cuda"], shards=2)
    assert_same(here, by_two_gpus(shards=2))


def test_data_that_is_asked_sample_by_sample_and_steps_without_jit_give_the_same_bits():
    expected = by_two_gpus(shards=2)
    assert_same(trained("cuda", 2, shards=2, jit=False)[0], expected)
    with mock.patch.object(sn.data, "TensorDataset", lambda *arrays: list(zip(*arrays, strict=True))):
        assert_same(trained("cuda", 2, shards=2)[0], expected)


def test_float16_has_one_loss_scale_for_all_workers():
    first, one = trained("cuda", 1, ["cuda:1"], precision="float16")
    found, two = trained("cuda", 2, precision="float16")
    assert_same(found, first)
    assert one.records == two.records and one.records[-1]["loss_scale"] == 2**16
    assert first["0.weight"].tobytes() != by_two_gpus()["0.weight"].tobytes()
    np.testing.assert_allclose(first["0.weight"], by_two_gpus()["0.weight"], atol=0.01)  # its gradients are unscaled


@pytest.mark.parametrize("fault", ["shard.half_written:1:*:SIGKILL", "slice.half_written:1:*:SIGKILL"])
def test_a_worker_on_a_gpu_that_is_killed_changes_nothing(fault, tmp_path, monkeypatch):
    expected = by_two_gpus()
    monkeypatch.setenv(VARIABLE, fault)
    monkeypatch.setenv(LOG, str(tmp_path / "fired"))
    found, history = trained("cuda", 2)
    assert_same(found, expected)
    fired = (tmp_path / "fired").read_text().count("\n")
    assert fired and sum(row["starts"] for row in history.workers) == 2 + fired


def test_a_worker_that_still_compiles_is_not_taken_for_a_stuck_one(monkeypatch):
    monkeypatch.setenv(VARIABLE, "shard.claimed:0:0:sleep=2.5")
    with mock.patch.dict(Pool.__init__.__kwdefaults__, patience=1.0):
        _, history = trained("cuda", 1, ["cuda:0"])
    assert history.workers[0]["starts"] == 1


def test_a_cpu_beside_a_gpu_computes_its_own_shards(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "shard.claimed:0:0:sleep=2")  # long enough for the other to take all that it may
    with mock.patch.dict(globals(), X=X[:3], Y=np.arange(3), BATCH=3):  # three shards of a sample, told by its label
        trainer, loader = make("cpu", 2, ["cuda:0", "cpu"], loss=Where(tmp_path), jit=False)
        first, second, third = next(loader.batch_indices(0)).tolist()
        trainer.fit(loader)
    computed = {file.name: [int(line) for line in file.read_text().split()] for file in tmp_path.iterdir()}
    assert computed == {"cuda": [first, third], "cpu": [second]}


def test_bits_of_a_cpu_beside_a_gpu_depend_on_the_pattern_of_devices_alone(monkeypatch):
    mixed, history = trained("cpu", 2, ["cuda:0", "cpu"], shards=4)
    assert [row["shards"] for row in history.workers] == [4, 4]
    assert_near(mixed, trained("cpu", shards=4)[0])
    monkeypatch.setenv(VARIABLE, "shard.half_written:1:0:SIGKILL,shard.half_written:1:1:SIGKILL")
    assert_same(trained("cuda", 4, ["cuda:0", "cpu", "cuda:1", "cpu"], shards=4)[0], mixed)


STRATEGIES = {
    "accumulate and clip": {"accumulate": 2, "clip_norm": 0.1, "samples": MORE},
    "stale": {"strategy": ParameterServer(staleness=1)},
    "local": {"strategy": LocalSGD(every=2, warmup=1), "samples": MORE},
    "top k": {"strategy": AllReduce(TopK(0.3))},
    "low rank": {"strategy": AllReduce(PowerSGD(1))},
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_process_and_workers_on_gpus_take_every_strategy(name):
    here, _ = trained("cuda", **STRATEGIES[name])
    assert_near(here, trained("cpu", **STRATEGIES[name])[0])
    if name in ("accumulate and clip", "local"):
        assert_same(trained("cuda", 2, **STRATEGIES[name])[0], here)


@pytest.mark.parametrize("strategy", [ParameterServer(staleness=None), Hogwild()])
def test_asynchronous_strategies_of_one_worker_and_shard_are_gradient_descent(strategy):
    found, _ = trained("cuda", 1, ["cuda:0"], strategy=strategy, shards=1)
    assert_near(found, trained("cpu", shards=1)[0])


def test_the_state_of_other_optimizers_travels():
    def make_rule(params, lr, momentum):
        return sn.optim.Adam(params, lr / 10)

    trainer, loader = make("cuda", 2, optimizer=make_rule)
    trainer.fit(loader)
    expected, loader = make("cpu", 1, optimizer=make_rule)
    expected.fit(loader)
    for name, x in expected.model.state_dict().items():
        np.testing.assert_allclose(trainer.model.state_dict()[name], x, atol=1000 * EPS, err_msg=name)
    states = [t.optimizer.state_dict()["state"] for t in (trainer, expected)]
    for found, wanted in zip(*states, strict=True):
        for name, x in wanted.items():
            np.testing.assert_allclose(found[name], x, rtol=1e-3, atol=100 * EPS, err_msg=name)


def test_steps_that_are_not_finite_are_skipped_or_said():
    labels = 1 + Y % 2
    labels[7] = 0
    with mock.patch.dict(globals(), Y=labels):
        skipped, _ = trained("cuda", 2, nonfinite="skip", loss=Divided())
        assert np.isfinite(skipped["0.weight"]).all()
        assert_near(skipped, trained("cpu", nonfinite="skip", loss=Divided())[0])
        other, _ = trained("cuda", 2, nonfinite="skip", loss=Vertical())
        assert_near(other, trained("cpu", nonfinite="skip", loss=Vertical())[0])
        trainer, loader = make("cuda", 2, loss=Vertical())
        with pytest.raises(sn.NonFiniteError, match=r"expected a finite gradient of '\d.*', got one that is not"):
            trainer.fit(loader)
        trainer, loader = make("cuda", 2, loss=Divided())
        with pytest.raises(sn.NonFiniteError, match=r"got nan at step \d, shard \d, from "):
            trainer.fit(loader)


# --- gradients stay on the GPUs, see device_memory.py -----------------------------------------------------------------

THREE = ["cuda:0", "cuda:1", "cuda:0"]


@functools.cache
def by_one(**options):
    """Five shards of batches of eight; of the last batch, of four, a shard has none."""
    return trained("cpu", 1, ["cuda:0"], shards=5, samples=MORE, **options)[0]


def test_no_bit_depends_on_the_number_of_gpus_nor_of_workers():
    seen, expected = [], by_one()

    def noted(arena, numbers):
        seen.append(numbers)
        return device_memory.DeviceArena(arena, numbers)

    with mock.patch.object(steps, "DeviceArena", noted):
        assert_same(trained("cpu", 2, ["cuda:0", "cuda:1"], shards=5, samples=MORE)[0], expected)
        assert_same(trained("cpu", 3, THREE, shards=5, samples=MORE)[0], expected)
        assert seen == [[0, 1], [0, 1, 0]]
    assert_same(trained("cuda", shards=5, samples=MORE)[0], expected)  # in this process, as one program
    server = ParameterServer(staleness=0)
    assert_same(trained("cpu", 2, ["cuda:0", "cuda:1"], shards=5, samples=MORE, strategy=server)[0], expected)
    assert_near(by_one(), trained("cpu", shards=5, samples=MORE)[0])


def test_the_way_through_the_host_gives_nearly_the_same(monkeypatch):
    monkeypatch.setenv(device_memory.VARIABLE, "host")
    with mock.patch.object(steps, "DeviceArena", side_effect=AssertionError):
        assert_near(trained("cpu", 2, ["cuda:0", "cuda:1"], shards=5, samples=MORE)[0], by_one())


@pytest.mark.parametrize("point", ["shard.claimed", "shard.written", "slice.claimed", "slice.written", "idle"])
def test_workers_that_die_at_the_same_point_take_nothing_along(point, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"{point}:1:*:SIGKILL")
    monkeypatch.setenv(LOG, str(tmp_path / "fired"))
    found, history = trained("cpu", 3, THREE, shards=5, samples=MORE)
    assert_same(found, by_one())
    fired = (tmp_path / "fired").read_text().count("\n")
    assert fired > 1 and sum(row["starts"] for row in history.workers) == 3 + fired


class _Halves:
    """A callback that halves a weight, and asks for another number of workers."""

    def __init__(self, trainer, workers):
        self.trainer, self.workers = trainer, workers

    def on_epoch_end(self, run):
        weight = next(iter(run.model.parameters()))
        with sn.no_grad():
            weight.copy_(weight * 0.5)
        self.trainer.resize(self.workers)


@pytest.mark.parametrize("workers", [1, 3])
def test_what_a_callback_changes_reaches_the_gpus_and_workers_come_and_go(workers):
    found = []
    for first, then, devices in ((1, 1, ["cpu"]), (1, 1, THREE), (2, workers, THREE)):
        trainer, loader = make("cpu", first, devices[: max(first, then)], shards=2)
        trainer.callbacks = [_Halves(trainer, then)]
        trainer.fit(loader, epochs=2)
        found.append(trainer.model.state_dict())
    assert_near(found[1], found[0])
    assert_same(found[2], found[1])


@pytest.mark.parametrize(("devices", "best"), [(None, 2), (["cuda:1", "cuda:0", "cuda:1"], 3), (["cuda:1"], 1)])
def test_auto_tries_one_gpu_and_more_and_takes_the_fastest(devices, best, monkeypatch):
    tried = []
    monkeypatch.setattr(planner, "measure", lambda settings: (tried.append(settings.workers), (1 / tried[-1], 0.1))[1])
    trainer, loader = make("cuda", "auto", devices, shards=2 if best < 3 else 3)
    trainer.fit(loader)
    assert tried == [1, 2, 3][:best] and trainer.workers == best
    assert_same(trainer.model.state_dict(), by_weights(trainer.shards))


def by_weights(shards):
    expected = by_two_gpus(shards=shards)
    return {name: x for name, x in expected.items() if "weight" in name or "bias" in name}


def test_a_run_on_gpus_goes_on_from_its_checkpoint_with_the_same_bits(tmp_path):
    expected, _ = trained("cuda", 2, shards=2, epochs=2)
    trainer, loader = make("cuda", 2, shards=2, folder=tmp_path)
    trainer.fit(loader, epochs=1)
    trainer, loader = make("cuda", 1, ["cuda:1", "cuda:0"], shards=2, folder=tmp_path)
    trainer.fit(loader, epochs=2, resume="auto")
    found = trainer.model.state_dict()
    assert_same(found, {name: expected[name] for name in found})


# --- bad input: one typed line each -----------------------------------------------------------------------------------

CASES = [
    (lambda: make("cuda", 3), "expected at most one worker a device, cuda:0, cuda:1, got 3 workers"),
    (lambda: make("cpu", 2, ["cuda:7", "cpu"]), "cuda: expected a GPU from 'cuda:0' to 'cuda:1', got 'cuda:7'"),
    (lambda: make("cpu", 1, ["gpu"]), "expected devices to be names such as 'cpu', 'cuda' or 'cuda:1', got 'gpu'"),
    (lambda: make("cpu", 1, ["cuda:x"]), "expected devices to be names such as .*, got 'cuda:x'"),
    (lambda: make("cpu", 1, "cuda:0"), "expected devices to be names such as .*, or None, got 'cuda:0'"),
    (lambda: make("cpu", 1, []), r"expected devices to be names such as .*, or None, got \[\]"),
    (lambda: make("cpu", 1, ["cuda:0", "cpu"]), "expected workers for the shards of all .*, got 1, none on 'cpu'"),
    (lambda: make("cuda", 2)[0].resize(3), "expected at most one worker a device, .*, got 3 workers"),
]


@pytest.mark.parametrize(("call", "words"), CASES)
def test_devices_that_are_not_there_are_one_typed_line(call, words):
    with pytest.raises(sn.DeviceError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_auto_is_refused_on_devices_of_two_kinds_and_with_memory():
    words = r"expected a number of workers on cuda:0, cpu, of two kinds, got 'auto'"
    with pytest.raises(sn.ConfigError, match=words):
        make("cuda", "auto", ["cuda:0", "cpu"])
    with pytest.raises(sn.ConfigError, match=r"expected no memory with 'auto' on cuda:0, cuda:1, got 1000000.0"):
        make("cuda", "auto", memory=1e6)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"devices": ["cuda:1"]}, "devices cuda:1"),
        ({"strategy": Pipeline(2)}, r"Pipeline\(stages=2, .*\)"),
    ],
)
def test_devices_and_stages_are_refused_with_gpus_under_mpi(options, found):
    trainer, loader = make("cuda", **options)
    with (
        mock.patch.object(engines, "is_distributed", lambda: True),
        mock.patch.object(engines, "started_as", lambda: (0, 2)),
        pytest.raises(sn.DeviceError, match=f"expected neither devices nor a divided .* under MPI, .*, got {found}"),
    ):
        engines.engine_of(trainer._settings(loader), engines.Start())


@pytest.mark.skipif(NO_MPI is not None, reason=str(NO_MPI))
def test_ranks_of_an_mpi_job_on_gpus_have_the_bits_of_one_process(monkeypatch):
    monkeypatch.setenv(device_memory.VARIABLE, "host")
    digests = set()
    for command, share in ((lambda ranks, *line: line, 0), (mpirun, 0), (mpirun, 1)):  # share=1: as two machines
        status, said = program(2, "mpi_gpus", command=command, SCRATCHNET_MPI_SHARE=str(share))
        assert status == 0, said
        found = [json.loads(line.split("RESULT ")[1]) for line in said.splitlines() if "RESULT" in line]
        assert len(found) == (2 if command is mpirun else 1)
        digests.update(row["digests"]["buffers"] for row in found)
    assert len(digests) == 1


# --- gradients of ranks stay on the GPUs, see mpi/gpus.py -------------------------------------------------------------

needs_nccl = pytest.mark.skipif(bool(NO_MPI or stub_driver.why_none()), reason=str(NO_MPI or stub_driver.why_none()))
LINKED = "buffers", "adam", "one shard", "norm", "float16"  # of mpi_gpus.JOBS


def linked(ranks, *flags, command=mpirun, **environment):
    """The exit status of a job whose ranks are linked by a stub of NCCL, what each of them found, and what it wrote."""
    environment |= {"LD_LIBRARY_PATH": stub_driver.nccl(), "SCRATCHNET_MPI_PATIENCE": "5"}
    status, said = program(ranks, "mpi_gpus", *flags, command=command, **environment)
    found = [json.loads(line.split("RESULT ")[1]) for line in said.splitlines() if "RESULT" in line]
    assert not any(row["log"] for row in found)
    return status, [row["digests"] for row in found], said


def by_one_worker(*flags):
    """The digests of one worker on a GPU, in a process that MPI did not start."""
    status, found, said = linked(1, *flags, command=lambda ranks, *line: line)
    assert status == 0, said
    return found[0]


@needs_nccl
def test_no_bit_depends_on_the_number_of_ranks_whose_gradients_stay_on_gpus():
    expected = by_one_worker("--jobs", *LINKED)
    assert len({*expected.values()}) == len(LINKED)
    for ranks in (2, 3, 4)[: 3 if THOROUGH else 2]:
        status, found, said = linked(ranks, "--jobs", *LINKED)
        assert status == 0 and found == [expected] * ranks, said


@needs_nccl
def test_a_rank_without_a_part_of_the_norm_has_the_loss_scale_of_the_others():
    flags = "--jobs", "more ranks than parts of a norm", "--norms", "2"
    status, found, said = linked(3, *flags)
    assert status == 0 and found == [by_one_worker(*flags)] * 3, said


@needs_nccl
@pytest.mark.parametrize("point", ["gradients.sent", "parameters.sent"] if THOROUGH else ["parameters.sent"])
def test_ranks_that_die_come_back_with_a_new_link_and_the_same_bytes(point, tmp_path):
    def restarted(ranks, *line):
        return [*WRAPPER, "--restarts", "1", "--pause", "0", "--", *mpirun(ranks, *line)]

    flags = "--jobs", "adam", "--epochs", "2"
    fault = {"SCRATCHNET_FAIL": f"{point}:4:1:SIGKILL", "SCRATCHNET_FIRED": str(tmp_path / "fired")}
    status, found, said = linked(3, *flags, "--folder", tmp_path / "run", command=restarted, **fault)
    assert status == 0 and found == [by_one_worker(*flags)] * 3, said
    assert (tmp_path / "fired").read_text() == f"{point}:4:1:SIGKILL\n"


@needs_nccl
def test_what_is_not_finite_is_one_line_of_all_ranks_that_are_linked():
    status, found, said = linked(2, "--jobs", "adam", "--nan")
    (line,) = [line for line in said.splitlines() if line.startswith(("mpi_gpus.py:", "scratchnet:"))]
    assert status != 0 and not found
    assert line.startswith("mpi_gpus.py: fit: expected a finite loss, got nan at step ")


def test_a_run_on_other_kinds_of_devices_does_not_go_on_with_a_mixed_one(tmp_path):
    trainer, loader = make("cpu", 2, ["cuda:0", "cpu"], folder=tmp_path)
    trainer.fit(loader)
    trainer, loader = make("cpu", 2, ["cpu", "cuda:0"], folder=tmp_path)
    with pytest.raises(sn.CheckpointError, match=r"expected devices=.*cuda.*, as saved, got cpu"):
        trainer.fit(loader, resume="auto")


# --- the training script ----------------------------------------------------------------------------------------------


def test_the_training_script_takes_workers_on_gpus(tmp_path, capsys, few_images):
    import train

    config = train.Config(
        data=few_images(10), hidden=(4,), epochs=1, batch_size=5, workers=2, shards=2, devices=("cuda:1", "cpu"),
        folder=str(tmp_path / "run"),
    )  # fmt: skip
    with mock.patch.object(sn.nn, "CrossEntropyLoss", Interpreted), mock.patch.object(train, "plot_curves"):
        train.main(config)
    out = capsys.readouterr().out
    assert "test accuracy" in out and "worker 1" in out
