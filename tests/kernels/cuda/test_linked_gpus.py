"""GPUs of several ranks under a stub driver and a stub NCCL: gradients and parameters go from GPU to GPU, whoever dies.

The traces of both say who moved what; the stubs refuse what their originals refuse. Kernels compute nothing here:
values are the matter of test_workers.py, in the simulator.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections import Counter, defaultdict

import pytest
import stub_driver
from servants import NO_MPI, is_open_mpi, mpirun
from sizes import SIMULATED, THOROUGH

pytestmark = [
    pytest.mark.skipif(SIMULATED, reason="the simulator has no driver"),
    pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="needs numba-cuda"),
    pytest.mark.skipif(stub_driver.why_none() is not None, reason=str(stub_driver.why_none())),
    pytest.mark.skipif(NO_MPI is not None, reason=str(NO_MPI)),
]

STEPS, SHARDS = 3, 4  # of the job "wide", in mpi_gpus.py
PARAMETERS = 4 * 40_000 * (5 + 2 + 3)  # bytes, and a little more
PATIENCE, LIMIT = 3.0, 120  # seconds; after the second a job counts as hung
HOST = "gradients go through the memory of the host: "


def run(ranks, *arguments, name="mpi_gpus", devices=4, with_nccl=True, variables=None, **settings):
    """Its exit status, what ranks found, and all that was written."""
    line = mpirun(ranks, sys.executable, str(stub_driver.HERE.parent / "programs" / f"{name}.py"), *arguments)
    environment = stub_driver.environment(with_nccl, devices=devices, **settings)
    environment |= {"SCRATCHNET_MPI_PATIENCE": str(PATIENCE)} | (variables or {})
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=LIMIT)
    found = [json.loads(text.split("RESULT ")[1]) for text in done.stdout.splitlines() if "RESULT" in text]
    return done.returncode, found, done.stdout + done.stderr


@pytest.fixture
def traces(tmp_path):
    """Settings of both traces, and a function that gives their lines, split."""

    def lines(name):
        return [line.split() for line in (tmp_path / name).read_text().splitlines()]

    return {"trace": tmp_path / "driver", "nccl_trace": tmp_path / "nccl"}, lines


# --- a link -----------------------------------------------------------------------------------------------------------


def scenes(*names):
    """What both ranks found, by scene."""
    status, found, said = run(2, *names, name="linked_gpus", devices=2)
    assert status == 0 and len(found) == 2, said
    found = [row["found"] for row in sorted(found, key=lambda row: row["rank"])]
    return {name: [row[name] for row in found] for name in names}


REFUSED = "NCCL: expected {} to work, got {}; SCRATCHNET_GRADIENTS=host does without NCCL".format
ARGUMENT, USAGE = "invalid argument", "invalid usage"
GONE = "remote process exited or there was a network error"


def test_bytes_go_both_ways_in_order_when_the_gpu_comes_to_them_and_what_nccl_refuses_is_said():
    ended = REFUSED("ncclRecv", ARGUMENT)
    assert scenes("moves", "size", "gone", "early", "places") == {
        "moves": [{"done at once": False, "arrived": [True, True]}] * 2,
        "size": [[None, ended], [REFUSED("an exchange", USAGE), ended]],
        "gone": [REFUSED("an exchange", GONE), None],
        "early": [REFUSED("ncclCommDestroy", USAGE), None],
        "places": [[REFUSED("ncclSend", ARGUMENT)] * 3] * 2,
    }
    assert scenes("device") == {"device": [REFUSED("ncclCommInitRank", USAGE)] * 2}


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 4] if THOROUGH else [2])
def test_neither_gradients_nor_parameters_go_through_the_host(ranks, traces):
    settings, lines = traces
    status, found, said = run(ranks, "--jobs", "wide", **settings)
    assert status == 0 and sorted(row["gpu"] for row in found) == [*range(ranks)], said
    assert not any(row["log"] for row in found)
    driver, nccl = lines("driver"), lines("nccl")
    assert not [line for line in driver + nccl if "stub:" in line]  # nobody waits in the driver, nothing is refused
    large = Counter(
        (pid, name) for pid, name, *rest in driver if name.startswith("cuMemcpy") and int(rest[0]) >= PARAMETERS
    )
    kinds = defaultdict(list)
    for (_, name), n in large.items():
        kinds[name].append(n)
    shards = [STEPS * (len(range(SHARDS)) // ranks)] * ranks
    assert kinds == {
        "cuMemcpyHtoDAsync": [1] * ranks,  # the page of the start
        "cuMemcpyDtoHAsync": [2] * ranks,  # that of the end of the epoch, and of the run
        "cuMemcpyDtoDAsync": [n + STEPS for n in shards],  # gradients to their slots, and a page to read from
    }
    calls = Counter((rank, name) for _, rank, name, *_ in nccl)
    for rank in map(str, range(ranks)):
        groups = 2 * STEPS + 1  # and the states of the end
        assert [calls[rank, f"nccl{name}"] for name in ("GroupStart", "GroupEnd")] == [groups, groups]
        assert [calls[rank, f"nccl{name}"] for name in ("CommInitRank", "CommDestroy", "CommAbort")] == [1, 1, 0]
    sent = sum(int(rest[0]) for _, _, name, *rest in nccl if name == "ncclSend")
    whole = PARAMETERS + 64  # with the gap after the last bias
    assert sent == (2 * STEPS + 1) * (ranks - 1) * whole  # all but a rank's own part, of gradients, parameters, states


ENDS = {  # what happens to rank 1: the settings of the stub, the point of failure, what rank 0 waits in
    "before there is a link": ({"nccl_kill": "1:ncclCommInitRank:1"}, "", "the link of GPUs"),
    "in the middle of a group": ({"nccl_kill": "1:ncclSend:3"}, "", "the exchange of parameters"),
    "as an exchange begins": ({"nccl_kill": "1:ncclGroupEnd:3"}, "", "the exchange of losses"),
    "while gradients travel": ({}, "gradients.sent:1:1:SIGKILL", "the exchange of losses"),
    "while parameters travel": ({}, "parameters.sent:1:1:SIGKILL", "the exchange of parameters"),
    "with a half of a slice": ({}, "slice.half_written:1:1:SIGKILL", "the exchange of parameters"),
}


@pytest.mark.parametrize("end", ENDS if THOROUGH else [*ENDS][::2])
def test_a_rank_that_dies_ends_the_job_with_one_line(end, traces):
    settings, point, waits = ENDS[end]
    both, lines = traces
    status, found, said = run(2, variables={"SCRATCHNET_FAIL": point}, **both, **settings)
    told = [line for line in said.splitlines() if line.startswith("scratchnet:")]
    assert status != 0 and not found
    if not is_open_mpi():
        assert status == signal.SIGKILL and not told
        pytest.skip("MPICH's mpirun kills the other ranks before they can say who died (watch.py)")
    assert len(told) == 1 and "no sign of life from rank 1, seen as the job was ended" in told[0], said
    assert told[0].endswith(f"while rank 0 waited in {waits}")
    assert not [line for line in lines("driver") if "stub:" in line]


def test_a_rank_that_is_stopped_ends_the_job_though_nccl_says_nothing():
    status, found, said = run(2, variables={"SCRATCHNET_FAIL": "parameters.sent:1:1:SIGSTOP"})
    told = [line for line in said.splitlines() if line.startswith("scratchnet:")]
    where = f"no sign of life from rank 1, in {PATIENCE} s, while rank 0 waited in the exchange of parameters"
    assert status != 0 and not found and told == [f"scratchnet: step 1: {where}"], said


def test_an_error_of_nccl_where_all_ranks_live_is_told_after_a_while(traces):
    both, lines = traces
    status, found, said = run(2, nccl_error="1:4", **both)
    told = sorted(line for line in said.splitlines() if line.startswith("scratchnet:"))
    assert status != 0 and not found
    errors = [REFUSED("an exchange", words) for words in (GONE, "unhandled system error")]
    assert told == [f"scratchnet: rank {i}, step 1: DeviceError: {errors[i]}" for i in range(2)], said
    calls = Counter((rank, name) for _, rank, name, *_ in lines("nccl"))
    assert calls["0", "ncclCommAbort"] == calls["1", "ncclCommAbort"] == 1


def test_an_exception_of_one_rank_ends_what_its_gpu_waits_for_and_the_job(traces):
    both, lines = traces
    status, found, said = run(2, variables={"SCRATCHNET_FAIL": "gradients.sent:1:0:raise"}, **both)
    told = [line for line in said.splitlines() if line.startswith("scratchnet:")]
    assert status != 0 and not found and told[0] == "scratchnet: rank 0, step 1: RuntimeError: a fail point was armed"
    assert [line[2] for line in lines("nccl") if line[1] == "0"][-1] == "ncclCommAbort"
    assert not [line for line in lines("driver") if "stub:" in line]


# --- the way through the host -----------------------------------------------------------------------------------------

NONE = "expected NCCL (the package nvidia-nccl-cu13, or -cu12), got libnccl.so.2: cannot open shared object file"
WHYS = {
    "none": ((2, "buffers"), {"with_nccl": False}, {}, NONE),
    "old": ((2, "buffers"), {"nccl_version": 20600}, {}, "expected NCCL 20700 or newer, got 20600"),
    "shared": ((3, "buffers"), {"devices": 2}, {}, "ranks 0 and 2 share a GPU"),
    "asked": ((2, "buffers"), {}, {"SCRATCHNET_GRADIENTS": "host"}, "SCRATCHNET_GRADIENTS=host"),
    "fast": ((2, "fast"), {}, {}, "order='fast') leaves the order of additions to MPI"),
    "local": ((2, "local"), {}, {}, "takes local steps"),
}


@pytest.mark.parametrize("why", WHYS)
def test_one_line_says_why_gradients_go_through_the_host(why, tmp_path):
    (ranks, job), settings, variables, words = WHYS[why]
    if why == "none" and importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.nccl"):
        pytest.skip("NCCL is installed")
    trace = tmp_path / "nccl"
    status, found, said = run(ranks, "--jobs", job, variables=variables, nccl_trace=trace, **settings)
    assert status == 0 and len(found) == ranks, said
    (line,) = [line for row in found for line in row["log"]]
    assert line.startswith(HOST) and words in line
    assert not trace.exists()
    assert os.environ.get("SCRATCHNET_GRADIENTS") is None


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (20600, "rank 1: expected NCCL 20700 or newer, got 20600"),
        (22703, "ranks have different versions of NCCL, 22703 and 22809"),
    ],
)
@pytest.mark.skipif(not NO_MPI and not is_open_mpi(), reason="ranks know their number by a variable of Open MPI")
def test_ranks_with_different_versions_agree(version, words):
    program = str(stub_driver.HERE.parent / "programs" / "mpi_gpus.py")
    changed = f'if [ "$OMPI_COMM_WORLD_RANK" = 1 ]; then export STUB_NCCL_VERSION={version}; fi; exec "$@"'
    line = mpirun(2, "sh", "-c", changed, "sh", sys.executable, program)
    environment = stub_driver.environment(True, devices=2)
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=LIMIT)
    found = [json.loads(text.split("RESULT ")[1]) for text in done.stdout.splitlines() if "RESULT" in text]
    assert done.returncode == 0 and len({row["digests"]["buffers"] for row in found}) == 1, done.stdout + done.stderr
    (line,) = [line for row in found for line in row["log"]]
    assert line == HOST + words
