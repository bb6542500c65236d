"""scripts/bench/cluster_elastic.py: a machine goes and another comes, on each scheduler, and the bits stay."""

import pytest
import ranks

from scratchnet.testing.schedulers import PARTS

MODULES = {"spark": "pyspark", "ray": "ray", "dask": "distributed"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=ranks.needs(MODULES[name])) for name in PARTS])
def test_the_bits_are_those_of_one_process_while_machines_go_and_come(name, capsys):
    import cluster_elastic

    cluster_elastic.main(cluster_elastic.Config(only=(name,)))  # it raises if bits or numbers of ranks differ
    assert "2, 1, 2" in capsys.readouterr().out


def test_a_scheduler_that_is_not_installed_is_said(capsys, monkeypatch):
    import cluster_elastic

    def absent(folder):
        raise ImportError("No module named 'wings'")

    monkeypatch.setitem(PARTS, "ray", absent)
    cluster_elastic.main(cluster_elastic.Config(only=("ray",)))
    assert capsys.readouterr().out.endswith("ray          not here: No module named 'wings'\n")
