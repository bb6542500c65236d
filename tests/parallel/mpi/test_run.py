"""`sn.parallel.run` under mpirun: each rank calls the function once, and the job ends when one rank fails."""

import re

import pytest
from jobs import program

from scratchnet.parallel.comm.job import ENDED, RESTARTS


@pytest.mark.parametrize("ranks", [1, 3])
def test_run_under_mpirun_runs_the_function_once_on_each_rank(ranks):
    status, text = program(ranks, "mpi_run", "result", 10)
    assert status == 0, text
    expected = [f"[({rank + 10}, {ranks}, 'MpiCommunicator', {ranks})]" for rank in range(ranks)]
    assert sorted(re.findall(r"\[.*?\]", text)) == expected  # mpirun joins lines, where Python does not buffer them


def test_an_exception_of_a_rank_ends_the_job_and_is_printed():
    status, text = program(2, "mpi_run", "exception")
    assert status != 0 and "scratchnet: rank 1 raised ValueError: no such luck" in text


def test_a_wait_ends_at_the_time_limit_and_names_who_is_late():
    status, text = program(2, "mpi_run", "late")
    assert status != 0 and "barrier(): rank 0 waited 0.5 s for rank 1" in text


def test_a_rank_that_ends_before_the_others_is_named():
    status, text = program(3, "mpi_run", "early_return")
    assert status != 0 and "ranks 0, 1 called barrier(); rank 2 had returned from its function" in text


@pytest.mark.parametrize("callers", [1, 2])
def test_rank_0_says_that_all_ranks_came_to_their_end_if_none_still_called(callers):
    """Rank 0 alone calls, and takes no notice of the error; or both do."""
    status, text = program(2, "mpi_run", "suppressed", callers, **{RESTARTS: "0"})
    assert status == 0 and text.count(ENDED) == callers - 1, text
