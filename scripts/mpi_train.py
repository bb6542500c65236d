"""Starts an MPI job, and starts it again when it fails: python scripts/mpi_train.py --restarts 3 -- mpirun -n 4 ...

The command after `--` must go on where it stopped, as `scripts/train.py --folder RUN --resume auto` does. A rank that
died, a machine that vanished, a link that stalled: the ranks that are left end the job and name the step, and here the
next one begins, from the newest checkpoint. Open MPI's mpirun may wait for a vanished machine long after that, so it is
ended, too; MPICH's may end with status 0 after a rank died. So a job has succeeded when, besides, its rank 0 says that
all ranks have come to their end, as each one does that trains or calls `sn.parallel.run`. Ctrl-C and SIGTERM are passed
on, and end it.
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

UNTOLD = 1  # status of a job that ended with 0, but whose rank 0 did not say that all ranks had
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # statuses of a run that was asked to stop


@dataclass
class Config:
    """Run the MPI job that follows after --, and restart it when it fails."""

    restarts: int = flag(3, "how often, at most")
    pause: float = flag(1.0, "seconds before a restart")
    grace: float = flag(10.0, "seconds that the starter has to end once a rank showed no sign of life")


def main(config: Config, command: list[str]) -> int:
    asked: list[int] = []
    for attempt in range(config.restarts + 1):
        environment = {**os.environ, RESTARTS: str(attempt)}
        job = subprocess.Popen(command, env=environment, stdout=PIPE, stderr=PIPE, start_new_session=True)

        def stop(number: int, frame: object, job: subprocess.Popen = job) -> None:
            asked.append(number)
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
            # Not for ever: what started the ranks of a vanished machine may still hold the pipe.
            reader.join(1.0 if status else config.grace)
        status = 128 - status if status < 0 else status
        if status == 0 and not ended.is_set():
            why = "expected rank 0 to say that all ranks had come to their end, got status 0 alone"
            print(f"mpi_train.py: {why}", flush=True)
            status = UNTOLD
        if status == 0 or asked or status in STOPPED or attempt == config.restarts:
            return status
        print(
            f"mpi_train.py: the job ended with status {status}; restart {attempt + 1} of {config.restarts}", flush=True
        )
        time.sleep(config.pause)
    return status


def _pass_on(job: subprocess.Popen, source: IO[bytes], target: IO[bytes], grace: float, ended: threading.Event) -> None:
    """What the job says, until it ends: by force, if a rank was given up and its starter does not see it.

    What rank 0 says in the end is not passed on.
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
