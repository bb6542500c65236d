"""Pods, as processes in network namespaces with the environment and the command line of a Job's manifest."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import ranks
from sizes import THOROUGH

from scratchnet.errors import ConfigError
from scratchnet.parallel.clusters import pod
from scratchnet.parallel.clusters.kubernetes import Plan, job
from scratchnet.testing.hosts import Hosts, reason_against_hosts

FLAGS = ("--epochs", "3", "--batch-size", "256", "--hidden", "16", "--shards", "4", "--save-every", "5", "--folder")
WORDS = "train", *FLAGS
LONG = 120.0  # seconds in which a job has to end


def variables(index, plan, address):
    """The environment of a pod of the manifest, as Kubernetes makes it."""
    _, manifest = job(plan)
    [container] = manifest["spec"]["template"]["spec"]["containers"]
    told = {entry["name"]: entry.get("value", "the uid of this job") for entry in container["env"]}
    told |= {"JOB_COMPLETION_INDEX": str(index), pod.DRIVER: address, pod.WAIT: "60"}
    told |= {"UCX_TLS": "self,tcp"}  # else MPICH finds that all namespaces are one machine, and uses its memory
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "SCRATCHNET_QUIET": "1"}
    return container["command"], os.environ | told | path


class Pods:
    """The pods of a plan, on hosts; a pod that ends with another status than 0 starts again, as `OnFailure` says."""

    def __init__(self, hosts, plan, folder):
        self.hosts, self.plan, self.folder, self.statuses = hosts, plan, folder, []
        self.pods = [self._start(index) for index in range(plan.machines)]

    def _start(self, index):
        (python, *words), environment = variables(index, self.plan, self.hosts.addresses[0])
        assert python == "python"
        space = ["ip", "netns", "exec", f"{self.hosts.name}-{index + 1}"]
        with (self.folder / f"pod{index}.log").open("a") as log:
            return subprocess.Popen([*space, sys.executable, *words], env=environment, stdout=log, stderr=log)

    def run(self, disturb=lambda pods: None):
        """Until all have ended with status 0; returns the other statuses that there were."""
        deadline, begin = time.monotonic() + LONG, time.monotonic()
        done = set()
        while len(done) < len(self.pods):
            assert time.monotonic() < deadline, self.said()
            for index, process in enumerate(self.pods):
                if index not in done and process.poll() is not None:
                    if process.returncode == 0:
                        done.add(index)
                    else:
                        self.statuses.append(process.returncode)
                        self.pods[index] = self._start(index)
            if disturb is not None and disturb(self):
                disturb = None
            time.sleep(0.02)
        return self.statuses, time.monotonic() - begin

    def said(self):
        return {path.name: path.read_text() for path in self.folder.glob("*.log")}


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
        found, _ = pods.run(disturb)
        assert set(found) == statuses and (victim is None) == (not found), pods.said()
        assert digest(run) == undisturbed


@pytest.mark.parametrize(("changes", "words"), [
    ({"JOB_COMPLETION_INDEX": "2"}, "pod: expected JOB_COMPLETION_INDEX below SCRATCHNET_MACHINES=2, got 2"),
    ({"SCRATCHNET_RANKS": "-1"}, "pod: expected SCRATCHNET_RANKS to be an integer of at least 1, got '-1'"),
    ({"SCRATCHNET_WAIT": "0"}, "pod 1: expected pod 0 at 127.0.0.1:29410, got no order"),
])  # fmt: skip
def test_a_pod_that_cannot_meet_the_others_is_refused(changes, words):
    _, environment = variables(1, Plan("image", ("train",)), "127.0.0.1")
    before = signal.getsignal(signal.SIGTERM)
    with mock.patch.dict(os.environ, environment | changes), pytest.raises(ConfigError, match=re.escape(words)):
        pod.main([])
    signal.signal(signal.SIGTERM, before)


def test_what_a_pod_refuses_is_one_line():
    (_, *line), environment = variables(1, Plan("image", ("train",)), "127.0.0.1")
    del environment["JOB_COMPLETION_INDEX"]
    done = subprocess.run([sys.executable, *line], env=environment, capture_output=True, text=True)
    words = "pod.py: pod: expected JOB_COMPLETION_INDEX in the environment, as `python -m"
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and words in done.stderr, done.stderr
