"""The scripts as a person runs them: flags from the dataclass, files at the end, one line for bad input."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scratchnet.data import read_idx, write_idx
from scratchnet.flags import flag, parse_flags
from scratchnet.formats.checkpoint_folder import CheckpointFolder

ROOT = Path(__file__).parents[2]


def run(script, *flags):
    command = [sys.executable, str(ROOT / "scripts" / script), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"SCRATCHNET_QUIET": "1"})


def train(*flags):
    return run("train.py", *flags)


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
        (["--epochs", "-1"], "epochs"),
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
    dry_run: bool = flag(False, "change nothing")


def test_flags_follow_the_types_of_the_fields():
    assert parse_flags(Example, []) == Example()
    given = parse_flags(Example, ["--count", "5", "--names", "x", "y", "--fast", "--rate", "0.5"])
    assert given == Example(5, ("x", "y"), True, 0.5)
    with pytest.raises(SystemExit):
        parse_flags(Example, ["--count", "many"])


@dataclasses.dataclass
class Words:
    files: tuple[str, ...] = flag((), "files", is_word=True)
    names: tuple[str, ...] = flag((), "names")
    text: str | None = flag(None, "a text")


FLAGS = {
    "flags.toml": 'count = 5\nnames = ["x", "y"]\nfast = true\nrate = 0.5\n',
    "flags.yaml": "count: 5\nnames: [x, y]\nfast: true\nrate: 0.5\n",
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags_come_from_a_file_and_those_given_count_more(tmp_path, name):
    if name.endswith(".yaml"):
        pytest.importorskip("yaml")
    file = tmp_path / name
    file.write_text(FLAGS[name])
    assert parse_flags(Example, ["--config", str(file)]) == Example(5, ("x", "y"), True, 0.5)
    assert parse_flags(Example, ["--count", "7", f"--config={file}", "--no-fast"]) == Example(7, ("x", "y"), False, 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cuont = 5", "expected names of flags, got 'cuont'; --help lists them"),
        ("count = ", "expected TOML"),
        ('count = "many"', "invalid int value: 'many'"),
        ("count = true", "count: expected a number or a text, got True"),
        ('fast = "true"', "fast: expected true or false, got 'true'"),
        ("names = {a = 1}", "names: expected a number or a text, or several, got {'a': 1}"),
        ("rate = [0.5]", "rate: expected a number or a text, got [0.5]"),
        ('files = ["x"]', "expected names of flags, got 'files'"),
        ("dry_run = true\ndry-run = false", "expected 'dry_run' once, got 'dry-run' as well"),
        (None, "expected a file of flags: No such file"),
    ],
)
def test_a_file_that_holds_no_flags_ends_the_program(tmp_path, capsys, text, message):
    file = tmp_path / "flags.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SystemExit) as ended:
        parse_flags(Example, ["--config", str(file)])
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_a_file_of_flags_takes_no_word_from_the_command_line_and_stands_there_once(tmp_path, capsys):
    file = tmp_path / "flags.toml"
    file.write_text('names = ["x", "y"]\n')
    assert parse_flags(Words, ["a.png", "b.png", "--config", str(file)]) == Words(("a.png", "b.png"), ("x", "y"))
    file.write_text('text = "-5 degrees"\n')
    assert parse_flags(Words, ["--config", str(file)]) == Words(text="-5 degrees")
    with pytest.raises(SystemExit):
        parse_flags(Words, ["--config", str(file), "--config", "other.toml"])
    assert "expected --config once" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train.py", "predict.py"])
def test_the_scripts_of_the_first_page_fit_on_a_slide(name):
    assert len((ROOT / "scripts" / name).read_text().splitlines()) <= 90


# --- predict.py -------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path, small):
    """The folder of a short run on the small data, and the accuracy that train.py printed."""
    done = train("--data", small, "--epochs", 2, "--hidden", 16, "--dropout", 0.2, "--folder", tmp_path / "run")
    return tmp_path / "run", re.search(r"test accuracy (\S+)", done.stdout)[1]


def test_predict_finds_the_accuracy_of_the_training_again(tmp_path, small, trained):
    folder, accuracy = trained
    done = run("predict.py", folder, "--out", tmp_path / "classes.txt")
    assert done.returncode == 0, done.stderr
    assert f"accuracy {accuracy}\n" in done.stdout
    classes = list(map(int, (tmp_path / "classes.txt").read_text().split()))
    assert f"classes of 50 images: {', '.join(map(str, classes[:10]))}, ...\n" in done.stdout
    labels = read_idx(small / "t10k-labels-idx1-ubyte").tolist()
    assert f"{sum(map(int.__eq__, classes, labels)) / 50:.2%}" == accuracy


def test_predict_needs_no_labels(tmp_path, small, trained):
    folder, _ = trained
    (tmp_path / "images").mkdir()
    (small / "t10k-images-idx3-ubyte").rename(tmp_path / "images" / "t10k-images-idx3-ubyte")
    write_idx(small / "t10k-images-idx3-ubyte", np.zeros((50, 28, 28), np.uint8))  # of the run's own data, unused
    done = run("predict.py", folder, "--data", tmp_path / "images")
    assert done.returncode == 0, done.stderr
    assert "classes of 50 images" in done.stdout and "accuracy" not in done.stdout


def test_predict_without_a_run_says_so_in_one_line(tmp_path):
    done = run("predict.py", tmp_path / "nothing")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "expected a checkpoint" in done.stderr


# --- bench.py ---------------------------------------------------------------------------------------------------------


def bench(*flags):
    return run("bench/bench.py", *flags)


def test_bench_shows_that_the_engines_do_the_same_work_and_keeps_all_figures(tmp_path, small):
    flags = ["--data", small, "--sections", "steps", "--steps", "784-4-10@2", "--engines", "scratchnet-eager", "numpy"]
    files = {"json": tmp_path / "bench.json", "picture": tmp_path / "bench.png"}
    done = bench(*flags, "--threads", 1, "--rounds", 2, "--seconds", 0.01, *(f"--{k}={v}" for k, v in files.items()))
    assert done.returncode == 0, done.stderr
    assert "OTHER WORK" not in done.stdout and "did not run" not in done.stdout
    assert re.search(r"(ahead of|LOSE to|level with) +numpy +\d+\.\d\dx best, +\d+\.\d\dx median", done.stdout)
    report = json.loads(files["json"].read_text())
    (work,) = report["works"]
    assert {name: len(seconds) for name, seconds in work["seconds"].items()} == {"scratchnet-eager": 2, "numpy": 2}
    assert work["flops"] == 2 * 2 * (2 * 784 * 4 + 3 * 4 * 10)
    losses = [facts["loss"] for facts in work["facts"].values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert report["machine"]["threads"] == 1 and min(report["roof"].values()) > 0
    assert files["picture"].read_bytes().startswith(b"\x89PNG")


def test_bench_times_epochs_and_whole_runs(small):
    done = bench(
        "--data", small, "--sections", "epochs", "accuracy", "inference", "--engines", "numpy", "--rounds", 1,
        "--goal", 0.2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"inference: 784-1024-1024-10, batch 512, floor [\d.]+ ms.*\n.*\n +numpy +\d", done.stdout), (
        done.stdout
    )
    assert re.search(r"epochs: 784-128-10.*\n.*\n +numpy +\d", done.stdout)
    assert re.search(r"to 20% test accuracy\n.*\n +numpy .*epochs \d+, accuracy 0\.[2-9]", done.stdout), done.stdout


def test_bench_pools_do_the_same_work_as_one_process(tmp_path, small):
    from bench import Process, write_data

    write_data(str(small), str(tmp_path))
    work = {"what": "measure", "widths": (784, 4, 10), "batch_size": 8, "shards": 2}
    answers = {}
    for name in ("scratchnet", "pool-1", "pool-2", "pool-2-one-page", "pool-2-unguarded"):
        process = Process(name, 1, str(tmp_path))
        answers[name] = process.ask("pool", work, 0.01)
        process.close()
        assert answers[name]["seconds"] > 0, answers
    losses = [answer["loss"] for answer in answers.values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len(set(losses[1:])) == 1


def test_bench_says_plainly_where_we_lose():
    from report import verdict
    from works import Work

    work = Work("steps", "a network", "steps", {})
    work.seconds = {"scratchnet": [2.0, 3.0, 4.0], "jax": [8.0, 9.0, 9.0], "torch": [1.0, 1.5, 2.0]}
    assert re.search(r"LOSE to +torch +2\.00x best, +2\.00x median +steps: a network", verdict([work]))
    del work.seconds["torch"]
    assert re.search(r"ahead of +jax +4\.00x best, +3\.00x median", verdict([work]))


def test_bench_names_an_engine_that_does_other_work(capsys):
    from report import Roof, print_work
    from works import Work

    work = Work("steps", "a network", "steps", {}, flops=1e9)
    work.seconds = {"scratchnet": [1.0], "jax": [1.0], "torch": [1.0]}
    work.facts = {"scratchnet": {"loss": 1.01}, "jax": {"loss": 1.0}, "torch": {"loss": 1.0}}
    print_work(work, Roof(1e10, 1e10))
    assert "scratchnet does OTHER WORK" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--threads", 0], ["--rounds", 0], ["--steps", "784"], ["--threads", 10**6]])
def test_bench_refuses_bad_input_in_one_line(small, flags):
    done = bench("--data", small, "--engines", "numpy", *flags)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and flags[0] in done.stderr, done.stderr


def test_a_file_that_cannot_be_written_and_a_closed_pipe_end_a_script_without_a_traceback(tmp_path):
    program = "import dataclasses\nfrom scratchnet.flags import run_script\n"
    program += "run_script(lambda config: {}, dataclasses.make_dataclass('Config', []))\n"
    command = [sys.executable, "-c", program.format(f"open('{tmp_path}/no/file', 'w')")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, f"-c: {tmp_path}/no/file: No such file or directory\n")
    command[2] = program.format("np.savetxt('/dev/full', [1.0])").replace("import", "import numpy as np,", 1)
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "-c: No space left on device\n")
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        command[2] = program.format("print('x')")
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "")
