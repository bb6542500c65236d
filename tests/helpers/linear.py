"""A linear model in float64 whose training NumPy repeats in a few lines, for tests of strategies."""

import numpy as np

import scratchnet as sn

ROWS, FEATURES, CLASSES, BATCH = 22, 5, 3, 8  # the last batch has 6 samples
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((ROWS, FEATURES)), RNG.standard_normal((ROWS, CLASSES))


class Linear(sn.nn.Module):
    """x @ weight in float64, from a given start."""

    def __init__(self, start):
        super().__init__()
        self.weight = sn.nn.Parameter(start.copy())

    def forward(self, x):
        return x @ self.weight


START = RNG.standard_normal((FEATURES, CLASSES))


def squares(output, target):
    return ((output - target) ** 2).mean()


def products(output, target):
    """Its gradient does not depend on the weight: x.T @ target / size."""
    return (output * target).mean()


def train(
    strategy, loss=squares, workers=1, shards=2, epochs=2, lr=0.1, momentum=0.0, x=X, y=Y, shuffle=False, **options
):
    """The weight after a run, and the history."""
    model = Linear(START)
    optimizer = sn.optim.SGD(model.parameters(), lr, momentum=momentum)
    loader = sn.data.DataLoader(sn.data.TensorDataset(x, y), BATCH, shuffle=shuffle, seed=5)
    trainer = sn.Trainer(
        model, optimizer, loss, None, workers, shards, strategy, progress=False, **options
    )  # fmt: skip
    history = trainer.fit(loader, epochs=epochs)
    return model.weight.detach().numpy().copy(), history


def gradient(weight, x, y):
    return 2 * x.T @ (x @ weight - y) / y.size


def batches(epochs=2):
    for _ in range(epochs):
        for begin in range(0, ROWS, BATCH):
            yield X[begin : begin + BATCH], Y[begin : begin + BATCH]


def shard(k, shards, x, y):
    n = len(x)
    return x[k * n // shards : (k + 1) * n // shards], y[k * n // shards : (k + 1) * n // shards]
