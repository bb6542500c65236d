"""MPICH's process manager: what is said where it is missing, or does not do what it should."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import ranks

from scratchnet.errors import ConfigError
from scratchnet.parallel.clusters import hydra


def test_without_mpich_there_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "prefix", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(
        ConfigError, match=r"^clusters: expected MPICH's hydra_pmi_proxy \(pip install mpich\), found none$"
    ):
        hydra.program(hydra.PROXY)


@ranks.needs_hydra
def test_there_is_a_command_for_each_machine(monkeypatch):
    monkeypatch.setattr(hydra, "GRACE", 0.1)  # mpiexec waits for its proxies, which nobody started
    job = hydra.Job("127.0.0.1", [2, 1], ["nothing"], print)
    try:
        assert [command[-2:] for command in job.commands] == [["--proxy-id", "0"], ["--proxy-id", "1"]]
    finally:
        assert job.close() != 0
    with pytest.raises(ConfigError, match=r"expected 1 commands of mpiexec.hydra -launcher manual, got: "):
        hydra.Job("127.0.0.1", [0], ["nothing"], print)


def test_a_program_ends_with_the_process_that_started_it():
    code = "import sys; from scratchnet.parallel.clusters import hydra; p = hydra.start_mortal(['/bin/sleep', '60']);"
    code += "print(p.pid, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        while b"sleep" not in Path(f"/proc/{pid}/cmdline").read_bytes():  # until it has become that program
            time.sleep(0.01)
        parent.kill()
    assert ranks.gone([pid])
