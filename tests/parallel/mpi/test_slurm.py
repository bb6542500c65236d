"""A job under Slurm, where Slurm can be started."""

import pytest
from jobs import WRAPPER, train, undisturbed
from servants import is_open_mpi
from slurm import Slurm, reason_against_slurm


def test_a_job_that_slurm_started_ends_in_the_same_bytes_though_a_rank_is_killed(tmp_path):
    if reason := reason_against_slurm():
        pytest.skip(reason)
    if not is_open_mpi():
        pytest.skip("expected Open MPI, which knows PMIx, found another")
    flags = "--folder", tmp_path, "--resume", "auto"
    with Slurm() as slurm:
        if not slurm.knows_pmix():
            pytest.skip("expected a Slurm that knows PMIx, found another")

        def restarted(ranks, *line):
            return [*WRAPPER, "--restarts", "1", "--pause", "0", "--", *slurm.srun(ranks, *line)]

        status, results, said = train(2, *flags, command=restarted, fail="shard.written:10:1:SIGKILL")
    assert status == 0 and "task 1: Killed" in said, said
    assert sorted(result["rank"] for result in results) == [0, 1]
    assert {result["digest"] for result in results} == {undisturbed()["momentum"]["digest"]}
