"""A model in stages and parts on the ranks of an MPI job has the bits of one process, and a dead rank changes none."""

import numpy as np
import pytest
from jobs import program, train, undisturbed

NORM, EMPTY = "two batches a step, and their norm", "adam, more shards than samples at the end"


@pytest.mark.parametrize(
    ("ranks", "share", "divided", "jobs"),
    [
        (2, 1, "three stages", ["momentum", "skipped"]),
        (4, 1, "two stages", [NORM, EMPTY]),
        (4, 2, "two stages of two parts", ["wide", "wide, two batches a step"]),
    ],
)
def test_stages_on_ranks_have_the_bits_of_one_process(ranks, share, divided, jobs):
    """With four ranks, two compute other shards, or other parts, of a stage."""
    status, results, said = train(ranks, "--jobs", *jobs, "--divided", divided, share=share)
    assert status == 0, said
    expected = undisturbed()
    if "parts" in divided:
        expected = {result["job"]: result for result in train(0, "--jobs", *jobs, "--divided", "two parts")[1]}
    assert sorted((r["job"], r["rank"]) for r in results) == sorted(
        (job, rank) for job in jobs for rank in range(ranks)
    )
    for result in results:
        assert result["digest"] == expected[result["job"]]["digest"], result["job"]


def test_a_rank_that_dies_in_a_stage_ends_the_job_with_one_line_and_a_resumed_job_is_exact(tmp_path):
    flags = "--jobs", "momentum", "--folder", tmp_path
    fail = "backward.claimed:9:1:SIGKILL"
    status, results, said = train(3, *flags, "--divided", "three stages", fail=fail, share=1)
    lines = [line for line in said.splitlines() if line.startswith("scratchnet:")]
    assert status != 0 and not results
    assert len(lines) <= 1 and all("step 9: no sign of life from rank 1" in line for line in lines), said
    status, results, said = train(2, *flags, "--divided", "two stages", "--resume", "auto")
    assert status == 0, said
    assert {result["digest"] for result in results} == {undisturbed()["momentum"]["digest"]}


def test_a_machine_has_memory_for_its_own_stages_alone():
    """Two machines of one rank and as many stages, of 6 layers of one size: of two pages with momentum each has half, 2
    times the parameters, and of 4 slots half, 2 times."""
    status, text = program(2, "mpi_probe", "stages", SCRATCHNET_MPI_SHARE="1")
    assert status == 0, text
    taken = [float(figure) for figure in text.replace("<", " ").replace(">", " ").split() if figure[0].isdigit()]
    assert len(taken) == 2 and np.all(np.abs(np.array(taken) - 4) < 0.5), text


def test_a_number_of_ranks_that_stages_cannot_share_is_refused_in_one_line():
    status, _, said = train(3, "--jobs", "momentum", "--divided", "two stages")
    lines = [line for line in said.splitlines() if "expected at most 2 workers" in line]
    assert status != 0 and len(lines) == 1, said
