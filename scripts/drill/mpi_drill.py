"""Kills and stops ranks of an MPI job at every point of their work, and compares the final bytes.

    python scripts/drill/mpi_drill.py --ranks 3

Each trial is scripts/train.py under mpirun under scripts/mpi_train.py, in a folder of its own. One rank fails, at a
step drawn at random; the job must end with one line that names it and the step, be restarted, and leave the checkpoint
that one process leaves that nothing disturbs. The exit status is 1 if anything else happens, or a fault did not fire.
With `--stages 2` the ranks, a multiple of two, have stages of the model, and fail in the midst of them.
"""

import hashlib
import itertools
import os
import random
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from running import LIMIT, Ended, Result, run, run_trials

from scratchnet.flags import flag, run_script
from scratchnet.parallel.failpoints import LOG, STAGE_POINTS, VARIABLE
from scratchnet.parallel.mpi.machines import SHARE_VARIABLE
from scratchnet.parallel.mpi.watch import SILENT

SCRIPTS = Path(__file__).parents[1]
STEPS = 85  # of an epoch of the embedded images
JOB = "--epochs 1 --hidden 32 --dropout 0.2 --shards 4 --threads 1 --save-every 20 --folder run --resume auto"
TRAIN = [sys.executable, str(SCRIPTS / "train.py"), *JOB.split()]
MPI_TRAIN = [sys.executable, str(SCRIPTS / "mpi_train.py"), "--restarts", "1", "--pause", "0", "--grace", "3", "--"]
MPIRUN = ["mpirun", *["--allow-run-as-root"] * (os.geteuid() == 0), "--oversubscribe", "--bind-to", "none", "-n"]
POINTS = ("shard.claimed", "shard.written", "slice.claimed", "slice.written")
STAGED = (*STAGE_POINTS, "slice.claimed", "slice.half_written")  # mid-activation, mid-gradient, mid-update
ACTIONS = ("SIGKILL", "SIGSEGV", "SIGSTOP", "exit")


@dataclass
class Config:
    """Disturb ranks, and compare the bytes that come out."""

    ranks: int = flag(3, "ranks of the job")
    stages: int = flag(1, "of the model, as many as ranks or a divisor; each rank counts as a machine then")
    only: str = flag("", "run only trials whose name contains this")
    patience: float = flag(3.0, "seconds without a sign of life")
    seed: int = flag(0, "of the ranks and steps at which something happens")


@dataclass
class Trial:
    point: str
    action: str
    step: int
    rank: int
    expected: str = "EXACT"

    @property
    def name(self) -> str:
        return f"{self.action} at {self.point}, step {self.step}, rank {self.rank}"

    @property
    def group(self) -> str:
        return f"rank: {self.action}"


def run_job(command: list[str], folder: str, **variables: str) -> tuple[Ended, str]:
    """How a job ended, and the SHA-256 of its newest checkpoint."""
    path = os.pathsep.join(filter(None, sys.path))
    ended = run(command, LIMIT, folder=folder, PYTHONPATH=path, **variables)
    newest = max(Path(folder, "run").glob("checkpoint-*.safetensors"), default=None)
    return ended, hashlib.sha256(newest.read_bytes()).hexdigest() if newest else ""


def main(config: Config) -> None:
    layout = ["--strategy", "pipeline", "--stages", str(config.stages)] if config.stages > 1 else []
    share = {SHARE_VARIABLE: "1"} if layout else {}  # machines of one rank: all that crosses a cut is a message
    with tempfile.TemporaryDirectory() as folder:
        _, expected = run_job([*TRAIN, *layout], folder)  # a checkpoint names its flags

    def one(trial: Trial) -> Result:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "fired")
            fault = {VARIABLE: f"{trial.point}:{trial.step}:{trial.rank}:{trial.action}", LOG: str(log)}
            job = [*MPI_TRAIN, *MPIRUN, str(config.ranks), *TRAIN, *layout]
            ended, found = run_job(job, folder, SCRATCHNET_MPI_PATIENCE=str(config.patience), **share, **fault)
            result = Result("lost", log.exists(), f"status {ended.status}", ended.leaks)
        named = [line for line in ended.words.splitlines() if SILENT in line]
        if ended.status is None:
            result.outcome = "hung"
        elif ended.status == 0 and found != expected:
            result.outcome = "silently wrong"
        elif len(named) != 1 or not re.search(rf"step {trial.step}: {SILENT} rank {trial.rank},", named[0]):
            result.why += f", said: {named}"
        elif ended.status == 0:
            result.outcome = "EXACT"
        return result

    draw = random.Random(config.seed)
    faults = itertools.product(STAGED if layout else POINTS, ACTIONS)
    trials = [Trial(*fault, draw.randrange(STEPS), draw.randrange(config.ranks)) for fault in faults]
    run_trials(one, [trial for trial in trials if config.only in trial.name], side_by_side=1, verbose=True)


if __name__ == "__main__":
    run_script(main, Config)
