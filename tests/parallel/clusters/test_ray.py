"""Ranks as tasks of Ray."""

import sys

import pytest
import ranks
import schedulers

from scratchnet.errors import ConfigError
from scratchnet.parallel.clusters import ray


@ranks.needs("ray")
def test_a_cluster_of_one_node(tmp_path, capsys):
    import ray as library

    library.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        schedulers.check_contract(ray.run, tmp_path, capsys)
        (tmp_path / "loss").mkdir()
        schedulers.check_loss(ray.run, tmp_path / "loss", schedulers.lose_task)
        with pytest.raises(ConfigError, match=r"ray.run: expected 1 free slots, one for each rank, found 0"):
            ray.run(print, ranks=1, resources={"wings": 2})
        assert ray.run(ranks.trained, ranks=2) == ranks.expected(2)  # nothing holds a slot
    finally:
        library.shutdown()


def test_without_ray_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"ray.run: needs Ray \(pip install ray\), got: "):
        ray.run(print, ranks=2)
    with pytest.raises(ConfigError, match=r"ray.run: resources\['CPU'\]: expected"):
        ray.run(print, ranks=2, resources={"CPU": -1})
