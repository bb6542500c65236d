"""`python -m scratchnet COMMAND` runs the files of scripts/, with their flags and exit statuses."""

import subprocess
import sys

import pytest

import scratchnet as sn
from scratchnet.__main__ import COMMANDS, FOLDERS


def command(*words, cwd=None):
    return subprocess.run([sys.executable, "-m", "scratchnet", *words], capture_output=True, text=True, cwd=cwd)


def test_help_names_every_command_and_every_command_is_a_file():
    shown = command("--help")
    assert shown.returncode == 0 and all(f"  {name} " in shown.stdout for name in COMMANDS)
    assert command().stdout == shown.stdout
    assert all((FOLDERS[-1] / script).is_file() for script, _ in COMMANDS.values())


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_shows_its_flags(name):
    shown = command(name, "--help")
    assert shown.returncode == 0 and f"usage: scratchnet {name}" in shown.stdout


def test_an_unknown_command_and_an_unknown_flag():
    assert command("trian").returncode == 2 and "expected a command, one of train, " in command("trian").stderr
    assert command("train", "--wings", "2").returncode == 2


def test_an_error_is_one_line_of_the_command(tmp_path):
    done = command("train", "--data", "nowhere", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("scratchnet train: ") and done.stderr.count("\n") == 1


def test_workers_are_sent_what_a_command_defines(tmp_path):
    done = command("train", "--workers", "2", "--epochs", "1", "--hidden", "4", "--folder", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    flags = ["--shards", "8", "--epochs", "1", "--hidden", "4", "--folder", "plain"]
    plain = subprocess.run([sys.executable, FOLDERS[-1] / "train.py", *flags], capture_output=True, cwd=tmp_path)
    assert plain.returncode == 0
    saved = [sn.load(sorted((tmp_path / name).glob("*.safetensors"))[-1])["model"] for name in ("run", "plain")]
    assert all((saved[0][name] == saved[1][name]).all() for name in saved[1])
