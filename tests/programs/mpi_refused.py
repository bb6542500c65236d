"""Training that all ranks refuse: strategies that are not exact under MPI, and a loader whose seeds differ."""

import dataclasses
import sys

import numpy as np

import scratchnet as sn
from scratchnet.flags import run_script
from scratchnet.parallel.comm.job import started_as

DATA = sn.data.TensorDataset(np.ones((8, 3), np.float32), np.zeros(8, int))


def fit(strategy, seed=0):
    model = sn.nn.Linear(3, 2)
    optimizer = sn.optim.SGD(model.parameters(), 0.1)
    trainer = sn.Trainer(
        model, optimizer, sn.nn.CrossEntropyLoss(), shards=2, strategy=strategy, progress=False
    )  # fmt: skip
    trainer.fit(sn.data.DataLoader(DATA, 4, shuffle=True, seed=seed))


def refused(strategy):
    """A script that trains so; it prints what would be its last words."""
    try:
        sys.argv = sys.argv[:1]
        run_script(lambda config: fit(strategy), dataclasses.make_dataclass("Config", []))
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stdout.write(end.code + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    refused(sn.parallel.ParameterServer(None))
    refused(sn.parallel.Hogwild())
    fit("all_reduce", seed=started_as()[0])
