"""Four threads train at the same time, on data sets that draw from np.random and random. Prints the hashes of what each
of eight runs gave, and on another line that of one alone."""

import hashlib
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[2])]

import scratchnet as sn  # noqa: E402


class Draws(sn.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, i):
        return np.random.standard_normal(6).astype(np.float32) + np.float32(random.random()), i % 3  # noqa: NPY002


def train(_=None):
    with sn.random.using(sn.random.Generator(1)):
        model = sn.nn.MLP(6, 8, 3)
    optimizer = sn.optim.SGD(model.parameters(), 0.1)
    trainer = sn.Trainer(model, optimizer, sn.nn.CrossEntropyLoss(), jit=False, progress=False)
    trainer.fit(sn.data.DataLoader(Draws(), 8), epochs=6)
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()


with ThreadPoolExecutor(4) as threads:
    print(*threads.map(train, range(8)))
print(train())
