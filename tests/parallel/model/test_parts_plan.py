"""Which layers are cut: plans that are found, and plans that are refused."""

import pytest

import scratchnet as sn
from scratchnet import nn
from scratchnet.parallel import Pipeline, TensorParallel
from scratchnet.parallel.model.parts_plan import plan_of, table

TRANSFORMER = {"self_attn": "heads", "linear1": "columns", "linear2": "rows"}


def hooked():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    model[0].register_forward_hook(lambda *arguments: None)
    return model


def twice():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 4))


FOUND = {
    "an MLP": (lambda: nn.MLP(8, 6, 5, 4, 3, dropout=0.1), {
        "linear1": "columns", "linear2": "rows", "linear3": "columns", "linear4": "rows",
    }),
    "the last one is left over": (lambda: nn.MLP(8, 6, 5, 3), {"linear1": "columns", "linear2": "rows"}),
    "too narrow to begin with": (lambda: nn.MLP(8, 1, 6, 3), {"linear2": "columns", "linear3": "rows"}),
    "not local in between": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 2)),
        {"2": "columns", "4": "rows"},
    ),
    "nested": (lambda: nn.Sequential(nn.Linear(4, 4), nn.MLP(4, 6, 2)), {"1.linear1": "columns", "1.linear2": "rows"}),
    "channels": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3), nn.Flatten()),
        {"0": "columns", "3": "rows"},
    ),
    "groups": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)),
        {"1": "columns", "2": "rows"},
    ),
    "called twice": (twice, {"4": "columns", "5": "rows"}),
    "a transformer": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 6), 2),
        {f"layers.{i}.{name}": kind for i in (0, 1) for name, kind in TRANSFORMER.items()},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_a_plan_is_found(case):
    make, expected = FOUND[case]
    assert plan_of(make(), 2, None) == expected


def test_one_part_needs_no_plan():
    assert plan_of(nn.Linear(3, 2), 1, None) == {}
    assert table(nn.Linear(3, 2), 1, None) == []


REFUSED = {
    "nothing is found": (lambda: nn.Linear(3, 2), 2, None, r"of at least 2 columns or heads, found none; plan="),
    "a hook, found": (hooked, 2, None, r"found none"),
    "an empty plan": (lambda: nn.MLP(3, 4, 2), 2, {}, r"layers in plan, or None to find some, got \{\}"),
    "one part of no layer": (lambda: nn.MLP(3, 4, 2), 1, {"0": "rows"}, r"in plan \(linear1, linear2\), got '0'"),
    "no such layer": (lambda: nn.MLP(3, 4, 2), 2, {"0": "rows"}, r"in plan \(linear1, linear2\), got '0'"),
    "no such kind": (lambda: nn.MLP(3, 4, 2), 2, {"linear1": "heads"}, r"'columns' or 'rows', got 'heads'"),
    "no layer to cut": (lambda: nn.MLP(3, 4, 2), 2, {"relu1": "rows"}, r"cut \(Linear, .*\), got 'rows' for 'relu1'"),
    "too many parts": (lambda: nn.MLP(3, 4, 2), 5, {"linear1": "columns"}, r"at most 4 parts, .*out_features=4, got 5"),
    "too many heads": (lambda: nn.MultiheadAttention(6, 2), 3, {"": "heads"}, r"at most 2 parts, .*num_heads=2, got 3"),
    "groups": (lambda: nn.Conv2d(4, 4, 3, groups=2), 2, {"": "columns"}, r"'': expected a convolution of one group"),
    "sparse": (lambda: nn.Embedding(4, 2, sparse=True), 2, {"": "rows"}, r"expected sparse=False"),
    "a hook": (hooked, 2, {"0": "rows"}, r"'0': expected a layer without hooks"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_plan_that_does_not_fit_is_one_line(case):
    make, parts, plan, message = REFUSED[case]
    model = make()
    with pytest.raises(sn.ConfigError, match=message) as caught:
        plan_of(model, parts, plan)
    assert "\n" not in str(caught.value)
    for strategy in (TensorParallel(parts, plan), Pipeline(parts=parts, plan=plan)):  # before a run begins
        with pytest.raises(sn.ConfigError, match=f"^parts: .*{message}"):
            sn.Trainer(model, sn.optim.SGD(model.parameters(), 0.1), nn.MSELoss(), strategy=strategy)


def test_a_strategy_keeps_its_plan_and_refuses_what_is_none():
    plan = {"0": "columns"}
    strategy = TensorParallel(2, plan)
    plan["0"] = "rows"
    assert strategy.plan == {"0": "columns"}
    for arguments in ({"parts": 0}, {"parts": 2.5}, {"plan": ["0"]}, {"plan": {0: "rows"}}, {"plan": {"0": None}}):
        with pytest.raises(sn.ConfigError, match=r"TensorParallel: .*expected .*, got"):
            TensorParallel(**arguments)


def test_the_table_says_who_has_what():
    model = nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 3))
    assert table(model, 3, {"0": "rows", "2": "columns", "4": "rows"}) == [
        "layer        cut by        part 0  part 1  part 2",
        "0 Embedding  rows of 9     0:3     3:6     6:9",
        "2 Linear     columns of 7  0:2     2:4     4:7",
        "4 Linear     rows of 7     0:2     2:4     4:7",
        "whole in every part: 1",
    ]
