"""Ranks as tasks of a Dask cluster, each on a thread of a worker that was free."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

from ... import checks
from ...errors import ConfigError
from . import launcher

LOOK = 1.0  # seconds between two looks whether all workers are there: Dask keeps the task of a dead one for another


def run(
    fn: Callable,
    *args: Any,
    ranks: int,
    client: Any = None,
    restarts: int = 0,
    at_least: int | None = None,
    timeout: float | None = None,
) -> list:
    """`fn(comm, *args)` in `ranks` tasks of Dask; results in rank order.

    comm: an MpiCommunicator; inside, a Trainer works as under mpirun. client: a distributed.Client; None: the current
    one. restarts, at_least, timeout: as docs/clusters.md says for all schedulers.
    Raises ConfigError for what cannot start, WorkerError for a rank that raised or died.
    """
    return launcher.run(scheduler(_client(client)), fn, args, ranks, restarts, at_least, timeout)


def scheduler(client: Any) -> launcher.Scheduler:
    from distributed.utils import get_ip

    futures: list[Any] = []

    def idle() -> list[str]:
        """The address of a worker for each of its threads that computes nothing."""
        busy, workers = client.processing(), client.scheduler_info(n_workers=-1)["workers"]
        return [name for name, about in workers.items() for _ in range(about["nthreads"] - len(busy.get(name, ())))]

    def collect(do: Callable[[int], dict], n: int) -> list:
        names = idle()[:n]
        futures[:] = [
            client.submit(do, i, pure=False, retries=0, workers=[name], allow_other_workers=False)
            for i, name in enumerate(names)
        ]
        while (found := {future.status for future in futures}) <= {"pending", "finished"} and "pending" in found:
            if gone := set(names) - client.scheduler_info(n_workers=-1)["workers"].keys():
                raise RuntimeError(f"the worker {gone.pop()} has gone")
            time.sleep(LOOK)
        return client.gather(futures)

    return launcher.Scheduler(
        "dask", get_ip(client.scheduler.address.split("://")[-1].rsplit(":", 1)[0]), lambda: len(idle()), collect,
        lambda: client.cancel(futures, force=True),
    )  # fmt: skip


def _client(client: Any) -> Any:
    try:
        from distributed import Client, default_client
    except ImportError as error:
        raise ConfigError(f"dask.run: needs Dask (pip install distributed), got: {error}") from None
    if client is None:
        with contextlib.suppress(ValueError):
            client = default_client()
    client = checks.instance("dask.run: client", client, Client, "a distributed.Client of a cluster that runs")
    if client.status != "running" or client.asynchronous:
        found = "an asynchronous one" if client.asynchronous else f"one that is {client.status}"
        raise ConfigError(f"dask.run: client: expected a distributed.Client that is running, got {found}")
    return client
