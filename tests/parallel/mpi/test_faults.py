"""A rank fails: the job ends with one line, and goes on from its checkpoint to the same bytes."""

import shutil
import signal
import subprocess
import sys
import time

import pytest
import residue
from jobs import PATIENCE, PROGRAMS, train, undisturbed, variables_of_a_job
from servants import is_open_mpi, mpirun
from sizes import THOROUGH

SAID = {  # what happens at sample 17, in step 4, on rank 2: the one line that says it
    "nan": "mpi_job.py: fit: expected a finite loss, got nan at step 4, shard 3, from an input",
    "raise": "scratchnet: rank 2, step 4: ValueError: sample 17 is bad",
    "exit": "scratchnet: rank 2, step 4: SystemExit: 3",
    "stop": f"scratchnet: step 4: no sign of life from rank 2, in {PATIENCE} s, while rank 0 waited in training step",
    "kill": "scratchnet: step 4: no sign of life from rank 2, seen as the job was ended, while rank 0 waited in ",
}


@pytest.mark.parametrize("fault", SAID)
def test_a_fault_of_one_rank_ends_the_job_with_one_line(fault):
    status, results, said = train(3, "--fault", fault)
    lines = [line for line in said.splitlines() if line.startswith(("scratchnet:", "mpi_job.py:"))]
    assert status != 0 and not results
    if fault == "kill" and not is_open_mpi():
        assert status == signal.SIGKILL and not lines
        pytest.skip("MPICH's mpirun kills the other ranks before they can say who died (watch.py)")
    assert len(lines) == 1 and lines[0].startswith(SAID[fault]), said


@pytest.mark.parametrize(
    ("point", "name", "starts"),
    [
        ("shard.claimed:9:1:SIGKILL", "low rank", [(2, 0), (0, 0)]),
        ("slice.claimed:9:1:SIGKILL", "delayed", [(4, 2), (0, 0)]),
        *[("slice.claimed:6:0:exit", "largest", [(4, 2)])] * THOROUGH,
    ],
)
def test_a_job_that_lost_a_rank_goes_on_with_any_number_of_ranks_to_the_same_bytes(tmp_path, point, name, starts):
    """Three machines of one rank, so residuals and the optimizer's state are on three, too, and what a checkpoint holds
    of them."""
    status, results, _ = train(3, "--jobs", name, "--folder", tmp_path, fail=point, share=1)
    assert status != 0 and not results
    checkpoints = set()
    for ranks, share in starts:
        folder = tmp_path / str(ranks)
        shutil.copytree(tmp_path, folder, ignore=lambda _, names: [n for n in names if n.isdigit()])
        flags = "--jobs", name, "--folder", folder, "--resume", "auto"
        status, results, said = train(ranks, *flags, share=share)
        assert status == 0, said
        assert {result["digest"] for result in results} == {undisturbed()[name]["digest"]}
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
        checkpoints.add(max(folder.glob("*.safetensors")).read_bytes())
    assert len(checkpoints) == 1


@pytest.mark.parametrize("fault", ["term", "busy"])
def test_sigterm_to_ranks_stops_all_after_the_same_step_with_a_checkpoint(fault, tmp_path):
    """To one of them, or to those that wait for one that is too busy to answer."""
    flags = "--jobs", "delayed", "--folder", tmp_path
    status, results, said = train(3, *flags, "--fault", fault, share=2)
    assert status == 128 + signal.SIGTERM and not results, said
    assert [path.name for path in tmp_path.glob("*.safetensors")]
    status, results, said = train(2, *flags, "--resume", "auto")
    assert {result["digest"] for result in results} == {undisturbed()["delayed"]["digest"]}, said


def test_ranks_end_with_mpirun(tmp_path):
    variables = variables_of_a_job()
    variables["SCRATCHNET_FAIL"] = "shard.claimed:3:1:sleep=600"
    line = mpirun(2, sys.executable, str(PROGRAMS / "mpi_job.py"), "--folder", str(tmp_path))
    process = subprocess.Popen(line, env=variables, stderr=subprocess.DEVNULL)
    while not (tmp_path / ".scratchnet-lock").exists():  # rank 0 is in fit
        assert process.poll() is None
        time.sleep(0.05)
    ranks = [pid for pid, command in residue.descendants(process.pid).items() if "mpi_job" in command]
    assert len(ranks) == 2
    process.kill()
    process.wait()
    while any(map(residue.alive, ranks)):
        time.sleep(0.05)


def test_an_exception_where_others_wait_for_more_than_a_handshake_ends_the_job_in_time():
    status, results, said = train(2, fail="slice.claimed:4:1:raise")
    lines = [line for line in said.splitlines() if line.startswith("scratchnet:")]
    assert status != 0 and not results
    assert lines[0] == "scratchnet: rank 1, step 4: RuntimeError: a fail point was armed"
