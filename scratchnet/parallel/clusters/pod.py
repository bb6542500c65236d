"""What each pod of a Job of Kubernetes runs: the pods meet at the first one, and their containers become ranks.

    python -m scratchnet.parallel.clusters.pod train --shards 8 --folder /run/digits --resume auto

The manifest (kubernetes.py) sets the environment: which pod this is, how many there are, where the first one is. A pod
that fails ends the others, whose containers then start again, and all meet anew: `--resume auto` goes on from the
checkpoint. SIGTERM goes to the ranks, which save after the step in hand and end; then this ends with status 143.
"""

import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from ...errors import ConfigError, ScratchnetError
from ..comm.job import ENDED, RESTARTS
from . import hydra
from .rendezvous import Peer, Rendezvous, connect
from .task import HOST, misfit, versions

INDEX, MACHINES, RANKS = "JOB_COMPLETION_INDEX", "SCRATCHNET_MACHINES", "SCRATCHNET_RANKS"
DRIVER, TOKEN, WAIT = "SCRATCHNET_DRIVER", "SCRATCHNET_TOKEN", "SCRATCHNET_WAIT"
PORT = 29410
LOST = 1  # the status of pods whose job ended because another pod did
POLL = 0.05
TELL = 5.0  # seconds in which the first pod tells all others how the job ended


def main(words: list[str]) -> int:
    """The exit status: that of the job, for all pods."""
    index, machines, ranks = (_number(name, least) for name, least in ((INDEX, 0), (MACHINES, 1), (RANKS, 1)))
    address, token = _variable(DRIVER), _variable(TOKEN)
    seconds = float(os.environ.get(WAIT, 600))  # until all pods have an image, and a place
    if index >= machines:
        raise ConfigError(f"pod: expected {INDEX} below {MACHINES}={machines}, got {index}")
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    driver = threading.Thread(target=_drive, args=(address, token, machines, ranks, words, seconds), daemon=True)
    if index == 0:
        driver.start()
    try:
        return _follow(index, address, token, seconds, asked)
    finally:
        if index == 0:
            driver.join(TELL)  # it has told this pod how the job ended, and may have to tell others


def _follow(index: int, address: str, token: str, seconds: float, asked: list[int]) -> int:
    """Meets the first pod, and runs the ranks that it orders; returns the status of the job."""
    deadline, order = time.monotonic() + seconds, dict[str, list[str]]()
    while not order.get("command"):  # an earlier start of the first pod may still answer, and end
        peer = connect(
            address, PORT, max(0.0, deadline - time.monotonic()), token=token, task=index, host=HOST, **versions()
        )
        order = peer.receive() if peer else {}
        if asked or time.monotonic() > deadline or "refused" in order:
            raise ConfigError(order.get("refused") or f"pod {index}: expected pod 0 at {address}:{PORT}, got no order")
        time.sleep(POLL)
    assert peer is not None
    status = _carry(order["command"], peer, asked)
    peer.close()
    return status


def _carry(command: list[str], peer: Peer, asked: list[int]) -> int:
    """Runs the ranks of this pod to the end of the job; returns its status, as the first pod says it."""
    said: dict[str, int] = {}
    own = {**os.environ, **hydra.variables(), RESTARTS: os.environ.get(RESTARTS, "0")}
    with tempfile.TemporaryFile() as quiet:
        line = [hydra.program(hydra.PROXY), *command[1:]]
        proxy = hydra.start_mortal(line, env=own, stdout=quiet, stderr=quiet)
        try:
            while not peer.has_ended(POLL):
                if asked:
                    asked.clear()
                    for rank in hydra.ranks_of(proxy.pid):
                        os.kill(rank, signal.SIGTERM)
            said = peer.receive()
        finally:
            hydra.end(proxy)
    return said.get("status", LOST)


def _drive(address: str, token: str, machines: int, ranks: int, words: list[str], seconds: float) -> None:
    """The first pod: it waits for all, starts mpiexec, and tells all how the job ended."""
    has_ended = threading.Event()

    def hear(stream: str, line: str) -> None:
        if line == ENDED:
            has_ended.set()
        else:
            getattr(sys, stream).write(line)
            getattr(sys, stream).flush()

    with Rendezvous("", PORT, token) as meeting:
        if not meeting.gather(machines, seconds, lambda: False):
            print(f"pod: expected {machines} pods within {seconds} s, got {len(meeting.peers)}", file=sys.stderr)
            return
        peers = [meeting.peers[i][0] for i in range(machines)]
        if wrong := misfit(hello for _, hello in meeting.peers.values()):
            for peer in peers:
                peer.send(refused=f"pod: {wrong}")
            return
        job = hydra.Job(address, [ranks] * machines, ["scratchnet", *words], hear)
        for peer, command in zip(peers, job.commands, strict=True):
            peer.send(command=command)
        lost = False
        while job.process.poll() is None and not lost:
            lost = any(peer.has_ended() for peer in peers)
            time.sleep(POLL)
        status = job.close()
        if lost or (status == 0 and not has_ended.is_set()):  # MPICH's may be 0 after a rank died
            status = LOST
        for peer in peers:
            try:
                peer.send(status=min(status, 255) if status >= 0 else LOST)
            except OSError:  # this is the one that was lost
                continue


def _variable(name: str) -> str:
    if not os.environ.get(name):
        raise ConfigError(f"pod: expected {name} in the environment, as `python -m scratchnet kubernetes` writes it")
    return os.environ[name]


def _number(name: str, least: int) -> int:
    text = _variable(name)
    if not text.isdigit() or int(text) < least:
        raise ConfigError(f"pod: expected {name} to be an integer of at least {least}, got {text!r:.40}")
    return int(text)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ScratchnetError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
