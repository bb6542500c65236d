"""What the engines of the benchmark have in common: the network, its data, arrays, and how a call is timed.

A request names a method of `Engine`, such as `steps`; it returns a `Measure`, which is then asked again and again.
"""

import itertools
import math
import os
import time

import numpy as np
from convolution import NETWORKS, peak_memory, samples

LR, MOMENTUM, BATCH = 0.05, 0.9, 64
IMAGE_LR = 1e-4  # of convolutional networks: at a larger one their losses part by rounding alone within 16 steps
BATCHES = 8  # batches of data that take turns
RANKS = 2  # processes of collectives, and of a pool that is compared
ELEMENTS = (512, 1024)  # shape of the arrays that kernels other than products work on: 2 MiB each
ARRAYS = {  # kernel: how many such arrays it reads and writes
    **dict.fromkeys(("copy", "exp", "log", "tanh", "sigmoid", "gelu", "relu", "softmax"), 2),
    **dict.fromkeys(("layer norm", "batch norm", "dropout", "gather rows"), 2),
    "cross-entropy": 1,
    **dict.fromkeys(("add", "scatter-add rows"), 3),
    "sgd": 5,
    **dict.fromkeys(("adam", "rmsprop"), 7),
}
OPTIMIZERS = {  # as scratchnet and PyTorch call them
    "sgd": ("SGD", {"lr": LR, "momentum": MOMENTUM}),
    "adam": ("Adam", {"lr": LR}),
    "rmsprop": ("RMSprop", {"lr": LR, "momentum": MOMENTUM}),
}
ROWS = np.random.default_rng(0).integers(0, ELEMENTS[0], ELEMENTS[0])  # rows to gather or to add to; labels


def initial_layers(widths, seed):
    """[(weight (in, out), bias (out,)), ...], U(-1 / sqrt(in), 1 / sqrt(in)), float32: the same for every engine."""
    rng = np.random.default_rng(seed)
    shapes = itertools.pairwise(widths)
    return [
        tuple(rng.uniform(-1, 1, s).astype(np.float32) / math.sqrt(s[0]) for s in ((i, o), (o,))) for i, o in shapes
    ]


def orders(n, seed):
    """For each epoch, the order of the samples that sn.data.DataLoader(shuffle=True, seed=seed) takes."""
    for epoch in itertools.count():
        yield np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,))).permutation(n)


def training_step(loss_of, optimizer):
    """The step of every library with PyTorch's names; loss_of(*batch) is the model's loss on a batch, such as x, y."""

    def step(*batch):
        optimizer.zero_grad()
        loss = loss_of(*batch)
        loss.backward()
        optimizer.step()
        return loss

    return step


def scaled(images):
    return images.astype(np.float32) * np.float32(1 / 255)


def bind(rank):
    """This process to a core of its own, as mpirun does with two ranks: else the system may put both on one."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})


# --- arrays -----------------------------------------------------------------------------------------------------------


def aligned(shape):
    """float32 memory that begins with a line of cache, as PyTorch's, JAX's and scratchnet's own does."""
    memory = np.empty(4 * math.prod(shape) + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + 4 * math.prod(shape)].view(np.float32).reshape(shape)


def random_array(shape, seed=0):
    array = aligned(shape)
    np.random.default_rng(seed).random(out=array, dtype=np.float32)
    return array


def operands(count):
    """Arrays of numbers from 0.1 to 1.1."""
    arrays = [random_array(ELEMENTS, k) for k in range(count)]
    for array in arrays:
        array += np.float32(0.1)
    return arrays


def product(a, b, transpose_a, transpose_b):
    """Memory for op(a) @ op(b)."""
    return aligned((a.shape[1 if transpose_a else 0], b.shape[0 if transpose_b else 1]))


# --- measuring --------------------------------------------------------------------------------------------------------


def time_calls(call, seconds, wait=lambda result: None):
    """Seconds that one call takes, the mean over about `seconds`; a fifth of that before it warms the caches."""
    start, n = time.perf_counter(), 0
    while n == 0 or time.perf_counter() - start < seconds / 5:
        result, n = call(), n + 1
    wait(result)
    count = math.ceil(seconds * n / (time.perf_counter() - start))
    start = time.perf_counter()
    for _ in range(count):
        result = call()
    wait(result)
    return (time.perf_counter() - start) / count


class Measure:
    """What is measured again and again. facts: what else there is to say of it."""

    def __init__(self, facts=()):
        self.facts = dict(facts)

    def measure(self, seconds):
        """The facts and the seconds that it takes once, from a turn of about `seconds`."""
        return self.facts

    def close(self):
        pass


class Timed(Measure):
    def __init__(self, call, wait, facts=()):
        super().__init__(facts)
        self.call, self.wait = call, wait

    def measure(self, seconds):
        return self.facts | {"seconds": time_calls(self.call, seconds, self.wait)}


class Turns(Measure):
    """Steps of other processes: a subclass writes `turn(steps)`, the seconds that so many steps take."""

    seconds = None  # a step

    def measure(self, seconds):
        if self.seconds is None:
            self.seconds = self.turn(8) / 8
        steps = max(4, round(seconds / self.seconds))
        self.seconds = self.turn(steps) / steps
        return self.facts | {"seconds": self.seconds}


class Engine:
    """A library that trains one network; x is float32 (b, features) in [0, 1], y int64 (b,), both NumPy arrays.

    A subclass writes `network`, which sets `self.step(x, y) -> loss` for batches in the library's own form, and the
    parts that differ from plain NumPy. `gemm` and `kernel` return what is timed, or None.
    """

    def __init__(self, threads, folder):
        self.threads, self.folder = threads, folder

    def network(self, widths, seed):
        raise NotImplementedError

    def images(self, network):
        """The same for one of convolution.py."""
        raise NotImplementedError

    def place(self, array):
        """A NumPy array in the library's own form."""
        return array

    def load(self, images, labels, seed):
        """Gets ready for epochs over images, uint8 (n, features)."""
        self.x, self.y = self.place(scaled(images)), self.place(labels)
        self.orders = map(self.place, orders(len(labels), seed))

    def epoch(self):
        order = next(self.orders)
        for k in range(0, len(order), BATCH):
            loss = self.step(self.x[order[k : k + BATCH]], self.y[order[k : k + BATCH]])
        self.wait(loss)

    def wait(self, result):
        """Returns when `result` is computed."""

    def gemm(self, a, b, transpose_a, transpose_b):
        return None

    def kernel(self, name):
        return None

    # --- requests ---

    def data(self, part):
        return [np.load(f"{self.folder}/{part}-{what}.npy") for what in ("images", "labels")]

    def first_rows(self, batch_size):
        """Images and labels of BATCHES batches: the samples again, if there are too few."""
        return [array.take(range(BATCHES * batch_size), axis=0, mode="wrap") for array in self.data("train")]

    def steps(self, widths, batch_size, warm=16):
        """A step on each batch in turn. The loss of step `warm` shows that all engines do the same work."""
        self.network(widths, seed=0)
        images, labels = self.first_rows(batch_size)
        x, place, cuts = (
            scaled(images),
            self.place,
            [slice(k, k + batch_size) for k in range(0, len(labels), batch_size)],
        )
        batches = itertools.cycle([(place(x[cut].copy()), place(labels[cut].copy())) for cut in cuts])
        losses = [float(self.step(*next(batches))) for _ in range(warm)]
        return Timed(lambda: self.step(*next(batches)), self.wait, {"loss": losses[-1]})

    def convolution(self, network):
        """A step of a convolutional network on one batch. Memory: of the process, when the network is warm."""
        self.images(NETWORKS[network])
        batch = [self.place(array) for array in samples(NETWORKS[network])]
        losses = [float(self.step(*batch)) for _ in range(16)]
        return Timed(lambda: self.step(*batch), self.wait, {"loss": losses[-1], "MB": peak_memory()})

    def inference(self, widths, batch_size):
        """From samples as a NumPy array to logits as one. Their loss shows that all engines do the same work."""
        self.network(widths, seed=0)
        images, labels = self.first_rows(batch_size)
        x, y = scaled(images[:batch_size]), labels[:batch_size]
        logits = np.asarray(self.logits(x), np.float64)
        loss = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]
        return Timed(lambda: self.logits(x), self.wait, {"loss": float(loss.mean())})

    def epochs(self, widths):
        self.network(widths, seed=0)
        self.load(*self.data("train"), seed=0)
        self.epoch()
        return Timed(self.epoch, self.wait)

    def accuracy(self, widths, goal, seed):
        """Trains until `goal` of the test images are right; the caller's clock has run since this process began.

        Engines start from the same weights and, but for torch-loader, see the same batches; yet rounding alone makes
        some need more epochs than others, because accuracy swings by a percent from epoch to epoch at this rate.
        """
        self.network(widths, seed)
        self.load(*self.data("train"), seed)
        images, labels = self.data("test")
        for epoch in range(1, 61):
            self.epoch()
            reached = float((self.logits(scaled(images)).argmax(axis=1) == labels).mean())
            if reached >= goal:
                return Measure({"epochs": epoch, "accuracy": reached})
        raise RuntimeError(f"{reached:.2%} after {epoch} epochs")

    def products(self, m, k, n, transpose_a, transpose_b):
        a = random_array((k, m) if transpose_a else (m, k))
        b = random_array((n, k) if transpose_b else (k, n), 1)
        call = self.gemm(a, b, transpose_a, transpose_b)
        return call and Timed(call, self.wait)

    def kernels(self, kernel):
        call = self.kernel(kernel)
        return call and Timed(call, self.wait)
