"""Faults while a file is written: it is the old one or the new one, whole, and nothing else is left.

Oracles: the bytes on disk, and a real process that is out of disk space (tests/programs/checkpoint_victim.py).
"""

import errno
import json
import os
import shutil
import stat

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


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_what_is_no_file_is_refused_and_stays_what_it_is(kind, tmp_path):
    path = tmp_path / kind
    if kind == "fifo":
        os.mkfifo(path)
    elif os.geteuid():
        pytest.skip("only root makes devices")
    else:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with pytest.raises(CheckpointError, match=f"{kind}: .*expected a regular file, found a device, pipe or socket"):
        save(path, **SMALL)
    assert not stat.S_ISREG(os.stat(path).st_mode) and os.listdir(tmp_path) == [kind]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o755])
def test_a_file_keeps_its_permissions(mode, tmp_path):
    path = tmp_path / "model.safetensors"
    path.touch()
    path.chmod(mode)
    save(path, **SMALL)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert_same(load(path), SMALL)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_permissions_that_its_owner_gives_to_files(umask, tmp_path):
    before = os.umask(umask)
    try:
        save(tmp_path / "model.safetensors", **SMALL)
        (tmp_path / "other").touch()
    finally:
        os.umask(before)
    assert os.stat(tmp_path / "model.safetensors").st_mode == os.stat(tmp_path / "other").st_mode


def test_a_file_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save(path, **SMALL)
    monkeypatch.setattr(os, "access", lambda name, mode: False)  # root may write everything
    with pytest.raises(CheckpointError, match="checkpoint not written: Permission denied"):
        save(path, x=1)
    assert_same(load(path), SMALL)


@pytest.mark.parametrize("name", ["m" * 240 + ".safetensors", "ü" * 120 + ".safetensors"])
def test_a_name_may_be_as_long_as_the_system_lets_it(name, tmp_path):
    save(tmp_path / name, **SMALL)
    assert os.listdir(tmp_path) == [name]


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
