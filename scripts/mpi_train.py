"""Starts an MPI job, and restarts it when it fails: python scripts/mpi_train.py --restarts 3 -- mpirun -n 4 ...

The command after `--` must resume from its newest checkpoint, as `scripts/train.py --folder RUN --resume auto` does.
When a rank dies, a machine vanishes or a link stalls, the other ranks end the job and name the step; this script then
starts the next job. Open MPI's mpirun may wait for a vanished machine long after that, so this script kills it.
MPICH's may end with status 0 after a rank died, so a job counts as done only if rank 0 also writes that all ranks have
come to their end; every program does that trains or calls `sn.parallel.run`. Ctrl-C and SIGTERM are passed on to the
job, and end both.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from subprocess import PIPE
from typing import IO

from scratchnet.flags import flag, parse_flags
from scratchnet.parallel.comm.job import ENDED, RESTARTS
from scratchnet.parallel.mpi.watch import SILENT

UNCONFIRMED = 1  # our status if the job ended with 0, but rank 0 did not write that all ranks had come to their end
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # statuses of a run that a signal stopped


@dataclass
class Config:
    """Run the MPI job that follows after --, and restart it when it fails."""

    restarts: int = flag(3, "most restarts")
    pause: float = flag(1.0, "seconds before a restart")
    grace: float = flag(10.0, "seconds that mpirun has to end once a rank showed no sign of life")


def main(config: Config, command: list[str]) -> int:
    signals: list[int] = []
    for attempt in range(config.restarts + 1):
        environment = {**os.environ, RESTARTS: str(attempt)}
        job = subprocess.Popen(command, env=environment, stdout=PIPE, stderr=PIPE, start_new_session=True)

        def stop(number: int, frame: object, job: subprocess.Popen = job) -> None:
            signals.append(number)
            job.send_signal(number)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        ended = threading.Event()
        readers = [
            threading.Thread(target=_pass_on, args=(job, *streams, config.grace, ended), daemon=True)
            for streams in ((job.stdout, sys.stdout.buffer), (job.stderr, sys.stderr.buffer))
        ]
        for reader in readers:
            reader.start()
        status = job.wait()
        for reader in readers:
            # Not for ever: a daemon that started ranks of a vanished machine may still hold the pipe.
            reader.join(1.0 if status else config.grace)
        status = 128 - status if status < 0 else status
        if status == 0 and not ended.is_set():
            why = "expected rank 0 to say that all ranks had come to their end, got status 0 alone"
            print(f"mpi_train.py: {why}", flush=True)
            status = UNCONFIRMED
        if status == 0 or signals or status in STOPPED or attempt == config.restarts:
            return status
        print(
            f"mpi_train.py: the job ended with status {status}; restart {attempt + 1} of {config.restarts}", flush=True
        )
        time.sleep(config.pause)
    return status


def _pass_on(job: subprocess.Popen, source: IO[bytes], target: IO[bytes], grace: float, ended: threading.Event) -> None:
    """Copy the job's output, but for ENDED, which sets `ended`. After the line of a rank that showed no sign of life,
    kill the job unless it ends within `grace` seconds.
    """
    for line in source:
        if ENDED.encode() in line:
            ended.set()
            line = line.replace(ENDED.encode(), b"")
        target.write(line)
        target.flush()
        if SILENT.encode() in line:
            time.sleep(grace)
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)


if __name__ == "__main__":
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    flags = parse_flags(Config, sys.argv[1:split])
    command = sys.argv[split + 1 :]
    sys.exit(main(flags, command) if command else "mpi_train.py: expected a command after --, got none")
