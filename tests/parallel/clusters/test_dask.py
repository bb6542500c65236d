"""Ranks as tasks of Dask."""

import functools
import sys
import types

import pytest
import ranks
import schedulers

from scratchnet.errors import ConfigError
from scratchnet.parallel.clusters import dask


@ranks.needs("distributed")
def test_a_cluster_of_two_workers(tmp_path, capsys):
    from distributed import Client, Future, LocalCluster

    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        run = functools.partial(dask.run, client=client)
        schedulers.check_contract(run, tmp_path, capsys)

        def cancel(pids):  # by somebody else
            with Client(cluster) as other:
                other.cancel([Future(key, other) for key in client.futures], force=True)

        for lose, comes_back in ((schedulers.lose_task, True), (cancel, False), (lambda pids: restart(cluster), False)):
            schedulers.check_loss(run, tmp_path, lose, comes_back)
            client.wait_for_workers(2, timeout=schedulers.START)  # its nanny has started another
            assert run(ranks.trained, ranks=2) == ranks.expected(2)


def restart(cluster):
    from distributed import Client

    with Client(cluster) as other:
        other.restart()


def test_a_client_that_cannot_be_asked_is_refused(monkeypatch):
    module = types.ModuleType("distributed")
    module.Client, module.default_client = type("Client", (), {"status": "closed", "asynchronous": False}), None
    monkeypatch.setitem(sys.modules, "distributed", module)
    words = "dask.run: client: expected a distributed.Client that is running, got "
    with pytest.raises(ConfigError, match=f"^{words}one that is closed$"):
        dask.run(print, ranks=2, client=module.Client())
    module.Client.asynchronous = True
    with pytest.raises(ConfigError, match=f"^{words}an asynchronous one$"):
        dask.run(print, ranks=2, client=module.Client())


def test_without_dask_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"dask.run: needs Dask \(pip install distributed\), got: "):
        dask.run(print, ranks=2)
