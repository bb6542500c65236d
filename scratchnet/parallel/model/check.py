"""Makes the plan of a pipeline, and checks it: all stages, one after the other, give the bytes of one process."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import ConfigError, DeviceError, NonFiniteError
from ..shards import first_stream, gathered, streams_kept, tensors_of
from .pieces import Memory, Part, Stages
from .plan import Plan, plan_of
from .trace import WHO


def checked_plan(replica: Any) -> Plan:
    """The plan for a replica, which follows it afterwards.

    Raises ConfigError for a model that cannot be cut so, or where a byte of a gradient, buffer or loss would differ;
    DeviceError for a model on a GPU.
    """
    if not replica.device.is_host:
        raise DeviceError(f"{WHO}: expected a model on 'cpu' or 'numpy', got one on {replica.device.name!r}")
    plan, samples = plan_of(replica)
    replica.follow(plan)
    stages, page = Stages(replica, plan), np.zeros(replica.layout.page_bytes, np.uint8)
    replica.write(replica.layout.page(page))
    theta, stages.learns = replica.layout.page(page)[0], True
    for positions in samples:
        try:
            _compare(replica, stages, positions, theta)
        except NonFiniteError:  # the step itself raises it
            continue
        stages.learns = False
    return plan


def _compare(replica: Any, stages: Stages, positions: np.ndarray, theta: np.ndarray) -> None:
    plan, layout = stages.plan, replica.layout
    slots = [np.zeros(layout.nbytes, np.uint8) for _ in range(2)]
    sent = [np.zeros((1, size), np.uint8) for size in (plan.activation_bytes, plan.gradient_bytes)]
    memory, parts, count = Memory(theta, slots[0], *sent), [Part(0, 0, positions, 1.0)], len(plan.stages)
    losses = [stages.forward(s, 0, 0, parts, memory) for s in range(count)]
    for s in reversed(range(count)):
        for backward in stages.backwards:
            backward(s, 0, 0, parts, memory)
    with streams_kept():
        stream = replica.generator.stream = first_stream(0, 0, replica.shards)
        batch = tensors_of(gathered(replica.dataset, positions, replica.settings.seed, stream), replica.tensor)
        one = replica.tensor(np.ones((), replica.optimizer.states[0].dtype))
        expected = replica.compute(batch, one, theta, slots[1], True).item()
    same = all(a.tobytes() == b.tobytes() for a, b in zip(*map(layout.arrays, slots), strict=True))
    if not same or losses[-1] != [expected]:
        raise ConfigError(
            f"{WHO}: expected stages that give the bytes of one process, got others for {len(positions)} samples: the "
            "forward reads or writes numbers beside its ops; keep that in one stage, with cut=[...]"
        )
