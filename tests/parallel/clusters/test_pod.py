"""Pods, as processes in network namespaces with the environment and the command line of a Job's manifest."""

import contextlib
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import pytest
import ranks
from sizes import THOROUGH

from scratchnet.errors import ConfigError
from scratchnet.parallel.clusters import pod, rendezvous
from scratchnet.parallel.clusters.kubernetes import Plan
from scratchnet.testing.hosts import Hosts, reason_against_hosts
from scratchnet.testing.schedulers import Pods, pod_of

FLAGS = ("--epochs", "3", "--batch-size", "256", "--hidden", "16", "--shards", "4", "--save-every", "5", "--folder")
WORDS = "train", *FLAGS


def digest(folder):
    files = sorted(Path(folder).glob("**/*.safetensors"))
    assert files, list(Path(folder).iterdir())
    return hashlib.sha256(files[-1].read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "SCRATCHNET_QUIET": "1"}
    subprocess.run([sys.executable, "-m", "scratchnet", *WORDS, str(folder)], env=path, check=True, capture_output=True)
    return digest(folder)


def has_checkpoint(folder):
    return any(Path(folder).glob("**/*.safetensors"))


@pytest.mark.skipif(not THOROUGH, reason="pods start slowly: make thorough")
@ranks.needs_hydra
@pytest.mark.parametrize(("victim", "number", "statuses"), [
    (None, None, set()),
    (1, signal.SIGKILL, {-signal.SIGKILL, pod.LOST}),
    (0, signal.SIGKILL, {-signal.SIGKILL, pod.LOST}),
    (1, signal.SIGTERM, {128 + signal.SIGTERM}),
    (0, signal.SIGTERM, {128 + signal.SIGTERM}),
])  # fmt: skip
def test_pods_have_the_bytes_of_one_process_also_when_one_is_killed_and_starts_again(
    tmp_path, undisturbed, victim, number, statuses
):
    if reason := reason_against_hosts():
        pytest.skip(reason)
    run = tmp_path / "run"
    plan = Plan("image", (*WORDS, str(run), "--resume", "auto"), machines=2)

    def disturb(pods):
        if victim is not None and has_checkpoint(run):
            pods.pods[victim].send_signal(number)
            return True
        return victim is None

    with Hosts(2) as hosts:
        pods = Pods(hosts, plan, tmp_path)
        found = pods.run(disturb)
        assert set(found) == statuses and (victim is None) == (not found), pods.said()
        assert digest(run) == undisturbed


@pytest.mark.parametrize(("changes", "words"), [
    ({"JOB_COMPLETION_INDEX": "2"}, "pod: expected JOB_COMPLETION_INDEX below SCRATCHNET_MACHINES=2, got 2"),
    ({"SCRATCHNET_RANKS": "-1"}, "pod: expected SCRATCHNET_RANKS to be an integer of at least 1, got '-1'"),
    ({"SCRATCHNET_WAIT": "0"}, "pod 1: expected pod 0 at 127.0.0.1:29410, got no order"),
])  # fmt: skip
def test_a_pod_that_cannot_meet_the_others_is_refused(changes, words):
    _, environment = pod_of(Plan("image", ("train",)), 1, "127.0.0.1")
    before = signal.getsignal(signal.SIGTERM)
    with mock.patch.dict(os.environ, environment | changes), pytest.raises(ConfigError, match=re.escape(words)):
        pod.main([])
    signal.signal(signal.SIGTERM, before)


def test_the_first_pod_ends_after_it_has_told_the_others(monkeypatch):
    """Else the others of a job that ended well would end with status 1, start again, and wait for one that is done."""

    def send_slowly(peer, **message):
        if "refused" in message:
            refusals.append(message)
            time.sleep(0.1 * (len(refusals) - 1))  # the first pod hears at once
        send(peer, **message)

    def call():
        hello = {"token": environment[pod.TOKEN], "task": 1, "host": "there"}
        others.append(rendezvous.connect("127.0.0.1", pod.PORT, 10, **hello))

    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(pod, "PORT", server.getsockname()[1])
    refusals, others, send = [], [], rendezvous.Peer.send
    monkeypatch.setattr(rendezvous.Peer, "send", send_slowly)
    _, environment = pod_of(Plan("image", ("train",)), 0, "127.0.0.1")
    before, other = signal.getsignal(signal.SIGTERM), threading.Thread(target=call)
    other.start()
    with (
        mock.patch.dict(os.environ, environment),
        pytest.raises(ConfigError, match=r"pod: expected mpich .* on there, as here, got none"),
    ):
        pod.main([])
    signal.signal(signal.SIGTERM, before)
    other.join()
    with contextlib.closing(others[0]) as peer:
        assert peer.has_ended() and "expected mpich" in peer.receive()["refused"]


def test_what_a_pod_refuses_is_one_line():
    (_, *line), environment = pod_of(Plan("image", ("train",)), 1, "127.0.0.1")
    del environment["JOB_COMPLETION_INDEX"]
    done = subprocess.run([sys.executable, *line], env=environment, capture_output=True, text=True)
    words = "pod.py: pod: expected JOB_COMPLETION_INDEX in the environment, as `python -m"
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and words in done.stderr, done.stderr
