"""What the engine of an MPI job takes and sends, seen from inside: mpi_probe.py memory | stages | messages | bytes.

Each rank prints a line <...> for each run.
"""

import functools
import gc
import os
import sys

import numpy as np

import scratchnet as sn
from scratchnet.parallel.mpi import slices
from scratchnet.parallel.mpi.communicator import library
from scratchnet.parallel.mpi.engine import Ranks


def fit(sizes, shards, samples, batch=8, strategy="all_reduce", **options):
    """Trains a network of these sizes."""
    model = sn.nn.MLP(*sizes)
    data = sn.data.TensorDataset(np.ones((samples, sizes[0]), np.float32), np.zeros(samples, int))
    optimizer = sn.optim.SGD(model.parameters(), 0.1, **options)
    trainer = sn.Trainer(
        model, optimizer, sn.nn.CrossEntropyLoss(), shards=shards, strategy=strategy, progress=False
    )  # fmt: skip
    trainer.fit(sn.data.DataLoader(data, batch))


def at_the_end(look):
    """Let look(engine, close) replace what ends an engine."""
    original = Ranks.close
    Ranks.close = lambda self, *error: look(self, functools.partial(original, self, *error))


def say(*words):
    sys.stdout.write(f"<{' '.join(map(str, words))}>\n")
    sys.stdout.flush()


def say_memory(engine, close):
    taken = 512 * os.fstat(engine.arena.memory.fd).st_blocks
    say(f"{taken / engine.arena.slots.shape[-1]:.1f}")
    close()


def memory():
    """Committed memory of a machine, in sizes of a slot."""

    at_the_end(say_memory)
    for shards in (8, 2):
        fit((256, 512, 10), shards, 16, momentum=0.9)


def stages():
    """The same of a model in two stages."""
    at_the_end(say_memory)
    fit((400, *(400,) * 6), 4, 16, strategy=sn.parallel.Pipeline(2, "parameters"), momentum=0.9)


def messages():
    """Were there persistent requests of MPI before an engine was closed, and how many are left afterwards?"""

    def look(engine, close):
        made = [found for found in gc.get_objects() if isinstance(found, library().Prequest) and found]
        close()
        say(len(made) > 0, sum(map(bool, made)))

    at_the_end(look)
    for shards in (2, 8):
        fit((3, 2), shards, 8)


def bytes():
    """Bytes that a rank sends in 8 steps, in sizes of the gradient, all and while it computes; sums that it has."""
    sent, steps = {"all": 0, "early": 0}, 8
    start, send_final = slices.Messages.start, slices.Slices.send_final

    def counted(self, messages):
        messages, own = list(messages), {id(request) for sends in self.sends.values() for _, request in sends}
        sent["all"] += sum(extent.nbytes for extent, request in messages if id(request) in own)
        start(self, messages)

    def early(self, *final):
        before = sent["all"]
        send_final(self, *final)
        sent["early"] += sent["all"] - before

    def look(engine, close):
        used, n = engine._slices, engine.replica.layout.parameter_bytes * steps
        sums = len(used._subtrees[used.machine.number])
        say(shards, sums, *(f"{x:.2f}" for x in (sent["all"] / n, sent["early"] / n)))
        close()

    slices.Messages.start, slices.Slices.send_final = counted, early
    at_the_end(look)
    for shards in (4, 8, 10):
        sent["all"] = sent["early"] = 0
        fit((256, 512, 512, 10), shards, 10 * steps, batch=10)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
