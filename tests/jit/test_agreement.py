"""Two calls of a step that do not agree make no program: the difference is refused with its line, or run plainly."""

import itertools
import os
import time

import numpy as np
import pytest

import scratchnet as sn

count, lines = itertools.count(), iter(range(10**6))

DIFFER = {  # what no name shows, used as a number, an array, a shape, a count of kernels, a result
    "a clock": lambda x: x * (time.perf_counter_ns() % 1_000_003),
    "a counter of C": lambda x: x + next(count),
    "an iterator": lambda x: x - next(lines),
    "bytes of the system": lambda x: x + np.frombuffer(os.urandom(12), np.uint8).astype(np.float32)[:3],
    "other kernels": lambda x: x.exp() if next(count) % 2 else x.tanh(),
    "one kernel more": lambda x: x.exp().tanh() if next(count) % 2 else x.exp(),
    "another shape": lambda x: x[: 1 + next(count) % 2],
    "a result": lambda x: (x.exp(), next(count)),
    "an argument or not": lambda x: x if next(count) % 2 else x.exp(),
}


@pytest.mark.parametrize("function", DIFFER.values(), ids=DIFFER)
def test_a_step_whose_two_calls_differ_is_refused_with_the_line(function):
    step, x = sn.jit(function), sn.Tensor(np.array([0.5, 1.0, 2.0], np.float32))
    step(x)
    with pytest.raises(sn.JitError, match=r"test_agreement\.py:[0-9]+|a result that no recorded kernel made"):
        step(x)
    with pytest.raises(sn.JitError):  # and so it stays
        step(x)


def test_a_trainer_goes_on_plainly_with_one_warning():
    numbers = itertools.count(1)
    layer = sn.nn.Linear(2, 1)
    data = sn.data.TensorDataset(np.ones((8, 2), np.float32), np.ones((8, 1), np.float32))
    asked = []

    def loss(output, target):
        asked.append(next(numbers))
        return ((output - target) ** 2).mean() * asked[-1]

    trainer = sn.Trainer(layer, sn.optim.SGD(layer.parameters(), 0.01), loss, progress=False)
    with pytest.warns(UserWarning, match="goes on without a program") as warned:
        trainer.fit(sn.data.DataLoader(data, 2), epochs=2)
    assert len([w for w in warned if "goes on without" in str(w.message)]) == 1 and asked == list(range(1, 9))
