"""The table of who does what."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

import scratchnet as sn
from scratchnet import nn
from scratchnet.parallel import AllReduce, Pipeline, TensorParallel
from scratchnet.parallel.model.parts import network
from scratchnet.parallel.model.roster import roster
from scratchnet.parallel.pool.replica import Replica


def rows(strategy, workers, shards=4):
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    data = sn.data.TensorDataset(np.ones((8, 6), np.float32), np.zeros(8, np.int64))
    rule, loss = sn.optim.SGD(model.parameters(), 0.1), sn.nn.CrossEntropyLoss()
    trainer = sn.Trainer(model, rule, loss, workers=workers, shards=shards, strategy=strategy, progress=False)
    settings = trainer._settings(sn.data.DataLoader(data, 8))
    replica = Replica.of(replace(settings, model=network(model, strategy.parts, strategy.plan)))
    lines = roster(SimpleNamespace(workers=workers, replica=replica), strategy, shards)
    return [" ".join(line.split()) for line in lines]


def test_each_worker_with_its_stages_parts_and_shards():
    assert rows(Pipeline(2, ["2"], parts=2), 8) == [
        "data x pipeline x parts: 2 x 2 x 2",
        "worker stage begins with parts shards",
        *(f"{rank} {rank // 4} {'2' if rank >= 4 else 'the input'} {rank // 2 % 2} {rank % 2} {rank % 2 + 2}"
          for rank in range(8)),
        "bubble: workers wait for 33% of a step, if stages take equal time",
    ]  # fmt: skip
    assert rows(Pipeline(3, ["1", "2"]), 2) == [
        "data x pipeline x parts: 1 x 2 x 1",
        "worker stage begins with parts shards",
        "0 0 the input all 0 1 2 3",
        "0 1 1 all 0 1 2 3",
        "1 2 2 all 0 1 2 3",
        "bubble: workers wait for 28% of a step, if stages take equal time",
    ]


def test_the_bubble_is_named_also_of_fewer_shards_than_stages():
    """(S - 1) / (K + S - 1), and one worker never waits."""
    lines = [rows(Pipeline(4, schedule="gpipe"), workers, shards)[-1] for workers, shards in [(4, 12), (4, 1)]]
    assert lines[0] == "bubble: workers wait for 20% of a step, if stages take equal time"
    assert lines[1] == lines[0].replace("20", "75") + "; 1 of 4 stages are busy at most: more shards help"
    assert not any("bubble" in line for line in rows(Pipeline(4), 1))


def test_whole_shards_and_a_whole_model():
    assert rows(TensorParallel(2), 2) == ["data x pipeline x parts: 2 x 1 x 1, a worker computes all parts of a shard"]
    assert rows(AllReduce(), 2) == []
