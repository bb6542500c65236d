"""The check that a person with a GPU runs, in its small form: it goes to the end, and names what is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from scratchnet.kernels import device
from scratchnet.testing import KERNEL_ROWS

NEEDS = "simulated"
SCRIPTS = Path(__file__).parents[3] / "scripts" / "gpu"
sys.path.insert(0, str(SCRIPTS))


def test_it_runs_to_the_end_and_leaves_both_reports(tmp_path):
    command = [sys.executable, "-W", "ignore", str(SCRIPTS / "gpu_check.py"), "--folder", str(tmp_path), "--examples=1"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"SCRATCHNET_QUIET": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ALL WELL" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["simulated"] and report["wrong"] == []
    assert set(report["properties"]) == set(KERNEL_ROWS) == {row["kernel"] for row in report["times"]}
    assert report["training"]["largest_relative_difference"] < 1e-5
    assert "simulated: times mean nothing" in (tmp_path / "report.txt").read_text()


def test_a_wrong_kernel_is_named(capsys):
    import gpu_check

    kernels = device("cuda").kernels
    with mock.patch.dict(kernels, {"exp": kernels["tanh"]}), mock.patch.object(gpu_check, "KERNEL_ROWS", _two()):
        found = gpu_check.properties(gpu_check.Config(examples=20), simulated=True)
    assert found["neg"] is None
    assert found["exp"].startswith("ContractError: tanh") and "expected" in found["exp"]


def _two():
    return {name: KERNEL_ROWS[name] for name in ("neg", "exp")}


def test_without_a_gpu_it_says_what_is_missing(tmp_path):
    command = [sys.executable, str(SCRIPTS / "gpu_check.py"), "--folder", str(tmp_path / "report")]
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "0", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and done.stderr.startswith("gpu_check.py: cuda: expected ")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "report").exists()


@pytest.mark.parametrize("name", KERNEL_ROWS)
def test_shapes_are_known_for_every_kernel(name):
    import gpu_facts

    assert gpu_facts.SHAPES[name]
