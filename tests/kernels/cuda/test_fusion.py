"""Calls of a program that become one launch: which they are, and that the bits are those of the calls on their own."""

import dataclasses

import numpy as np
import pytest
from sizes import SIMULATED

import scratchnet as sn
from scratchnet.testing import interpreted

NEEDS, ORDERS = "simulated", ("ascending", "descending", "shuffled")
if SIMULATED:
    import scratchnet.kernels.cuda as table
    from scratchnet.kernels.cuda import memory, tuning

    # Each product is one of few tiles, and each sum is done by one launch, as at batch 64 on a GPU.
    SMALL = dataclasses.replace(tuning.TINY, multiprocessors=1000, few_terms=64, chunk=64)

X, Y = np.random.default_rng(0).normal(size=(11, 9)).astype(np.float32), np.arange(11) % 3


def network(activation="relu", dropout=0.0):
    sn.manual_seed(0)
    return sn.nn.MLP(9, 10, 3, activation=activation, dropout=dropout).to("cuda")


def trained(step_of, jit, steps=3):
    """The bytes of losses and parameters after some steps, and the launches of a replay."""
    model, step = step_of()
    step = sn.jit(step) if jit else step
    x, y = sn.Tensor(X).to("cuda"), sn.Tensor(Y).to("cuda")
    losses = [step(x, y).detach().numpy().tobytes() for _ in range(steps)]
    parts = step.programs[0].parts if jit else []
    names = [_name(launch) for part in parts if hasattr(part, "launches") for launch in part.launches]
    return losses + [p.detach().numpy().tobytes() for p in model.parameters()], names


def _name(launch):
    (launched,) = [cell.cell_contents for cell in launch.__closure__ if type(cell.cell_contents) is tuple]
    return launched[0].function.__qualname__.partition(".")[0]


def training(optimizer=lambda p: sn.optim.SGD(p, 0.1, momentum=0.9), loss=None, **options):
    def make():
        model = network(**options)
        own, loss_of = optimizer(model.parameters()), loss or sn.nn.CrossEntropyLoss()

        def step(x, y):
            own.zero_grad()
            found = loss_of(model(x), y)
            found.backward()
            own.step()
            return found

        return model, step

    return make


def summed(logits, labels):
    return sn.nn.functional.cross_entropy(logits, labels, reduction="sum")


CASES = {
    "sgd": (training(), 7),
    "tanh": (training(activation="tanh"), 7),
    "gelu needs what it is given": (training(activation="gelu"), 8),
    "adam": (training(lambda p: sn.optim.Adam(p, 0.01)), 7),
    "weight decay of two groups": (
        training(lambda p: sn.optim.SGD([{"params": [x], "weight_decay": 0.1 * x.ndim} for x in p], 0.1)), 9,
    ),
    "a sum of losses": (training(loss=summed), 8),
    "dropout": (training(dropout=0.5), 10),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_step_in_fewer_launches_has_the_bits_of_the_eager_one(case):
    step_of, launches = CASES[case]
    with interpreted(), tuning.use(SMALL):
        expected, _ = trained(step_of, jit=False)
        found, names = trained(step_of, jit=True)
    assert found == expected
    assert len(names) == launches, names


def test_the_reference_step_is_seven_launches_in_any_order_of_threads():
    results = set()
    for order in ORDERS:
        with interpreted(order), tuning.use(SMALL):
            found, names = trained(training(), jit=True)
        results.add(tuple(found))
    assert len(results) == 1
    assert names == ["product_of_few"] * 2 + ["exponential_rows", "folding_strips"] + ["product_of_few"] * 3


def test_what_is_read_elsewhere_is_still_written():
    """A pre-activation that is returned, and read by a later product."""

    def make():
        sn.manual_seed(0)
        model = sn.nn.Linear(9, 3).to("cuda")
        own = sn.optim.SGD(model.parameters(), 0.1)

        def step(x, y):
            own.zero_grad()
            logits = model(x)
            (logits.relu() * logits).sum().backward()
            own.step()
            return logits

        return model, step

    with interpreted(), tuning.use(SMALL):
        assert trained(make, jit=False)[0] == trained(make, jit=True)[0]


def test_what_overwrites_a_factor_of_a_product_is_a_launch_of_its_own():
    """Other blocks may still read the factor."""
    with interpreted(), tuning.use(SMALL):
        x, w, h, out = (memory.from_host(X[:9] + i) for i in range(4))
        for target, launches in ((out, 1), (x, 2)):
            calls = [("matmul", (x, w, h, False, False)), ("relu", (h, target))]
            (replay,) = table.replayed(calls, lambda array: array is h)
            assert len(replay.launches) == launches
            assert len(table.replayed(calls)[0].launches) == 2  # where others see the product
