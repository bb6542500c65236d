"""What tests of checkpoints share: a small state, comparison to the last bit, damage, failing calls, a victim."""

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import checkpoint_victim as victim
import numpy as np

import scratchnet
from scratchnet.formats.checkpoint import dumps

SMALL = {"w": np.array([1.5, -2.0], np.float32), "epoch": 3}


def run_victim(mode, folder, *, prefix=(), **env):
    """The finished process of `checkpoint_victim.py MODE FOLDER`."""
    command = [*prefix, sys.executable, victim.__file__, mode, str(folder)]
    return subprocess.run(command, env=victim_env(**env), capture_output=True, text=True)


def victim_env(**env):
    """It writes no bytecode: a full disk or a limit of sizes would leave half a module to all who import it later."""
    here = {"PYTHONPATH": str(Path(scratchnet.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
    return {**os.environ, **here, **env}


@contextlib.contextmanager
def time_limit(seconds):
    """A hang becomes a failure."""

    def fail(*_):
        raise AssertionError(f"still waiting after {seconds} s")  # no TimeoutError: that is an OSError, and caught

    previous = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def assert_same(got, want):
    """The same tree: types, order of keys, every bit of every float and array."""
    if isinstance(want, np.ndarray):
        assert (got.dtype, got.shape) == (want.dtype.newbyteorder("="), want.shape)
        assert got.tobytes() == want.astype(got.dtype).tobytes()
        assert got.flags.writeable and got.flags.c_contiguous and got.flags.aligned
        return
    assert type(got) is type(want)
    if isinstance(want, dict):
        assert list(got) == list(want)
        got, want = list(got.values()), list(want.values())
    if isinstance(want, list | tuple):
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            assert_same(one, other)
    elif isinstance(want, float):
        assert (math.isnan(got) and math.isnan(want)) or got.hex() == want.hex()
    else:
        assert got == want


def damage(path):
    """Flip one bit in the middle of the file."""
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(blob)


def in_place_of_a_file(kind, path):
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "empty":
        path.touch()
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(1 << 40)  # a terabyte of zeros that takes no disk
    elif kind == "loop of links":
        path.symlink_to(path)
    else:
        path.write_bytes(dumps(SMALL))
        damage(path)


def fail_nth(monkeypatch, name, n, number):
    """Make the n-th call of `os.name` fail; the returned list fills when it does."""
    original, calls, fired = getattr(os, name), iter(range(10**6)), []

    def call(*args, **kwargs):
        if next(calls) == n:
            fired.append(n)
            if name == "close":
                original(*args, **kwargs)  # Linux frees the descriptor even then
            raise OSError(number, os.strerror(number))
        if name == "write":
            return original(args[0], args[1][:200])  # a disk may take less than it is given
        return original(*args, **kwargs)

    monkeypatch.setattr(os, name, call)
    return fired
