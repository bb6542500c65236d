"""Who started this process? Its environment says so."""

import pytest

from scratchnet.parallel.comm import job


@pytest.mark.parametrize("environment, found", {
    (): None,
    (("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "3")): (3, 4),
    (("PMI_SIZE", "2"), ("PMI_RANK", "0")): (0, 2),
    (("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_PROCID", "1")): (1, 2),
    (("SLURM_STEP_NUM_TASKS", "1"), ("SLURM_PROCID", "0")): None,
    (("OMPI_COMM_WORLD_SIZE", "1"), ("OMPI_COMM_WORLD_RANK", "0")): (0, 1),
    (("PMI_SIZE", "many"), ("PMI_RANK", "0")): None,
}.items())  # fmt: skip
def test_the_environment_tells_who_started_a_process(monkeypatch, environment, found):
    for name in (name for pair in job.LAUNCHERS for name in pair):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment:
        monkeypatch.setenv(name, value)
    assert job.started_as() == found
