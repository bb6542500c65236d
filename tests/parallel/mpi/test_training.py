"""Training by the ranks of an MPI job has the bits of one process; what cannot have them is refused."""

import hashlib
import itertools

import mpi_job
import numpy as np
import pytest
from jobs import program, srun_like, train, undisturbed
from servants import mpirun
from sizes import THOROUGH

import scratchnet as sn
from tests.trainer.test_moments import STEPS
from tests.trainer.test_trainer import make

# On machines of one rank, jobs that compress or add in any order do what they do on machines of two.
BY_SLICES = [name for name in mpi_job.JOBS if name not in ("fast", "half", "largest", "low rank", "low rank, skipped")]


@pytest.mark.parametrize(
    ("ranks", "share", "jobs", "command"),
    [
        (2, 0, mpi_job.JOBS, srun_like),
        (3, 1, mpi_job.JOBS, mpirun),
        (5, 2, mpi_job.JOBS, mpirun),
        *[(2, 1, BY_SLICES, mpirun), (4, 1, BY_SLICES, mpirun)] * THOROUGH,
    ],
    ids=lambda value: getattr(value, "__name__", "") if callable(value) else None,
)
def test_training_has_the_bits_of_one_process_for_any_number_of_ranks_and_machines(ranks, share, jobs, command):
    status, results, said = train(ranks, "--jobs", *jobs, share=share, command=command)
    assert status == 0, said
    assert sorted((r["job"], r["rank"]) for r in results) == sorted(itertools.product(jobs, range(ranks)))
    for result in results:
        expected = undisturbed()[result["job"]]
        if result["job"] != "fast":
            assert result["digest"] == expected["digest"], result["job"]
        else:  # the order of additions, and nothing else, is another
            np.testing.assert_allclose(result["sums"], expected["sums"], rtol=1e-3, atol=1e-3)
    assert len({result["digest"] for result in results if result["job"] == "fast"}) <= 1
    for name in ("momentum", "adam, more shards than samples at the end"):
        asked = [r["asked"] for r in sorted(results, key=lambda r: r["rank"]) if r["job"] == name]
        check_rows(asked, name, STARTS.get((ranks, share)))


STARTS = {  # of each rank's shards, where machines end with subtrees and not where equal parts would: of 4 shards, of 8
    (3, 1): {4: [0, 2, 3, 4], 8: [0, 2, 5, 8]},
    (5, 2): {4: [0, 1, 2, 3, 4, 4], 8: [0, 2, 4, 5, 6, 8]},
}


def check_rows(asked, name, starts):
    """Each rank has read the samples of its shards and no others, but for those of shard 0 that it looks at first."""
    shards, ranks = mpi_job.JOBS[name][0]["shards"], len(asked)
    loader = sn.data.DataLoader(mpi_job.Samples(""), mpi_job.BATCH, shuffle=True, seed=3)
    batches = [rows for epoch in range(2) for rows in loader.batch_indices(epoch)]
    first = mpi_job.BATCH // shards
    starts = starts[shards] if starts else [rank * shards // ranks for rank in range(ranks + 1)]
    for rank, rows in enumerate(asked):
        own = [
            rows[k * len(rows) // shards : (k + 1) * len(rows) // shards]
            for rows in batches
            for k in range(starts[rank], starts[rank + 1])
        ]
        assert rows[first:] == np.concatenate(own or [[]]).tolist()


@pytest.fixture(scope="module")
def refused():
    """What two ranks wrote that tried to train in ways that cannot have the bits of one process."""
    status, text = program(2, "mpi_refused")
    assert status != 0
    return text


@pytest.mark.parametrize("strategy", ["ParameterServer", "Hogwild"])
def test_what_is_not_exact_is_refused_in_one_line(refused, strategy):
    lines = [line for line in refused.splitlines() if "Trainer: " in line and f"{strategy}(" in line]
    assert len(lines) == 1 and "expected a strategy that is exact under MPI, got" in lines[0], refused
    assert "at any time, in shared memory" in lines[0]


def test_ranks_that_take_different_samples_are_named(refused):
    assert "expected loader_seed=0, as saved, got 1" in refused


def test_callbacks_run_in_rank_0_and_their_decisions_hold_for_all(tmp_path):
    _, text = program(3, "mpi_callbacks", tmp_path)
    lines = [line.split(" | ") for line in text.splitlines() if " | " in line]
    stopped = sorted(line for line in lines if line[1] == "stopped")
    trainer, loader = make(shards=4)
    trainer.fit(loader, epochs=4)
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in trainer.model.parameters())).hexdigest()
    why = "metric has not been better than 2, of epoch 2, for 2 epochs"
    moments = 1 + 4 * (STEPS + 1) + 1  # of rank 0 alone
    assert stopped == [[str(rank), "stopped", why, str(0 if rank else moments), digest] for rank in range(3)], text
    raised = "Raises.on_step_end, after step 1: KeyError: 'no such thing'"
    assert sorted(line for line in lines if line[1] == "raised") == [[str(rank), "raised", raised] for rank in range(3)]
    assert (tmp_path / "stopped" / "best.safetensors").exists()
