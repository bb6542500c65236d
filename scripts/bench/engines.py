"""The engines that scripts/bench/bench.py measures: the same network and the same work, each at its best.

bench.py starts `python engines.py NAME THREADS FOLDER` for each engine, once, and sends it one JSON request a line;
each answer is one JSON line. An engine imports its own library only, so that start-up times are its own. FOLDER holds
the data as .npy files. A new peer is one class and one row of ENGINES.
"""

import ctypes
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from pool_engines import Alone, DdpTurns, Floor, PoolTurns, Start, first_rows

LR, MOMENTUM, BATCH = 0.05, 0.9, 64
ELEMENTS = (512, 1024)  # of the arrays that the kernels other than products work on: 2 MiB each
ARRAYS = {  # kernel: how many such arrays it reads and writes
    **dict.fromkeys(("copy", "exp", "log", "tanh", "sigmoid", "gelu", "relu", "softmax"), 2),
    **dict.fromkeys(("layer norm", "batch norm", "dropout", "gather rows"), 2),
    "cross-entropy": 1,
    **dict.fromkeys(("add", "scatter-add rows"), 3),
    "sgd": 5,
    **dict.fromkeys(("adam", "rmsprop"), 7),
}
OPTIMIZERS = {  # as scratchnet and PyTorch call them
    "sgd": ("SGD", {"momentum": MOMENTUM}),
    "adam": ("Adam", {}),
    "rmsprop": ("RMSprop", {"momentum": MOMENTUM}),
}
ROWS = np.random.default_rng(0).integers(0, ELEMENTS[0], ELEMENTS[0])  # which rows are gathered, or added to; labels


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


# --- the engines ------------------------------------------------------------------------------------------------------


class Engine:
    """A library that trains one network; x is float32 (b, features) in [0, 1], y int64 (b,), both NumPy arrays.

    A subclass writes `network`, which sets `self.step(x, y) -> loss` for batches in the library's own form, and the
    parts that differ from plain NumPy. `gemm` and `kernel` return what is timed, or None.
    """

    def __init__(self, threads):
        self.threads = threads

    def network(self, widths, seed):
        raise NotImplementedError

    def place(self, array):
        """A NumPy array in the library's own form."""
        return array

    def load(self, images, labels, seed):
        """Gets ready for epochs over images, uint8 (n, features)."""
        self.x, self.y = self.place(images.astype(np.float32) * np.float32(1 / 255)), self.place(labels)
        self.orders = orders(len(labels), seed)

    def epoch(self):
        order = self.place(next(self.orders))
        for k in range(0, len(order), BATCH):
            loss = self.step(self.x[order[k : k + BATCH]], self.y[order[k : k + BATCH]])
        self.wait(loss)

    def wait(self, result):
        """Returns when `result` is computed."""

    def logits(self, x):
        raise NotImplementedError

    def gemm(self, a, b, transpose_a, transpose_b):
        return None

    def kernel(self, name):
        return None


class Scratchnet(Engine):
    def __init__(self, threads):
        super().__init__(threads)
        import scratchnet as sn

        sn.set_num_threads(threads)
        self.sn = sn

    def transform(self, step):
        return self.sn.jit(step)

    def ranks(self):
        from scratchnet.parallel.comm.arena import Arena, warm_up

        warm_up()
        return LocalRanks(arena_rank, Arena(RANKS))

    def network(self, widths, seed):
        sn = self.sn
        self.model, cross_entropy = sn.nn.MLP(*widths), sn.nn.CrossEntropyLoss()
        values = itertools.chain(*initial_layers(widths, seed))
        self.model.load_state_dict(dict(zip(self.model.state_dict(), values, strict=True)))
        self.optimizer = sn.optim.SGD(self.model.parameters(), lr=LR, momentum=MOMENTUM)
        self.loss = lambda x, y: cross_entropy(self.model(x), y)
        self.step = self.transform(training_step(self.loss, self.optimizer))

    def place(self, array):
        return self.sn.Tensor(array)

    def load(self, images, labels, seed):
        dataset = self.sn.data.TensorDataset(images, labels, scale=1 / 255)
        self.loader, self.epochs = self.sn.data.DataLoader(dataset, BATCH, shuffle=True, seed=seed), itertools.count()
        gathering = training_step(lambda positions: self.loss(*dataset.select(positions)), self.optimizer)
        self.gathering_step = self.transform(gathering)

    def epoch(self):
        """As a Trainer does it: the step gathers the samples itself."""
        for positions in self.loader.batch_indices(next(self.epochs)):
            self.gathering_step(positions)

    def together(self, what, widths, batch_size, shards, data):
        """The threads of one process."""
        if what != "measure" or shards != RANKS:
            return None
        self.network(widths, seed=0)
        x, y = first_rows(*data, batch_size)
        x = x.astype(np.float32) * np.float32(1 / 255)
        batches = [(self.place(x[k : k + batch_size].copy()), self.place(y[k : k + batch_size].copy()))
                   for k in range(0, len(x), batch_size)]  # fmt: skip
        batches = itertools.cycle(batches)
        losses = [float(self.step(*next(batches))) for _ in range(17)]  # of which the last is that after 16 steps
        return Alone(lambda: self.step(*next(batches)), self.wait, {"loss": losses[-1]})

    def logits(self, x):
        with self.sn.no_grad():
            return self.model(self.sn.Tensor(x)).numpy()

    def gemm(self, a, b, transpose_a, transpose_b):
        matmul, out = self.sn.kernels.device("cpu").matmul, product(a, b, transpose_a, transpose_b)
        return lambda: matmul(a, b, out, transpose_a, transpose_b)

    def kernel(self, name):
        sn, (x, y) = self.sn, operands(2)
        kernels, out = sn.kernels.device("cpu"), aligned(x.shape)
        if name in OPTIMIZERS:
            parameter = sn.Tensor(x, requires_grad=True)
            parameter.grad = sn.Tensor(y)
            optimizer, options = OPTIMIZERS[name]
            return getattr(sn.optim, optimizer)([parameter], lr=LR, **options).step
        rows, wide, losses = x[:, :, None], x[None], np.empty(len(x), np.float32)
        calls = {
            "add": partial(kernels.add, x, y, out),
            "layer norm": partial(kernels.standardize, rows, out[:, :, None], 1e-5),
            "batch norm": partial(kernels.standardize, wide, out[None], 1e-5),
            "dropout": partial(kernels.dropout, x, out, 0.5, (0, 1)),
            "gather rows": partial(kernels.take_rows, x, ROWS, out),
            "scatter-add rows": partial(kernels.scatter_rows, x, ROWS, out),
            "cross-entropy": partial(kernels.cross_entropy, x, ROWS, losses),
        }
        return calls.get(name) or partial(getattr(kernels, name), x, out)


class ScratchnetEager(Scratchnet):
    def transform(self, step):
        return step

    def epoch(self):
        for x, y in self.loader:
            self.step(x, y)


class NumPy(Engine):
    """By hand: no allocation, one flat array of parameters, the learning rate folded into the gradient."""

    def network(self, widths, seed):
        layers = initial_layers(widths, seed)
        self.flat = np.concatenate([array.ravel() for layer in layers for array in layer])
        self.grad, self.velocity = np.empty_like(self.flat), np.zeros_like(self.flat)
        self.layers, at = [], 0
        for weight, bias in layers:
            cuts = at, at + weight.size, at + weight.size + bias.size
            flats = self.flat, self.grad
            w, dw = (f[cuts[0] : cuts[1]].reshape(weight.shape) for f in flats)
            b, db = (f[cuts[1] : cuts[2]] for f in flats)
            self.layers.append((w, b, dw, db))
            at = cuts[2]
        self.buffers = {}

    def memory(self, n):
        if n not in self.buffers:
            outputs = [np.empty((n, w.shape[1]), np.float32) for w, *_ in self.layers]
            self.buffers[n] = outputs, list(map(np.empty_like, outputs)), [np.empty(o.shape, bool) for o in outputs]
        return self.buffers[n]

    def step(self, x, y):
        outputs, grads, masks = self.memory(len(x))
        inputs, probabilities, rows = [x, *outputs], outputs[-1], np.arange(len(x))
        for k, (w, b, _, _) in enumerate(self.layers):
            np.dot(inputs[k], w, out=outputs[k])
            outputs[k] += b
            if k + 1 < len(self.layers):
                np.maximum(outputs[k], 0, out=outputs[k])
        probabilities -= probabilities.max(axis=1, keepdims=True)
        np.exp(probabilities, out=probabilities)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        loss = -np.log(probabilities[rows, y]).mean()
        probabilities[rows, y] -= 1
        np.multiply(probabilities, np.float32(LR / len(x)), out=grads[-1])
        for k in reversed(range(len(self.layers))):
            w, _, dw, db = self.layers[k]
            np.dot(inputs[k].T, grads[k], out=dw)
            np.add.reduce(grads[k], axis=0, out=db)
            if k:
                np.dot(grads[k], w.T, out=grads[k - 1])
                np.greater(outputs[k - 1], 0, out=masks[k - 1])
                grads[k - 1] *= masks[k - 1]
        self.velocity *= MOMENTUM
        self.velocity += self.grad
        self.flat -= self.velocity
        return loss

    def logits(self, x):
        for k, (w, b, _, _) in enumerate(self.layers):
            x = (np.maximum(x, 0) if k else x) @ w + b
        return x

    def gemm(self, a, b, transpose_a, transpose_b):
        out = product(a, b, transpose_a, transpose_b)
        return partial(np.matmul, a.T if transpose_a else a, b.T if transpose_b else b, out)

    def kernel(self, name):
        x, y = operands(2)
        out = aligned(x.shape)

        def softmax():
            np.subtract(x, x.max(axis=1, keepdims=True), out=out)
            np.exp(out, out=out)
            np.divide(out, out.sum(axis=1, keepdims=True), out=out)

        calls = {name: partial(getattr(np, name), x, out) for name in ("exp", "log", "tanh")}
        calls |= {"copy": partial(np.copyto, out, x), "relu": partial(np.maximum, x, np.float32(0), out)}
        return (calls | {"add": partial(np.add, x, y, out), "softmax": softmax}).get(name)


class ScikitLearn(Engine):
    def network(self, widths, seed):
        from sklearn.neural_network import MLPClassifier

        self.model = MLPClassifier(
            widths[1:-1], solver="sgd", alpha=0, learning_rate_init=LR, momentum=MOMENTUM, nesterovs_momentum=False,
            shuffle=False, batch_size=BATCH,
        )  # fmt: skip
        self.initial, self.classes = initial_layers(widths, seed), np.arange(widths[-1])

    def step(self, x, y):
        model = self.model
        if not hasattr(model, "coefs_"):  # its first call draws weights: put ours in their place
            model.partial_fit(x, y, classes=self.classes)
            for k, (weight, bias) in enumerate(self.initial):
                model.coefs_[k][...], model.intercepts_[k][...] = weight, bias
            for velocity in model._optimizer.velocities:
                velocity[...] = 0
        model.batch_size = len(x)
        model.partial_fit(x, y)
        return model.loss_


class Torch(Engine):
    def __init__(self, threads):
        super().__init__(threads)
        import torch

        torch.set_num_threads(threads)
        self.torch, self.transform = torch, lambda function: function

    def network(self, widths, seed):
        torch, layers = self.torch, []
        for weight, bias in initial_layers(widths, seed):
            linear = torch.nn.Linear(*weight.shape)
            linear.load_state_dict({"weight": torch.from_numpy(weight).T, "bias": torch.from_numpy(bias)})
            layers += [linear, torch.nn.ReLU()]
        self.model, cross_entropy = torch.nn.Sequential(*layers[:-1]), torch.nn.CrossEntropyLoss()
        optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, momentum=MOMENTUM, fused=True)  # its fastest
        self.step = training_step(self.transform(lambda x, y: cross_entropy(self.model(x), y)), optimizer)

    def place(self, array):
        return self.torch.from_numpy(array)

    def logits(self, x):
        with self.torch.no_grad():
            return self.model(self.place(x)).numpy()

    def gemm(self, a, b, transpose_a, transpose_b):
        out = self.place(product(a, b, transpose_a, transpose_b))
        a, b = self.place(a), self.place(b)
        return partial(self.torch.mm, a.T if transpose_a else a, b.T if transpose_b else b, out=out)

    def kernel(self, name):
        torch, (x, y) = self.torch, map(self.place, operands(2))
        out = torch.empty_like(x)
        if name in OPTIMIZERS:
            x.grad = y
            optimizer, options = OPTIMIZERS[name]
            fast = {"foreach": True} if name == "rmsprop" else {"fused": True}
            return getattr(torch.optim, optimizer)([x], lr=LR, **fast, **options).step
        calls = {name: partial(getattr(torch, name), x, out=out) for name in ("exp", "log", "tanh", "sigmoid")}
        calls |= {"copy": partial(out.copy_, x), "relu": partial(torch.clamp_min, x, 0, out=out)}
        calls |= {"gelu": partial(torch.nn.functional.gelu, x), "softmax": partial(torch.softmax, x, 1, out=out)}
        functional, rows = torch.nn.functional, torch.from_numpy(ROWS)
        calls |= {"layer norm": partial(functional.layer_norm, x, x.shape[1:])}
        calls |= {"batch norm": partial(functional.batch_norm, x, None, None, training=True)}
        calls |= {"dropout": partial(functional.dropout, x, 0.5), "add": partial(torch.add, x, y, out=out)}
        calls |= {"gather rows": partial(torch.index_select, x, 0, rows, out=out)}
        calls |= {"scatter-add rows": lambda: out.zero_().index_add_(0, rows, x)}
        calls |= {"cross-entropy": partial(functional.cross_entropy, x, rows, reduction="none")}
        return calls.get(name)


class TorchLoader(Torch):
    """Epochs through PyTorch's DataLoader, in this process (workers of its own cost more than they gain here)."""

    def load(self, images, labels, seed):
        super().load(images, labels, seed)
        dataset = self.torch.utils.data.TensorDataset(self.x, self.y)
        self.loader = self.torch.utils.data.DataLoader(dataset, BATCH, shuffle=True)

    def epoch(self):
        for x, y in self.loader:
            self.step(x, y)


class TorchCompile(Torch):
    def __init__(self, threads):
        super().__init__(threads)
        self.transform = partial(self.torch.compile, dynamic=False)


class Jax(Engine):
    def __init__(self, threads):
        super().__init__(threads)
        import jax

        self.jax = jax

    def network(self, widths, seed):
        jax, jnp, tree = self.jax, self.jax.numpy, self.jax.tree
        layers = [tuple(map(jnp.array, layer)) for layer in initial_layers(widths, seed)]
        self.state = layers, tree.map(jnp.zeros_like, layers)

        def forward(layers, x):
            x = x.astype(jnp.float32) * (1 / 255) if x.dtype == jnp.uint8 else x
            for k, (w, b) in enumerate(layers):
                x = (jax.nn.relu(x) if k else x) @ w + b
            return x

        def loss_of(layers, x, y):
            z = forward(layers, x)
            return (jax.nn.logsumexp(z, axis=1) - jnp.take_along_axis(z, y[:, None], axis=1)[:, 0]).mean()

        def update(state, x, y):
            layers, velocity = state
            loss, grads = jax.value_and_grad(loss_of)(layers, x, y)
            velocity = tree.map(lambda v, g: MOMENTUM * v + g, velocity, grads)
            return (tree.map(lambda p, v: p - LR * v, layers, velocity), velocity), loss

        self.forward, self.plain_update = jax.jit(forward), update
        self.update = jax.jit(update, donate_argnums=0)

    def step(self, x, y):
        self.state, loss = self.update(self.state, x, y)
        return loss

    def place(self, array):
        return self.jax.numpy.asarray(array)

    def load(self, images, labels, seed):  # NumPy gathers bytes, the compiled step scales them: faster than floats
        self.x, self.y, self.orders = images, labels.astype(np.int32), orders(len(labels), seed)

    def epoch(self):
        order = next(self.orders)
        for k in range(0, len(order), BATCH):
            loss = self.step(self.x[order[k : k + BATCH]], self.y[order[k : k + BATCH]])
        self.wait(loss)

    def wait(self, result):
        self.jax.block_until_ready(result)

    def logits(self, x):
        return np.asarray(self.forward(self.state[0], x))

    def gemm(self, a, b, transpose_a, transpose_b):
        call = self.jax.jit(lambda a, b: (a.T if transpose_a else a) @ (b.T if transpose_b else b))
        return partial(call, self.place(a), self.place(b))

    def kernel(self, name):
        jax, jnp, (x, y, z) = self.jax, self.jax.numpy, map(self.place, operands(3))
        if name == "sgd":
            update = jax.jit(lambda p, g, v: (p - LR * (MOMENTUM * v + g), MOMENTUM * v + g), donate_argnums=(0, 2))
            state = [x, z]

            def sgd():
                state[:] = update(state[0], y, state[1])
                return state

            return sgd
        calls = {"copy": jnp.copy, "exp": jnp.exp, "log": jnp.log, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid}
        calls |= {"gelu": partial(jax.nn.gelu, approximate=False), "relu": jax.nn.relu, "softmax": jax.nn.softmax}
        if name in calls:
            return partial(jax.jit(calls[name]), x)
        return partial(jax.jit(jnp.add), x, y) if name == "add" else None


class JaxScan(Jax):
    """An epoch as one compiled function: lax.scan over the batches, gathered inside."""

    def load(self, images, labels, seed):
        super().load(images, labels, seed)
        self.x, self.y = self.place(self.x), self.place(self.y)

        @partial(self.jax.jit, donate_argnums=0)
        def epoch(state, x, y, order):
            return self.jax.lax.scan(lambda s, rows: self.plain_update(s, x[rows], y[rows]), state, order)

        self.compiled = epoch

    def epoch(self):
        order = next(self.orders)
        whole = len(order) // BATCH * BATCH
        self.state, loss = self.compiled(self.state, self.x, self.y, order[:whole].reshape(-1, BATCH))
        if whole < len(order):
            loss = self.step(self.x[order[whole:]], self.y[order[whole:]])
        self.wait(loss)


class Registers(Engine):
    """The measure of the machine, on every thread: fused multiply-adds on registers, and copies of memory."""

    COPIES = 32  # so many that starting the threads does not count
    LOOPS, CHAINS = 1_000_000, 10  # ten independent chains hide the latency of two units

    def __init__(self, threads):
        super().__init__(threads)
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        features = llvm.get_host_cpu_features()
        self.lanes = 16 if features.get("avx512f") else 8 if features.get("avx2") else 4
        vector, chains = f"<{self.lanes} x float>", range(self.CHAINS)
        lines = [
            f"declare {vector} @llvm.fma.v{self.lanes}f32({vector}, {vector}, {vector})",
            f"define void @chains(i64 %n, {vector}* %p) {{\nentry:\n  %x = load {vector}, {vector}* %p, align 4",
            "  br label %loop\nloop:\n  %i = phi i64 [0, %entry], [%i1, %loop]",
            *(f"  %a{c} = phi {vector} [%x, %entry], [%b{c}, %loop]" for c in chains),
            *(
                f"  %b{c} = call {vector} @llvm.fma.v{self.lanes}f32({vector} %a{c}, {vector} %x, {vector} %x)"
                for c in chains
            ),
            "  %i1 = add i64 %i, 1\n  %more = icmp slt i64 %i1, %n\n  br i1 %more, label %loop, label %done\ndone:",
            *(f"  store volatile {vector} %b{c}, {vector}* %p, align 4" for c in chains),
            "  ret void\n}",
        ]
        machine = llvm.Target.from_default_triple().create_target_machine(llvm.get_host_cpu_name(), features.flatten())
        self.engine = llvm.create_mcjit_compiler(llvm.parse_assembly("\n".join(lines)), machine)
        self.engine.finalize_object()
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p)  # releases the GIL
        self.chains, self.pool = prototype(self.engine.get_function_address("chains")), ThreadPoolExecutor(threads)
        together = threading.Barrier(threads)
        list(self.pool.map(lambda rank: (together.wait(), bind(rank)), range(threads)))
        cut = ELEMENTS[0] // threads * ELEMENTS[1]
        self.copies = [(aligned((cut,)), random_array((cut,), rank)) for rank in range(threads)]

    def calls(self):
        return ("seconds", self.run), ("copy", self.copy)

    def copy(self):
        """Copies of an array of the kernels' size, a part of it on each thread."""
        list(self.pool.map(lambda pair: [np.copyto(*pair) for _ in range(self.COPIES)], self.copies))

    def run(self):
        """2 * LOOPS * CHAINS * lanes operations a thread."""
        values = np.full((self.threads, 16), 0.5, np.float32)
        list(self.pool.map(lambda row: self.chains(self.LOOPS, row.ctypes.data), values))


# --- collectives ------------------------------------------------------------------------------------------------------

RANKS = 2


def time_all_reduces(all_reduce, barrier, array, rewritten, seconds):
    """Seconds that a call takes this rank, the mean over about `seconds`; all ranks make the same number of calls."""
    count, total = max(2, int(seconds / (5e-6 + array.nbytes * 3e-10))), 0.0
    for k in range(count):
        if rewritten or k % 16 == 0:
            array[:] = 1
        barrier()
        start = time.perf_counter()
        all_reduce(array)
        total += time.perf_counter() - start
    if array[0] != RANKS ** ((count - 1) % 16 + 1 if not rewritten else 1):
        raise RuntimeError(f"the sum is wrong: {array[0]}")
    return total / count


def bind(rank):
    """To a core of its own, as mpirun does with two ranks: else the system may put both on one."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})


def arena_rank(channel, rank, arena):
    from scratchnet.parallel.comm.arena import ArenaCommunicator

    bind(rank)
    comm = ArenaCommunicator(arena, rank)
    serve_all_reduces(channel, comm.all_reduce, comm.barrier, comm.empty)


def gloo_rank(channel, rank, file):
    import torch
    import torch.distributed as dist

    bind(rank)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=RANKS)
    serve_all_reduces(channel, lambda x: dist.all_reduce(torch.from_numpy(x)), dist.barrier, None)


def serve_all_reduces(channel, all_reduce, barrier, empty):
    while True:
        elements, rewritten, seconds = channel.recv()
        array = (empty if rewritten and empty else np.empty)(elements, np.float32)
        channel.send(time_all_reduces(all_reduce, barrier, array, rewritten, seconds))


class LocalRanks:
    """Two processes of this machine, each in `target`; all are idle between requests."""

    def __init__(self, target, *args):
        from scratchnet.parallel.pool.launch import Workers

        self.workers = Workers(RANKS, target, *args)

    def measure(self, *request):
        self.workers.send_all(request)
        return max(channel.recv() for channel in self.workers.channels)


class MpiRanks:
    """The same under mpirun; rank 0 reads requests from its stdin."""

    def __init__(self):
        root = ["--allow-run-as-root"] if os.getuid() == 0 else []
        command = ["mpirun", "-n", str(RANKS), "--oversubscribe", *root, sys.executable, __file__, "mpi-rank"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(self, *request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def mpi_rank():
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    while True:
        if comm.rank == 0:
            request = json.loads(sys.stdin.readline() or "null")
            comm.send(request, 1)
        else:
            while not comm.iprobe(source=0):  # a plain receive would keep a core busy while others are measured
                time.sleep(0.001)
            request = comm.recv(source=0)
        if request is None:
            return
        elements, rewritten, seconds = request
        array = np.empty(elements, np.float32)
        mean = time_all_reduces(partial(comm.Allreduce, MPI.IN_PLACE), comm.Barrier, array, rewritten, seconds)
        slowest = comm.reduce(mean, MPI.MAX)
        if comm.rank == 0:
            print(json.dumps(slowest), flush=True)


# --- steps that processes share: see pool_engines.py ------------------------------------------------------------------


class ScratchnetPool(Scratchnet):
    """sn.Trainer with so many workers, one thread each. without: see unguarded.py."""

    def __init__(self, threads, workers, without=()):
        super().__init__(threads)
        self.workers, self.without = workers, without

    def together(self, what, widths, batch_size, shards, data):
        wanted = {"measure": self.workers, "start": 4}.get(what, 2)
        if self.workers > shards or self.workers != wanted or (self.without and (what, shards) != ("measure", 2)):
            return None
        if what == "start":
            return Start(lambda: self.network(widths, seed=0) or self.model, self.workers, data, batch_size, shards)
        self.network(widths, seed=0)
        return PoolTurns(self.workers, self.without, self.model, *data, batch_size, shards)


class Ddp(Engine):
    """PyTorch's DistributedDataParallel over Gloo, one thread a process."""

    def together(self, what, widths, batch_size, shards, data):
        if what != "measure" or shards != RANKS:
            return None
        return DdpTurns(RANKS, initial_layers(widths, 0), *data, batch_size, tempfile.mktemp(), bind)


class Copies(Engine):
    """What a merge would take if it only moved its bytes."""

    def together(self, what, widths, batch_size, shards, data):
        parameters = sum((i + 1) * o for i, o in itertools.pairwise(widths))
        return Floor(RANKS, parameters, shards, bind) if what == "merge" else None


class OpenMpi(Engine):
    def ranks(self):
        return MpiRanks()


class Gloo(Engine):
    def ranks(self):
        return LocalRanks(gloo_rank, tempfile.mktemp())


STEPS, EPOCHS, TRAINS = ("steps",), ("epochs", "accuracy"), ("steps", "epochs", "accuracy")
ENGINES = {  # name: class, the module that it needs, the sections in which it takes part
    "scratchnet": (Scratchnet, "scratchnet", ("kernels", *TRAINS, "collectives", "pool")),
    "scratchnet-eager": (ScratchnetEager, "scratchnet", TRAINS),
    "torch": (Torch, "torch", ("kernels", *TRAINS)),
    "torch-compile": (TorchCompile, "torch", TRAINS),
    "torch-loader": (TorchLoader, "torch", EPOCHS[:1]),
    "jax": (Jax, "jax", ("kernels", *TRAINS)),
    "jax-scan": (JaxScan, "jax", EPOCHS),
    "scikit-learn": (ScikitLearn, "sklearn", STEPS),
    "numpy": (NumPy, "numpy", ("kernels", *TRAINS)),
    "openmpi": (OpenMpi, "mpi4py", ("collectives",)),
    "gloo": (Gloo, "torch", ("collectives",)),
    **{f"pool-{n}": (partial(ScratchnetPool, workers=n), "scratchnet", ("pool",)) for n in (1, 2, 3, 4)},
    "pool-2-one-page": (partial(ScratchnetPool, workers=2, without=("pages",)), "scratchnet", ("pool",)),
    "pool-2-unguarded": (partial(ScratchnetPool, workers=2, without=("pages", "claims")), "scratchnet", ("pool",)),
    "ddp-gloo": (Ddp, "torch", ("pool",)),
    "copies": (Copies, "scratchnet", ("pool",)),
    "registers": (Registers, "llvmlite", ("peak",)),
}


# --- measuring --------------------------------------------------------------------------------------------------------


def aligned(shape, dtype=np.float32):
    """Memory that begins with a line of cache, as PyTorch's, JAX's and scratchnet's own does."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def random_array(shape, seed=0):
    array = aligned(shape)
    np.random.default_rng(seed).random(out=array, dtype=np.float32)
    return array


def operands(count):
    arrays = [random_array(ELEMENTS, k) for k in range(count)]
    for array in arrays:
        array += np.float32(0.1)
    return arrays


def product(a, b, transpose_a, transpose_b):
    """Memory for op(a) @ op(b)."""
    return aligned((a.shape[1 if transpose_a else 0], b.shape[0 if transpose_b else 1]))


def time_calls(call, wait, seconds):
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


class Worker:
    """Answers requests for one engine; what a piece of work needs is built at its first request, and kept."""

    def __init__(self, name, threads, folder):
        self.new_engine = partial(ENGINES[name][0], threads)
        self.folder, self.built = Path(folder), {}

    def answer(self, request):
        section, work, seconds = request["section"], request["work"], request["seconds"]
        if section == "accuracy":
            return self.accuracy(**work)
        if section == "peak":
            return self.peak(seconds)
        if section == "collectives":
            return self.collectives(seconds, **work)
        if section == "pool":
            return self.pool(seconds, **work)
        key = json.dumps((section, work))
        if key not in self.built:
            self.built = {key: getattr(self, section)(**work)}  # the work before this is done: free its memory
        engine, call, facts = self.built[key]
        if call is None:
            return {"seconds": None}
        return facts | {"seconds": time_calls(call, engine.wait, seconds)}

    def data(self, part):
        return [np.load(self.folder / f"{part}-{what}.npy") for what in ("images", "labels")]

    def steps(self, widths, batch_size):
        """A step on each of 8 batches in turn. The loss after 16 steps shows that all engines do the same work."""
        engine = self.new_engine()
        engine.network(widths, seed=0)
        images, labels = (array.take(range(8 * batch_size), axis=0, mode="wrap") for array in self.data("train"))
        x = images.astype(np.float32) * np.float32(1 / 255)
        place, cuts = engine.place, [slice(k * batch_size, (k + 1) * batch_size) for k in range(8)]
        batches = itertools.cycle([(place(x[cut].copy()), place(labels[cut].copy())) for cut in cuts])
        losses = [float(engine.step(*next(batches))) for _ in range(16)]
        return engine, lambda: engine.step(*next(batches)), {"loss": losses[-1]}

    def epochs(self, widths):
        engine = self.new_engine()
        engine.network(widths, seed=0)
        engine.load(*self.data("train"), seed=0)
        engine.epoch()
        return engine, engine.epoch, {}

    def collectives(self, seconds, elements, rewritten):
        if "ranks" not in self.built:
            self.built = {"ranks": self.new_engine().ranks()}
        return {"seconds": self.built["ranks"].measure(elements, rewritten, seconds)}

    def pool(self, seconds, what, **work):
        """what: a method of pool_engines.PoolTurns: "measure" steps, for one."""
        key = json.dumps((what, work))
        if key not in self.built:
            for old in self.built.values():
                old and old.close()
            self.built = {}
            self.built[key] = self.new_engine().together(what, **work, data=self.data("train"))
        turns = self.built[key]
        return getattr(turns, what)(seconds) if turns else {"seconds": None}

    def peak(self, seconds):
        """Seconds of arithmetic and of a copy, the best of several, and how much of each there is."""
        if not self.built:
            self.built = {"engine": self.new_engine()}
        engine = self.built["engine"]
        best = {
            what: min(time_calls(call, engine.wait, seconds / 8) for _ in range(8)) for what, call in engine.calls()
        }
        return best | {
            "flops": 2 * engine.LOOPS * engine.CHAINS * engine.lanes * engine.threads,
            "bytes": engine.COPIES * sum(x.nbytes for pair in engine.copies for x in pair),
        }

    def gemms(self, m, k, n, transpose_a, transpose_b):
        engine = self.new_engine()
        a = random_array((k, m) if transpose_a else (m, k))
        b = random_array((n, k) if transpose_b else (k, n), 1)
        return engine, engine.gemm(a, b, transpose_a, transpose_b), {}

    def others(self, kernel):
        engine = self.new_engine()
        return engine, engine.kernel(kernel), {}

    def accuracy(self, widths, goal, seed):
        """Trains until `goal` of the test images are right; the caller's clock has run since this process began.

        Engines start from the same weights and, but for torch-loader, see the same batches; yet rounding alone makes
        some need more epochs than others, because accuracy swings by a percent from epoch to epoch at this rate.
        """
        engine = self.new_engine()
        engine.network(widths, seed)
        engine.load(*self.data("train"), seed)
        images, labels = self.data("test")
        x = images.astype(np.float32) * np.float32(1 / 255)
        for epoch in range(1, 61):
            engine.epoch()
            reached = float((engine.logits(x).argmax(axis=1) == labels).mean())
            if reached >= goal:
                return {"epochs": epoch, "accuracy": reached}
        raise RuntimeError(f"{reached:.2%} after {epoch} epochs")


def main(name, threads=None, folder=None):
    if name == "mpi-rank":
        return mpi_rank()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    worker = None
    for line in sys.stdin:
        try:
            worker = worker or Worker(name, int(threads), folder)
            answer = worker.answer(json.loads(line))
        except Exception as error:  # a peer that cannot do this work is reported, and the others go on
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:160]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
