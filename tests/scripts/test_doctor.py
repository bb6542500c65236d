"""`scripts/doctor.py` finds what was broken on purpose, and says the remedy; a healthy machine passes."""

import errno
import importlib.metadata
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import doctor
import numpy as np
import pytest

from scratchnet.native import cache


def test_the_checks_of_a_healthy_machine_pass():
    command = [sys.executable, doctor.__file__, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    rows = {row["check"]: row for row in json.loads(done.stdout)}
    failed = [row for row in rows.values() if row["result"] == "FAILED" and row["check"] != "packages"]
    assert not failed and len(rows) == len(doctor.CHECKS)
    assert "gave the bits of one" in rows["workers"]["found"]


def raises(error):
    def function(*_, **__):
        raise error

    return function


FAULTS = {  # the check, what is broken, and what it says
    "a namesake": (
        doctor.packages,
        (importlib.metadata, "distributions", lambda: [SimpleNamespace(name="scratchnet")]),
        "an unrelated package 'scratchnet' is installed; pip uninstall scratchnet",
    ),
    "little memory": (doctor.memory, (doctor, "available_bytes", lambda: 1 << 20), "1 MiB may be allocated; raise the"),
    "a small /dev/shm": (
        doctor.shared_memory,
        (os, "posix_fallocate", raises(OSError(errno.ENOSPC, "No space left on device"))),
        "No space left on device; enlarge it: docker run --shm-size=2g",
    ),
    "no cache": (doctor.kernel_cache, (cache, "writable_folder", lambda: None), "set SCRATCHNET_CACHE_DIR to one"),
    "workers with other bits": (
        doctor.workers,
        (doctor, "trained", lambda workers, fail="": (bytes(workers), 2)),
        "two workers gave other bits than one",
    ),
    "ranks that hang": (
        doctor.mpi,
        (subprocess, "run", raises(subprocess.TimeoutExpired("mpirun", 60))),
        "two ranks did not exchange in 60 s",
    ),
    "a broken mpirun": (
        doctor.mpi,
        (subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr="no slots\n", stdout="")),
        "mpirun failed: no slots",
    ),
}


@pytest.mark.parametrize(("check", "broken", "says"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found_and_its_remedy_said(check, broken, says):
    if check is doctor.mpi:
        pytest.importorskip("mpi4py")
    with mock.patch.object(*broken):
        result, found = doctor.outcome(check)
    assert result == "FAILED" and says in found and "\n" not in found


@pytest.mark.threads
def test_a_wrong_kernel_is_found():
    with mock.patch.object(np, "allclose", lambda *_, **__: False):
        result, found = doctor.outcome(doctor.kernels)
    assert result == "FAILED" and found.startswith("a product differs from NumPy's; ")


def test_the_slow_threading_layer_is_named():
    numba = pytest.importorskip("numba")
    with mock.patch.object(numba, "threading_layer", lambda: "workqueue"):
        assert doctor.outcome(doctor.threads)[0] == "FAILED"


def test_without_mpi_a_check_is_missing_and_says_how_to_get_it():
    with mock.patch.object(doctor.importlib.util, "find_spec", lambda name: None):
        result, found = doctor.outcome(doctor.mpi)
    assert result == "missing" and "pip install mpi4py" in found


def test_a_failed_check_is_the_exit_status(capsys):
    with mock.patch.object(cache, "writable_folder", lambda: None), pytest.raises(SystemExit) as ended:
        doctor.main(doctor.Config(only="kernel cache"))
    assert ended.value.code == 1 and "FAILED" in capsys.readouterr().out
