"""A recorded step does what the step does: the same bits, for all layers, optimizers and schedules."""

import re
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import JIT

import scratchnet as sn
from scratchnet import tracing
from scratchnet.jit import fuse, passes, program
from scratchnet.jit.step import Step
from scratchnet.native import execute
from scratchnet.native.updates import UPDATES
from scratchnet.nn import functional as F
from scratchnet.random import Generator, using

LAYERS = {  # width -> a layer that keeps it
    "linear": lambda n: sn.nn.Linear(n, n),
    "linear without bias": lambda n: sn.nn.Linear(n, n, bias=False),
    "relu": lambda n: sn.nn.ReLU(),
    "tanh": lambda n: sn.nn.Tanh(),
    "sigmoid": lambda n: sn.nn.Sigmoid(),
    "gelu": lambda n: sn.nn.GELU(),
    "dropout": lambda n: sn.nn.Dropout(0.4),
    "layer norm": sn.nn.LayerNorm,
    "batch norm": sn.nn.BatchNorm1d,
}
OPTIMIZERS = {
    "SGD": lambda p: sn.optim.SGD(p, 0.05, momentum=0.9),
    "nesterov": lambda p: sn.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": lambda p: sn.optim.Adam(p, 0.01),
    "AdamW": lambda p: sn.optim.AdamW(p, 0.01),
    "RMSprop": lambda p: sn.optim.RMSprop(p, 0.01),
}
SCHEDULES = {
    "none": lambda o: None,
    "step": lambda o: sn.optim.lr_scheduler.StepLR(o, 2),
    "linear": lambda o: sn.optim.lr_scheduler.LinearLR(o, 0.5, total_iters=3),
    "cosine": lambda o: sn.optim.lr_scheduler.CosineAnnealingLR(o, 10),
    "one cycle": lambda o: sn.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=50),
}
LOSSES = {
    "cross-entropy": lambda out, y: F.cross_entropy(out, y),
    "smoothed": lambda out, y: F.cross_entropy(out, y, label_smoothing=0.1),
    "squares": lambda out, y: F.mse_loss(out, out.detach() * 0.5),
    "binary": lambda out, y: F.binary_cross_entropy_with_logits(out[:, 0], (y > 0).astype(out.dtype)),
}


class Training:
    """One network with all that belongs to it; `step` is the ordinary one, or recorded."""

    def __init__(self, layers=("linear", "relu"), optimizer="SGD", schedule="none", loss="cross-entropy", width=9,
                 dtype=np.float32, device="cpu", jit=True, clip=None):  # fmt: skip
        sn.manual_seed(3)
        self.model = sn.nn.Sequential(*[LAYERS[name](width) for name in layers], sn.nn.Linear(width, 4))
        self.model.to(device, dtype)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.schedule = SCHEDULES[schedule](self.optimizer)
        self.loss, self.clip, self.width, self.dtype, self.device = LOSSES[loss], clip, width, dtype, device
        self.step = sn.jit(self.ordinary_step) if jit else self.ordinary_step
        self.random = Generator(7)

    def ordinary_step(self, x, y):
        self.optimizer.zero_grad()
        out = self.model(x)
        loss = self.loss(out, y)
        loss.backward()
        if self.clip is not None:
            sn.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        return loss, (out.argmax(1) == y).sum()

    def run(self, sizes):
        """Losses, numbers of right answers, and the final state, all as bytes."""
        rng, results = np.random.default_rng(5), []
        with using(self.random):
            for n in sizes:
                x, y = rng.standard_normal((n, self.width)).astype(self.dtype), rng.integers(0, 4, n)
                results += self.step(sn.Tensor(x, device=self.device), sn.Tensor(y, device=self.device))
        state = [*self.model.state_dict().values()]
        state += [a for slot in self.optimizer.state_dict()["state"] for a in slot.values()]
        results = [r.detach().numpy() for r in results]
        return (
            [np.asarray(a).tobytes() for a in results + state],
            self.random.stream,
            self.optimizer.param_groups[0]["lr"],
        )


def same(sizes, **options):
    replayed, ordinary = (Training(**options, jit=jit).run(sizes) for jit in (True, False))
    assert replayed == ordinary


@settings(max_examples=40 if JIT else 8, deadline=None)
@given(
    layers=st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=5),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    schedule=st.sampled_from(sorted(SCHEDULES)),
    loss=st.sampled_from(sorted(LOSSES)),
    width=st.sampled_from([1, 3, 8, 17, 40]),
    dtype=st.sampled_from([np.float32, np.float64]),
    sizes=st.lists(st.sampled_from([2, 5, 33]), min_size=2, max_size=6),
)
def test_random_networks_keep_the_bits_of_the_ordinary_step(sizes, **options):
    same(sizes, **options)


@pytest.mark.threads
@pytest.mark.skipif(not JIT, reason="nothing is compiled")
@settings(max_examples=40, deadline=None)
@given(
    layers=st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=4),
    width=st.sampled_from([1, 3, 7, 17]),
    loss=st.sampled_from(sorted(LOSSES)),
    n=st.sampled_from([2, 3, 5, 33]),
)
def test_any_cut_into_blocks_keeps_the_bits(layers, width, loss, n):
    with (
        mock.patch.multiple(fuse, SMALL=0, BLOCK=1, PRODUCT_ROWS=1, FEWEST_ROWS=1),
        mock.patch.object(execute, "PARALLEL_FROM", 1),
    ):
        same([n, n, n], layers=layers, width=width, loss=loss)


@pytest.mark.parametrize("padding", [None, 2])
def test_an_embedding_is_recorded_and_its_numbers_are_checked_in_each_call(padding):
    def run(jit):
        sn.manual_seed(1)
        table, head = sn.nn.Embedding(7, 5, padding_idx=padding), sn.nn.Linear(15, 4)
        optimizer = sn.optim.SGD([*table.parameters(), *head.parameters()], 0.1, momentum=0.9)

        def step(words, y):
            optimizer.zero_grad()
            loss = F.cross_entropy(head(table(words).reshape(-1, 15)), y)
            loss.backward()
            optimizer.step()
            return loss

        step, rng = sn.jit(step) if jit else step, np.random.default_rng(2)
        batches = [(rng.integers(0, 7, (6, 3)), rng.integers(0, 4, 6)) for _ in range(4)]
        losses = [step(sn.Tensor(words), sn.Tensor(y)).item() for words, y in batches]
        before = table.weight.detach().numpy().tobytes()
        for wrong in (-1, 7):
            with pytest.raises(sn.IndexOutOfRangeError, match="embedding"):
                step(sn.Tensor(np.full((6, 3), wrong)), sn.Tensor(np.zeros(6, np.int64)))
        assert table.weight.detach().numpy().tobytes() == before
        return losses, before

    assert run(True) == run(False)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_an_embedding_bag_is_recorded_with_bags_that_stay_and_refused_with_bags_that_vary(mode):
    def run(jit):
        sn.manual_seed(1)
        table, offsets = sn.nn.EmbeddingBag(7, 5, mode, padding_idx=2), [0, 2, 2, 3]
        optimizer, losses = sn.optim.SGD(table.parameters(), 0.1, momentum=0.9), []

        def step(words):
            optimizer.zero_grad()
            loss = (table(words) ** 2).mean() + table(words[:, 0], offsets).sum()
            loss.backward()
            optimizer.step()
            return loss

        step, rng = sn.jit(step) if jit else step, np.random.default_rng(2)
        for _ in range(4):
            losses.append(step(sn.Tensor(rng.integers(0, 7, (6, 3)))).item())
        with pytest.raises(sn.IndexOutOfRangeError, match="embedding_bag"):
            step(sn.Tensor(np.full((6, 3), 7)))
        return losses, table.weight.detach().numpy().tobytes()

    assert run(True) == run(False)
    table = sn.nn.EmbeddingBag(7, 5, mode)
    for offsets in (sn.Tensor([0, 2]), np.array([0, 2])):
        with pytest.raises(sn.JitError, match="look at the values"):
            sn.jit(lambda words, offsets: table(words, offsets))(sn.Tensor([1, 2, 3]), offsets)


@pytest.mark.threads
def test_a_network_of_the_reference_size_keeps_its_bits():
    same([64, 64, 64, 30, 64] if JIT else [8, 8], layers=["linear", "relu", "dropout"], width=300 if JIT else 20)


def test_the_numpy_device_keeps_its_bits():
    same([8, 8, 5, 8], layers=["linear", "tanh", "dropout"], device="numpy")


@pytest.mark.threads
def test_bits_do_not_depend_on_threads():
    most = sn.get_num_threads()
    results = []
    for threads in {1, most}:
        sn.set_num_threads(threads)
        results.append(Training(layers=["linear", "gelu", "layer norm"], width=128 if JIT else 9).run([64, 64, 64]))
    sn.set_num_threads(most)
    assert all(result == results[0] for result in results)


@pytest.mark.threads
@pytest.mark.skipif(not JIT, reason="nothing is compiled")
def test_the_number_of_threads_may_change_between_calls():
    most = sn.get_num_threads()
    a, b = (Training(width=200) for _ in range(2))
    a.run([64] * 6)
    rng = np.random.default_rng(5)
    for i in range(6):
        sn.set_num_threads(1 + i % most)
        x, y = rng.standard_normal((64, 200)).astype(np.float32), rng.integers(0, 4, 64)
        b.step(sn.Tensor(x), sn.Tensor(y))
    sn.set_num_threads(most)
    assert [p.detach().numpy().tobytes() for p in a.model.parameters()] == [
        p.detach().numpy().tobytes() for p in b.model.parameters()
    ]


def test_a_step_is_recorded_once_for_each_shape():
    training = Training()
    training.run([8, 8, 5, 8, 5])
    assert len(training.step.programs) == 2


def test_a_module_that_goes_to_evaluation_is_recorded_again():
    model = sn.nn.Sequential(sn.nn.Dropout(0.5))
    step = sn.jit(lambda x: model(x))
    x = sn.Tensor(np.ones(100, np.float32))
    assert all((step(x).numpy() == 0).any() for _ in range(3))
    model.eval()
    assert all((step(x).numpy() == 1).all() for _ in range(3))
    assert len(step.programs) == 2


def test_results_of_earlier_calls_stay_as_they_were():
    step = sn.jit(lambda x: x * 2.0)
    results = [step(sn.Tensor([float(i)])) for i in range(4)]
    assert [r.item() for r in results] == [0.0, 2.0, 4.0, 6.0]


def test_inputs_are_not_changed_and_may_come_from_other_memory_and_layouts():
    step = sn.jit(lambda x: (x @ x.T).relu())
    for x in np.random.default_rng(0).standard_normal((3, 6, 6)).astype(np.float32):
        for layout in (x, np.asfortranarray(x), x[::-1], x.copy()):
            before = layout.copy()
            np.testing.assert_array_equal(
                step(sn.Tensor(layout)).numpy(), (sn.Tensor(layout) @ sn.Tensor(layout).T).relu().numpy()
            )
            np.testing.assert_array_equal(layout, before)


def test_parameters_that_move_or_are_loaded_are_followed():
    a, b = Training(jit=True), Training(jit=False)
    a.run([8, 8]), b.run([8, 8])
    for training in (a, b):
        training.model.load_state_dict({k: v * 0.5 for k, v in training.model.state_dict().items()})
        training.model.to(dtype=np.float64)
        training.model.to(dtype=np.float32)
    assert [p.dtype for p in a.model.parameters()] == [p.dtype for p in b.model.parameters()]


def test_gradients_accumulate_over_calls_until_they_are_zeroed():
    rng = np.random.default_rng(0)
    batches = [sn.Tensor(rng.standard_normal((6, 5)).astype(np.float32)) for _ in range(4)]
    found = []
    for decorate in (sn.jit, lambda f: f):
        sn.manual_seed(0)
        model = sn.nn.Linear(5, 3)
        step = decorate(lambda x, model=model: (model(x) ** 2).mean().backward())
        held = []
        for x in batches:
            step(x)
            held.append(model.weight.grad.numpy())
        found.append([g.tobytes() for g in held])
        model.zero_grad()
        step(batches[0])
        assert model.weight.grad.numpy().tobytes() == held[0].tobytes()
    assert found[0] == found[1]


def test_an_update_alone_reads_the_gradients_that_are_there():
    found = []
    for decorate in (sn.jit, lambda f: f):
        p = sn.nn.Parameter(np.zeros(3, np.float32))
        optimizer = sn.optim.SGD([p], 1.0)
        step = decorate(optimizer.step)
        for i in range(4):
            p.grad = sn.Tensor(np.full(3, float(i), np.float32))
            step()
        found.append(p.detach().numpy().tolist())
    assert found[0] == found[1] == [-6.0] * 3


def test_clipped_gradients_keep_their_bits():
    same([8, 8, 8], layers=["linear", "tanh"], clip=0.1)


def test_a_step_within_a_step_is_a_part_of_it():
    inner = sn.jit(lambda x: x * 3.0)
    outer = sn.jit(lambda x: inner(x) + 1.0)
    assert [outer(sn.Tensor([x])).item() for x in (1.0, 2.0)] == [4.0, 7.0]
    assert not inner.programs


# --- what cannot be recorded, and what goes wrong ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "look",
    [
        lambda t: t.item(),
        lambda t: float(t),
        lambda t: bool(t > 0),
        lambda t: t.numpy(),
        lambda t: np.asarray(t),
        lambda t: int(t.astype(np.int64)),
        lambda t: sn.Tensor([1.0, 2.0])[sn.stack([t > 0, t > 1])],
    ],
)
def test_looking_at_a_value_is_an_error_that_names_the_line(look):
    step = sn.jit(lambda x: look(x.sum()))
    with pytest.raises(sn.JitError, match=re.escape(__file__) + r":\d+: .*expected a step that does not look"):
        step(sn.Tensor([1.0, 2.0]))
    assert not step.programs


def test_looking_at_a_parameter_is_an_error():
    model = sn.nn.Linear(2, 1)
    with pytest.raises(sn.JitError, match="does not look"):
        sn.jit(lambda x: model(x) * model.weight[0, 0].item())(sn.Tensor([[1.0, 2.0]]))


def test_arguments_that_require_grad_are_refused():
    with pytest.raises(sn.JitError, match="do not require grad"):
        sn.jit(lambda x: x.sum())(sn.Tensor([1.0], requires_grad=True))


def test_a_bad_label_in_a_later_call_is_the_error_of_the_ordinary_step():
    found = []
    for jit in (True, False):
        training = Training(layers=["linear", "relu", "dropout"], optimizer="Adam", schedule="one cycle", jit=jit)
        training.run([8, 8, 8])
        before = training.run([])
        x, y = sn.Tensor(np.ones((8, 9), np.float32)), np.array([0, 1, 2, 3, 4, 0, 1, 2])
        with (
            pytest.raises(sn.IndexOutOfRangeError, match=r"cross_entropy: expected integers in \[0, 4\), got 4"),
            using(training.random),
        ):
            training.step(x, sn.Tensor(y))
        assert training.run([])[0] == before[0]  # only a random number was drawn
        found.append(training.run([8]))
    assert found[0] == found[1]


def test_a_shape_error_in_the_first_call_leaves_nothing_behind():
    step = sn.jit(lambda a, b: a @ b)
    with pytest.raises(sn.ShapeError, match="matmul"):
        step(sn.Tensor([[1.0]]), sn.Tensor([[1.0], [2.0]]))
    assert not step.programs
    assert step(sn.Tensor([[2.0]]), sn.Tensor([[3.0]])).item() == 6.0


# --- outputs that are reported as final before the end ----------------------------------------------------------------


class Filling:
    """A step that puts the gradients of a network into arrays. final: what was in each when it was reported."""

    def __init__(self, layers, loss, width, reports=True):
        self.training = training = Training(layers, loss=loss, width=width)
        parameters = list(training.model.parameters())
        self.arrays = [np.zeros(p.shape, np.float32) for p in parameters]
        self.final: dict[int, bytes] = {}

        def step(x, y):
            training.optimizer.zero_grad()
            training.loss(training.model(x), y).backward()
            for parameter, array in zip(parameters, self.arrays, strict=True):
                tracing.active(parameter._device).copy(parameter.grad._data, array)
                parameter.grad = None

        self.step = Step(step, program.Outputs(self.arrays, self._on_final) if reports else None)

    def _on_final(self, final):
        assert final and not self.final.keys() & set(final)
        self.final |= {i: self.arrays[i].tobytes() for i in final}

    def run(self, n):
        """The gradients of some batch of n samples, and those that were reported as final."""
        rng, self.final = np.random.default_rng(n), {}
        for array in self.arrays:
            array.fill(np.nan)
        with using(self.training.random):
            self.step(sn.Tensor(rng.standard_normal((n, self.training.width)).astype(np.float32)),
                      sn.Tensor(rng.integers(0, 4, n)))  # fmt: skip
        return [array.tobytes() for array in self.arrays], self.final


@settings(max_examples=25 if JIT else 5, deadline=None)
@given(
    layers=st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=5),
    loss=st.sampled_from(sorted(LOSSES)),
    width=st.sampled_from([1, 3, 8, 17, 40]),
)
def test_what_is_reported_as_final_is_and_the_bits_are_those_of_one_call(layers, loss, width):
    with mock.patch.object(passes, "WORTH", 1):
        cut, whole = Filling(layers, loss, width), Filling(layers, loss, width, reports=False)
        for n in (5, 5, 5, 33, 33, 33, 5):
            gradients, final = cut.run(n)
            assert gradients == whole.run(n)[0]
            assert all(final[i] == gradients[i] for i in final)
    assert JIT is False or len(cut.arrays) == 2 or final


@pytest.mark.skipif(not JIT, reason="nothing is compiled")
def test_the_gradient_of_a_layer_does_not_wait_for_that_of_earlier_ones():
    with mock.patch.object(passes, "WORTH", 4 * 40 * 40):
        filling = Filling(["linear", "relu", "linear", "relu"], "cross-entropy", 40)
        for _ in range(3):
            filling.run(33)
    assert sorted(filling.final) == [2, 4, 5]  # those of the last layer, and the weight before it
    products = [
        sum(task.loop.name == "matmul" for task in executable.kept)
        for executable in filling.step.programs[0].executables
    ]
    assert products == [3 + 3, 2]  # of 3 forward and 5 backward, those that the weights of two layers need


# --- the program ------------------------------------------------------------------------------------------------------


@pytest.mark.threads
@pytest.mark.skipif(not JIT, reason="nothing is compiled")
@pytest.mark.skipif(not JIT, reason="nothing is compiled")
@pytest.mark.parametrize(
    ("other", "stages"),
    [  # what the rows of x @ w are multiplied by, and the (first group, end) of each stage
        (lambda u, v, small: u @ v, [[0, 2], [2, 3]]),
        (lambda u, v, small: small.exp(), [[0, 1], [1, 2]]),
    ],
)
def test_large_products_share_a_stage_and_small_work_comes_before_them(other, stages):
    shapes = (1024, 64), (64, 64), (64, 512), (512, 64), (64, 4)
    x, w, *others = (sn.Tensor(np.ones(shape, np.float32)) for shape in shapes)
    step = sn.jit(lambda x: (x @ w) @ other(*others))
    for _ in range(3):
        step(x)
    (executable,) = step.programs[0].executables
    assert executable.stages.tolist() == stages


@pytest.mark.threads
@pytest.mark.skipif(not JIT, reason="nothing is compiled")
def test_the_reference_step_is_one_compiled_call_of_few_stages():
    training = Training(width=128)
    training.run([64, 64])
    (program,) = training.step.programs
    (executable,) = program.executables
    native = [part for part in program.parts if part == executable.run]
    assert len(native) == 1 and len(executable.stages) <= 4


@pytest.mark.threads
@pytest.mark.skipif(not JIT, reason="nothing is compiled")
def test_gradients_of_one_weight_are_added_up_block_by_block_where_they_are_computed():
    layer = sn.nn.Linear(128, 64)
    optimizer = sn.optim.SGD(layer.parameters(), 0.1)

    def step(a, b):
        optimizer.zero_grad()
        for x in (a, b):
            layer(x).relu().sum().backward()
        optimizer.step()

    recorded = sn.jit(step)
    rng = np.random.default_rng(0)
    for _ in range(3):
        recorded(*(sn.Tensor(rng.standard_normal((96, 128)).astype(np.float32)) for _ in range(2)))
    (program,) = recorded.programs
    (executable,) = program.executables
    groups = [[task.loop.name for task in executable.kept[first:end]] for first, end, *_ in executable.groups]
    assert ["matmul", "matmul", "add", "sgd_in_place"] in groups


@pytest.mark.skipif(not JIT, reason="nothing is compiled")
@pytest.mark.parametrize(
    ("options", "fused"),
    [
        ({}, "sgd"),
        ({"optimizer": "nesterov"}, "sgd"),
        ({"optimizer": "Adam"}, "adam"),
        ({"optimizer": "RMSprop"}, "rmsprop"),
        ({"clip": 1.0}, None),
    ],
)
def test_a_weight_gradient_that_only_an_update_reads_is_never_written(options, fused):
    training = Training(width=40, **options)
    training.run([64, 64])
    text = training.step.explain()
    assert [update for update in UPDATES if f"matmul_{update}" in text] == ([fused] if fused else [])
    same([64, 64, 64], width=40, **options)


@pytest.mark.skipif(not JIT, reason="nothing is compiled")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (lambda p: sn.optim.SGD(p, 0.1, 0.5), "matmul_sgd"),
        (lambda p: sn.optim.Adam(p, 0.1, (0.5, 0.999)), "matmul_adam"),
    ],
    ids=["sgd", "adam"],
)
def test_an_update_in_a_product_keeps_no_state_that_is_subnormal(dtype, rule, name):
    layer = sn.nn.Linear(40, 40).to(dtype=dtype)
    optimizer = rule(layer.parameters())
    tiny = np.finfo(dtype).tiny

    @sn.jit
    def step(x):
        optimizer.zero_grad()
        loss = layer(x).sum()
        loss.backward()
        optimizer.step()
        return loss

    seen = []
    for scale in (tiny * 8, 0, 0, 0, 0):
        step(sn.Tensor(np.full((64, 40), scale / 64, dtype)))
        seen.append(optimizer.states[0].arrays[0][3].copy())
    assert name in step.explain()
    first = 8 * tiny if name == "matmul_sgd" else 4 * tiny
    expected = [first / 2**i for i in range(5)]
    np.testing.assert_array_equal(seen, [np.full(40, v if v >= tiny else 0, dtype) for v in expected])


@pytest.mark.threads
@pytest.mark.skipif(not JIT or sn.get_num_threads() < 2, reason="one thread has all columns")
def test_threads_that_share_out_the_columns_of_a_weight_keep_the_bits():
    training = Training(width=128)
    training.run([64, 64])
    loops = {task.loop.name for executable in training.step.programs[0].executables for task in executable.kept}
    assert {"matmul_columns", "matmul_sgd_columns"} <= loops
    same([64, 64, 64], width=128)


def test_explain_shows_calls_and_stages_and_changes_nothing():
    training = Training(["linear", "relu", "dropout"], optimizer="Adam", schedule="one cycle", width=16)
    with pytest.raises(sn.JitError, match="called at least twice"):
        training.step.explain()
    training.run([8, 8])
    before = training.run([])
    text = training.step.explain()
    assert "linear(8x16, 16x16, 16, 8x16)" in text and "adam" in text
    assert training.run([]) == before
    times = [float(line.split()[2]) for line in text.splitlines() if line.startswith("stage")]
    step, stages = map(float, re.search(r"a step takes ([\d.]+) us: ([\d.]+) us the stages", text).groups())
    assert abs(sum(times) - stages) < 0.1 * len(times) + 0.1 and 0 <= stages <= step and bool(times) == JIT


@pytest.mark.threads
@pytest.mark.skipif(not JIT, reason="nothing is compiled")
def test_explain_counts_arithmetic_where_it_is_done_and_not_where_an_operand_is_packed():
    @sn.jit
    def product(x, y):
        return x @ y

    draw = np.random.default_rng(0)
    x, y = (sn.Tensor(draw.random((rows, 1000), np.float32)) for rows in (1600, 1000))
    for _ in range(2):
        product(x, y)
    lines = product.explain().splitlines()
    assert any("pack " in line and "0.000 MFLOP" in line for line in lines)
    computed = [line for line in lines if "3200.000 MFLOP" in line]
    assert len(computed) == 2  # as recorded, and in the stage that computes it
    peak = re.search(r"by the peak in float32: (\d+) GFLOP/s on \d+ threads", "\n".join(lines))
    for line in computed:  # the time of its arithmetic at the peak
        assert float(line.split()[-2]) == pytest.approx(3.2e6 / int(peak[1]), rel=0.05)
    assert all("% of peak, floor " in line for line in lines if line.startswith("stage"))
