"""The engines that bench.py measures: the same network and the same work, each at its best.

bench.py starts `python engines.py NAME THREADS FOLDER` for each engine, once, and sends it one JSON request a line;
each answer is one JSON line. A process imports its own engine's file only, so that start-up times are its own. FOLDER
holds the data as .npy files. A new peer is one class, as engine.py says, and one row of ENGINES.
"""

import json
import os
import sys
from importlib import import_module
from typing import NamedTuple

TRAINS = ("steps", "epochs", "accuracy")
INFERS = (*TRAINS, "inference")
IMAGES = (*INFERS, "convolution")


class Peer(NamedTuple):
    """Where an engine's class stands, the module that it needs, the sections in which it takes part, its options."""

    where: str
    needs: str
    sections: tuple[str, ...]
    options: dict = {}  # noqa: RUF012 never changed

    def start(self, threads, folder):
        file, _, name = self.where.rpartition(".")
        return getattr(import_module(file), name)(threads, folder, **self.options)


def pool(workers, without=()):
    return Peer("pool_engine.Pool", "scratchnet", ("pool",), {"workers": workers, "without": without})


ENGINES = {
    "scratchnet": Peer("scratchnet_engine.Scratchnet", "scratchnet", ("kernels", *IMAGES, "collectives", "pool")),
    "scratchnet-eager": Peer("scratchnet_engine.Eager", "scratchnet", IMAGES),
    "torch": Peer("peers.torch_engine.Torch", "torch", ("kernels", *IMAGES)),
    "torch-compile": Peer("peers.torch_engine.Compile", "torch", TRAINS),
    "torch-loader": Peer("peers.torch_engine.Loader", "torch", ("epochs",)),
    "onnxruntime": Peer("peers.onnx_engine.OnnxRuntime", "onnxruntime", ("inference",)),
    "jax": Peer("peers.jax_engine.Jax", "jax", ("kernels", *INFERS)),
    "jax-scan": Peer("peers.jax_engine.Scan", "jax", ("epochs", "accuracy")),
    "scikit-learn": Peer("peers.numpy_engine.ScikitLearn", "sklearn", ("steps",)),
    "numpy": Peer("peers.numpy_engine.NumPy", "numpy", ("kernels", *INFERS)),
    "openmpi": Peer("collectives.Mpi", "mpi4py", ("collectives",)),
    "mpi-exact": Peer("collectives.Mpi", "mpi4py", ("collectives",), {"order": "exact"}),
    "mpi-fast": Peer("collectives.Mpi", "mpi4py", ("collectives",), {"order": "fast"}),
    "gloo": Peer("collectives.Gloo", "torch", ("collectives",)),
    **{f"pool-{n}": pool(n) for n in (1, 2, 3, 4)},
    "pool-2-one-page": pool(2, without=("pages",)),
    "pool-2-unguarded": pool(2, without=("pages", "claims")),
    "ddp-gloo": Peer("peers.torch_engine.Ddp", "torch", ("pool",)),
    "copies": Peer("limits.Copies", "scratchnet", ("pool",)),
    "registers": Peer("limits.Registers", "llvmlite", ("peak",)),
}


def main(name, threads, folder):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    built = {}  # the measure that was asked for last
    for line in sys.stdin:
        request, work, seconds = json.loads(line)
        try:
            if (key := json.dumps((request, work))) not in built:
                for old in filter(None, built.values()):
                    old.close()
                built.clear()  # the work before this is done: free its memory
                built[key] = getattr(ENGINES[name].start(int(threads), folder), request)(**work)
            measure = built[key]
            answer = getattr(measure, work.get("what", "measure"))(seconds) if measure else {"seconds": None}
        except Exception as error:  # a peer that cannot do this work is reported, and the others go on
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:160]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
