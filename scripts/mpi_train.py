"""Starts an MPI job, and starts it again when it fails: python scripts/mpi_train.py --restarts 3 -- mpirun -n 4 ...

The command after `--` must go on where it stopped, as `scripts/train.py --folder RUN --resume auto` does. A rank that
died, a machine that vanished, a link that stalled: the ranks that are left end the job and name the step; here the next
one begins, from the newest checkpoint. Ctrl-C and SIGTERM are passed on, and end it.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

from scratchnet.flags import flag, parse_flags

STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # statuses of a run that was asked to stop


@dataclass
class Config:
    """Run the MPI job that follows after --, and restart it when it fails."""

    restarts: int = flag(3, "how often, at most")
    pause: float = flag(1.0, "seconds before a restart")


def main(config: Config, command: list[str]) -> int:
    asked: list[int] = []
    for attempt in range(config.restarts + 1):
        job = subprocess.Popen(command, env={**os.environ, "SCRATCHNET_RESTARTS": str(attempt)})

        def stop(number: int, frame: object, job: subprocess.Popen = job) -> None:
            asked.append(number)
            job.send_signal(number)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        status = job.wait()
        status = 128 - status if status < 0 else status
        if status == 0 or asked or status in STOPPED or attempt == config.restarts:
            return status
        print(
            f"mpi_train.py: the job ended with status {status}; restart {attempt + 1} of {config.restarts}", flush=True
        )
        time.sleep(config.pause)
    return status


if __name__ == "__main__":
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    flags = parse_flags(Config, sys.argv[1:split])
    command = sys.argv[split + 1 :]
    sys.exit(main(flags, command) if command else "mpi_train.py: expected a command after --, got none")
