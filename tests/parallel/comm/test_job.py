"""Who started this process? Its environment says so."""

import importlib
import sys
from concurrent.futures import ThreadPoolExecutor, wait

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


def test_it_waits_for_a_module_that_another_thread_is_in_the_middle_of_importing(monkeypatch, tmp_path):
    (tmp_path / "half_there.py").write_text(
        "import threading\nis_half, go_on = threading.Event(), threading.Event()\n"
        "is_half.set()\nassert go_on.wait(60)\nparent_process = lambda: 'its parent'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(job, "WORKERS", ("half_there",))
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setenv("PMI_RANK", "0")
    with ThreadPoolExecutor(2) as threads:
        imported = threads.submit(importlib.import_module, "half_there")
        while "half_there" not in sys.modules or not hasattr(sys.modules["half_there"], "go_on"):
            assert not imported.done()
        try:
            assert sys.modules["half_there"].is_half.wait(60)
            found = threads.submit(job.started_as)
            wait([found], timeout=0.1)  # long enough to see half a module
        finally:
            sys.modules["half_there"].go_on.set()
        assert found.result(60) is None  # a worker
    del sys.modules["half_there"]
