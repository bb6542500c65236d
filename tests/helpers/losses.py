"""Losses that workers on GPUs run in tests; a module of its own, because a worker imports it."""

import contextlib

import multiprocess
import numpy as np

import scratchnet as sn

until_the_end = contextlib.ExitStack()


class Interpreted(sn.nn.CrossEntropyLoss):
    """Cross-entropy. A worker that it comes to interprets its cuda kernels, as these tests do: Numba's simulator would
    take fifty times as long, and see no race."""

    def __setstate__(self, state):
        from scratchnet.kernels.cuda import tuning
        from scratchnet.testing import interpreted

        self.__dict__.update(state)
        if multiprocess.parent_process() is not None:
            until_the_end.enter_context(interpreted())
            until_the_end.enter_context(tuning.use(tuning.TINY))


class Where(Interpreted):
    """And notes, in a worker, the first label of each shard in a file with the device's name."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def forward(self, output, target):
        if multiprocess.parent_process() is not None:
            with (self.folder / output.device).open("a") as file:
                file.write(f"{int(target.numpy()[0])}\n")
        return super().forward(output, target)


class Divided(Interpreted):
    """NaN for a shard with a label 0."""

    def forward(self, output, target):
        return super().forward(output, target) + 0.0 * (1.0 / target.astype(np.float32)).mean()


class Vertical(Interpreted):
    """The gradient, not the loss, is NaN for a shard with a label 0: that of a square root at 0."""

    def forward(self, output, target):
        return super().forward(output, target) + ((output * 0.0).sum() + target.astype(np.float32).min()).sqrt()


class Tiny(Interpreted):
    """Gradients that float16 holds with a loss scale alone."""

    def forward(self, output, target):
        return super().forward(output, target) * 1e-5
