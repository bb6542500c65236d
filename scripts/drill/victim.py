"""The run that drill.py disturbs: a tiny training job that prints a digest of its final bytes.

Workers fail at the points of scratchnet.parallel.failpoints; `--strike` names points of the parent. Data and limits can
be bad, too. On standard output: one line of JSON, whatever happened.
"""

import contextlib
import errno
import functools
import gc
import hashlib
import itertools
import json
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import multiprocess
import numpy as np
from multiprocess import resource_tracker

import scratchnet as sn
from scratchnet import parallel, precisions
from scratchnet.flags import flag, run_script
from scratchnet.formats import checkpoint
from scratchnet.parallel.comm import server
from scratchnet.parallel.failpoints import note
from scratchnet.parallel.pool import launch, pool

SAMPLES, FEATURES, CLASSES, BATCH = 50, 6, 3, 8  # the last batch has 2 samples: with 4 or 8 shards, some are empty
SAVE_EVERY = 4
JOBS = {  # options of the Trainer; all of these promise the same bytes
    "all_reduce": {},
    "parameter_server": {"strategy": parallel.ParameterServer(staleness=0)},
    "stale": {"strategy": parallel.ParameterServer(staleness=2)},
    "local_sgd": {"strategy": parallel.LocalSGD(every=3)},
    "top_k": {"strategy": parallel.AllReduce(compression=parallel.TopK(0.3)), "clip_norm": 0.5},
    "power_sgd": {"strategy": parallel.AllReduce(compression=parallel.PowerSGD(1))},
    "bfloat16": {"precision": "bfloat16"},
    "tensor_parallel": {"strategy": parallel.TensorParallel(2)},
    "pipeline": {"strategy": parallel.Pipeline(2)},
    "shared_parts": {"strategy": parallel.Pipeline(1, parts=2)},
}


@dataclass
class Config:
    """Train a tiny network in a pool of processes, under a fault."""

    folder: str = flag("run", "folder of the checkpoints")
    workers: int = flag(1, "processes")
    shards: int = flag(4, "logical shards a batch")
    epochs: int = flag(3, "passes over the data, of 7 steps each")
    optimizer: str = flag("momentum", "rule of the updates", ["momentum", "adam"])
    strategy: str = flag("all_reduce", "how gradients become new parameters", list(JOBS))
    data: str = flag("plain", "data set", ["plain", "nan", "raises", "kills"])
    strike: str = flag("", "point:number:signal in the parent, an error's name or stopped-server; several by commas")
    resize: str = flag("", "batch:workers, from that batch on; several separated by commas")
    memory: int | None = flag(None, "bytes of address space of a worker")
    processes: int | None = flag(None, "processes that can be started in all")
    file_size: int | None = flag(None, "bytes of the largest file, one in memory included")
    patience: float = flag(30.0, "seconds without progress after which a worker counts as stuck")
    ready: float = flag(20.0, "seconds that the first step waits for all workers, so that each takes part")


# --- the job ----------------------------------------------------------------------------------------------------------


class Loss:
    """Cross entropy, NaN for large outputs. Unpickled in a worker, it creates a file: this worker is ready."""

    def __init__(self, folder):
        self.folder, self.criterion = folder, sn.nn.CrossEntropyLoss()

    def __call__(self, output, target):
        return self.criterion(output, target) + (1e6 - output.abs().max()).log() * 0.0

    def __setstate__(self, state):
        precisions.LEAST.clear()
        self.__dict__.update(state)
        Path(self.folder, f"ready-{os.getpid()}").touch()


class Bad:
    """A dataset whose sample 17 does something to a worker that fetches it."""

    def __init__(self, dataset, act):
        self.dataset, self.act = dataset, act

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        if index == 17 and multiprocess.parent_process() is not None:
            note(f"sample:17:{self.act.__name__}")
            self.act()
        return self.dataset[index]


def raises():
    raise ValueError("sample 17 is bad")


def kills():
    os.kill(os.getpid(), signal.SIGKILL)


def samples(kind):
    rng = np.random.default_rng(0)
    centers = 3 * rng.standard_normal((CLASSES, FEATURES))
    y = rng.integers(0, CLASSES, SAMPLES)
    x = (centers[y] + rng.standard_normal((SAMPLES, FEATURES))).astype(np.float32)
    if kind == "nan":
        x[17] = 1e12  # see Loss
        note("sample:17:nan")
    act = {"raises": raises, "kills": kills}.get(kind)
    dataset = sn.data.TensorDataset(x, y)
    return Bad(dataset, act) if act else dataset


def make(config):
    """A trainer and its loader: dropout, a rule with state, a schedule, shuffling."""
    sn.manual_seed(1)
    model = sn.nn.MLP(FEATURES, 8, CLASSES, dropout=0.3)
    rules = {
        "momentum": lambda p: sn.optim.SGD(p, 0.05, momentum=0.9),
        "adam": lambda p: sn.optim.Adam(p, 0.01),
    }
    optimizer = rules[config.optimizer](model.parameters())
    schedule = sn.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=1000)
    loader = sn.data.DataLoader(samples(config.data), BATCH, shuffle=True, seed=3)
    trainer = sn.Trainer(
        model, optimizer, Loss(config.folder), schedule, workers=config.workers, shards=config.shards,
        folder=config.folder, save_every=SAVE_EVERY, progress=False, **JOBS[config.strategy],
    )  # fmt: skip
    return trainer, loader


def digest(trainer, history):
    """SHA-256 of what the caller holds after `fit`, and of the newest checkpoint."""
    state = {"model": trainer.model, "optimizer": trainer.optimizer, "history": history.records}
    newest = max(Path(trainer.folder).glob("checkpoint-*.safetensors"))
    return hashlib.sha256(checkpoint.dumps(state) + newest.read_bytes()).hexdigest()


# --- faults of the parent, limits -------------------------------------------------------------------------------------


def strikes(plans):
    """strike(point, number): what is planned there. A signal to this process (Ctrl-C: to its group), or an OSError."""
    plans = [plan.split(":") for plan in plans.split(",") if plan]

    def strike(point, number):
        for name, when, how in plans:
            if (name, when) == (point, str(number)):
                note(f"{name}:{when}:parent:{how}")
                if how in errno.errorcode.values():
                    raise OSError(getattr(errno, how), os.strerror(getattr(errno, how)))
                if how == "SIGINT":
                    os.killpg(0, signal.SIGINT)
                elif how == "stopped-server":
                    for child in multiprocess.active_children():
                        if child.name == server.NAME:
                            os.kill(child.pid, signal.SIGSTOP)
                else:
                    os.kill(os.getpid(), signal.Signals[how])

    return strike


class WatchedPool(pool.Pool):
    """A pool whose parent can be struck, and that notes how often each worker was started."""

    def __init__(self, config, strike, *args, **options):
        self.strike, self.folder, self.wait = strike, Path(config.folder), config.ready
        super().__init__(*args, **options, patience=config.patience)

    def _warm_up(self, *job):
        self.strike("starting", 0)
        super()._warm_up(*job)

    def submit_step(self, *step):
        deadline = time.monotonic() + self.wait
        while time.monotonic() < deadline and not self.all_ready():
            self._watch()
        self.wait = 0
        self.strike("submit", self.submitted)
        super().submit_step(*step)

    def close(self, error=None):
        facts["starts"] = self.arena.starts[: self.workers].tolist()
        super().close(error)

    def all_ready(self):
        running = [p for rank, p in enumerate(self._processes.processes) if rank not in self._missing]
        return all((self.folder / f"ready-{process.pid}").exists() for process in running)


def limit_files(config):
    """Of this process; a file in memory is one, and there RLIMIT_FSIZE is as good as a full memory."""
    if config.file_size is not None:
        note(f"file size:{config.file_size}")
        sys.dont_write_bytecode = True  # half a module would be there for all who import it later
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # of workers
        resource.setrlimit(resource.RLIMIT_FSIZE, (config.file_size, config.file_size))


def limit_workers(config):
    """Limits of new processes. (RLIMIT_NPROC itself does not bind the superuser.)"""
    start, left = launch.Process.start, [10**6 if config.processes is None else config.processes]

    def limited(process):
        if process.name != server.NAME:
            if not left[0]:
                note("processes:none:left")
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            left[0] -= 1
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        if config.memory is not None:
            note(f"memory:{config.memory}")
        resource.setrlimit(resource.RLIMIT_AS, (soft if config.memory is None else config.memory, hard))
        try:
            return start(process)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

    launch.Process.start = limited


def resize_at(trainer, loader, plans):
    """Workers come and go while the run is under way."""
    plans = dict(map(int, plan.split(":")) for plan in plans.split(",") if plan)
    batches_of, count = loader.batch_indices, itertools.count()

    def batch_indices(*args):
        for positions in batches_of(*args):
            if (workers := plans.get(next(count))) is not None:
                note(f"resize:{workers}")
                trainer.resize(workers)
            yield positions

    loader.batch_indices = batch_indices


def strike_at_renames(strike):
    """Points before and after each rename of a checkpoint, by number."""
    replace, count = os.replace, iter(range(10**6))

    def struck(*args):
        number = next(count)
        strike("save.written", number)
        replace(*args)
        strike("save.renamed", number)

    os.replace = struck


# --- the report -------------------------------------------------------------------------------------------------------

facts = {}


def open_files():
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[entry] = os.readlink(f"/proc/self/fd/{entry}")
    kept = set(map(str, server.files()))
    return {(fd, target) for fd, target in found.items() if not target.startswith("/proc") and fd not in kept}


def main(config):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what runs in its background ignore it
    precisions.LEAST.clear()  # here, and in workers by Loss: products as small as these are rounded, too
    server.ANSWERS = config.patience
    Path(config.folder).mkdir(parents=True, exist_ok=True)
    resource_tracker.ensure_running()
    trainer, loader = make(config)
    strike = strikes(config.strike)
    strike_at_renames(strike)
    resize_at(trainer, loader, config.resize)
    limit_workers(config)
    limit_files(config)
    pool.Pool = functools.partial(WatchedPool, config, strike)
    before, end = open_files(), None
    try:
        history = trainer.fit(loader, loader, epochs=config.epochs, resume="auto")
        facts["digest"] = digest(trainer, history)
    except BaseException as error:  # an interrupt, too; without its frames, which hold arrays of the pool
        facts.update(error=type(error).__name__, notes="".join(getattr(error, "__notes__", [])))
        end = error.with_traceback(None)
        end.__context__ = end.__cause__ = None
    gc.collect()
    print(json.dumps(facts | {"files": sorted(open_files() - before)}), flush=True)
    if end is not None:
        raise end


if __name__ == "__main__":
    run_script(main, Config)
