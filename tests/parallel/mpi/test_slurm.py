"""A job under Slurm, where Slurm can be started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import WRAPPER, train, undisturbed, variables_of_a_job
from servants import is_open_mpi
from slurm import Slurm, reason_against_slurm

SCRIPTS = Path(WRAPPER[1]).parent


@pytest.fixture
def slurm():
    if reason := reason_against_slurm():
        pytest.skip(reason)
    if not is_open_mpi():
        pytest.skip("expected Open MPI, which knows PMIx, found another")
    with Slurm() as slurm:
        if not slurm.knows_pmix():
            pytest.skip("expected a Slurm that knows PMIx, found another")
        yield slurm


def test_a_job_that_slurm_started_ends_in_the_same_bytes_though_a_rank_is_killed(tmp_path, slurm):
    flags = "--folder", tmp_path, "--resume", "auto"

    def restarted(ranks, *line):
        return [*WRAPPER, "--restarts", "1", "--pause", "0", "--", *slurm.srun(ranks, *line)]

    status, results, said = train(2, *flags, command=restarted, fail="shard.written:10:1:SIGKILL")
    assert status == 0 and "task 1: Killed" in said, said
    assert sorted(result["rank"] for result in results) == [0, 1]
    assert {result["digest"] for result in results} == {undisturbed()["momentum"]["digest"]}


def test_the_batch_file_ends_in_the_bytes_of_one_process_though_a_rank_is_killed(tmp_path, slurm, monkeypatch):
    flags = ["--epochs", "2", "--hidden", "16", "--batch-size", "256", "--shards", "2", "--save-every", "5", "--folder"]
    for name, value in variables_of_a_job().items():
        monkeypatch.setenv(name, value)
    plain = [sys.executable, str(SCRIPTS / "train.py"), *flags, str(tmp_path / "plain")]
    subprocess.run(plain, check=True, capture_output=True)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))  # its python
    monkeypatch.setenv("SCRATCHNET_FAIL", "shard.written:7:1:SIGKILL")
    monkeypatch.chdir(SCRIPTS.parent)
    log = tmp_path / "log"
    size = "--nodes=1", "--ntasks-per-node=2", f"--output={log}"
    state = slurm.sbatch(*size, "scripts/train.sbatch", *flags, str(tmp_path / "run"))
    assert state == "COMPLETED" and "restart 1 of 3" in log.read_text(), log.read_text()
    newest = [max((tmp_path / folder).glob("*.safetensors")).read_bytes() for folder in ("plain", "run")]
    assert newest[0] == newest[1]
