"""Several hosts, in network namespaces of this machine."""

import functools
import json
import math
import threading
import time

import pytest
from jobs import HUNG, PATIENCE, WRAPPER, program, train, undisturbed
from sizes import THOROUGH

from scratchnet.testing.hosts import Hosts, reason_against_hosts


@functools.cache
def no_hosts():
    return reason_against_hosts()


@pytest.fixture
def hosts(request):
    if no_hosts():
        pytest.skip(no_hosts())
    with Hosts(request.param) as hosts:
        yield hosts


def across(hosts):
    """mpirun on these hosts."""

    def command(ranks, *line):
        return [*hosts.mpirun(ranks), "-x", "RESULTS", "-x", "PYTHONPATH", *line]

    return command


@pytest.mark.parametrize(("hosts", "ranks"), [(2, 2), (3, 4)] if THOROUGH else [(3, 4)], indirect=["hosts"])
def test_training_on_several_hosts_has_the_bits_of_one_process(hosts, ranks):
    hosts.limit(50e6)
    status, results, said = train(ranks, "--jobs", "momentum", command=across(hosts))
    assert status == 0, said
    assert {result["host"] for result in results} == {f"host{i + 1}" for i in range(hosts.count)}
    assert [result["digest"] for result in results] == [undisturbed()["momentum"]["digest"]] * ranks
    assert all(hosts.sent(host) > 20_000 for host in range(hosts.count))


@pytest.mark.parametrize("hosts", [2], indirect=True)
def test_what_is_compressed_travels_compressed(hosts):
    """Bytes that the second host sends in 10 steps, with one shard a host: what its shard sends, or the whole sum."""
    status, text = program(2, "mpi_compressed", command=across(hosts), RESULTS="")
    assert status == 0, text
    counted, shapes = json.loads(text[text.index("{") : text.index("}") + 1]), [(256, 512), (512,), (512, 10), (10,)]
    low_rank = sum(map(math.prod, shapes[1::2])) + 2 * (256 + 512 + 512 + 10)
    expected = {  # bytes a step, by the arithmetic of each
        "none": 4 * sum(map(math.prod, shapes)),
        **dict.fromkeys(("float16", "bfloat16"), 2 * sum(map(math.prod, shapes))),
        "top_k": 8 * sum(math.ceil(0.05 * math.prod(shape)) for shape in shapes),
        "power_sgd": 4 * low_rank,
    }
    assert counted.keys() == expected.keys()
    for name, least in expected.items():  # frames and handshakes come on top
        assert 10 * least < counted[name] < 10 * (1.08 * least + 3000), (name, counted, expected)


@pytest.mark.parametrize("hosts", [4], indirect=True)
def test_a_host_that_vanishes_ends_the_job_with_one_line_and_a_restart_ends_in_the_same_bytes(hosts, tmp_path):
    folder = tmp_path / "run"

    def cut_at_the_first_checkpoint():
        deadline = time.monotonic() + HUNG
        while not list(folder.glob("*.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.02)
        hosts.cut(2)

    cutter = threading.Thread(target=cut_at_the_first_checkpoint)
    cutter.start()
    slow = "shard.claimed:5+:0:sleep=0.3"  # so that the run is not over before the host is cut off
    command = across(hosts)  # what is not seen by mpirun, the wrapper sees

    def wrapped(ranks, *line):
        return [*WRAPPER, "--restarts", "0", "--grace", "2", "--", *command(ranks, *line)]

    status, results, said = train(4, "--folder", folder, command=wrapped, fail=slow)
    cutter.join()
    lines = [line for line in said.splitlines() if line.startswith("scratchnet:")]
    assert status != 0 and not results
    line = f": no sign of life from rank 2, in {PATIENCE} s, while rank 0 waited in"
    assert any(line in found for found in lines), said
    status, results, said = train(2, "--folder", folder, "--resume", "auto")
    assert {result["digest"] for result in results} == {undisturbed()["momentum"]["digest"]}, said
