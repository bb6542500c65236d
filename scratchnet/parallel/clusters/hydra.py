"""MPICH's process manager, Hydra, without ssh: `mpiexec -launcher manual` prints one command for each machine.

    HYDRA_LAUNCH: .../hydra_pmi_proxy --control-port 10.0.0.1:42053 ... --proxy-id 0
    HYDRA_LAUNCH: .../hydra_pmi_proxy --control-port 10.0.0.1:42053 ... --proxy-id 1
    HYDRA_LAUNCH_END

Whoever can start programs on the machines runs these commands there. Each becomes a proxy, which connects to mpiexec,
starts the ranks of its machine and passes on what they print. So any scheduler of tasks can carry an MPI job.
"""

import functools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ...errors import ConfigError

MPIEXEC, PROXY = "mpiexec.hydra", "hydra_pmi_proxy"
PYTHON = "SCRATCHNET_PYTHON"  # the Python of a task, which its ranks run
LIBRARY = "MPI4PY_LIBMPI"  # mpi4py loads this file, however many MPIs there are
KIND = "MPI4PY_MPIABI"  # or the MPI of this name
# Python that becomes another program, which the kernel kills when the process that started it ends.
MORTAL = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.getppid() == int(sys.argv[1]) and os.execv(sys.argv[2], sys.argv[2:])"  # noqa: E501
GRACE = 1.0  # seconds from SIGTERM to SIGKILL


def program(name: str) -> str:
    """The path of one of MPICH's programs: that of the wheel `mpich`, or the system's. Raises ConfigError."""
    found = shutil.which(name, path=os.path.join(sys.prefix, "bin")) or shutil.which(name)
    if found is None:
        raise ConfigError(f"clusters: expected MPICH's {name} (pip install mpich), found none")
    return found


@functools.cache
def version() -> str:
    """MPICH's, such as "5.0.2"; "" without MPICH."""
    try:
        said = subprocess.run([program(MPIEXEC), "--version"], capture_output=True, text=True).stdout
    except ConfigError:
        return ""
    return next((line.split()[-1] for line in said.splitlines() if "Version:" in line), "unknown")


def variables() -> dict[str, str]:
    """What ranks need in their environment to find this Python, and the MPI that `program` found."""
    library = Path(program(PROXY)).parents[1] / "lib" / "libmpi.so.12"
    chosen = library.exists() and LIBRARY not in os.environ and KIND not in os.environ
    return {PYTHON: sys.executable, **({LIBRARY: str(library)} if chosen else {})}


def start_mortal(command: list[str], **options: Any) -> subprocess.Popen:
    """A program that is killed when the thread that started it ends, whatever the reason."""
    line = [sys.executable, "-I", "-S", "-c", MORTAL, str(os.getpid()), *command]
    return subprocess.Popen(line, start_new_session=True, stdin=subprocess.DEVNULL, **options)


def end(process: subprocess.Popen) -> None:
    """Ends a program, mpiexec or a proxy, which then ends its ranks; those of a killed proxy die with it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Job:
    """mpiexec for ranks on machines: `commands[i]` is the command line of the i-th machine's proxy.

    address: of this machine, as the others reach it. ranks: how many each machine has. words: the module that each rank
    runs, and its arguments. hear: called with "stdout" or
    "stderr" and each line that ranks print there. Ranks get the environment of the process that runs their proxy, and
    nothing of this one's.
    """

    def __init__(self, address: str, ranks: list[int], words: list[str], hear: Callable[[str, str], Any]):
        hosts = ",".join(f"machine{i}:{count}" for i, count in enumerate(ranks))
        line = [program(MPIEXEC), "-launcher", "manual", "-genvnone", "-localhost", address, "-hosts", hosts]
        line += ["-n", str(sum(ranks)), "/bin/sh", "-c", f'exec "${PYTHON}" -m {shlex.join(words)}']
        pipe = subprocess.PIPE
        self.process = start_mortal(line, stdout=pipe, stderr=pipe, text=True, errors="replace", cwd="/")
        self.commands: list[list[str]] = []
        for text in self.process.stdout:  # type: ignore[union-attr]
            word, _, command = text.partition(": ")
            if word == "HYDRA_LAUNCH":
                self.commands.append(shlex.split(command))
            if text.strip() == "HYDRA_LAUNCH_END":
                break
        said: list[str] = []
        if len(self.commands) != len(ranks):
            hear = lambda stream, line: said.append(line.strip())  # noqa: E731
        self._readers = [
            threading.Thread(
                target=_read, args=(getattr(self.process, name), functools.partial(hear, name)), daemon=True
            )
            for name in ("stdout", "stderr")
        ]
        for reader in self._readers:
            reader.start()
        if len(self.commands) != len(ranks):
            self.close()
            got = next(filter(None, said), "nothing")
            raise ConfigError(f"clusters: expected {len(ranks)} commands of {MPIEXEC} -launcher manual, got: {got}")

    def close(self) -> int:
        """Ends mpiexec, and so all ranks; returns its exit status."""
        end(self.process)
        for reader in self._readers:
            reader.join(GRACE)  # not for ever: a process that a rank has started may still hold the pipe
        return self.process.returncode


def ranks_of(proxy: int) -> list[int]:
    """The processes that a proxy has started."""
    found = Path(f"/proc/{proxy}/task/{proxy}/children")
    return [int(child) for child in found.read_text().split()] if found.exists() else []


def _read(stream: IO[str], hear: Callable[[str], Any]) -> None:
    with stream:
        for line in stream:
            hear(line)
