"""Ranks as tasks of Ray."""

import os
import socket
import sys
import types

import pytest
import ranks
import schedulers

from scratchnet.errors import ConfigError
from scratchnet.parallel.clusters import ray


@ranks.needs("ray")
def test_a_cluster_of_one_node(tmp_path, capsys, monkeypatch):
    """Its tasks that are killed, and an actor that is killed and a task that is cancelled, which have called `run`."""
    import ray as library

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    library.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        schedulers.check_contract(ray.run, tmp_path, capsys)
        schedulers.check_loss(ray.run, tmp_path, schedulers.lose_task)
        with pytest.raises(ConfigError, match=r"ray.run: expected 1 free slots, one for each rank, found 0"):
            ray.run(print, ranks=1, resources={"wings": 2})
        assert ray.run(ranks.trained, ranks=2) == ranks.expected(2)  # nothing holds a slot
        for begin in (in_a_task, in_an_actor):
            folder = tmp_path / begin.__name__
            folder.mkdir()
            end = begin(library, str(folder))
            started = ranks.processes_in(folder, 2, schedulers.START)
            end()
            assert ranks.gone(started)
    finally:
        library.shutdown()


def in_an_actor(library, folder):
    class Driver:
        def drive(self):
            return ray.run(ranks.wait_long, folder, ranks=2, restarts=1)

    actor = library.remote(num_cpus=0)(Driver).remote()
    actor.drive.remote()
    return lambda: library.kill(actor)


def in_a_task(library, folder):
    def drive():
        return ray.run(ranks.wait_long, folder, ranks=2, restarts=1)

    task = library.remote(num_cpus=0, max_retries=0)(drive).remote()
    return lambda: library.cancel(task)


def test_a_ray_that_is_not_there_is_one_line(monkeypatch):
    def init(**options):
        raise ConnectionError("nobody\n  is it running?")

    library = types.ModuleType("ray")
    library.is_initialized, library.init = (lambda: False), init
    placement, strategies = types.ModuleType("placement_group"), types.ModuleType("scheduling_strategies")
    placement.placement_group = placement.remove_placement_group = strategies.PlacementGroupSchedulingStrategy = None
    for name, module in (("", library), (".util", types.ModuleType("util")), (".util.placement_group", placement),
                         (".util.scheduling_strategies", strategies)):  # fmt: skip
        monkeypatch.setitem(sys.modules, f"ray{name}", module)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"^ray.run: expected a Ray, got ConnectionError: nobody is it running\?$"):
        ray.run(print, ranks=2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    words = f"^ray.run: expected a Ray at RAY_ADDRESS=127.0.0.1:{port}, got ConnectionRefusedError: "
    with pytest.raises(ConfigError, match=words):
        ray.run(print, ranks=2)


def test_without_ray_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"ray.run: needs Ray \(pip install ray\), got: "):
        ray.run(print, ranks=2)
    with pytest.raises(ConfigError, match=r"ray.run: resources\['CPU'\]: expected"):
        ray.run(print, ranks=2, resources={"CPU": -1})
