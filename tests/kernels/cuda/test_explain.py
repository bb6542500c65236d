"""explain() of a step on the device "cuda": its launches are stages, and what it changes is put back."""

import re

import numpy as np
from gpu_arrays import floats, on_gpu

import scratchnet as sn

NEEDS = "simulated"


def recorded():
    sn.manual_seed(0)
    model, loss_of = sn.nn.MLP(5, 4, 3).to("cuda"), sn.nn.CrossEntropyLoss()
    optimizer = sn.optim.Adam(model.parameters(), lr=0.1)

    @sn.jit
    def step(x, y):
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    x, y = on_gpu(floats(6, 5)), on_gpu(np.arange(6) % 3)
    for _ in range(2):
        step(x, y)
    return step, model, optimizer, (x, y)


def state(model, optimizer):
    arrays = [model.parameters(), [sn.Tensor(x, device="cuda") for s in optimizer.states for x in s.arrays]]
    return [t.detach().numpy().tobytes() for part in arrays for t in part]


def test_a_step_on_a_gpu_is_explained_launch_by_launch():
    step, *_ = recorded()
    text = step.explain()
    (program,) = step.programs
    _, launches = program.parts
    head = re.search(r"0 stages in 0 compiled calls, (\d+) calls by Python, (\d+) launches in 1 graphs", text)
    assert (int(head[1]), int(head[2])) == (1, len(launches.launches))  # by Python: are labels in range?
    stages = re.findall(r"^stage (\d+)  [\d.]+ us  (.+)$", text, re.MULTILINE)
    assert [int(number) for number, _ in stages] == list(range(1, len(launches.stages) + 1))
    assert "linear > relu" in [names for _, names in stages]
    assert len(re.findall(r"^  \w+, \d+ of \d+ threads$", text, re.MULTILINE)) == len(launches.launches)
    assert "waiting for the GPU" in text
    assert re.search(r"^  linear\(6x5, 5x4, 4, 6x4\) +0.000 MFLOP +0.3 kB", text, re.MULTILINE)  # 78 numbers of 4 bytes


def test_an_explained_step_leaves_the_device_as_it_was():
    step, model, optimizer, batch = recorded()
    before = state(model, optimizer)
    step.explain()
    assert state(model, optimizer) == before
    step(*batch)
    assert state(model, optimizer) != before
