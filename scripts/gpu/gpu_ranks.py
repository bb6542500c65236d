"""The phase of gpu_check.py with ranks of an MPI job, whose gradients NCCL brings from GPU to GPU: are the bits those
of one worker?

As a program it is one of these ranks, or without mpirun the one worker; it prints a digest of what it has trained.
"""

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from gpu_phases import is_simulated

import scratchnet as sn
from scratchnet.parallel.comm.job import started_as

RANKS = 2
VARIABLES = {  # of Open MPI: on however few cores, in a container too
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}


def ranks(config: Any, note: Callable[..., None]) -> None:
    """The reference network, by ranks on a GPU each and by one worker."""
    if missing := _missing():
        note(what="ranks", missing=missing)
        return
    found = [_run(), _run("mpirun", "-n", str(RANKS))]
    digests = {digest for _, lines in found for digest, _ in lines}
    said = [line for _, lines in found for _, log in lines for line in log]  # of gradients that go through the host
    wrong = next((f"exit status {status}" for status, _ in found if status), None)
    if wrong is None and (said or len(digests) != 1):
        wrong = said[0] if said else "ranks on GPUs gave other bits than one worker"
    note(what="ranks", digests=[lines for _, lines in found], wrong=wrong)


def _missing() -> str | None:
    from scratchnet.kernels.cuda import nccl

    if sn.cuda.device_count() < RANKS:
        return f"{RANKS} GPUs"
    if shutil.which("mpirun") is None or importlib.util.find_spec("mpi4py") is None:
        return "mpirun and mpi4py"
    return nccl.why_not()


def _run(*launcher: str) -> tuple[int, list[Any]]:
    """The exit status, and of each process (digest, lines of the log)."""
    variables = os.environ | VARIABLES | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([*launcher, sys.executable, __file__], env=variables, stdout=subprocess.PIPE, text=True)
    return done.returncode, [json.loads(x.split("RANK ")[1]) for x in done.stdout.splitlines() if "RANK" in x]


def main() -> None:
    from scratchnet.testing import interpreted

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("scratchnet.parallel").addHandler(handler)
    logging.getLogger("scratchnet.parallel").setLevel(logging.INFO)
    if is_simulated():
        with interpreted():
            digest = trained(16, 4, 8)
    else:
        digest = trained(784, 128, 2000)
    os.write(1, f"RANK {json.dumps([digest, lines])}\n".encode())


def trained(features: int, hidden: int, samples: int) -> str:
    """The digest of the reference network after an epoch of so many images, of so many of their pixels."""
    train, _ = sn.data.load("fashion-mnist-mini")
    train = sn.data.random_split(train, [samples, len(train) - samples])[0].map(lambda x: x[:, :features])
    sn.manual_seed(0)
    model = sn.nn.MLP(features, hidden, 10).to("cuda")
    optimizer = sn.optim.Adam(model.parameters(), lr=0.001)
    devices = None if started_as() or is_simulated() else ["cuda:0"]
    trainer = sn.Trainer(model, optimizer, sn.nn.CrossEntropyLoss(), shards=4, devices=devices, progress=False)
    trainer.fit(sn.data.DataLoader(train, min(64, samples // 2), shuffle=True, seed=0))
    return hashlib.sha256(b"".join(x.tobytes() for x in model.state_dict().values())).hexdigest()


if __name__ == "__main__":
    main()
