"""Kills and stops ranks of an MPI job at every point of their work, and compares the bytes in the end.

    python scripts/drill/mpi_drill.py --ranks 3

Each trial is scripts/train.py under mpirun under scripts/mpi_train.py, in a folder of its own. One rank fails, at a
step drawn at random; the job must end with one line that names it and the step, be restarted, and leave the checkpoint
that one process leaves that nothing disturbs. The exit status is 1 if anything else happens, or a fault did not fire.
"""

import hashlib
import itertools
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from scratchnet.flags import flag, run_script
from scratchnet.parallel.failpoints import LOG, VARIABLE
from scratchnet.parallel.mpi.watch import SILENT

SCRIPTS = Path(__file__).parents[1]
STEPS = 85  # of an epoch of the embedded images
FLAGS = {
    "epochs": 1, "hidden": 32, "dropout": 0.2, "shards": 4, "threads": 1, "save-every": 20, "folder": "run",
    "resume": "auto",
}  # fmt: skip
JOB = [word for name, value in FLAGS.items() for word in (f"--{name}", str(value))]
POINTS = ("shard.claimed", "shard.written", "slice.claimed", "slice.written")
ACTIONS = ("SIGKILL", "SIGSEGV", "SIGSTOP", "exit")
LIMIT = 120.0  # seconds until a trial counts as hung


@dataclass
class Config:
    """Disturb ranks, and compare the bytes that come out."""

    ranks: int = flag(3, "ranks of the job")
    patience: float = flag(3.0, "seconds without a sign of life")
    seed: int = flag(0, "of the ranks and steps at which something happens")


def run(command: list[str], folder: str, **environment: str) -> tuple[str, str]:
    """What a run said, and the SHA-256 of its newest checkpoint, or why there is none."""
    variables = {"SCRATCHNET_QUIET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
    try:
        done = subprocess.run(
            command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return "", f"hung for {LIMIT:.0f} s"
    if done.returncode:
        return done.stderr, f"status {done.returncode}"
    newest = max(Path(folder, "run").glob("checkpoint-*.safetensors"))
    return done.stderr, hashlib.sha256(newest.read_bytes()).hexdigest()


def main(config: Config) -> None:
    train = [sys.executable, str(SCRIPTS / "train.py"), *JOB]
    root = ["--allow-run-as-root"] * (os.geteuid() == 0)
    mpirun = ["mpirun", *root, "--oversubscribe", "--bind-to", "none", "-n", str(config.ranks)]
    wrapper = [sys.executable, str(SCRIPTS / "mpi_train.py"), "--restarts", "1", "--pause", "0", "--grace", "3", "--"]
    with tempfile.TemporaryDirectory() as folder:
        _, expected = run(train, folder)
    draw, bad = random.Random(config.seed), 0
    for point, action in itertools.product(POINTS, ACTIONS):
        step, rank = draw.randrange(STEPS), draw.randrange(config.ranks)
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "fired")
            fault = {VARIABLE: f"{point}:{step}:{rank}:{action}", LOG: str(log)}
            said, found = run(
                [*wrapper, *mpirun, *train], folder, SCRATCHNET_MPI_PATIENCE=str(config.patience), **fault
            )
            fired = log.exists()
        lines = [line for line in said.splitlines() if SILENT in line]
        told = len(lines) == 1 and re.search(rf"step {step}: {SILENT} rank {rank},", lines[0])
        verdict = "EXACT" if found == expected else found if len(found) < 64 else "other bytes"
        verdict += ("" if fired else ", did not fire") + ("" if told else f", told: {lines}")
        bad += verdict != "EXACT"
        print(
            f"{point:14} step {step:2} rank {rank} {action:8} {time.monotonic() - start:5.1f} s  {verdict}", flush=True
        )
    print(f"{len(POINTS) * len(ACTIONS)} trials, {bad} bad")
    sys.exit(bad > 0)


if __name__ == "__main__":
    run_script(main, Config)
