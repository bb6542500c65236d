"""Manifests: they are what Kubernetes takes, by its own schemas, and say what the pods need to meet.

SCRATCHNET_TEST_CRDS names a folder with the definitions of Kubeflow's objects, which their repositories have:
kubeflow.org_mpijobs.yaml, trainer.kubeflow.org_trainjobs.yaml and trainer.kubeflow.org_trainingruntimes.yaml.
"""

import os
import re
import sys
from pathlib import Path
from unittest import mock

import pytest

from scratchnet.__main__ import main
from scratchnet.errors import ConfigError
from scratchnet.parallel.clusters import pod
from scratchnet.parallel.clusters.kubernetes import KINDS, Plan, text_of

PLANS = {
    "small": Plan("image", ("train",)),
    "large": Plan(
        "here/image:1", ("train", "--folder", 'a: "b" #\n'), 64, 16, "job-1", "500m", "1.5Gi", "claim", "/runs"
    ),
}


@pytest.fixture(params=PLANS)
def plan(request):
    return PLANS[request.param]


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_is_yaml_of_the_objects(plan, kind):
    yaml = pytest.importorskip("yaml")
    objects = KINDS[kind](plan)
    assert list(yaml.safe_load_all(text_of(objects))) == objects


def test_core_objects_are_valid_by_the_schemas_of_kubernetes(plan):
    validate = pytest.importorskip("kubernetes_validate")
    service, job = KINDS["job"](plan)
    for thing in (service, job):
        validate.validate(thing, "1.29", strict=True)
    job["spec"]["completion"] = 2
    with pytest.raises(validate.ValidationError):
        validate.validate(job, "1.29", strict=True)


@pytest.mark.parametrize(("kind", "number", "definition"), [
    ("mpijob", 0, "kubeflow.org_mpijobs"),
    ("trainjob", 0, "trainer.kubeflow.org_trainingruntimes"),
    ("trainjob", 1, "trainer.kubeflow.org_trainjobs"),
])  # fmt: skip
def test_objects_of_kubeflow_are_valid_by_their_own_definitions(plan, kind, number, definition):
    yaml, jsonschema = pytest.importorskip("yaml"), pytest.importorskip("jsonschema")
    if not (folder := os.environ.get("SCRATCHNET_TEST_CRDS")):
        pytest.skip("expected SCRATCHNET_TEST_CRDS, a folder with Kubeflow's definitions, found none")
    thing = KINDS[kind](plan)[number]
    spec = yaml.safe_load(Path(folder, f"{definition}.yaml").read_text())["spec"]
    assert thing["kind"] == spec["names"]["kind"]
    [schema] = [
        v["schema"]["openAPIV3Schema"] for v in spec["versions"] if thing["apiVersion"].endswith(f"/{v['name']}")
    ]
    check = jsonschema.Draft202012Validator(closed(schema))
    assert [error.message for error in check.iter_errors(thing)] == []
    assert list(check.iter_errors(thing | {"spec": thing["spec"] | {"wings": 2}}))


def closed(schema):
    """The schema, which refuses fields that it does not name: a server would drop them without a word."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(part) for key, part in schema.items() if key != "x-kubernetes-validations"}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and not is_open and schema.get("type") == "object":
        found["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        found = {}
    return found


def test_the_pods_of_a_job_are_told_what_they_read(plan):
    _, job = KINDS["job"](plan)
    spec = job["spec"]
    [container] = spec["template"]["spec"]["containers"]
    told = {entry["name"] for entry in container["env"]}
    assert told == {pod.MACHINES, pod.RANKS, pod.DRIVER, pod.TOKEN}
    assert container["command"] == ["python", "-m", pod.__name__, *plan.words]
    assert spec["completions"] == spec["parallelism"] == plan.machines


@pytest.mark.parametrize(("changes", "words"), [
    ({"name": "Big"}, "name: expected at most 40 small letters, .*, got 'Big'"),
    ({"name": "a" * 41}, "name: expected at most 40 small letters"),
    ({"name": "a-"}, "name: expected"),
    ({"cpus": "two"}, "cpus: expected an amount, such as 2 or 500m, got 'two'"),
    ({"memory": "1 GB"}, "memory: expected an amount, such as 2Gi, got '1 GB'"),
    ({"image": ""}, "expected --image with the name of an image, got none"),
    ({"words": ()}, "expected a command after --, such as"),
    ({"machines": 0}, "kubernetes: machines: expected"),
    ({"ranks": 1.5}, "kubernetes: ranks: expected"),
])  # fmt: skip
def test_what_kubernetes_would_refuse_is_refused_here(changes, words):
    with pytest.raises(ConfigError, match=words):
        Plan(**{"image": "image", "words": ("train",)} | changes)


def test_the_command_prints_them(capsys, monkeypatch):
    def say(*words):
        monkeypatch.setattr(sys, "argv", ["scratchnet", "kubernetes", *words])
        monkeypatch.setattr(sys, "path", sys.path.copy())
        with mock.patch.dict(sys.modules):
            main()
        return capsys.readouterr().out

    said = say("--image", "i", "--machines", "3", "--", "train", "--shards", "8")
    assert said == text_of(KINDS["job"](Plan("i", ("train", "--shards", "8"), 3)))
    assert say("--kind", "dockerfile").startswith("# An image for the ranks of a job")
    words = "scratchnet kubernetes: kubernetes: expected a command after --, such as `-- train --folder ...`, got none"
    with pytest.raises(SystemExit, match=f"^{re.escape(words)}$"):
        say("--image", "i")
