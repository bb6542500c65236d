"""A model in stages and parts on the ranks of an MPI job has the bits of one process, and a dead rank changes none.

A start of ranks costs more than what they compute here, so each start runs several layouts.
"""

import functools

import numpy as np
import pytest
from jobs import program, train, undisturbed

NORM, EMPTY = "two batches a step, and their norm", "adam, more shards than samples at the end"
NO_SHARE = "momentum @ two stages"  # of three ranks
RUNS = {  # of so many ranks: JOB @ LAYOUT @ ranks that count as one machine, and so many parts, 0: in one process
    4: {
        f"{NORM} @ two stages @ 1": 0,
        f"{EMPTY} @ two stages @ 1": 0,
        "wide @ four stages @ 1": 0,
        "wide @ two stages of two parts @ 2": 2,
        "wide, two batches a step @ two stages of two parts @ 2": 2,
    },
    3: {
        "momentum @ three stages @ 1": 0,
        "skipped @ three stages @ 2": 0,
        "wide, seven shards @ four stages @ 1": 0,
        "wide @ three parts @ 1": 3,
        "wide @ one stage of three parts @ 2": 3,
    },
}


@functools.cache
def in_parts():
    """{(job, parts): digest} of one process."""
    of = {2: "two parts", 3: "three parts"}
    asked = {
        f"{text.split(' @ ')[0]} @ {of[parts]}": (text.split(" @ ")[0], parts)
        for runs in RUNS.values() for text, parts in runs.items() if parts
    }  # fmt: skip
    status, results, said = train(0, "--jobs", *asked)
    assert status == 0, said
    return {asked[result["job"]]: result["digest"] for result in results}


@pytest.mark.parametrize("ranks", RUNS)
def test_stages_and_parts_on_ranks_have_the_bits_of_one_process(ranks):
    """With four ranks and two stages, two compute other shards, or other parts, of a stage."""
    refused = [NO_SHARE] if ranks == 3 else []
    status, results, said = train(ranks, "--jobs", *refused, *RUNS[ranks], share=1)
    assert status == 0, said
    for text, parts in RUNS[ranks].items():
        job = text.split(" @ ")[0]
        expected = in_parts()[job, parts] if parts else undisturbed()[job]["digest"]
        assert [result["digest"] for result in results if result["job"] == text] == [expected] * ranks, text
    lines = [result["refused"] for result in results if result["job"] in refused and result["reported"]]
    assert lines == ["Pipeline: expected at most 2 workers, one for each stage, or a multiple, got 3"] * len(refused)


def test_a_rank_that_dies_in_a_stage_ends_the_job_with_one_line_and_any_other_layout_goes_on_to_the_same_bytes(
    tmp_path,
):
    """Killed with half an activation written, then with half a gradient; in the end a pool has other stages."""
    folder, expected = ("--folder", tmp_path, "--resume", "auto"), undisturbed()["momentum"]["digest"]
    for ranks, layout, step, fail in [
        (3, "three stages", 5, "forward.half_written:5:1:SIGKILL"),
        (2, "two stages", 10, "backward_weights.half_written:10:0:SIGKILL"),
    ]:
        status, results, said = train(ranks, "--jobs", f"momentum @ {layout}", *folder, fail=fail, share=1)
        lines = [line for line in said.splitlines() if line.startswith("scratchnet:")]
        assert status != 0 and not results
        assert len(lines) <= 1 and all(f"step {step}: no sign of life from rank" in line for line in lines), said
    assert sorted(tmp_path.glob("checkpoint-*8.safetensors")), "the second job did not go on"
    status, results, said = train(0, "--jobs", "momentum @ three stages", "--workers", 2, *folder)
    assert status == 0, said
    assert [result["digest"] for result in results] == [expected]


def test_a_machine_has_memory_for_its_own_stages_alone():
    """Two machines of one rank and as many stages, of 6 layers of one size: of two pages with momentum each has half, 2
    times the parameters, and of 4 slots half, 2 times."""
    status, text = program(2, "mpi_probe", "stages", SCRATCHNET_MPI_SHARE="1")
    assert status == 0, text
    taken = [float(figure) for figure in text.replace("<", " ").replace(">", " ").split() if figure[0].isdigit()]
    assert len(taken) == 2 and np.all(np.abs(np.array(taken) - 4) < 0.5), text
