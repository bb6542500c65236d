"""The check that a person with a GPU runs, in its small form: it goes to the end, and names what is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import stub_driver
from servants import NO_MPI

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
    assert set(KERNEL_ROWS) == {x["kernel"] for x in report["properties"] if "kernel" in x}
    assert set(KERNEL_ROWS) == {x["kernel"] for x in report["kernels"] if "kernel" in x}
    (trained, *_) = report["training"]
    assert trained["largest_relative_difference"] < 1e-5 and "through_the_host" not in trained
    assert trained["one worker"]["digest"] == trained["workers"]["digest"] == trained["cuda"]["digest"]
    assert len(report["large"]) == 5 and [x["step"] for x in report["steps"][:2]] == ["scratchnet", "scratchnet jit"]
    (ranks,) = report["ranks"][:1]
    assert "missing" in ranks or len(ranks["digests"]) == 2
    assert "simulated: times mean nothing" in (tmp_path / "report.html").read_text()


def test_a_wrong_kernel_is_named():
    import gpu_check
    import gpu_phases

    kernels, found = device("cuda").kernels, []
    wrong = mock.patch.dict(kernels, {"exp": kernels["tanh"]})
    with wrong, mock.patch.object(gpu_phases, "KERNEL_ROWS", _two()):
        gpu_phases.properties(gpu_check.Config(examples=20), lambda **row: found.append(row))
    assert found[0] == {"kernel": "neg", "wrong": None}
    assert found[1]["wrong"].startswith("ContractError: tanh") and "expected" in found[1]["wrong"]


def _two():
    return {name: KERNEL_ROWS[name] for name in ("neg", "exp")}


def test_workers_whose_number_changes_bits_are_told_of(monkeypatch):
    import gpu_phases

    found, same = [], {"digest": "a"}
    result = {"largest_relative_difference": 0.0, "allowed": 0.01, "one worker": same, "workers": same}
    for workers in (same, {"digest": "b"}):
        monkeypatch.setattr(gpu_phases, "_training", lambda config, w=workers: result | {"workers": w})
        gpu_phases.training(None, lambda **row: found.append(row["wrong"]))
    assert found == [None, "two workers on GPUs gave other bits than one"]


def test_without_a_gpu_it_says_what_is_missing(tmp_path):
    command = [sys.executable, str(SCRIPTS / "gpu_check.py"), "--folder", str(tmp_path / "report")]
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "0", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and done.stderr.startswith("gpu_check.py: cuda: expected ")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "report").exists()


def test_what_was_found_until_something_breaks_off_is_in_the_report(tmp_path):
    import gpu_check

    config = gpu_check.Config(folder=str(tmp_path))
    gpu_check.note(config, "kernels")(kernel="exp", shapes=[[3]], seconds=2.0, floor=1.0)
    gpu_check.note(config, "kernels")(seconds_of_phase=9.0, wrong="no end within 9 s")
    report = gpu_check.write_report(tmp_path)
    assert report["wrong"] == ["kernels: no end within 9 s"] and report["kernels"][0]["kernel"] == "exp"
    page = (tmp_path / "report.html").read_text()
    assert "50%, 2000000.0 us" in page and "no end within 9 s" in page


@pytest.mark.parametrize("name", KERNEL_ROWS)
def test_shapes_are_known_for_every_kernel(name):
    import gpu_facts

    assert gpu_facts.SHAPES[name]


@pytest.mark.skipif(bool(NO_MPI or stub_driver.why_none()), reason=str(NO_MPI or stub_driver.why_none()))
def test_ranks_whose_number_changes_bits_are_told_of(monkeypatch):
    import gpu_ranks

    found = []
    monkeypatch.setattr(gpu_ranks, "_missing", lambda: None)
    monkeypatch.setenv("LD_LIBRARY_PATH", stub_driver.nccl())
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    gpu_ranks.ranks(None, lambda **row: found.append(row))
    monkeypatch.setenv("SCRATCHNET_GRADIENTS", "host")
    gpu_ranks.ranks(None, lambda **row: found.append(row))
    monkeypatch.setattr(gpu_ranks, "_run", lambda *launcher: (0, [["b" if launcher else "a", []]]))
    gpu_ranks.ranks(None, lambda **row: found.append(row))
    wrong = "gradients go through the memory of the host: SCRATCHNET_GRADIENTS=host"
    assert [row["wrong"] for row in found] == [None, wrong, "ranks on GPUs gave other bits than one worker"]
    assert list(map(len, found[0]["digests"])) == [1, 2]
