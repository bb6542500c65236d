"""Tiny training jobs, for one process or for the ranks of an MPI job: each rank writes a digest of its final state."""

import ctypes
import hashlib
import json
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import scratchnet as sn
from scratchnet import precisions
from scratchnet.flags import flag, run_script
from scratchnet.formats import checkpoint
from scratchnet.parallel import failpoints
from scratchnet.parallel.comm.job import started_as
from scratchnet.parallel.mpi import machines
from scratchnet.parallel.mpi.communicator import library, world

SAMPLES, FEATURES, CLASSES, BATCH = 50, 6, 3, 8  # the last batch has 2 samples: with 4 or 8 shards, some are empty
OPTIMIZERS = {
    "momentum": lambda groups: sn.optim.SGD(groups, 0.05, momentum=0.9),
    "adam": lambda groups: sn.optim.Adam(groups, 0.01),
}


AllReduce, ParameterServer = sn.parallel.AllReduce, sn.parallel.ParameterServer
JOBS = {  # arguments of the trainer, and the optimizer
    "momentum": ({"shards": 4}, "momentum"),
    "adam, more shards than samples at the end": ({"shards": 8}, "adam"),
    "two batches a step, and their norm": ({"shards": 3, "accumulate": 2, "clip_norm": 0.5}, "momentum"),
    "local": ({"shards": 4, "strategy": sn.parallel.LocalSGD(every=3, warmup=2)}, "adam"),
    "one shard": ({"shards": 1}, "momentum"),
    "fast": ({"shards": 4, "strategy": AllReduce(order="fast")}, "adam"),
    "half": ({"shards": 4, "strategy": AllReduce(sn.parallel.Float16()), "accumulate": 2}, "momentum"),
    "largest": ({"shards": 8, "strategy": ParameterServer(0, sn.parallel.TopK(0.1))}, "adam"),
    "low rank": ({"shards": 4, "strategy": AllReduce(sn.parallel.PowerSGD(2)), "clip_norm": 0.5}, "momentum"),
    "delayed": ({"shards": 3, "strategy": ParameterServer(2)}, "momentum"),
    "bfloat16": ({"shards": 4, "precision": "bfloat16"}, "momentum"),
    "skipped": ({"shards": 4, "nonfinite": "skip"}, "adam"),
    "wide": ({"shards": 4}, "adam"),
    "wide, seven shards": ({"shards": 7}, "adam"),
    "wide, two batches a step": ({"shards": 3, "accumulate": 2, "clip_norm": 0.5}, "momentum"),
    "wide, apart": ({"shards": 4, "strategy": sn.parallel.LocalSGD(every=2, warmup=3)}, "momentum"),
    "by rows": ({"shards": 4}, "adam"),
    "by rows, two batches a step": ({"shards": 3, "accumulate": 2, "clip_norm": 0.5}, "momentum"),
    "by rows, local": ({"shards": 4, "strategy": sn.parallel.LocalSGD(every=2)}, "adam"),
    "low rank, skipped": ({"shards": 4, "strategy": AllReduce(sn.parallel.PowerSGD(1)), "nonfinite": "skip"}, "adam"),
}
Pipeline, TensorParallel = sn.parallel.Pipeline, sn.parallel.TensorParallel
DIVIDED = {  # strategies with the bits of one process, or of so many parts
    "": None,
    "four stages": Pipeline(4, recompute=True),
    "three stages": Pipeline(3),
    "two stages": Pipeline(2, schedule="zero_bubble"),
    "two stages of two parts": Pipeline(2, schedule="gpipe", parts=2),
    "one stage of three parts": Pipeline(1, parts=3),
    "two parts": TensorParallel(2),
    "three parts": TensorParallel(3),
}


@dataclass
class Config:
    """Train a tiny network."""

    jobs: tuple[str, ...] = flag(
        ("momentum",), "what to do, one after the other: names of JOBS, or NAME @ LAYOUT @ SHARE @ FAIL: a name of "
        "DIVIDED, ranks that count as one machine, a fail point; what is left out is as the environment has it",
    )  # fmt: skip
    workers: int = flag(1, "processes of a pool")
    folder: str | None = flag(None, "of checkpoints")
    epochs: int = flag(2, "passes over the data, of 7 batches each")
    resume: str | None = flag(None, "as in Trainer.fit")
    fault: str = flag("", "what happens at sample 17: nan, or a name of ACTS")


class Samples(sn.data.Dataset):
    """It notes which samples were read, and a fault may happen at sample 17."""

    def __init__(self, fault):
        rng = np.random.default_rng(0)
        centers = 3 * rng.standard_normal((CLASSES, FEATURES))
        self.y = rng.integers(0, CLASSES, SAMPLES)
        self.x = (centers[self.y] + rng.standard_normal((SAMPLES, FEATURES))).astype(np.float32)
        self.fault, self.asked = fault, []
        if fault == "nan":
            self.x[17] = 1e30  # see Net

    def __len__(self):
        return SAMPLES

    def __getitem__(self, i):
        self.asked.append(i)
        if i == 17 and self.fault in ACTS:
            ACTS[self.fault]()
        return self.x[i], self.y[i]


def busy():
    """The other ranks of this machine are asked to end; meanwhile no other thread of this one runs."""
    ranks = Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read_text().split()
    for pid in {*map(int, ranks)} - {os.getpid()}:
        os.kill(pid, signal.SIGTERM)
    ctypes.PyDLL(None).usleep(900_000)  # it keeps the GIL


ACTS = {
    "busy": busy,
    "raise": lambda: (_ for _ in ()).throw(ValueError("sample 17 is bad")),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "exit": lambda: sys.exit(3),
    "slow": lambda: time.sleep(3),
}


class Net(sn.nn.Module):
    """Layers with random numbers and with buffers, and one without gradients."""

    def __init__(self):
        self.first, self.last, self.unused = sn.nn.Linear(FEATURES, 40), sn.nn.Linear(40, CLASSES), sn.nn.Linear(2, 2)
        self.norm, self.dropout = sn.nn.BatchNorm1d(8), sn.nn.Dropout(0.3)

    def forward(self, x):
        hidden = self.norm(self.first(x).reshape(len(x), 8, 5))
        nan_for_large_inputs = (1e20 - x.abs().max()).log() * 0.0
        return self.last(self.dropout(hidden.relu().reshape(len(x), 40))) + nan_for_large_inputs


class ByRows(sn.nn.Module):
    """A table of which each sample has some rows."""

    def __init__(self):
        self.rows = sn.nn.EmbeddingBag(40, 5, "sum", padding_idx=9, sparse=True)
        self.last = sn.nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.last(self.rows((x * 4.0).clip(-20.0, 19.0).astype("int64") + 20))


def train(config, arguments, rule, fault, name):
    """The trainer after `fit`, the history and the data set. A wide network needs several messages for its parameters,
    and a traced step computes its gradients."""
    sn.manual_seed(1)
    is_wide = name.startswith("wide")
    if name.startswith("by rows"):
        model = ByRows()
    else:
        model = sn.nn.MLP(FEATURES, 300, 300, 300, CLASSES, dropout=0.1) if is_wide else Net()
    named = dict(model.named_parameters())
    groups = [
        {"params": [p for name, p in named.items() if "bias" not in name]},
        {"params": [p for name, p in named.items() if "bias" in name], "weight_decay": 0.1},
    ]
    optimizer = OPTIMIZERS[rule](groups)
    schedule = sn.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=1000)
    dataset, validation = Samples(fault), Samples("")
    trainer = sn.Trainer(
        model, optimizer, sn.nn.CrossEntropyLoss(), schedule,
        folder=config.folder, save_every=4, progress=False, **arguments,
    )  # fmt: skip
    data = sn.data.TensorDataset(dataset.x, dataset.y) if is_wide else dataset
    loader = sn.data.DataLoader(data, BATCH, shuffle=True, seed=3)
    history = trainer.fit(loader, sn.data.DataLoader(validation, 25), config.epochs, config.resume)
    return trainer, history, dataset


def forbidden(*args, **kwargs):
    raise AssertionError("an object was pickled for MPI")


def arranged(text):
    """The job and the strategy of an entry of --jobs; the environment and machines as it says."""
    name, divided, share, fail = (*text.split(" @ "), "", "", "")[:4]
    if share:
        os.environ[machines.SHARE_VARIABLE] = share
        machines.machine_of.cache_clear()
    if fail:
        os.environ[failpoints.VARIABLE] = fail
    return name, DIVIDED[divided]


def main(config):
    precisions.LEAST.clear()  # so that products as small as these are rounded, too
    rank, _ = started_as() or (0, 1)
    if started_as():
        library().pickle.__init__(dumps=forbidden, loads=forbidden)
    for text in config.jobs:
        name, strategy = arranged(text)
        fault = "nan" if name.endswith("skipped") else config.fault
        arguments, rule = JOBS[name]
        arguments = arguments | {"workers": config.workers} | ({"strategy": strategy} if strategy else {})
        result = {"job": text, "rank": rank, "host": socket.gethostname()}
        try:
            trainer, history, dataset = train(config, arguments, rule, fault, name)
        except sn.ConfigError as error:
            if not started_as() or world().is_broken:  # not all ranks have raised it
                raise
            result |= {"refused": str(error), "reported": not error.already_reported}
        else:
            state = {"model": trainer.model, "optimizer": trainer.optimizer, "history": history.records}
            digest = hashlib.sha256(checkpoint.dumps(state)).hexdigest()
            weights = [float(p.detach().numpy().sum(dtype=np.float64)) for p in trainer.model.parameters()]
            result |= {"digest": digest, "asked": dataset.asked, "sums": weights}
        with open(os.path.join(os.environ["RESULTS"], f"{rank}.jsonl"), "a") as file:  # mpirun mixes what ranks print
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    run_script(main, Config)
