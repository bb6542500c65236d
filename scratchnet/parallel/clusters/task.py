"""What each task of a scheduler does: it meets the driver, starts the ranks of its machine, and brings their results.

The tasks of a machine hold one slot of the scheduler for each rank. The first of them starts the ranks of all, because
ranks that one proxy starts share memory; the others wait for the end.
"""

import os
import platform
import socket
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...native.limits import cores
from ...version import __version__
from ..comm.job import LAUNCHERS, LAUNCHES, RANK, RESTARTS
from ..pool.launch import _variables
from . import hydra
from .rank import FOLDER, WORK
from .rendezvous import Peer, connect

MACHINE = "SCRATCHNET_MACHINE"  # names the machine of a task, where /proc does not tell it
POLL = 0.05
CONNECT = 10.0  # seconds that a task tries to reach its driver
HOST = socket.gethostname()


def versions() -> dict[str, str]:
    """What all parts of a job must have in the same version."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"mpich": hydra.version(), "python": python, "scratchnet": __version__}


def misfit(hellos: Iterable[dict[str, Any]]) -> str | None:
    """The first part of a job whose versions are not those of this process, in a line; None if there is none."""
    for hello in hellos:
        for what, own in versions().items():
            if hello.get(what) != own:
                return f"expected {what} {own} on {hello.get('host')}, as here, got {hello.get(what) or 'none'}"
    return None


def work(task: int, address: str, port: int, token: str, payload: bytes, attempt: int = 0) -> dict[int, bytes]:
    """{rank: what it kept} of the ranks that this task started, in the task with this number."""
    peer = connect(address, port, CONNECT, token=token, task=task, machine=machine(), host=HOST, **versions())
    if peer is None:
        return {}
    try:
        order = peer.receive()
        if not order.get("command"):
            return {}  # the job has ended, for a task that only held a slot
        with tempfile.TemporaryDirectory(prefix="scratchnet-") as folder:
            Path(folder, WORK).write_bytes(payload)
            own = {n: v for n, v in os.environ.items() if n not in _OF_A_RANK}
            threads = max(1, cores() // order["ranks"])  # of each rank's libraries, as of a worker's
            own |= _variables(threads) | hydra.variables() | {FOLDER: folder, RESTARTS: str(attempt)}
            _run([hydra.program(hydra.PROXY), *order["command"][1:]], own, Path(folder), peer)
            return {int(p.name): p.read_bytes() for p in Path(folder).iterdir() if p.name.isdigit()}
    finally:
        peer.close()


def _run(command: list[str], variables: dict[str, str], folder: Path, peer: Peer) -> None:
    """A proxy and its ranks, until they end, or the job does. What a proxy says counts if it could start no rank."""
    with (folder / "proxy").open("w+") as said:
        proxy = hydra.start_mortal(command, env=variables, cwd="/", stdout=said, stderr=said)
        try:
            while proxy.poll() is None:
                if peer.has_ended(POLL):
                    return
            if proxy.returncode and not any(path.name.isdigit() for path in folder.iterdir()):
                said.seek(0)
                sys.stderr.write(said.read())
        finally:
            hydra.end(proxy)


_OF_A_RANK = {RANK, *LAUNCHES, *(name for pair in LAUNCHERS for name in pair)}


def machine() -> str:
    """Tasks with the same answer share memory: one machine, one container, one limit of memory."""
    parts = [os.environ.get(MACHINE, "")]
    if not parts[0]:
        for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
                     lambda: os.readlink("/proc/self/ns/pid"),
                     lambda: Path("/proc/self/cgroup").read_text().splitlines()[-1]):  # fmt: skip
            try:
                parts.append(read())
            except (OSError, IndexError):
                parts.append(socket.gethostname())
    return " ".join(parts).strip()
