"""scripts/mpi_train.py: it restarts a job that failed, and believes success only of rank 0."""

import subprocess

import pytest
from jobs import HUNG, WRAPPER, train, undisturbed, variables_of_a_job
from servants import mpirun

from scratchnet.parallel.comm.job import ENDED


def test_the_wrapper_restarts_a_job_until_it_ends(tmp_path):
    def restarted(ranks, *line):
        return [*WRAPPER, "--restarts", "2", "--pause", "0", "--", *mpirun(ranks, *line)]

    flags = "--folder", tmp_path, "--resume", "auto"
    status, results, said = train(2, *flags, command=restarted, fail="shard.written:10:1:SIGKILL")
    assert status == 0 and ENDED not in said, said
    assert {result["digest"] for result in results} == {undisturbed()["momentum"]["digest"]}
    status, results, said = train(1, *flags, command=restarted)
    assert status == 0, said  # one rank has nobody to wait for


SAYS_IT = f'printf "50 %%" >&2; printf "{ENDED.strip()}\\n" >&2'


@pytest.mark.parametrize(("programs", "expected"), [
    (["exit 0", SAYS_IT], 0),  # the first is what MPICH's mpirun may make of a rank that died
    ([f"{SAYS_IT}; exit 3", SAYS_IT], 0),
    (["exit 0", "exit 0"], 1),
    (["exit 0", "exit 3"], 3),
])  # fmt: skip
def test_the_wrapper_takes_no_status_for_success_unless_all_ranks_came_to_their_end(tmp_path, programs, expected):
    """Programs that it starts one after the other, and its status."""
    program = 'echo >> starts; n=$(wc -l < starts); shift $((n - 1)); eval "$1"'
    command = [*WRAPPER, "--restarts", str(len(programs) - 1), "--pause", "0", "--", "sh", "-c", program, "sh"]
    command += programs
    done = subprocess.run(command, cwd=tmp_path, env=variables_of_a_job(), capture_output=True, text=True, timeout=HUNG)
    assert done.returncode == expected, done
    assert (tmp_path / "starts").read_text() == len(programs) * "\n"
    assert done.stderr == "50 %" * sum(SAYS_IT in program for program in programs)
