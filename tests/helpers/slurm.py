"""Slurm on this machine for the time of a test: a controller and one node, without a system service or cgroups.

It needs root and, on Debian, `apt-get install slurm-wlm`.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "srun", "sinfo", "sbatch", "scontrol")
START = 20.0  # seconds that Slurm has to start, and to end
LONG = 120.0  # and a job
CONFIGURATION = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}
SlurmdSpoolDir={folder}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
NodeName=here NodeHostname={host} NodeAddr=127.0.0.1 CPUs=8
PartitionName=all Nodes=here Default=YES
"""


def reason_against_slurm() -> str | None:
    """Why Slurm cannot be started here, or None."""
    for program in PROGRAMS:
        if not shutil.which(program):
            return f"expected the program {program} of Slurm, found none"
    return "expected root, which may start Slurm, found another user" if os.geteuid() else None


class Slurm:
    """A context, in which `srun(ranks, *command)` starts ranks, and `sbatch` runs a batch file."""

    def __enter__(self) -> "Slurm":
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-"))
            sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
            ports = [server.getsockname()[1] for server in sockets]
            for server in sockets:
                server.close()
            self._configuration = Path(folder, "slurm.conf")
            host = socket.gethostname().split(".")[0]
            self._configuration.write_text(CONFIGURATION.format(host=host, ports=ports, folder=folder))
            for daemon in (["slurmctld", "-D", "-i"], ["slurmd", "-D", "-N", "here"]):
                log = stack.enter_context(Path(folder, daemon[0] + ".log").open("w"))
                stack.callback(_end, subprocess.Popen(self._configured(*daemon), stdout=log, stderr=log))
            deadline = time.monotonic() + START
            while subprocess.run(self._configured("sinfo", "-h", "-o", "%T"), capture_output=True).stdout != b"idle\n":
                assert time.monotonic() < deadline, [path.read_text() for path in Path(folder).glob("*.log")]
                time.sleep(0.05)
            self._stack = stack.pop_all()
        return self

    def _configured(self, *command: str) -> list[str]:
        return ["env", f"SLURM_CONF={self._configuration}", *command]

    def knows_pmix(self) -> bool:
        said = subprocess.run(self._configured("srun", "--mpi=list"), capture_output=True, text=True)
        return "pmix" in said.stdout + said.stderr

    def srun(self, ranks: int, *command: str) -> list[str]:
        return self._configured("srun", "-n", str(ranks), "--mpi=pmix", *command)

    def sbatch(self, *words: str) -> str:
        """Runs a batch file to its end; returns the state in which that left the job."""
        number = subprocess.check_output(self._configured("sbatch", "--parsable", *words), text=True).strip()
        deadline = time.monotonic() + LONG
        while time.monotonic() < deadline:
            said = subprocess.check_output(self._configured("scontrol", "show", "job", number), text=True)
            state = said.split("JobState=")[1].split()[0]
            if state not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"):
                return state
            time.sleep(0.1)
        raise AssertionError(f"the job has not ended within {LONG} s")

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()


def _end(daemon: subprocess.Popen) -> None:
    daemon.terminate()
    try:
        daemon.wait(START)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
