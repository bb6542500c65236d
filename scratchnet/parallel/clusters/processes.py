"""Plain processes of this machine as a scheduler: the smallest one, for tests and for a first try."""

import os
from collections.abc import Callable
from typing import Any

from multiprocess import connection

from ... import checks
from ...native.limits import cores
from ..objects import dumps, loads
from ..pool.launch import Workers
from . import launcher
from .task import MACHINE


def run(
    fn: Callable,
    *args: Any,
    ranks: int = 2,
    machines: int = 1,
    restarts: int = 0,
    at_least: int | None = None,
    timeout: float | None = None,
) -> list:
    """`fn(comm, *args)` in ranks of an MPI job on this machine; results in rank order.

    machines: so many machines the ranks pretend to be on, in turn. The rest: see docs/clusters.md.
    """
    machines = checks.integer("processes.run: machines", machines, 1)
    return launcher.run(scheduler(machines), fn, args, ranks, restarts, at_least, timeout)


def scheduler(machines: int) -> launcher.Scheduler:
    groups: list[Workers] = []

    def collect(do: Callable[[int], dict], n: int) -> list:
        with Workers(n, _task, dumps(do), machines, threads=max(1, cores() // n)) as group:
            groups[:] = [group]
            return group.results(lambda: None)

    def cancel() -> None:
        for group in groups:
            for process in group.processes:
                process.kill()

    return launcher.Scheduler("processes", "127.0.0.1", lambda: 1 << 10, collect, cancel)


def _task(channel: connection.Connection, task: int, do: bytes, machines: int) -> None:
    os.environ[MACHINE] = f"{task % machines}"
    channel.send_bytes(dumps(("result", loads(do)(task))))
