"""Every flag of scripts/train.py does what it says: a row a flag, with what it must change, and a value it must refuse.

Most change the weights. The others leave every bit as it was, and change what their check looks at.
"""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import train
from train import Config

import scratchnet as sn
from scratchnet import precisions
from scratchnet.callbacks.tables import read_runs
from scratchnet.data import read_idx, write_idx
from scratchnet.flags import parse_flags
from scratchnet.formats.checkpoint_folder import CheckpointFolder
from scratchnet.trainer import trainer

MINI = Path(train.__file__).parents[1] / "scratchnet" / "data" / "fashion_mnist_mini"
SMALL = {"hidden": (8,), "epochs": 1, "batch_size": 16}  # 10 batches


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two folders in MNIST format, with the same numbers of samples."""
    folders = [tmp_path_factory.mktemp(name) for name in "ab"]
    for folder, first in zip(folders, (0, 300), strict=True):
        for part, n in (("train", 170), ("t10k", 20)):
            for kind in ("images-idx3", "labels-idx1"):
                rows = read_idx(MINI / f"{part}-{kind}-ubyte.gz")[first : first + n]
                write_idx(folder / f"{part}-{kind}-ubyte", rows)
    return list(map(str, folders))


@pytest.fixture
def run(data, tmp_path, capsys, monkeypatch):
    """Runs train.py with these values; returns the digest of the weights and the checkpointed steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(precisions, "LEAST", {})  # products as small as these are rounded, too
    make = trainer.engine_of

    def spy(*arguments):
        engine = make(*arguments)
        go.engine, go.strategy = type(engine).__name__, arguments[0].strategy
        return engine

    monkeypatch.setattr(trainer, "engine_of", spy)
    threads, numbers = sn.get_num_threads(), iter(range(100))

    def go(**values):
        folder = tmp_path / f"run {next(numbers)}"
        values = {"data": data[0], "folder": str(folder)} | SMALL | values
        go.folder = Path(values["folder"] or "runs")
        train.main(Config(**values))
        go.said = capsys.readouterr().out
        go.threads = sn.get_num_threads()
        with CheckpointFolder(values["folder"] or next(iter(Path("runs").iterdir()))) as checkpoints:
            go.steps = checkpoints.steps()
            model = checkpoints.load_latest()[1]["model"]
        return hashlib.sha256(b"".join(model[name].tobytes() for name in sorted(model))).hexdigest()

    yield go
    sn.default_device("cpu")
    sn.set_num_threads(threads)


OTHER_WEIGHTS = {  # flag: its value, and what else is given with and without it
    "data": (1, {}),
    "hidden": ((9,), {}),
    "activation": ("tanh", {}),
    "dropout": (0.5, {}),
    "epochs": (2, {}),
    "batch_size": (20, {}),
    "lr": (0.1, {}),
    "momentum": (0.5, {}),
    "weight_decay": (0.1, {}),
    "validation": (0.2, {}),
    "seed": (1, {}),
    "shards": (2, {}),
    "strategy": ("local_sgd", {"shards": 2}),
    "staleness": (1, {"strategy": "parameter_server"}),
    "every": (2, {"strategy": "local_sgd", "shards": 2}),
    "parts": (3, {"strategy": "tensor_parallel"}),
    "compression": ("top_k", {}),
    "accumulate": (2, {}),
    "clip_norm": (0.01, {}),
    "device": ("numpy", {}),
    "precision": ("bfloat16", {}),
}
PIPELINE = {"strategy": "pipeline", "shards": 2, "hidden": (9, 9)}
SAME_WEIGHTS = {
    "workers": (2, {"shards": 2}, lambda run, folder: "2 workers, 2 shards" in run.said and run.engine == "Pool"),
    "stages": (3, PIPELINE, lambda run, folder: run.strategy.stages == 3),
    "schedule": ("gpipe", PIPELINE, lambda run, folder: run.strategy.schedule == "gpipe"),
    "cut": (("linear2",), PIPELINE, lambda run, folder: run.strategy.cut == ("linear2",)),
    "threads": (1, {}, lambda run, folder: run.threads == 1),
    "devices": (("cpu",), {}, lambda run, folder: run.engine == "Pool"),
    "folder": (None, {}, lambda run, folder: len(list((folder / "runs").iterdir())) == 1),
    "save_every": (3, {}, lambda run, folder: run.steps == [9, 10]),
    "best": (True, {}, lambda run, folder: (run.folder / "best.safetensors").exists()),
    "tensorboard": (True, {}, lambda run, folder: any((run.folder / "tensorboard").iterdir())),
    "database": ("sqlite:///runs.db", {}, lambda run, folder: [r["status"] for r in read_runs()] == ["done"]),
    "find_lr": (True, {}, lambda run, folder: "the loss falls fastest at " in run.said),
    "timeline": ("timeline.json", {}, lambda run, folder: (folder / "timeline.json").stat().st_size > 100),
}


def test_no_flag_is_without_a_row():
    of_their_own = "resume", "new_phase", "early_stopping", "memory"  # the last one goes with workers="auto"
    assert {*OTHER_WEIGHTS, *SAME_WEIGHTS, *of_their_own} == {field.name for field in dataclasses.fields(Config)}


@pytest.mark.parametrize("flag", OTHER_WEIGHTS)
def test_a_flag_changes_the_weights(run, data, flag):
    value, others = OTHER_WEIGHTS[flag]
    assert run(**others | {flag: data[value] if flag == "data" else value}) != run(**others)


@pytest.mark.parametrize("flag", SAME_WEIGHTS)
def test_a_flag_changes_what_it_says_and_no_bit(run, tmp_path, flag):
    value, others, is_done = SAME_WEIGHTS[flag]
    found = run(**others | {flag: value})
    assert is_done(run, tmp_path)
    assert found == run(**{name: other for name, other in others.items() if name != "workers"})


def test_zero_momentum_is_plain_gradient_descent(run):
    """Truth: the schedule's momentum, and the script's steps with it, by another optimizer."""
    run(momentum=0.0, folder="plain")
    with CheckpointFolder("plain") as checkpoints:
        state = checkpoints.load_latest()[1]["optimizer"]
    assert all(group["momentum"] == 0.0 for group in state["param_groups"])


def test_resume_goes_on_with_the_same_bits(run):
    expected = run(save_every=4, folder="whole")
    assert sorted(path.name for path in Path("whole").glob("*.safetensors"))[0].endswith("08.safetensors")
    Path("whole/checkpoint-000000000010.safetensors").unlink()
    assert run(save_every=4, folder="whole", resume="auto") == expected


def test_a_new_phase_goes_on_with_other_settings(run):
    first = run(folder="phases")
    assert run(folder="phases", epochs=2, lr=0.01, batch_size=20, resume="auto", new_phase=True) != first
    assert "new phase after epoch 1: batch_size 16 -> 20, base_lrs 0.05 -> 0.01" in run.said
    assert run.steps[-1] == 10 + 8
    assert run(folder="phases", epochs=2, lr=0.01, batch_size=20, resume="auto")  # of the new phase


def test_early_stopping_ends_the_run(run):
    run(early_stopping=1, epochs=60, lr=2.0)
    assert "stopped after step" in run.said


def test_what_resumes_is_the_run_that_was_saved(run, data):
    """Each flag that enters the arithmetic, given anew: refused in one line that names it, before anything is done."""
    names = {
        "hidden": "Linear",
        "activation": "ReLU",
        "lr": "base_lrs",
        "validation": "samples",
        "data": "first samples",
    }
    names |= {"dropout": "Linear|Dropout|MLP", "epochs": "total_steps"}
    for flag, (value, others) in OTHER_WEIGHTS.items():
        if flag in ("device", "parts"):
            continue  # where a run computes may change, and in how many parts
        folder = Path("saved " + " ".join(map(str, others.values())))
        if not folder.exists():
            run(folder=str(folder), **others)
        given = others | {flag: data[value] if flag == "data" else value}
        with pytest.raises(sn.CheckpointError, match=names.get(flag, flag)) as caught:
            run(folder=str(folder), resume="auto", **given)
        assert "\n" not in str(caught.value), flag


REFUSED = {
    "data": ["no-such-folder"],
    "hidden": [(0,), (-1,)],
    "activation": ["no-such"],
    "dropout": [-0.1, 1.5, float("nan")],
    "epochs": [-1],
    "batch_size": [0, -1],
    "lr": [-1.0, float("nan"), float("inf")],
    "momentum": [-0.1, 1.5, float("nan")],
    "weight_decay": [-1.0, float("nan"), float("inf")],
    "validation": [-0.1, 1.0, 1.5, float("nan")],
    "workers": [0, -1, "many"],
    "shards": [0, -1],
    "strategy": ["no-such"],
    "staleness": [0, -1],
    "every": [2, 0],
    "parts": [2, 0],
    "memory": [0.0, 1e9],
    "accumulate": [0, -1],
    "clip_norm": [0.0, -1.0, float("nan")],
    "threads": [0, 10**6],
    "device": ["no-such"],
    "devices": [("no-such",), ("cuda:99",)],
    "folder": ["a-file"],
    "resume": ["no-such.safetensors", "."],
    "save_every": [0, -1],
    "early_stopping": [0, -1],
    "database": ["runs.db", "sqlite:////no/such/folder/runs.db"],
    "new_phase": [True],
    "timeline": ["no/such/folder.json", "."],
}


@pytest.mark.parametrize("flag", REFUSED)
def test_a_value_that_a_flag_cannot_have_is_refused_in_one_line(run, tmp_path, flag):
    (tmp_path / "a-file").touch()
    for value in REFUSED[flag]:
        with pytest.raises(sn.ScratchnetError) as caught:
            run(**{flag: value})
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400, caught.value
    assert "staleness" not in flag or run(strategy="parameter_server", staleness=0)


@pytest.mark.parametrize("flag", ["--activation", "--strategy", "--compression", "--device"])
def test_choices_are_checked_by_the_parser(flag):
    with pytest.raises(SystemExit):
        parse_flags(Config, [flag, "no-such"])


def test_weights_of_two_devices_agree(run):
    """So that `device` above changes no more than the last bits."""
    for device in ("cpu", "numpy"):
        run(device=device, folder=device)
    models = []
    for device in ("cpu", "numpy"):
        with CheckpointFolder(device) as checkpoints:
            models.append(checkpoints.load_latest()[1]["model"])
    for name, array in models[0].items():
        np.testing.assert_allclose(array, models[1][name], rtol=1e-3, atol=1e-4)


def test_a_run_that_was_killed_ends_in_the_same_checkpoint_file_wherever_it_goes_on(run, data, tmp_path):
    def files(folder):
        return {path.name: path.read_bytes() for path in sorted(folder.glob("checkpoint-*"))}

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = {"save_every": 4, "shards": 2}
    run(**options, folder=str(whole))
    killed.mkdir()
    first = min(files(whole))
    (killed / first).write_bytes(files(whole)[first])  # what a kill after it leaves
    run(**options, folder=str(killed), resume="auto", threads=1, timeline=str(tmp_path / "timeline.json"))
    last = max(files(whole))
    assert files(killed)[last] == files(whole)[last]
