"""Short trainings on GPUs, by the ranks of an MPI job, or by one worker of one process; each prints what it has.

Under the stub driver kernels compute nothing; in the simulator they are interpreted.
"""

import contextlib
import hashlib
import json
import os
import sys
from dataclasses import dataclass

import numpy as np
from logs import log_lines
from losses import Interpreted, Tiny
from sizes import SIMULATED
from stub_driver import compile_nothing

import scratchnet as sn
from scratchnet.flags import flag, run_script
from scratchnet.parallel.comm.job import started_as

WIDE = 40_000  # units of a layer, where the bytes of a gradient are to be told from all others
JOBS = {  # arguments of the trainer, and the optimizer
    "buffers": ({"shards": 3}, sn.optim.SGD, {"momentum": 0.9}),
    "adam": ({"shards": 5}, sn.optim.Adam, {}),  # of the last batch a shard has none
    "one shard": ({"shards": 1}, sn.optim.SGD, {}),
    "norm": ({"shards": 6, "accumulate": 2, "clip_norm": 0.1}, sn.optim.Adam, {}),
    "float16": ({"shards": 4, "precision": "float16"}, sn.optim.SGD, {}),
    "more ranks than parts of a norm": ({"shards": 3, "precision": "float16", "clip_norm": 0.1}, sn.optim.SGD, {}),
    "fast": ({"shards": 3, "strategy": sn.parallel.AllReduce(order="fast")}, sn.optim.SGD, {}),
    "local": ({"shards": 3, "strategy": sn.parallel.LocalSGD(every=2)}, sn.optim.SGD, {}),
    "wide": ({"shards": 4}, sn.optim.SGD, {"momentum": 0.9}),
}


@dataclass
class Config:
    jobs: tuple[str, ...] = flag(("buffers",), "names of JOBS")
    folder: str | None = flag(None, "of checkpoints, from which a run goes on")
    epochs: int = flag(1, "passes over the data, of 3 batches each")
    nan: bool = flag(False, "what the first layer gives of a sample is not finite")
    norms: int = flag(0, "pieces of a norm; 0: as many as there are")


def trained(job, config):
    options, rule, details = JOBS[job]
    sn.manual_seed(1)
    rng = np.random.default_rng(0)
    samples = 24 if job == "buffers" else 20
    x, y = rng.standard_normal((samples, 5)).astype(np.float32), rng.integers(0, 3, samples)
    if config.nan:
        x[7] = 3e38  # the first sum is infinite
    width = WIDE if job == "wide" else 4
    first, norm = sn.nn.Linear(5, width, bias=False), sn.nn.BatchNorm1d if job == "buffers" else sn.nn.LayerNorm
    model = sn.nn.Sequential(first, norm(width), sn.nn.Tanh(), sn.nn.Dropout(0.3), sn.nn.Linear(width, 3))
    optimizer = rule(model.to("cuda").parameters(), 0.1, **details)
    loader = sn.data.DataLoader(sn.data.TensorDataset(x, y), 8, shuffle=True, seed=3)
    loss = (Tiny if "ranks" in job else Interpreted)() if SIMULATED else sn.nn.CrossEntropyLoss()
    devices = None if started_as() else ["cuda:0"]
    folder = {"folder": config.folder, "save_every": 1} if config.folder else {}
    trainer = sn.Trainer(model, optimizer, loss, devices=devices, progress=False, **options, **folder)
    history = trainer.fit(loader, epochs=config.epochs, resume="auto" if folder else None)
    states = [array for state in optimizer.state_dict()["state"] for array in state.values()]
    states += [*model.state_dict().values(), np.array(history["train_loss"])]
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in states)).hexdigest()


def main(config):
    lines = log_lines()
    if config.norms:
        for module in [module for module in sys.modules.values() if hasattr(module, "NORMS")]:
            module.NORMS = config.norms
    with contextlib.ExitStack() as stack:
        if SIMULATED:
            from scratchnet.kernels.cuda import tuning
            from scratchnet.testing import interpreted

            stack.enter_context(interpreted())
            stack.enter_context(tuning.use(tuning.TINY))
        else:
            compile_nothing()
        digests = {job: trained(job, config) for job in config.jobs}
    if SIMULATED:
        number = 0
    else:
        from scratchnet.kernels.cuda import driver

        number = driver.gpu().number
    line = json.dumps({"digests": digests, "gpu": number, "log": lines})
    os.write(1, f"RESULT {line}\n".encode())  # at once, as mpirun mixes what ranks print


if __name__ == "__main__":
    run_script(main, Config)
