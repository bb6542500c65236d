"""The engines of bench.py's section `pool`: training steps that processes share, and what a pool costs.

Each of them, given a network and a batch size, takes turns: `turn(steps)` gives the seconds that so many steps took.
Between turns its processes are stopped, so that they do not disturb the others. engines.py starts them.
"""

import atexit
import contextlib
import os
import queue
import signal
import threading
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np

LR, MOMENTUM, BATCHES = 0.05, 0.9, 8  # so many batches of data take turns


class Turns:
    """Steps in turns. facts: of the work, besides its time."""

    def __init__(self, facts):
        self.facts, self.seconds = facts, None

    def turn(self, steps):
        raise NotImplementedError

    def measure(self, seconds):
        """Seconds a step, in a turn of about `seconds`."""
        if self.seconds is None:
            self.seconds = self.turn(8) / 8
        steps = max(4, round(seconds / self.seconds))
        self.seconds = self.turn(steps) / steps
        return self.facts | {"seconds": self.seconds}

    def close(self):
        pass


class Alone(Turns):
    """Steps of one process with several threads."""

    def __init__(self, call, wait, facts):
        super().__init__(facts)
        self.call, self.wait = call, wait

    def turn(self, steps):
        start = time.perf_counter()
        for _ in range(steps):
            result = self.call()
        self.wait(result)
        return time.perf_counter() - start


def first_rows(images, labels, batch_size):
    """The data of BATCHES batches: the samples again, if there are too few."""
    return (array.take(range(BATCHES * batch_size), axis=0, mode="wrap") for array in (images, labels))


# --- scratchnet -------------------------------------------------------------------------------------------------------


def workers_of(pid):
    """Worker processes that a process started."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return sorted(found)


class Loss:
    """Cross entropy, which takes guards off in each process that it comes to: without: see unguarded.py."""

    def __init__(self, criterion, without):
        self.criterion, self.without = criterion, without

    def __call__(self, output, target):
        return self.criterion(output, target)

    def __setstate__(self, state):
        self.__dict__.update(state)
        if self.without:
            from unguarded import unguard

            unguard(self.without)


class Stop(Exception):
    """Ends a run that has no other end."""


class PoolTurns(Turns):
    """A run of sn.Trainer whose epochs are turns: its loader waits at the start of each to be asked for steps."""

    def __init__(self, workers, without, model, images, labels, batch_size, shards):
        import scratchnet as sn

        rows = np.arange(BATCHES * batch_size).reshape(BATCHES, batch_size)
        requests, answers = self.requests, self.answers = queue.Queue(), queue.Queue()

        class Loader(sn.data.DataLoader):
            first, probed = 0, workers == 1

            def batch_indices(self, epoch, first=0):
                if not self.probed:  # a pool looks at the first batch before the run begins
                    self.probed = True
                    yield rows[0]
                    return
                answers.put(time.perf_counter())
                steps = requests.get()
                if steps is None:
                    raise Stop
                answers.put(time.perf_counter())
                for k in range(self.first, self.first + steps):
                    yield rows[k % BATCHES]
                self.first += steps

        loader = Loader(sn.data.TensorDataset(*first_rows(images, labels, batch_size), scale=1 / 255), batch_size)
        optimizer = sn.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
        loss = Loss(sn.nn.CrossEntropyLoss(), without)
        trainer = sn.Trainer(model, optimizer, loss, workers=workers, shards=shards, progress=False)
        self.thread = threading.Thread(target=self._run, args=(trainer, loader), daemon=True)
        with watched_pools() as pools:
            self.begun = time.perf_counter()
            self.thread.start()
            self._answer()
        atexit.register(self.close)  # who waits for processes that are stopped waits for ever
        self.pool = pools[0] if pools else None
        super().__init__({})
        self.turn(1)
        self.seconds_to_first_step = time.perf_counter() - self.begun
        self.turn(15)
        x, y = map(sn.Tensor, loader.dataset.gather(rows[0]))
        self.facts["loss"] = loss(model(x), y).item()

    def _run(self, trainer, loader):
        try:
            trainer.fit(loader, epochs=10**9)
        except Stop:
            pass
        except BaseException as error:
            self.answers.put(error)

    def turn(self, steps):
        self.signal(signal.SIGCONT)
        self.requests.put(steps)
        start, end = self._answer(), self._answer()
        self.signal(signal.SIGSTOP)
        return end - start

    def _answer(self):
        answer = self.answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def signal(self, number):
        for pid in workers_of(os.getpid()):
            os.kill(pid, number)

    def close(self):
        atexit.unregister(self.close)
        self.signal(signal.SIGCONT)
        self.requests.put(None)
        self.thread.join()

    # --- what a pool costs ---

    def measure(self, seconds):
        if self.pool is not None and "USS MB" not in self.facts:
            super().measure(seconds)  # so that all they need is there
            found = [smaps(pid) for pid in workers_of(os.getpid())]
            self.facts |= {name: sum(row[name] for row in found) / len(found) for name in found[0]}
        return super().measure(seconds)

    def merge(self, seconds):
        """Seconds that the merge and update of a step take: of the worker that takes longest."""
        before = [row["merging"] for row in self.pool.report()]
        steps = max(4, round(seconds / self.seconds)) if self.seconds else 4
        self.seconds = self.turn(steps) / steps
        return {
            "seconds": max(row["merging"] - old for row, old in zip(self.pool.report(), before, strict=True)) / steps
        }

    def recover(self, seconds):
        """Kill worker 1 while it has a piece of a step: seconds until that step is committed."""
        arena, begun = self.pool.arena, self.pool.arena.committed()
        self.signal(signal.SIGCONT)
        self.requests.put(2000)
        self._answer()
        while arena.committed() < begun + 200:
            time.sleep(0.001)
        pid = self.pool._processes.processes[1].pid
        while not any(pieces.owned(arena.words, 1) for pieces in arena.pieces):
            pass
        step, start = arena.committed(), time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        while arena.committed() <= step:
            time.sleep(0.0001)
        seconds = time.perf_counter() - start
        self._answer()
        self.signal(signal.SIGSTOP)
        return {"seconds": seconds}


class Start:
    """A pool from nothing to its first step, again and again."""

    def __init__(self, model, workers, data, batch_size, shards):
        self.begin = lambda: PoolTurns(workers, (), model(), *data, batch_size, shards)
        self.begin().close()

    def start(self, seconds):
        turns = self.begin()
        turns.close()
        return {"seconds": turns.seconds_to_first_step}

    def close(self):
        pass


def smaps(pid):
    """USS: private bytes. PSS beyond the arena: those, and its part of libraries that others have mapped, too."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kb = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
    return {
        "USS MB": (kb["Private_Clean"] + kb["Private_Dirty"]) / 1024,
        "PSS beyond the arena MB": (kb["Pss"] - kb["Pss_Shmem"]) / 1024,
    }


@contextlib.contextmanager
def watched_pools():
    """Inside, pools are kept in a list."""
    from scratchnet.parallel.pool import pool

    own, found = pool.Pool, []

    def kept(*args, **options):
        found.append(own(*args, **options))
        return found[-1]

    pool.Pool = kept
    try:
        yield found
    finally:
        pool.Pool = own


# --- PyTorch ----------------------------------------------------------------------------------------------------------


def ddp_rank(channel, rank, file, ranks, bind):
    """A rank of DistributedDataParallel over Gloo, with one thread; it waits to be asked for steps."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    bind(rank)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=ranks)
    layers, images, labels, batch_size = channel.recv()
    modules = []
    for weight, bias in layers:
        linear = torch.nn.Linear(*weight.shape)
        linear.load_state_dict({"weight": torch.from_numpy(weight).T, "bias": torch.from_numpy(bias)})
        modules += [linear, torch.nn.ReLU()]
    model = DistributedDataParallel(torch.nn.Sequential(*modules[:-1]), gradient_as_bucket_view=True, static_graph=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, fused=True)
    criterion = torch.nn.CrossEntropyLoss()
    x, y = (torch.from_numpy(a) for a in (images.astype(np.float32) * np.float32(1 / 255), labels.astype(np.int64)))
    own = batch_size // ranks
    cuts = [slice(k * batch_size + rank * own, k * batch_size + (rank + 1) * own) for k in range(BATCHES)]
    batches = [(x[cut].clone(), y[cut].clone()) for cut in cuts]
    count = 0
    while (steps := channel.recv()) is not None:
        dist.barrier()
        start = time.perf_counter()
        for k in range(count, count + steps):
            inputs, targets = batches[k % BATCHES]
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
        channel.send((time.perf_counter() - start, loss.item()))
        count += steps
    dist.destroy_process_group()


class DdpTurns(Turns):
    def __init__(self, ranks, layers, images, labels, batch_size, file, bind):
        context = get_context("spawn")
        pipes = [context.Pipe() for _ in range(ranks)]
        self.channels = [ours for ours, _ in pipes]
        self.processes = [
            context.Process(target=ddp_rank, args=(theirs, rank, file, ranks, bind), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self.processes:
            process.start()
        data = tuple(first_rows(images, labels, batch_size))
        for channel in self.channels:
            channel.send((layers, *data, batch_size))
        super().__init__({})
        self.turn(17)  # the last one's loss is that after 16 steps
        self.facts["loss"] = sum(self.losses) / ranks

    def turn(self, steps):
        for channel in self.channels:
            channel.send(steps)
        seconds, self.losses = zip(*(channel.recv() for channel in self.channels), strict=True)
        return max(seconds)

    def close(self):
        for process, channel in zip(self.processes, self.channels, strict=True):
            channel.send(None)
            process.join()


# --- the floor of a merge ---------------------------------------------------------------------------------------------


def copying_rank(channel, rank, memory, ranks, bind):
    """Copies one half of its part of the shared memory to the other, as often as it is told."""
    bind(rank)
    half = memory.size // (2 * ranks)
    source, target = (memory.array((2 * rank + i) * half, half, np.uint8) for i in (0, 1))
    source[:] = target[:] = 1
    while True:
        count = channel.recv()
        start = time.perf_counter()
        for _ in range(count):
            np.copyto(target, source)
        channel.send((time.perf_counter() - start) / count)


class Floor:
    """As many bytes as a merge and update has to move, moved by as many processes as fast as they copy."""

    def __init__(self, ranks, parameters, shards, bind):
        from scratchnet.parallel.comm.memory import SharedMemory
        from scratchnet.parallel.pool.launch import Workers

        moved = 4 * parameters * (shards + 4)  # reads shards, parameters and momentum; writes the latter two
        self.workers = Workers(ranks, copying_rank, SharedMemory(moved), ranks, bind)  # which reads half, writes half

    def merge(self, seconds):
        self.workers.send_all(max(2, round(seconds / 0.005)))
        return {"seconds": max(channel.recv() for channel in self.workers.channels)}

    def close(self):
        self.workers.end()
