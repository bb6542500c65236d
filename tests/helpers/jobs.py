"""MPI jobs of tests: programs of tests/programs under mpirun, and what they wrote."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import mpi_job
from servants import is_open_mpi, mpirun

from scratchnet.parallel.mpi import machines

PROGRAMS = Path(mpi_job.__file__).parent
WRAPPER = [sys.executable, str(PROGRAMS.parents[1] / "scripts" / "mpi_train.py")]
HUNG = 300  # seconds after which a job counts as hung, on a machine that does much else
PATIENCE = 3.0  # seconds without a sign of life, for jobs in which a rank fails


def variables_of_a_job():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "SCRATCHNET_QUIET": "1"}


def program(ranks, name, *arguments, command=mpirun, **environment):
    """Runs tests/programs/NAME.py under mpirun; its exit status and what it wrote."""
    line = command(ranks, sys.executable, str(PROGRAMS / f"{name}.py"), *map(str, arguments))
    variables = variables_of_a_job() | environment
    done = subprocess.run(line, env=variables, capture_output=True, text=True, timeout=HUNG)
    return done.returncode, done.stdout + done.stderr


def train(ranks, *flags, command=mpirun, fail="", share=0):
    """mpi_job.py under mpirun, or without it for `ranks` 0: its status, lines of results, and standard error.

    share: so many ranks count as one machine; 0: all that are on one.
    """
    variables = variables_of_a_job() | {machines.SHARE_VARIABLE: str(share)}
    patience = PATIENCE if fail or "--fault" in flags else 60.0
    variables |= {"SCRATCHNET_MPI_PATIENCE": str(patience), "SCRATCHNET_FAIL": fail}
    line = [sys.executable, str(PROGRAMS / "mpi_job.py"), *map(str, flags)]
    line = command(ranks, *line) if ranks else line
    with tempfile.TemporaryDirectory() as folder:
        variables["RESULTS"] = folder
        done = subprocess.run(line, env=variables, capture_output=True, text=True, timeout=HUNG)
        results = [json.loads(text) for path in Path(folder).iterdir() for text in path.read_text().splitlines()]
    return done.returncode, results, done.stderr


@functools.cache
def undisturbed():
    """{job: result} of one process that MPI did not start."""
    status, results, said = train(0, "--jobs", *mpi_job.JOBS)
    assert status == 0, said
    return {result["job"]: result for result in results}


def srun_like(ranks, *line):
    """mpirun, whose ranks find in the environment what srun tells them, and nothing else; of Open MPI alone, as others
    know their ranks by the variables of PMI."""
    if not is_open_mpi():
        return mpirun(ranks, *line)
    names = (("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"), ("OMPI_COMM_WORLD_RANK", "SLURM_PROCID"))
    renamed = " ".join(f"export {new}=${old}; unset {old};" for old, new in names)
    return mpirun(ranks, "sh", "-c", f'{renamed} exec "$@"', "sh", *line)
