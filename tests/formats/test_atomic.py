"""Faults while a file is written: it is the old one or the new one, whole, and nothing else is left.

Oracles: the bytes on disk, and a real process that is out of disk space (tests/programs/checkpoint_victim.py).
"""

import errno
import json
import os
import shutil

import numpy as np
import pytest
from checkpoints import SMALL, assert_same, fail_nth, run_victim

from scratchnet.errors import CheckpointError
from scratchnet.formats.checkpoint import dumps, load, save


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize(
    ("name", "calls"), [("open", 2), ("write", 4), ("fsync", 2), ("replace", 1), ("close", 2), ("unlink", 0)]
)
def test_any_failing_call_leaves_the_old_or_the_new_file_and_nothing_else(tmp_path, monkeypatch, name, calls, number):
    path, new = tmp_path / "model.safetensors", {"x": np.arange(50.0)}
    failures = 0
    for n in range(100):
        save(path, **SMALL)
        with monkeypatch.context() as patched:
            fired = fail_nth(patched, name, n, number)
            try:
                save(path, **new)
                error = None
            except CheckpointError as caught:
                error = caught
        assert os.listdir(tmp_path) == [path.name]
        assert path.read_bytes() in (dumps(SMALL), dumps(new))
        if not fired:
            break
        failures += 1
        assert str(path) in str(error) and os.strerror(number) in str(error)
        assert error.__cause__.errno == number
    assert error is None and path.read_bytes() == dumps(new), "without a fault, the new file"
    assert failures >= calls


def test_a_folder_that_cannot_be_synced_at_all_is_no_failure(tmp_path, monkeypatch):
    fail_nth(monkeypatch, "fsync", 1, errno.EINVAL)
    save(tmp_path / "model.safetensors", **SMALL)
    assert_same(load(tmp_path / "model.safetensors"), SMALL)


def test_ctrl_c_during_a_save_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save(path, **SMALL)

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(path, x=1)
    assert os.listdir(tmp_path) == [path.name] and path.read_bytes() == dumps(SMALL)


@pytest.mark.parametrize("target", ["missing/model.safetensors", "folder"])
def test_a_place_that_takes_no_file_is_refused_by_name(target, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match=f"{target}: checkpoint not written") as caught:
        save(tmp_path / target, **SMALL)
    assert isinstance(caught.value.__cause__, OSError)
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(tmp_path / "folder") == []


def test_a_link_stays_a_link_to_the_new_checkpoint(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/model.safetensors")
    save(tmp_path / "link", **SMALL)
    assert (tmp_path / "link").is_symlink()
    assert_same(load(tmp_path / "real" / "model.safetensors"), SMALL)


def test_a_file_size_limit_leaves_the_old_checkpoint(tmp_path):
    report = json.loads(run_victim("limit_the_file_size", tmp_path).stdout)
    assert report["whole"] and report["files"] == ["model.safetensors"]
    assert "checkpoint not written: File too large" in report["error"][0] and report["error"][1] == errno.EFBIG


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    if not shutil.which("unshare"):
        pytest.skip("unshare is not installed")
    mount = f'mount -t tmpfs -o size=64k none "{tmp_path}" && echo mounted && exec "$@"'
    finished = run_victim("fill_the_disk", tmp_path, prefix=("unshare", "-rm", "sh", "-c", mount, "sh"))
    if "mounted" not in finished.stdout:
        pytest.skip("this machine lets nobody mount a file system")
    report = json.loads(finished.stdout.splitlines()[1])
    assert report["whole"] and report["files"] == ["model.safetensors"]
    assert "No space left on device" in report["error"][0] and report["error"][1] == errno.ENOSPC
