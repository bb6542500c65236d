"""A short training on GPUs, by the ranks of an MPI job, or by one worker of one process; each prints what it has.

Under the stub driver kernels compute nothing; in the simulator they are interpreted.
"""

import contextlib
import hashlib
import json

import numpy as np
from losses import Interpreted
from sizes import SIMULATED
from stub_driver import compile_nothing

import scratchnet as sn
from scratchnet.parallel.comm.job import started_as


def trained():
    sn.manual_seed(1)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((24, 5)).astype(np.float32), rng.integers(0, 3, 24)
    first = sn.nn.Linear(5, 4, bias=False)
    model = sn.nn.Sequential(first, sn.nn.BatchNorm1d(4), sn.nn.Tanh(), sn.nn.Dropout(0.3), sn.nn.Linear(4, 3))
    optimizer = sn.optim.SGD(model.to("cuda").parameters(), 0.1, momentum=0.9)
    loader = sn.data.DataLoader(sn.data.TensorDataset(x, y), 8, shuffle=True, seed=3)
    loss = Interpreted() if SIMULATED else sn.nn.CrossEntropyLoss()
    devices = None if started_as() else ["cuda:0"]
    sn.Trainer(model, optimizer, loss, shards=3, devices=devices, progress=False).fit(loader, epochs=1)
    states = [*model.state_dict().values(), *(s["velocity"] for s in optimizer.state_dict()["state"])]
    return hashlib.sha256(b"".join(array.tobytes() for array in states)).hexdigest()


if __name__ == "__main__":
    with contextlib.ExitStack() as stack:
        if SIMULATED:
            from scratchnet.kernels.cuda import tuning
            from scratchnet.testing import interpreted

            stack.enter_context(interpreted())
            stack.enter_context(tuning.use(tuning.TINY))
        else:
            compile_nothing()
        digest = trained()
    if SIMULATED:
        number = 0
    else:
        from scratchnet.kernels.cuda import driver

        number = driver.gpu().number
    print("RESULT", json.dumps({"digest": digest, "gpu": number}), flush=True)
