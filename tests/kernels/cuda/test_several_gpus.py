"""Workers on several GPUs under the stub driver: gradients and parameters stay on the GPUs, whoever is killed.

The parent holds the memory, and computes nothing; the trace of the driver says who copied what, and the stub sees
memory that is gone. Values are the matter of test_workers.py, in the simulator.
"""

import importlib.util
import json
import subprocess
import sys
from collections import Counter

import pytest
import stub_driver
from servants import NO_MPI, mpirun
from sizes import SIMULATED, THOROUGH

pytestmark = [
    pytest.mark.skipif(SIMULATED, reason="the simulator has no driver"),
    pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="needs numba-cuda"),
    pytest.mark.skipif(stub_driver.why_none() is not None, reason=str(stub_driver.why_none())),
]

STEPS, SHARDS = 4, 4  # of `several_gpus.trained`
SLOT = 4 * 40_000 * (7 + 1 + 2) + 64  # bytes of a gradient of MLP(7, 40_000, 2)
TO_HOST, TO_GPU, ON_GPU = "cuMemcpyDtoHAsync", "cuMemcpyHtoDAsync", "cuMemcpyDtoDAsync"


def run(scene, folder, **settings):
    """What the scene saw; and what its worker processes did: {(function, first argument): count}, and all lines."""
    trace = folder / "trace"
    found = stub_driver.facts_of("several_gpus.py", scene, devices=2, trace=trace, **settings)[scene]
    assert isinstance(found, dict), found
    lines = [line.split() for line in trace.read_text().splitlines()]
    workers = [line for line in lines if int(line[0]) != found["parent"]]
    return found, Counter((name, *rest[:1]) for _, name, *rest in workers), lines


def large(calls, name):
    """How many copies of at least a gradient there were."""
    return sum(n for call, n in calls.items() if call[0] == name and int(call[1]) >= SLOT)


# --- handles ----------------------------------------------------------------------------------------------------------


def test_memory_that_one_process_holds_is_used_by_another_on_another_gpu_until_it_is_gone():
    found = stub_driver.facts_of("several_gpus.py", "handles", devices=2)["handles"]
    assert found["zero"] == [0, 0, 0, 0] and found["opened"] is None and found["there"] == [0, 1, 2, 3]
    assert found["here"] == [7, 7, 7, 7] and found["of the other"] == [5, 5]
    assert found["no room"].startswith("DeviceError: cuda:1: expected 1,099,511,627,776 bytes of free device memory")
    assert found["contexts"] == [1, 0] and found["used"] == 0  # what was refused let go of its GPU
    for gone in ("own", "freed", "its holder is dead"):
        assert found[gone].startswith("DeviceError: cuda: expected cu"), gone


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, None),
        ({"no_peers": 1}, "'cuda:0' has no access to the memory of 'cuda:1'"),
        ({"no_ipc": 1}, "'cuda:0' shares no memory between processes"),
        ({"exclusive": 1}, "'cuda:0' is kept to one process"),
    ],
)
def test_gpus_that_share_no_memory_are_named(settings, words):
    assert stub_driver.facts_of("several_gpus.py", "why", devices=2, **settings)["why"] == words


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scene", "workers"), [("two", 2), ("three", 3)] if THOROUGH else [("two", 2)])
def test_neither_gradients_nor_parameters_go_through_the_host(scene, workers, tmp_path):
    found, calls, lines = run(scene, tmp_path)
    assert sum(found["shards"]) == STEPS * SHARDS and found["starts"] == [1] * workers and not found["log"]
    assert large(calls, TO_GPU) == 0
    if scene == "two":  # the norm of a gradient, for clip_norm, is computed on the host
        assert large(calls, TO_HOST) == 0
    copied = large(calls, ON_GPU)  # each gradient once, and to each worker each version that it computes at
    assert STEPS * SHARDS < copied <= STEPS * (SHARDS + workers)
    opened = Counter((pid, rest[1]) for pid, name, *rest in lines if name == "cuIpcOpenMemHandle")
    assert len(opened) == 2 * workers and set(opened.values()) == {1}  # each worker the memory of both GPUs
    assert found["left"] == [0, 0, 0] and found["contexts"] == [0, 0]
    parents = {name for pid, name, *_ in lines if int(pid) == found["parent"]}
    assert "cuLaunchKernel" not in parents


def test_where_gpus_share_nothing_gradients_go_through_the_host_and_a_line_says_so(tmp_path):
    found, calls, _ = run("two", tmp_path, no_peers=1)
    assert found["log"] == [
        "gradients go through the memory of the host: 'cuda:0' has no access to the memory of 'cuda:1'"
    ]
    assert large(calls, TO_HOST) == STEPS * SHARDS and large(calls, TO_GPU) > 0 and found["contexts"] == [0, 0]


def test_where_there_is_no_room_an_error_says_what_needs_less():
    found = stub_driver.facts_of("several_gpus.py", "two", devices=2, memory=4 << 20)["two"]
    assert found.startswith("DeviceError") and "cuda:0: expected 1" in found
    assert "bytes of free device memory, got 4,194,304; SCRATCHNET_GRADIENTS=host keeps pages and slots in" in found


def test_the_way_through_the_host_can_be_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCHNET_GRADIENTS", "host")
    found, calls, _ = run("two", tmp_path)
    assert found["log"] == ["gradients go through the memory of the host: SCRATCHNET_GRADIENTS=host"]
    assert large(calls, TO_HOST) == STEPS * SHARDS


def test_auto_runs_plans_on_one_gpu_and_on_both_and_leaves_nothing(tmp_path):
    found, _, lines = run("auto", tmp_path)
    opened = Counter(pid for pid, name, *_ in lines if name == "cuIpcOpenMemHandle")
    assert len(opened) >= 2 and set(opened.values()) == {2}  # the workers of a trial, each the memory of both GPUs
    assert found["workers"] in (1, 2) and found["left"][1] == 0 and found["contexts"] == [1, 0]


def test_one_process_that_does_a_step_piece_by_piece_keeps_its_gradients_on_the_gpu(tmp_path):
    trace = tmp_path / "trace"
    stub_driver.facts_of("several_gpus.py", "alone", trace=trace)
    calls = Counter((name, *rest[:1]) for _, name, *rest in map(str.split, trace.read_text().splitlines()))
    assert large(calls, ON_GPU) == STEPS * SHARDS + STEPS and large(calls, TO_HOST) <= STEPS


def test_a_piece_is_sealed_when_the_gpu_has_done_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SEALS", str(tmp_path / "seals"))
    run("watched", tmp_path)
    seals = (tmp_path / "seals").read_text().split()
    assert len(seals) == STEPS * (SHARDS + 2) and set(seals) == {"0"}


@pytest.mark.parametrize("point", ["shard.written", "slice.written", "idle"])
def test_a_worker_that_is_killed_takes_no_memory_along(point, tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCHNET_FAIL", f"{point}:1:*:SIGKILL")
    monkeypatch.setenv("SCRATCHNET_FIRED", str(tmp_path / "fired"))
    found, calls, lines = run("two", tmp_path)
    fired = len((tmp_path / "fired").read_text().splitlines())
    assert fired and sum(found["starts"]) == 2 + fired
    assert not [line for line in lines if line[1].startswith("stub")]  # no call on memory that is gone
    assert large(calls, TO_HOST) == 0 and found["left"] == [0, 0, 0]


# --- MPI --------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(NO_MPI is not None, reason=str(NO_MPI))
def test_a_rank_has_the_gpu_of_its_place_on_its_machine(tmp_path):
    trace = tmp_path / "trace"
    line = mpirun(3, sys.executable, str(stub_driver.HERE.parent / "programs" / "mpi_gpus.py"))
    environment = stub_driver.environment(devices=2, trace=trace)
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line.split("RESULT ")[1])["gpu"] for line in done.stdout.splitlines() if "RESULT" in line]
    assert sorted(found) == [0, 0, 1]
    retained = [line.split() for line in trace.read_text().splitlines() if "cuDevicePrimaryCtxRetain" in line]
    assert sorted(number for _, _, number in retained) == ["0", "0", "1"]
