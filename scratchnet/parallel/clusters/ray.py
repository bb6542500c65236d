"""Ranks as tasks of Ray in a placement group, which holds the resources of all of them or of none."""

import os
import socket
from collections.abc import Callable
from typing import Any

from ... import checks
from ...errors import ConfigError
from . import launcher

RESERVE = 30.0  # seconds that Ray may take to reserve the resources
REACH = 5.0  # seconds in which it answers a connection


def run(
    fn: Callable,
    *args: Any,
    ranks: int,
    resources: dict[str, float] | None = None,
    restarts: int = 0,
    at_least: int | None = None,
    timeout: float | None = None,
) -> list:
    """`fn(comm, *args)` in `ranks` tasks of Ray; results in rank order.

    comm: an MpiCommunicator; inside, a Trainer works as under mpirun. resources: what each rank takes, {"CPU": 1} by
    default. restarts, at_least, timeout: as docs/clusters.md says for all schedulers. Starts a Ray of this machine if
    this process is connected to none. Raises ConfigError for what cannot start, WorkerError for a rank that died.
    """
    if resources is not None:
        checks.instance("ray.run: resources", resources, dict, 'a dict such as {"CPU": 1}')
        resources = {str(k): checks.number(f"ray.run: resources[{k!r}]", v, "(0, inf)") for k, v in resources.items()}
    return launcher.run(scheduler(resources or {"CPU": 1.0}), fn, args, ranks, restarts, at_least, timeout)


def scheduler(resources: dict[str, float]) -> launcher.Scheduler:
    try:
        import ray
        from ray.util.placement_group import placement_group, remove_placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
    except ImportError as error:
        raise ConfigError(f"ray.run: needs Ray (pip install ray), got: {error}") from None
    if not ray.is_initialized():
        host, _, port = (address := os.environ.get("RAY_ADDRESS", "")).rpartition(":")
        try:
            if host and port.isdigit():  # Ray itself looks for minutes for one that is not there
                socket.create_connection((host, int(port)), REACH).close()
            ray.init(include_dashboard=False, log_to_driver=False)
        except Exception as error:
            where, reason = f" at RAY_ADDRESS={address}" if address else "", " ".join(str(error).split())[:200]
            raise ConfigError(f"ray.run: expected a Ray{where}, got {type(error).__name__}: {reason}") from None
    running: list[Any] = []

    def free() -> int:
        there = ray.available_resources()
        return int(min(there.get(name, 0.0) // amount for name, amount in resources.items()))

    def collect(do: Callable[[int], dict], n: int) -> list:
        group = placement_group([resources] * n, strategy="PACK")
        try:
            if not group.wait(RESERVE):
                raise ConfigError(f"expected {n} times {resources} within {RESERVE:.0f} s, found {free()}")
            other = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
            own = {"num_cpus": resources.get("CPU", 0), "num_gpus": resources.get("GPU", 0), "resources": other}
            task = ray.remote(max_retries=0, **own)(lambda number: do(number))  # Ray takes no partial
            running[:] = [
                task.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, i)).remote(i) for i in range(n)
            ]
            return ray.get(running)
        finally:
            remove_placement_group(group)

    def cancel() -> None:
        for reference in running:
            ray.cancel(reference, force=True)

    return launcher.Scheduler("ray", ray.util.get_node_ip_address(), free, collect, cancel)
