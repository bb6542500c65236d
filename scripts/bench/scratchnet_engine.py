"""scratchnet in one process: recorded steps, and eager ones."""

import itertools
from functools import partial

import engine
import numpy as np
from collectives import Ranks, Reducing, arena_rank
from convolution import built, values
from engine import Engine, aligned, initial_layers, operands, product, training_step

import scratchnet as sn
from scratchnet.jit.step import Step


class Scratchnet(Engine):
    def __init__(self, threads, folder):
        super().__init__(threads, folder)
        sn.set_num_threads(threads)

    def transform(self, step):
        return sn.jit(step)

    def network(self, widths, seed):
        self.model, cross_entropy = sn.nn.MLP(*widths), sn.nn.CrossEntropyLoss()
        values = itertools.chain(*initial_layers(widths, seed))
        self.model.load_state_dict(dict(zip(self.model.state_dict(), values, strict=True)))
        self.optimizer = sn.optim.SGD(self.model.parameters(), lr=engine.LR, momentum=engine.MOMENTUM)
        self.loss = lambda x, y: cross_entropy(self.model(x), y)
        self.step = self.transform(training_step(self.loss, self.optimizer))
        self.forward = self.transform(self.model.forward)

    def images(self, network):
        model, cross_entropy = built(network, sn.nn), sn.nn.CrossEntropyLoss()
        with sn.no_grad():
            for parameter, value in zip(model.parameters(), values(network), strict=True):
                parameter.copy_(sn.Tensor(value.T if value.ndim == 2 else value))
        optimizer = sn.optim.SGD(model.parameters(), lr=engine.IMAGE_LR, momentum=engine.MOMENTUM)
        self.step = self.transform(training_step(lambda x, y: cross_entropy(model(x), y), optimizer))

    def place(self, array):
        return sn.Tensor(array)

    def load(self, images, labels, seed):
        dataset = sn.data.TensorDataset(images, labels, scale=1 / 255)
        self.loader = sn.data.DataLoader(dataset, engine.BATCH, shuffle=True, seed=seed)
        self.epochs_done = itertools.count()
        gathering = training_step(lambda positions: self.loss(*dataset._select(positions)), self.optimizer)
        self.gathering_step = self.transform(gathering)

    def epoch(self):
        """As a Trainer does it: the step gathers the samples itself, and many steps are one call."""
        calls = [(positions,) for positions in self.loader.batch_indices(next(self.epochs_done))]
        if isinstance(self.gathering_step, Step):
            done = self.gathering_step.series(calls, lambda number: None)
        else:
            done = itertools.starmap(self.gathering_step, calls)
        for _ in done:
            pass

    def logits(self, x):
        with sn.no_grad():
            return self.forward(sn.Tensor(x)).numpy()

    def gemm(self, a, b, transpose_a, transpose_b):
        matmul, out = sn.kernels.device("cpu").matmul, product(a, b, transpose_a, transpose_b)
        return lambda: matmul(a, b, out, transpose_a, transpose_b)

    def kernel(self, name):
        kernels, (x, y) = sn.kernels.device("cpu"), operands(2)
        out = aligned(x.shape)
        if name in engine.OPTIMIZERS:
            parameter = sn.Tensor(x, requires_grad=True)
            parameter.grad = sn.Tensor(y)
            optimizer, options = engine.OPTIMIZERS[name]
            return getattr(sn.optim, optimizer)([parameter], **options).step
        calls = {
            "add": partial(kernels.add, x, y, out),
            "layer norm": partial(kernels.standardize, x[:, :, None], out[:, :, None], 1e-5),
            "batch norm": partial(kernels.standardize, x[None], out[None], 1e-5),
            "dropout": partial(kernels.dropout, x, out, 0.5, (0, 1)),
            "gather rows": partial(kernels.take_rows, x, engine.ROWS, out),
            "scatter-add rows": partial(kernels.scatter_rows, x, engine.ROWS, out),
            "cross-entropy": partial(kernels.cross_entropy, x, engine.ROWS, np.empty(len(x), np.float32)),
        }
        return calls.get(name) or partial(getattr(kernels, name), x, out)

    def pool(self, what, widths, batch_size, shards):
        """The threads of one process."""
        if what == "measure" and shards == engine.RANKS:
            return self.steps(widths, batch_size, warm=17)  # the last one's loss is that after 16 steps

    def collectives(self, elements, rewritten):
        from scratchnet.parallel.comm.arena import Arena, warm_up

        warm_up()
        return Reducing(elements, rewritten, Ranks(arena_rank, Arena(engine.RANKS)))


class Eager(Scratchnet):
    def transform(self, step):
        return step

    def epoch(self):
        for x, y in self.loader:
            self.step(x, y)
