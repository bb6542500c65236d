"""Cores and memory as control groups allow them. Truth: the files of version 1 and 2, as the kernel writes them."""

import os

import pytest

from scratchnet.native import limits

MACHINE = limits.cores()


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    """Makes control groups: the lines of /proc/self/cgroup, and {file below /sys/fs/cgroup: text}."""

    def make(own, files):
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "fs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(limits, "OWN", tmp_path / "own")
        monkeypatch.setattr(limits, "CGROUPS", tmp_path / "fs")
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64), raising=False)

    return make


V1 = "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n"
V2 = "0::/user.slice/job\n"
V1_CPU, V1_MEMORY = "cpu,cpuacct/docker/abc/cpu.cfs", "memory/docker/abc/memory"


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        (V2, {"user.slice/job/cpu.max": "300000 100000\n"}, 3),
        (V2, {"user.slice/job/cpu.max": "150000 100000\n"}, 1),
        (V2, {"user.slice/job/cpu.max": "20000 100000\n"}, 1),
        (V2, {"user.slice/job/cpu.max": "max 100000\n", "user.slice/cpu.max": "400000 100000\n"}, 4),
        (V2, {"user.slice/job/cpu.max": "max 100000\n"}, 64),
        (V2, {"user.slice/job/cpu.max": "9900000 100000\n"}, 64),
        ("0::/../../elsewhere\n", {"cpu.max": "200000 100000\n"}, 2),
        (V1, {f"{V1_CPU}_quota_us": "200000\n", f"{V1_CPU}_period_us": "100000\n"}, 2),
        (V1, {f"{V1_CPU}_quota_us": "-1\n", f"{V1_CPU}_period_us": "100000\n"}, 64),
        (V1, {"cpu/cpu.cfs_quota_us": "500000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 5),
        ("nonsense", {}, 64),
        ("", {}, 64),
    ],
)
def test_a_quota_of_cores_counts(cgroups, own, files, cores):
    cgroups(own, files)
    assert limits.cores() == cores


MIB = 1 << 20


@pytest.mark.parametrize(
    ("own", "files", "room"),
    [
        (V2, {"user.slice/job/memory.max": f"{50 * MIB}", "user.slice/job/memory.current": f"{20 * MIB}"}, 30),
        (V2, {"user.slice/memory.max": f"{9 * MIB}", "user.slice/memory.current": f"{8 * MIB}"}, 1),
        (V2, {"user.slice/memory.max": f"{9 * MIB}", "user.slice/memory.current": f"{10 * MIB}"}, 0),
        (
            V1,
            {
                f"{V1_MEMORY}.limit_in_bytes": f"{50 * MIB}",
                f"{V1_MEMORY}.usage_in_bytes": f"{49 * MIB}",
                f"{V1_MEMORY}.stat": f"cache 1\ntotal_inactive_file {10 * MIB}\n",
            },
            11,
        ),
    ],
)
def test_a_limit_of_memory_counts(cgroups, own, files, room):
    cgroups(own, files)
    assert limits.available_bytes() == room * MIB


def test_no_limit_is_none(cgroups):
    unlimited = {f"{V1_MEMORY}.limit_in_bytes": "9223372036854771712", f"{V1_MEMORY}.usage_in_bytes": "1"}
    cgroups(V1 + V2, {**unlimited, "unified/user.slice/job/memory.max": "max", "user.slice/job/memory.max": "max"})
    assert limits.available_bytes() > 100 * MIB, "what the machine has"


def test_this_machine_has_cores_and_memory():
    assert 1 <= MACHINE <= os.cpu_count() and limits.available_bytes() > 0
