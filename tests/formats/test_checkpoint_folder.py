"""A folder of checkpoints: the newest stay, damaged ones are passed over, and two runs never share it.

Oracles: the files in the folder, and a real process that is killed or holds the lock (programs/checkpoint_victim.py).
"""

import errno
import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import warnings

import checkpoint_victim as victim
import numpy as np
import pytest
from checkpoints import SMALL, assert_same, damage, fail_nth, in_place_of_a_file, run_victim, time_limit, victim_env

from scratchnet.errors import CheckpointError, ConfigError
from scratchnet.formats.atomic import TEMPORARY, remove_dead_temporaries
from scratchnet.formats.checkpoint import load
from scratchnet.formats.checkpoint_folder import LOCK, CheckpointFolder, new_folder


def test_the_newest_checkpoints_stay_and_foreign_files_are_never_touched(tmp_path):
    foreign = ["notes.txt", "checkpoint-7.safetensors", "checkpoint-000000000001.safetensors.bak", ".other-tmp"]
    for name in foreign:
        (tmp_path / name).write_text(name)
    with CheckpointFolder(tmp_path, keep=2) as checkpoints:
        assert checkpoints.load_latest() is None
        paths = [checkpoints.save(step, loss=step / 2) for step in (0, 5, 5, 10, 100)]
        assert checkpoints.steps() == [10, 100]
        assert_same(checkpoints.load_latest(), (100, {"loss": 50.0}))
    assert paths[-1] == tmp_path / "checkpoint-000000000100.safetensors"
    assert all((tmp_path / name).read_text() == name for name in foreign)
    assert set(os.listdir(tmp_path)) == {paths[-2].name, paths[-1].name, LOCK, *foreign}


@pytest.mark.parametrize("kind", ["folder", "pipe", "empty", "damaged"])
def test_a_damaged_newest_checkpoint_is_reported_and_the_previous_one_used(kind, tmp_path):
    with CheckpointFolder(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, x=1)
        checkpoints.save(2, x=2)
        in_place_of_a_file(kind, checkpoints.path(3))
        with time_limit(5), pytest.warns(RuntimeWarning) as caught:
            assert checkpoints.load_latest() == (2, {"x": 2})
        assert [str(checkpoints.path(3)) in str(w.message) and "\n" not in str(w.message) for w in caught] == [True]


def test_training_goes_on_over_a_damaged_checkpoint(tmp_path):
    with CheckpointFolder(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, x=1)
        checkpoints.path(9).write_bytes(b"not one of ours")
        with pytest.warns(RuntimeWarning):
            checkpoints.load_latest()
        checkpoints.save(2, x=2)
        assert checkpoints.steps() == [2, 9], "the new one is kept, the damaged one counts for nothing"
        checkpoints.save(9, x=9)
        assert checkpoints.load_latest() == (9, {"x": 9})
        assert checkpoints.steps() == [9]


def test_nothing_but_damaged_checkpoints_is_an_error_that_names_them(tmp_path):
    with CheckpointFolder(tmp_path) as checkpoints:
        for step in (1, 2):
            damage(checkpoints.save(step, x=step))
        with pytest.warns(RuntimeWarning), pytest.raises(CheckpointError, match="damaged") as caught:
            checkpoints.load_latest()
        assert all(str(checkpoints.path(step)) in str(caught.value) for step in (1, 2))
        assert checkpoints.steps() == [1, 2]


def test_a_step_before_a_saved_one_is_refused(tmp_path):
    with CheckpointFolder(tmp_path) as checkpoints:
        checkpoints.save(20, x=1)
        with pytest.raises(CheckpointError, match=r"expected a step from 20 on, .* got 3"):
            checkpoints.save(3, x=2)
        assert checkpoints.load_latest() == (20, {"x": 1})


def test_an_old_checkpoint_that_cannot_be_removed_is_only_a_warning(tmp_path, monkeypatch):
    with CheckpointFolder(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, x=1)
        fail_nth(monkeypatch, "unlink", 0, errno.EIO)
        with pytest.warns(RuntimeWarning, match="old checkpoint not removed"):
            checkpoints.save(2, x=2)
        assert checkpoints.steps() == [1, 2]


@pytest.mark.parametrize("step", [-1, 10**12, 1.0, "1", None])
def test_a_step_is_an_integer_that_fits_its_name(step, tmp_path):
    with CheckpointFolder(tmp_path) as checkpoints, pytest.raises(ConfigError, match="step: expected an integer"):
        checkpoints.save(step)


def test_the_last_step_that_fits_its_name_is_saved(tmp_path):
    with CheckpointFolder(tmp_path) as checkpoints:
        assert checkpoints.save(10**12 - 1, x=1).name == "checkpoint-999999999999.safetensors"


def test_arguments_of_a_folder_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="keep: expected at least 1"):
        CheckpointFolder(tmp_path, keep=0)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file: expected a folder to write to: File exists"):
        CheckpointFolder(tmp_path / "file")


def test_a_closed_or_removed_folder_says_so(tmp_path):
    checkpoints = CheckpointFolder(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(CheckpointError, match="expected a folder of checkpoints: No such file"):
        checkpoints.save(1)
    checkpoints.close()
    checkpoints.close()
    with pytest.raises(CheckpointError, match="expected an open CheckpointFolder"):
        checkpoints.save(1)


def test_two_runs_in_one_process_cannot_share_a_folder(tmp_path):
    with CheckpointFolder(tmp_path):
        descriptors = len(os.listdir("/proc/self/fd"))
        for _ in range(2):
            with pytest.raises(CheckpointError, match=f"another run in it .process {os.getpid()}"):
                CheckpointFolder(tmp_path)
        assert len(os.listdir("/proc/self/fd")) == descriptors
    CheckpointFolder(tmp_path).close()


def test_without_locks_a_run_goes_on_with_a_warning(tmp_path, monkeypatch):
    """As on Lustre without -o flock, where every call of flock fails."""

    def fails(number):
        def flock(descriptor, operation):
            raise OSError(number, os.strerror(number))

        return flock

    monkeypatch.setattr(fcntl, "flock", fails(errno.EIO))
    with pytest.raises(CheckpointError, match=r"cannot be locked .Input/output error"):
        CheckpointFolder(tmp_path)
    monkeypatch.setattr(fcntl, "flock", fails(errno.ENOSYS))
    with pytest.warns(RuntimeWarning, match="this file system has no locks") as caught:
        checkpoints = CheckpointFolder(tmp_path)
    assert "\n" not in str(caught[0].message)
    checkpoints.save(1, x=1)
    assert_same(checkpoints.load_latest(), (1, {"x": 1}))
    checkpoints.close()


def test_runs_that_begin_in_one_second_get_folders_of_their_own(tmp_path):
    folders = [new_folder(tmp_path / "runs") for _ in range(3)]
    assert len(set(folders)) == 3 == len(os.listdir(tmp_path / "runs"))
    for i, folder in enumerate(folders, 1):  # unless a second ended between two of them, DATE-TIME, ...-2, ...-3
        assert folder.name.count("-") == 1 or folder.name.endswith(("-2", f"-{i}"))
    assert not new_folder(tmp_path / "others", make=False).exists()
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file: expected a folder"):
        new_folder(tmp_path / "file")


def test_a_living_run_keeps_its_lock_and_temporary_file_and_a_dead_one_loses_both(tmp_path):
    command = [sys.executable, victim.__file__, "hold_the_lock", str(tmp_path)]
    with subprocess.Popen(command, env=victim_env(), stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "locked\n"
            with pytest.raises(CheckpointError, match=f"another run in it .process {other.pid}"):
                CheckpointFolder(tmp_path)
            (temporary,) = tmp_path.glob(f".model.safetensors.{other.pid}.*{TEMPORARY}")
            remove_dead_temporaries(tmp_path)
            assert temporary.exists(), "its writer lives"
        finally:
            other.kill()
    with CheckpointFolder(tmp_path) as checkpoints:
        assert not temporary.exists()
        assert checkpoints.load_latest() is None
    assert os.listdir(tmp_path) == [LOCK]


# --- kills and the order of calls ------------------------------------------------------------------------------------


def record_calls(monkeypatch):
    """The system calls that matter for durability, in order, with the kind of what they were called on."""
    calls = []
    write, fsync, replace, unlink = os.write, os.fsync, os.replace, os.unlink

    def kind(descriptor):
        return "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"

    monkeypatch.setattr(os, "write", lambda fd, data: (calls.append(f"write {kind(fd)}"), write(fd, data))[1])
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(f"fsync {kind(fd)}"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b))[1])
    monkeypatch.setattr(os, "unlink", lambda path: (calls.append("unlink"), unlink(path))[1])
    return calls


def test_old_checkpoints_go_after_the_new_one_is_on_disk_and_its_name_too(tmp_path, monkeypatch):
    with CheckpointFolder(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, **SMALL)
        calls = record_calls(monkeypatch)
        checkpoints.save(2, **SMALL)
    assert calls == ["write file", "fsync file", "replace", "fsync folder", "unlink"]


def test_a_kill_at_any_point_leaves_whole_checkpoints_that_never_go_back(tmp_path):
    finished = run_victim("kill_at_each_call", tmp_path)
    assert finished.returncode == 0, finished.stderr
    moments = json.loads(finished.stdout)
    assert [status for _, status in moments].count(0) == 2, "the last child of each round was not killed"
    assert len(moments) > 40
    progress = {"before": [], "after": []}
    temporaries = 0
    outcomes = [(1, victim.OLD), (1, victim.NEW), (2, victim.NEWEST)]
    for name, _ in moments:
        folder = tmp_path / name
        temporaries += len(list(folder.glob(f".*{TEMPORARY}")))
        for path in folder.glob("*.safetensors"):
            load(path)
        with CheckpointFolder(folder) as checkpoints, warnings.catch_warnings():
            warnings.simplefilter("error")
            step, state = checkpoints.load_latest()
        assert list(folder.glob(f".*{TEMPORARY}")) == []
        match = [i for i, (at, want) in enumerate(outcomes) if at == step and np.array_equal(state["x"], want["x"])]
        progress[name.split("-")[0]] += match
    for reached in progress.values():
        assert len(reached) == len(moments) // 2
        assert reached == sorted(reached) and set(reached) == {0, 1, 2}
    assert temporaries > 10, "some kills came in the middle of a write"
