"""The scripts as a person runs them: flags from the dataclass, files at the end, one line for bad input."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scratchnet.checkpoint import CheckpointFolder
from scratchnet.data import read_idx, write_idx
from scratchnet.flags import flag, parse_flags

ROOT = Path(__file__).parents[1]


def train(*flags):
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"SCRATCHNET_QUIET": "1"})


@pytest.fixture
def small(tmp_path):
    """A folder in MNIST format: the first images of the embedded set, not gzipped."""
    mini, folder = ROOT / "scratchnet" / "data" / "fashion_mnist_mini", tmp_path / "small data"
    folder.mkdir()
    for part, n in (("train", 200), ("t10k", 50)):
        for kind in ("images-idx3", "labels-idx1"):
            write_idx(folder / f"{part}-{kind}-ubyte", read_idx(mini / f"{part}-{kind}-ubyte.gz")[:n])
    return folder


def test_train_leaves_a_checkpoint_a_log_and_a_picture(tmp_path, small):
    folder = tmp_path / "a run"
    done = train("--data", small, "--epochs", 2, "--hidden", 16, 8, "--folder", folder)
    assert done.returncode == 0, done.stderr
    line = r"^epoch [12]/2  train loss \d.*val loss \d.*val accuracy \d.* samples/s$"
    assert len(re.findall(line, done.stdout, re.M)) == 2
    assert re.search(r"test accuracy \d+\.\d\d%", done.stdout)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    with CheckpointFolder(folder) as checkpoints:
        step, state = checkpoints.load_latest()
    assert step == 2 * 3  # 180 samples left to train on, 64 a batch
    assert state["config"]["hidden"] == (16, 8)
    again = train("--data", small, "--epochs", 3, "--hidden", 16, 8, "--folder", folder)
    assert again.returncode == 1
    assert again.stderr.count("\n") == 1 and "resume='auto'" in again.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "no-such-set"], "fashion-mnist"),
        (["--epochs", "-1"], "total_steps"),
        (["--shards", "0"], "shards"),
        (["--threads", "0"], "threads"),
        (["--batch-size", "0"], "batch_size"),
    ],
)
def test_bad_input_is_one_line_and_status_1(tmp_path, flags, message):
    done = train("--folder", tmp_path / "run", *flags)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and message in done.stderr, done.stderr


def test_help_names_every_flag_with_its_default():
    sys.path.insert(0, str(ROOT / "scripts"))
    from train import Config

    text = " ".join(subprocess.check_output([sys.executable, ROOT / "scripts" / "train.py", "-h"], text=True).split())
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in text
        assert " ".join(field.metadata["help"].split()) in text


@dataclasses.dataclass
class Example:
    """An example."""

    count: int = flag(3, "how many")
    names: tuple[str, ...] = flag(("a",), "names")
    fast: bool = flag(False, "be fast")
    rate: float | None = flag(None, "a rate")


def test_flags_follow_the_types_of_the_fields():
    assert parse_flags(Example, []) == Example()
    given = parse_flags(Example, ["--count", "5", "--names", "x", "y", "--fast", "--rate", "0.5"])
    assert given == Example(5, ("x", "y"), True, 0.5)
    with pytest.raises(SystemExit):
        parse_flags(Example, ["--count", "many"])


def test_the_training_script_fits_on_a_slide():
    assert len((ROOT / "scripts" / "train.py").read_text().splitlines()) <= 90
