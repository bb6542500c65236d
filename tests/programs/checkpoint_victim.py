"""The other process of tests/formats: it saves under faults that would take the test process with it.

`python checkpoint_victim.py MODE FOLDER`. Forking is safe here: nothing has started a thread.
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path

import numpy as np

from scratchnet.formats import checkpoint
from scratchnet.formats.checkpoint_folder import CheckpointFolder

CALLS = ("open", "write", "fsync", "replace", "close", "unlink")
OLD, NEW, NEWEST = ({"x": np.full(100, value, np.float32)} for value in (1, 2, 3))


def kill_at_each_call(folder: Path) -> None:
    """One child for each moment before and after each system call of two saves; prints the moments and the signals."""
    moments = []
    for when in ("before", "after"):
        status, at = signal.SIGKILL, 0
        while status == signal.SIGKILL:
            place = folder / f"{when}-{at:02}"
            with CheckpointFolder(place, keep=1) as checkpoints:
                checkpoints.save(1, **OLD)
            if not (pid := os.fork()):
                overwrite_and_rotate(place, when, at)
            status = os.waitpid(pid, 0)[1]
            moments.append((place.name, status))
            at += 1
    print(json.dumps(moments))


def overwrite_and_rotate(folder: Path, when: str, at: int) -> None:
    """Save step 1 again and then step 2, killed `when` the `at`-th system call."""
    checkpoints = CheckpointFolder(folder, keep=1)
    calls = iter(range(10**6))

    def kill_at(original):
        def call(*args, **kwargs):
            n = next(calls)
            if n == at and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*args, **kwargs)
            if n == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    write = os.write
    os.write = lambda descriptor, data: write(descriptor, data[:300])  # several writes a file, as on a slow disk
    for name in CALLS:
        setattr(os, name, kill_at(getattr(os, name)))
    checkpoints.save(1, **NEW)
    checkpoints.save(2, **NEWEST)
    os._exit(0)


def fill_the_disk(folder: Path) -> None:
    """Overwrite a small checkpoint by one that does not fit; prints what remains and the error."""
    path = folder / "model.safetensors"
    checkpoint.save(path, **OLD)
    before = path.read_bytes()
    failure = None
    try:
        checkpoint.save(path, x=np.zeros(100_000))
    except checkpoint.CheckpointError as error:
        failure = [str(error), error.__cause__.errno]
    print(json.dumps({"error": failure, "whole": path.read_bytes() == before, "files": os.listdir(folder)}))


def limit_the_file_size(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
    fill_the_disk(folder)


def hold_the_lock(folder: Path) -> None:
    """Open the folder, start a temporary file, say so, and wait to be killed."""
    with CheckpointFolder(folder):
        os.fsync = lambda descriptor: (print("locked", flush=True), signal.pause())
        checkpoint.save(folder / "model.safetensors", **OLD)


def print_bytes(folder: Path) -> None:
    """Several dtypes and names, whose order in the file must not come from a hash map."""
    arrays = {f"{name}{dtype}": np.ones(3, dtype) for name in "abcd" for dtype in ("i1", "f4", "f8")}
    print(checkpoint.dumps({"model": arrays, "config": {"y": 1, "x": 2}}).hex())


MODES = (kill_at_each_call, fill_the_disk, limit_the_file_size, hold_the_lock, print_bytes)

if __name__ == "__main__":
    {mode.__name__: mode for mode in MODES}[sys.argv[1]](Path(sys.argv[2]))
