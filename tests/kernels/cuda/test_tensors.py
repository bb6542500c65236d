"""Tensors on the device "cuda": where their memory is, how it comes and goes, and what a training run makes of them."""

import contextlib
import copy
import gc
import pickle
import threading
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from gpu_arrays import RNG, floats, on_gpu
from sizes import SIMULATED

import scratchnet as sn
from scratchnet import ops
from scratchnet.data import read_idx
from scratchnet.jit import step as jit_step

NEEDS = "simulated"
if SIMULATED:
    import scratchnet.kernels.cuda as table
    from scratchnet.kernels.cuda import compile, memory, replay

ROOT = Path(__file__).parents[3]
EPS = np.finfo(np.float32).eps


# --- there and back ---------------------------------------------------------------------------------------------------


def test_the_simulator_is_no_gpu():
    assert sn.cuda.is_available() is False and sn.cuda.device_count() == 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int32, np.uint8, bool])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0), (2, 3, 4)])
def test_a_tensor_comes_back_as_it_went(dtype, shape):
    x = (RNG.standard_normal(shape) * 3 > 0).astype(dtype)
    t = sn.Tensor(x).to("cuda")
    assert (t.device, t.shape, t.dtype) == ("cuda", x.shape, x.dtype)
    np.testing.assert_array_equal(t.numpy(), x)
    np.testing.assert_array_equal(t.to("cpu").numpy(), x)
    assert t.to("cuda") is t


def test_a_tensor_on_the_device_has_memory_of_its_own():
    x = floats(4)
    t = on_gpu(x)
    before, x[0] = x.copy(), 77
    t.numpy()[1] = 77
    np.testing.assert_array_equal(t.numpy(), before)


def test_views_share_memory_and_any_strides_come_back():
    x = floats(4, 6)
    t = on_gpu(x)
    for view, expected in [
        (t.T, x.T),
        (t[1:3, ::2], x[1:3, ::2]),
        (t[::-1], x[::-1]),
        (t[2], x[2]),
        (t[1, 1], x[1, 1]),
    ]:
        np.testing.assert_array_equal(view.numpy(), expected)
        low, high = t._data.address, t._data.address + x.nbytes
        assert low <= view._data.address < high


def test_gradients_travel_between_devices():
    x = sn.Tensor(floats(3), requires_grad=True)
    (x.to("cuda") * 2.0).sum().backward()
    assert x.grad.device == "cpu" and x.grad.numpy().tolist() == [2, 2, 2]


def test_modules_and_their_state_move():
    model = sn.nn.Sequential(sn.nn.Linear(3, 2), sn.nn.BatchNorm1d(2), sn.nn.Embedding(4, 2, padding_idx=1))
    before = model.state_dict()
    assert {t.device for t in model.to("cuda").parameters()} == {"cuda"}
    after = model.state_dict()
    assert all(type(x) is np.ndarray for x in after.values())
    for name, x in before.items():
        np.testing.assert_array_equal(after[name], x)
    model.load_state_dict({name: x + 1 for name, x in before.items()})
    for name, x in model.to("cpu").state_dict().items():
        np.testing.assert_array_equal(x, before[name] + 1)


def test_parameters_made_on_the_device_are_drawn_as_on_the_host():
    def weights(device):
        sn.manual_seed(3)
        with sn.default_device(device):
            return sn.nn.MLP(3, 4, 2).state_dict()

    host, there = weights("cpu"), weights("cuda")
    assert all(host[name].tobytes() == there[name].tobytes() for name in host)


def test_masks_of_dropout_are_those_of_the_host():
    x = np.ones((7, 9), np.float32)
    masks = [
        sn.nn.functional.dropout(sn.Tensor(x, device=device), 0.4) for device in ("cuda", "cpu") if sn.manual_seed(5)
    ]
    assert masks[0].numpy().tobytes() == masks[1].numpy().tobytes()


# --- bad input: one typed line each -----------------------------------------------------------------------------------


def no_memory(size):
    raise MemoryError("CUDA_ERROR_OUT_OF_MEMORY")


CASES = [
    (lambda: on_gpu([1.0]) + sn.Tensor([1.0]), sn.DeviceError, "add: expected one device, got 'cuda' and 'cpu'"),
    (lambda: sn.Tensor([1.0]) @ on_gpu([1.0]), sn.DeviceError, "matmul: expected one device, got 'cpu' and 'cuda'"),
    (
        lambda: sn.nn.functional.cross_entropy(on_gpu([[1.0, 2.0]]), sn.Tensor([1])),
        sn.DeviceError,
        "cross_entropy: expected one device, got 'cuda' and 'cpu'",
    ),
    (
        lambda: sn.nn.functional.embedding(sn.Tensor([1]), on_gpu([[1.0, 2.0]] * 2)),
        sn.DeviceError,
        "take_rows: expected one device, got 'cuda' and 'cpu'",
    ),
    (lambda: on_gpu(np.int16([1])), sn.DtypeError, "cuda: expected one of float32, .*, got int16"),
    (lambda: on_gpu([1]) ** on_gpu([2]), sn.DtypeError, r"pow: expected dtypes .* on 'cuda', got int64"),
    (lambda: np.sum(on_gpu([1.0])._data), sn.DeviceError, r"np.sum: expected a NumPy array, .*use .numpy\(\)"),
    (lambda: np.asarray(on_gpu([1.0])._data), sn.DeviceError, r"expected a NumPy array, got one on 'cuda'"),
    (lambda: sn.cuda.from_dlpack([1.0]), sn.DeviceError, "expected an object with __dlpack__, got list"),
    (lambda: sn.cuda.from_dlpack(np.int16([1])), sn.DtypeError, "got int16"),
    (
        lambda: sn.nn.functional.cross_entropy(on_gpu([[1.0, 2.0]]), on_gpu([2])),
        sn.IndexOutOfRangeError,
        r"cross_entropy: expected integers in \[0, 2\), got 2",
    ),
]


@pytest.mark.parametrize(("make", "error", "words"), CASES)
def test_bad_input_is_one_typed_line(make, error, words):
    with pytest.raises(error, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_too_large_a_tensor_is_a_typed_line_and_leaks_nothing():
    gc.collect()
    with mock.patch.object(memory, "pool", memory.Pool()) as pool, mock.patch.object(memory, "allocate", no_memory):
        with pytest.raises(sn.DeviceError, match=r"cuda: expected 4,096 bytes of free device memory, got 0") as caught:
            on_gpu(floats(1024))
        assert "\n" not in str(caught.value)
        assert pool.allocated == 0 and not any(pool.waiting.values())


def test_memory_that_waits_is_given_up_when_the_driver_has_none():
    pool = memory.Pool()
    block = pool.take(1000)
    del block
    assert pool.waiting
    answers = iter([MemoryError(), compile.machine.Memory(2048)])

    def allocate(size):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with mock.patch.object(memory, "allocate", allocate):
        kept = pool.take(2000)
    assert kept.nbytes == 2048 and not any(pool.waiting.values()) and pool.allocated == 2048


def test_memory_may_come_back_at_any_line_of_the_pool():
    """The garbage collector runs where Python makes an object, and forgets arrays there, in the pool's own code too."""
    pool = memory.Pool()

    class Collected(dict):
        """Free blocks, in whose methods another block comes back."""

        def setdefault(self, *key):
            if spare:
                spare.pop()
                gc.collect()
            return super().setdefault(*key)

    spare = [[pool.take(512)]]
    spare[0].append(spare[0])  # a cycle, which only the collector frees
    pool.waiting = Collected()
    worker = threading.Thread(target=lambda: pool.give_back(1024, compile.machine.Memory(1024)), daemon=True)
    worker.start()
    worker.join(10)
    assert not worker.is_alive()
    assert {size: len(found) for size, found in pool.waiting.items()} == {512: 1, 1024: 1}


@pytest.mark.parametrize("view", [lambda x: x.reshape(6), lambda x: x.T, lambda x: x.unsqueeze(0)])
def test_a_gradient_is_no_view_of_what_backward_was_given(view):
    x = on_gpu(floats(2, 3))
    x.requires_grad = True
    y = view(x)
    gradient = on_gpu(floats(*y.shape))
    y.backward(gradient)
    kept = x.grad.numpy()
    gradient.fill_(7.0)
    np.testing.assert_array_equal(x.grad.numpy(), kept)


def test_labels_are_looked_at_on_the_host_once():
    labels = on_gpu([0, 1, 2])
    with mock.patch.object(memory, "to_host", side_effect=AssertionError("waits for the device")):
        assert labels._data[1:].limits == (0, 2)
        assert labels.astype(np.int64)._data.limits == (0, 2)
    assert (labels + 5)._data.limits == (5, 7)  # made on the device: looked at there


def test_device_memory_is_copied_and_pickled_by_its_content():
    """A layout is an array at addresses of the device: to copy that would be to read them on the host."""
    model = sn.nn.Linear(3, 2).to("cuda")
    optimizer = sn.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    optimizer.states[0].arrays[0] = on_gpu(floats(3, 2))._data
    for other_model, other in (copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))):
        assert other.states[0].param is other_model.weight and other_model.weight.device == "cuda"
        mine, copied = optimizer.states[0].arrays[0], other.states[0].arrays[0]
        assert copied.address == copied.owner.address != mine.address
        np.testing.assert_array_equal(memory.to_host(copied), memory.to_host(mine))


# --- memory -----------------------------------------------------------------------------------------------------------


def test_memory_is_used_again():
    x = on_gpu(floats(1000))
    del x
    before = sn.cuda.memory_allocated()
    addresses = set()
    for _ in range(5):
        x = on_gpu(floats(1000))
        addresses.add(x._data.address)
        del x
    assert len(addresses) == 1 and sn.cuda.memory_allocated() == before
    sn.cuda.empty_cache()
    assert sn.cuda.memory_allocated() < before


def test_a_view_keeps_the_memory():
    x = on_gpu(np.arange(6.0))
    view = x[2:]
    address = x._data.address
    del x
    other = on_gpu(np.zeros(6))
    assert other._data.address != address and view.numpy().tolist() == [2, 3, 4, 5]


# --- batches ----------------------------------------------------------------------------------------------------------


def test_batches_travel_ahead_and_stay_as_they_are():
    arrays = [(floats(n, 3), RNG.integers(0, 9, n)) for n in (4, 4, 4, 6, 0, 1)]
    taken = []

    def batches():
        for i, batch in enumerate(arrays):
            taken.append(i)
            yield batch

    kept = []
    for i, batch in enumerate(sn.cuda.prefetch(batches())):
        assert len(taken) == min(i + 2, len(arrays))  # the next one is under way
        kept.append(batch)
    for batch, expected in zip(kept, arrays, strict=True):
        assert all(t.device == "cuda" for t in batch)
        for t, x in zip(batch, expected, strict=True):
            np.testing.assert_array_equal(t.numpy(), x)


def test_a_loader_sends_its_batches_to_the_default_device():
    loader = sn.data.DataLoader(sn.data.TensorDataset(floats(5, 2), np.arange(5)), 2)
    with sn.default_device("cuda"):
        batches = list(loader)
    assert [t.device for t in batches[0]] == ["cuda"] * 2
    assert np.concatenate([y.numpy() for _, y in batches]).tolist() == [0, 1, 2, 3, 4]


# --- training ---------------------------------------------------------------------------------------------------------


def steps(device, n=3):
    """The reference network on real images, n steps: losses and final parameters."""
    folder = ROOT / "scratchnet" / "data" / "fashion_mnist_mini"
    images, labels = (read_idx(folder / f"t10k-{kind}-ubyte.gz")[:12] for kind in ("images-idx3", "labels-idx1"))
    sn.manual_seed(0)
    model = sn.nn.MLP(784, 128, 10).to(device)
    optimizer, loss_of = sn.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), sn.nn.CrossEntropyLoss()
    losses = []
    for i in range(n):
        rows = slice(4 * i, 4 * i + 4)
        x = sn.Tensor(images[rows].reshape(4, 784).astype(np.float32) / 255, device=device)
        loss = loss_of(model(x), sn.Tensor(labels[rows].astype(np.int64), device=device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict()


def test_the_reference_network_trains_as_on_the_cpu():
    from scratchnet.kernels.cuda import tuning
    from scratchnet.kernels.cuda.tuning import Tile

    large = tuning.Tuning(threads=32, blocks=64, warp=32, shuffles=True, tiles=(Tile(4, 32, 4, 4, 8),), few_terms=0)
    with tuning.use(large):
        losses, there = steps("cuda")
    expected, here = steps("cpu")
    # The bound of numerical analysis for one step is about (784 + 128) * eps times sums of absolute values of order 1.
    np.testing.assert_allclose(losses, expected, rtol=200 * np.finfo(np.float32).eps)
    for name in here:
        np.testing.assert_allclose(there[name], here[name], atol=200 * np.finfo(np.float32).eps)


def job(device, jit):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (40, 6)).astype(np.uint8), rng.integers(0, 3, 40).astype(np.uint8)
    sn.manual_seed(0)
    inner = [sn.nn.BatchNorm1d(5), sn.nn.ReLU(), sn.nn.Dropout(0.2)]
    model = sn.nn.Sequential(sn.nn.Linear(6, 5), *inner, sn.nn.Linear(5, 3)).to(device)
    optimizer = sn.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    train, val = sn.data.random_split(sn.data.TensorDataset(images, labels, scale=1 / 255), [30, 10])
    scale = sn.data.Standardize.fit(train, per_feature=False)
    loader = sn.data.DataLoader(train.map(scale), 8, shuffle=True)
    schedule = sn.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=8)
    trainer = sn.Trainer(model, optimizer, sn.nn.CrossEntropyLoss(), schedule, shards=2, progress=False, jit=jit)
    with mock.patch.object(jit_step, "Program", side_effect=jit_step.Program) as made:
        history = trainer.fit(loader, sn.data.DataLoader(val.map(scale), 10), epochs=2)
    return history, model.state_dict(), made.call_count


def test_a_recorded_step_on_the_device_has_the_bits_of_the_eager_one_and_is_replayed():
    _, eager, _ = job("cuda", jit=False)
    history, recorded, programs = job("cuda", jit=True)
    assert all(eager[name].tobytes() == recorded[name].tobytes() for name in eager)
    assert programs == 2  # for whole batches and for the last one of an epoch; 8 steps in all
    expected, parameters, _ = job("cpu", jit=True)
    np.testing.assert_allclose(history["val_loss"], expected["val_loss"], rtol=1e-5)
    for name in parameters:
        np.testing.assert_allclose(recorded[name], parameters[name], rtol=1e-4, atol=1e-5)


def test_a_replay_is_one_part_of_launches_over_memory_that_is_there():
    sn.manual_seed(0)
    layers = sn.nn.Linear(20, 18), sn.nn.BatchNorm1d(18), sn.nn.Tanh(), sn.nn.Dropout(0.2), sn.nn.Linear(18, 3)
    model, loss_of = sn.nn.Sequential(*layers).to("cuda"), sn.nn.CrossEntropyLoss()
    optimizer = sn.optim.Adam(model.parameters(), lr=0.01)

    @sn.jit
    def step(x, y):
        loss = loss_of(model(x), y) + (x * x).sum(axis=0).mean() * 0.1
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    batches = [(on_gpu(floats(21, 20)), on_gpu(RNG.integers(0, 3, 21))) for _ in range(4)]
    counts = []
    for batch in batches:
        with counted() as count:
            step(*batch)
        counts.append(count)
    assert counts[2] == counts[3]  # two calls are recorded
    recorded, replayed = counts[0], counts[2]
    assert recorded["taken"] > 50 and replayed["taken"] == 1 and replayed["allocated"] == 0  # taken: for the loss
    (program,) = step.programs
    *checks, launches = program.parts
    assert len(checks) == 1  # of the labels: the loss and its gradient ask the same question
    assert replayed["launches"] == len(launches.launches) < recorded["launches"]


def test_launches_that_are_repeated_find_new_numbers_in_memory_that_is_sent_only_where_one_changed():
    param, grad, velocity = (on_gpu(floats(9))._data for _ in range(3))
    new, new_velocity = (on_gpu(floats(9))._data for _ in range(2))
    numbers = np.array([0.1, 0.0, 0.0, 0.0])  # of SGD: rate, momentum, nesterov, weight decay
    (again,) = table.replayed([("sgd", (param, grad, velocity, new, new_velocity, numbers))])
    seen = []
    with mock.patch.object(compile.machine, "send", side_effect=compile.machine.send) as send:
        for rate in (0.1, 0.1, 0.5):
            numbers[0] = rate
            again()
            expected = memory.to_host(param) - np.float32(rate) * memory.to_host(grad)
            np.testing.assert_allclose(memory.to_host(new), expected, rtol=4 * EPS)
            seen.append(send.call_count)
    assert seen == [1, 1, 2]


def test_numbers_of_many_launches_share_pages_and_those_of_one_source_a_place():
    kept, sources = replay.Numbers(), [np.full(3, i, np.float64) for i in range(300)]
    places = [kept.of(np.dtype(np.float32), tuple, source) for source in sources]
    assert kept.of(np.dtype(np.float32), tuple, sources[0]) is places[0]
    assert len({x.address for x in places}) == 300 and len(kept._pages) == 2
    for change in (0, 1000):
        for source in sources:
            source += change
        kept.refresh()
        assert [memory.to_host(x).tolist() for x in places] == [[i + change] * 3 for i in range(300)]


@contextlib.contextmanager
def counted():
    """How many launches there are inside, and blocks of memory that are taken from the pool, and from the driver."""
    count = {"launches": 0, "taken": 0, "allocated": 0}

    def counting(name, function):
        def call(*args):
            count[name] += 1
            return function(*args)

        return call

    token = compile.launcher.set(counting("launches", compile.launcher.get()))
    take, allocate = counting("taken", memory.pool.take), counting("allocated", memory.allocate)
    try:
        with mock.patch.object(memory.pool, "take", take), mock.patch.object(memory, "allocate", allocate):
            yield count
    finally:
        compile.launcher.reset(token)


def test_labels_of_a_replay_are_checked_before_anything_is_written():
    """Also those that it makes of its arguments: what is known of the labels of one call does not hold in the next."""
    model = sn.nn.Linear(4, 3).to("cuda")
    optimizer, rows = sn.optim.SGD(model.parameters(), lr=0.1), on_gpu([2, 0, 1])

    @sn.jit
    def step(x, y):
        optimizer.zero_grad()
        loss = sn.nn.functional.cross_entropy(model(x), ops.take_rows(y, rows))
        loss.backward()
        optimizer.step()
        return loss

    x = on_gpu(floats(3, 4))
    for _ in range(2):
        step(x, on_gpu([0, 1, 2]))
    before = model.state_dict()
    with pytest.raises(sn.IndexOutOfRangeError, match=r"expected integers in \[0, 3\), got 3"):
        step(x, on_gpu([0, 1, 3]))
    after = model.state_dict()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    step(x, on_gpu([2, 1, 0]))


def test_the_training_script_takes_the_device(tmp_path, capsys, few_images):
    import train

    config = train.Config(
        data=few_images(12), hidden=(4,), epochs=1, batch_size=5, device="cuda", folder=str(tmp_path / "run")
    )
    try:
        train.main(config)
    finally:
        sn.default_device("cpu")
    assert "test accuracy" in capsys.readouterr().out


def test_axes_are_turned_around_however_many_there_are():
    """More than a launch walks over, no two of which lie in memory as one."""
    x = np.arange(96.0).reshape(2, 3, 2, 2, 2, 2)
    turned = sn.Tensor(x, device="cuda").permute(5, 4, 3, 2, 1, 0).reshape(96)
    np.testing.assert_array_equal(turned.numpy(), x.T.reshape(96))
