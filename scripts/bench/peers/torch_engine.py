"""PyTorch: eager, compiled, with its own DataLoader, and DistributedDataParallel over Gloo."""

import tempfile
import time
from functools import partial

import engine
import torch
import torch.distributed as dist
from collectives import Ranks
from convolution import built, values
from engine import Engine, Turns, bind, initial_layers, operands, product, scaled, training_step
from torch.nn import functional


def model_of(layers):
    modules = []
    for weight, bias in layers:
        linear = torch.nn.Linear(*weight.shape)
        linear.load_state_dict({"weight": torch.from_numpy(weight).T, "bias": torch.from_numpy(bias)})
        modules += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*modules[:-1])


def optimizer_of(model, lr=engine.LR):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=engine.MOMENTUM, fused=True)  # its fastest


class Torch(Engine):
    def __init__(self, threads, folder):
        super().__init__(threads, folder)
        torch.set_num_threads(threads)

    def transform(self, function):
        return function

    def network(self, widths, seed):
        self.model, cross_entropy = model_of(initial_layers(widths, seed)), torch.nn.CrossEntropyLoss()
        loss_of = self.transform(lambda x, y: cross_entropy(self.model(x), y))
        self.step = training_step(loss_of, optimizer_of(self.model))

    def images(self, network):
        model, cross_entropy = built(network, torch.nn), torch.nn.CrossEntropyLoss()
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), values(network), strict=True):
                parameter.copy_(torch.from_numpy(value))
        loss_of = self.transform(lambda x, y: cross_entropy(model(x), y))
        self.step = training_step(loss_of, optimizer_of(model, engine.IMAGE_LR))

    def place(self, array):
        return torch.from_numpy(array)

    def logits(self, x):
        with torch.inference_mode():
            return self.model(self.place(x)).numpy()

    def gemm(self, a, b, transpose_a, transpose_b):
        out = self.place(product(a, b, transpose_a, transpose_b))
        a, b = self.place(a), self.place(b)
        return partial(torch.mm, a.T if transpose_a else a, b.T if transpose_b else b, out=out)

    def kernel(self, name):
        x, y = map(self.place, operands(2))
        out, rows = torch.empty_like(x), torch.from_numpy(engine.ROWS)
        if name in engine.OPTIMIZERS:
            x.grad = y
            optimizer, options = engine.OPTIMIZERS[name]
            fast = {"foreach": True} if name == "rmsprop" else {"fused": True}
            return getattr(torch.optim, optimizer)([x], **fast, **options).step
        calls = {name: partial(getattr(torch, name), x, out=out) for name in ("exp", "log", "tanh", "sigmoid")}
        calls |= {
            "copy": partial(out.copy_, x),
            "relu": partial(torch.clamp_min, x, 0, out=out),
            "gelu": partial(functional.gelu, x),
            "softmax": partial(torch.softmax, x, 1, out=out),
            "layer norm": partial(functional.layer_norm, x, x.shape[1:]),
            "batch norm": partial(functional.batch_norm, x, None, None, training=True),
            "dropout": partial(functional.dropout, x, 0.5),
            "add": partial(torch.add, x, y, out=out),
            "gather rows": partial(torch.index_select, x, 0, rows, out=out),
            "scatter-add rows": lambda: out.zero_().index_add_(0, rows, x),
            "cross-entropy": partial(functional.cross_entropy, x, rows, reduction="none"),
        }
        return calls.get(name)


class Compile(Torch):
    def transform(self, function):
        return torch.compile(function, dynamic=False)


class Loader(Torch):
    """Epochs through PyTorch's DataLoader, in this process (workers of its own cost more than they gain here)."""

    def load(self, images, labels, seed):
        super().load(images, labels, seed)
        dataset = torch.utils.data.TensorDataset(self.x, self.y)
        self.loader = torch.utils.data.DataLoader(dataset, engine.BATCH, shuffle=True)

    def epoch(self):
        for x, y in self.loader:
            self.step(x, y)


class Ddp(Engine):
    """DistributedDataParallel over Gloo, one thread a process."""

    def pool(self, what, widths, batch_size, shards):
        if what == "measure" and shards == engine.RANKS:
            return DdpTurns(initial_layers(widths, 0), *self.first_rows(batch_size), batch_size)


class DdpTurns(Turns):
    def __init__(self, *job):
        super().__init__()
        self.ranks = Ranks(ddp_rank, tempfile.mktemp(), *job)
        self.turn(17)  # the last one's loss is that after 16 steps
        self.facts["loss"] = sum(self.losses) / engine.RANKS

    def turn(self, steps):
        seconds, self.losses = zip(*self.ranks.ask(steps), strict=True)
        return max(seconds)

    def close(self):
        self.ranks.close()


def ddp_rank(channel, rank, file, layers, images, labels, batch_size):
    """A rank of DistributedDataParallel over Gloo, with one thread; it waits to be asked for steps."""
    bind(rank)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=engine.RANKS)
    model = torch.nn.parallel.DistributedDataParallel(model_of(layers), gradient_as_bucket_view=True, static_graph=True)
    criterion = torch.nn.CrossEntropyLoss()
    step = training_step(lambda x, y: criterion(model(x), y), optimizer_of(model))
    x, y, own = torch.from_numpy(scaled(images)), torch.from_numpy(labels), batch_size // engine.RANKS
    starts = [k * batch_size + rank * own for k in range(engine.BATCHES)]
    batches = [(x[start : start + own].clone(), y[start : start + own].clone()) for start in starts]
    count = 0
    while True:
        steps = channel.recv()
        dist.barrier()
        start = time.perf_counter()
        for k in range(count, count + steps):
            loss = step(*batches[k % engine.BATCHES])
        channel.send((time.perf_counter() - start, loss.item()))
        count += steps
