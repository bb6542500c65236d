"""Manifests for Kubernetes, as text: an Indexed Job with its headless Service, two kinds of Kubeflow, a Dockerfile.

No cluster has run them. The objects are checked against their schemas, and the command lines of the pods are run in
network namespaces, with the environment of a Job (tests/parallel/clusters).
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ... import checks
from ...errors import ConfigError
from .pod import DRIVER, MACHINES, PORT, RANKS, TOKEN

GRACE = 120  # seconds from SIGTERM to SIGKILL: for the step in hand, and its checkpoint
NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
AMOUNT = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
SPARE = 1000  # failures of pods that a Job outlives: a job that goes on from its checkpoint may meet many


@dataclass(frozen=True)
class Plan:
    """What a job asks of Kubernetes.

    machines: pods. ranks: of each pod. words: of the command, such as ("train", "--shards", "8"). cpus, memory: of a
    pod, as Kubernetes writes them. claim: a PersistentVolumeClaim that is mounted at `folder`, for checkpoints.
    Raises ConfigError for a name or an amount that Kubernetes does not take.
    """

    image: str
    words: Sequence[str]
    machines: int = 2
    ranks: int = 1
    name: str = "scratchnet"
    cpus: str = "1"
    memory: str = "2Gi"
    claim: str = ""
    folder: str = "/run/scratchnet"

    def __post_init__(self):
        checks.integer("kubernetes: machines", self.machines, 1)
        checks.integer("kubernetes: ranks", self.ranks, 1)
        for what, pattern, expected in (
            ("name", NAME, "at most 40 small letters, digits and hyphens, from a letter to no hyphen"),
            ("cpus", AMOUNT, "an amount, such as 2 or 500m"),
            ("memory", AMOUNT, "an amount, such as 2Gi"),
        ):
            if not pattern.fullmatch(getattr(self, what)):
                raise ConfigError(f"kubernetes: {what}: expected {expected}, got {getattr(self, what)!r:.60}")
        if not self.image:
            raise ConfigError("kubernetes: expected --image with the name of an image, got none")
        if not self.words:
            raise ConfigError("kubernetes: expected a command after --, such as `-- train --folder ...`, got none")


def _environment(plan: Plan, driver: str, token_label: str) -> list[dict[str, Any]]:
    """What pod.py reads: the token is the identity that the cluster gives to this job alone."""
    return [
        {"name": MACHINES, "value": str(plan.machines)},
        {"name": RANKS, "value": str(plan.ranks)},
        {"name": DRIVER, "value": driver},
        {"name": TOKEN, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{token_label}']"}}},
    ]


def _container(plan: Plan, command: list[str], **more: Any) -> dict[str, Any]:
    amounts = {"cpu": plan.cpus, "memory": plan.memory}
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    mounts += [{"name": "run", "mountPath": plan.folder}] if plan.claim else []
    resources = {"requests": amounts, "limits": amounts}
    own = {"name": "ranks", "image": plan.image, "command": command, "resources": resources, "volumeMounts": mounts}
    return own | more


def _volumes(plan: Plan) -> list[dict[str, Any]]:
    """Ranks of a pod share their arena through /dev/shm, of which a container has 64 MB by default."""
    found: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    claim = {"name": "run", "persistentVolumeClaim": {"claimName": plan.claim}}
    return [*found, claim] if plan.claim else found


def _pod_command(plan: Plan) -> list[str]:
    return ["python", "-m", "scratchnet.parallel.clusters.pod", *plan.words]


def job(plan: Plan) -> list[dict[str, Any]]:
    """A Service without an address of its own, by which pods find the first one, and an Indexed Job."""
    label = "batch.kubernetes.io/job-name"
    environment = _environment(plan, f"{plan.name}-0.{plan.name}", "batch.kubernetes.io/controller-uid")
    service = {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": plan.name},
        "spec": {
            "clusterIP": "None", "publishNotReadyAddresses": True, "selector": {label: plan.name},
            "ports": [{"name": "meet", "port": PORT}],
        },
    }  # fmt: skip
    pod = {
        "subdomain": plan.name, "restartPolicy": "OnFailure", "terminationGracePeriodSeconds": GRACE,
        "containers": [_container(plan, _pod_command(plan), env=environment)], "volumes": _volumes(plan),
    }  # fmt: skip
    spec = {
        "completionMode": "Indexed", "completions": plan.machines, "parallelism": plan.machines,
        "backoffLimit": SPARE, "template": {"spec": pod},
    }  # fmt: skip
    return [service, {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": plan.name}, "spec": spec}]


def mpijob(plan: Plan) -> list[dict[str, Any]]:
    """Kubeflow's MPIJob: its operator starts mpirun in a launcher, which reaches the workers by ssh."""
    total = plan.machines * plan.ranks
    line = ["mpirun", "-n", str(total), "-ppn", str(plan.ranks), "python", "-m", "scratchnet", *plan.words]
    launcher = {"name": "launcher", "image": plan.image, "command": line}
    worker = _container(plan, ["/usr/sbin/sshd", "-De"])
    replicas = {
        "Launcher": {"replicas": 1, "restartPolicy": "OnFailure", "template": {"spec": {"containers": [launcher]}}},
        "Worker": {
            "replicas": plan.machines, "restartPolicy": "OnFailure",
            "template": {"spec": {"containers": [worker], "volumes": _volumes(plan)}},
        },
    }  # fmt: skip
    spec = {
        "slotsPerWorker": plan.ranks, "mpiImplementation": "MPICH", "runPolicy": {"backoffLimit": SPARE},
        "mpiReplicaSpecs": replicas,
    }  # fmt: skip
    return [{"apiVersion": "kubeflow.org/v2beta1", "kind": "MPIJob", "metadata": {"name": plan.name}, "spec": spec}]


def trainjob(plan: Plan) -> list[dict[str, Any]]:
    """Kubeflow's TrainJob, and the TrainingRuntime that it names: pods that meet as those of `job` do."""
    environment = _environment(plan, f"{plan.name}-node-0-0.{plan.name}", "jobset.sigs.k8s.io/jobset-uid")
    pod = {
        "restartPolicy": "OnFailure", "terminationGracePeriodSeconds": GRACE, "volumes": _volumes(plan),
        "containers": [_container(plan, _pod_command(plan), name="node", env=environment)],
    }  # fmt: skip
    nodes = {
        "name": "node",
        "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {"backoffLimit": SPARE, "template": {"spec": pod}},
        },
    }
    api = "trainer.kubeflow.org/v1alpha1"
    runtime = {
        "apiVersion": api, "kind": "TrainingRuntime", "metadata": {"name": plan.name},
        "spec": {"mlPolicy": {"numNodes": plan.machines}, "template": {"spec": {"replicatedJobs": [nodes]}}},
    }  # fmt: skip
    reference = {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": plan.name}
    spec = {"runtimeRef": reference, "trainer": {"numNodes": plan.machines}}
    return [runtime, {"apiVersion": api, "kind": "TrainJob", "metadata": {"name": plan.name}, "spec": spec}]


KINDS: dict[str, Callable[[Plan], list[dict[str, Any]]]] = {"job": job, "mpijob": mpijob, "trainjob": trainjob}

DOCKERFILE = """\
# An image for the ranks of a job: docker build -t IMAGE .
FROM python:3.12-slim
# sshd, for a MPIJob alone; the others need none of these three lines
RUN apt-get update && apt-get install -y --no-install-recommends openssh-server && rm -rf /var/lib/apt/lists/* \\
 && mkdir -p /run/sshd && sed -i "s/[ #].*StrictHostKeyChecking.*/    StrictHostKeyChecking no/" /etc/ssh/ssh_config \\
 && sed -i "s/#StrictModes.*/StrictModes no/" /etc/ssh/sshd_config
COPY . /source
RUN pip install --no-cache-dir "/source[clusters,train]" && rm -rf /source
ENV PYTHONUNBUFFERED=1 SCRATCHNET_CACHE_DIR=/tmp/scratchnet
"""


def text_of(objects: Sequence[dict[str, Any]]) -> str:
    """YAML documents, which kubectl takes."""
    return "---\n".join("\n".join(_lines(thing)) + "\n" for thing in objects)


def _lines(value: Any, indent: str = "") -> list[str]:
    """A dict or a list as lines of YAML; strings as JSON writes them, which YAML reads alike."""
    lines: list[str] = []
    for key, part in value.items() if isinstance(value, dict) else (("-", part) for part in value):
        head = f"{indent}- " if isinstance(value, list) else f"{indent}{key}: "
        if isinstance(part, dict | list) and part:
            inner = _lines(part, indent + "  ")
            if isinstance(value, list):
                lines += [head + inner[0].removeprefix(indent + "  "), *inner[1:]]
            else:
                lines += [head.rstrip(), *inner]
        else:
            lines.append(head + json.dumps(part))
    return lines
