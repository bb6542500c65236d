"""The second host of two prints the bytes that it sends in 10 steps with each compression, with one shard a host."""

import json
from pathlib import Path

import numpy as np

import scratchnet as sn
from scratchnet.parallel.comm.job import is_first_rank
from scratchnet.parallel.compression import COMPRESSIONS
from scratchnet.parallel.strategies import AllReduce

COUNTER = Path("/sys/class/net/eth0/statistics/tx_bytes")


def main():
    inputs = np.random.default_rng(0).normal(size=(40, 256)).astype(np.float32)
    data = sn.data.TensorDataset(inputs, np.arange(40) % 10)
    found = {}
    for name, compression in COMPRESSIONS.items():
        sn.manual_seed(0)
        model = sn.nn.MLP(256, 512, 10)
        optimizer, loader = sn.optim.SGD(model.parameters(), 0.1), sn.data.DataLoader(data, 4)
        trainer = sn.Trainer(
            model, optimizer, sn.nn.CrossEntropyLoss(), shards=2, strategy=AllReduce(compression), progress=False
        )
        before = int(COUNTER.read_text())
        trainer.fit(loader)
        found[name] = int(COUNTER.read_text()) - before
    if not is_first_rank():
        print(json.dumps(found))


if __name__ == "__main__":
    main()
