"""Training in bfloat16: the same bits for any workers, deaths and recordings; what the run says and remembers."""

import functools

import numpy as np
import pytest
from messages import error_line

import scratchnet as sn
from scratchnet import precisions
from scratchnet.parallel import failpoints
from scratchnet.parallel.pool import steps
from scratchnet.trainer import identity

X = np.random.default_rng(0).standard_normal((48, 20)).astype(np.float32)
DATA = sn.data.TensorDataset(X, (X[:, 0] > 0).astype(np.int64))


@functools.cache
def wide():
    """(data, rows of a shard, hidden units) of a run whose first layer alone is rounded, by any CPU."""
    side, most = precisions.least("bfloat16", sn.kernels.order_of_bfloat16())
    rows, hidden = max(36, side), max(64, side)
    columns = max(128, side, most // (rows * hidden) + 1)
    x = np.random.default_rng(0).standard_normal((12 * rows, columns)).astype(np.float32)
    return sn.data.TensorDataset(x, (x[:, 0] > 0).astype(np.int64)), rows, hidden


def trained(epochs=2, dtype="float32", resume=None, **options):
    sn.manual_seed(0)
    data, rows, hidden = wide()
    model = sn.nn.MLP(data[0][0].shape[0], hidden, 2).to(dtype=dtype)
    options = {"precision": "bfloat16", "progress": False, "shards": 4} | options
    trainer = sn.Trainer(model, sn.optim.SGD(model.parameters(), 0.1, 0.9), sn.nn.CrossEntropyLoss(), **options)
    trainer.fit(sn.data.DataLoader(data, 4 * rows, shuffle=True), epochs=epochs, resume=resume)
    return b"".join(p.detach().numpy().tobytes() for p in model.parameters())


@pytest.fixture(scope="module")
def alone():
    return trained()


@pytest.mark.parametrize(
    "options", [{"jit": False}, {"workers": 2}, {"clip_norm": 1e9}, {"device": "numpy"}], ids=lambda o: next(iter(o))
)
def test_bits_do_not_depend_on_who_computes_and_dies(options, alone, monkeypatch, tmp_path):
    if "device" in options:  # another table, with other bits, but as close as float32 is
        with sn.default_device("numpy"):
            found = np.frombuffer(trained(), np.float32)
        np.testing.assert_allclose(found, np.frombuffer(alone, np.float32), atol=2e-3)
    else:
        monkeypatch.setenv(failpoints.VARIABLE, "shard.half_written:1:*:SIGKILL,slice.half_written:3:*:SIGKILL")
        monkeypatch.setenv(failpoints.LOG, str(tmp_path / "fired"))
        assert trained(**options) == alone
        assert (tmp_path / "fired").exists() == ("workers" in options)
    assert alone != trained(precision="float32")


def test_a_run_goes_on_with_the_same_bits(alone, tmp_path):
    trained(epochs=1, folder=tmp_path)
    assert trained(folder=tmp_path, resume="auto") == alone


def test_a_run_whose_products_were_added_up_in_another_order_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(identity, "order_of", lambda precision, kinds: "elsewhere")
    trained(epochs=1, folder=tmp_path)
    monkeypatch.undo()
    with pytest.raises(sn.CheckpointError, match="expected SCRATCHNET_BFLOAT16=elsewhere, as saved, got ") as error:
        trained(folder=tmp_path, resume="auto")
    error_line(error)


def test_a_model_of_float64_is_refused():
    with pytest.raises(sn.ConfigError, match=r"parameters of float32 .*got float64 in 'linear1\.weight'") as error:
        trained(dtype="float64")
    error_line(error)


def test_a_run_says_how_its_products_are_computed(capsys):
    trained(epochs=1, progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("bfloat16 products, added up in float32: ") for line in lines) == 1
    side, most = precisions.least("bfloat16", order := sn.kernels.order_of_bfloat16())
    few = f"products with fewer than {side} rows, columns or terms, or of at most {most:,} multiplications"
    few += ", stay float32"
    assert sum(line == few for line in lines) == 1
    trained(epochs=1, progress=True, shards=8)
    rows = max(36, side) // 2
    more = f"; a shard has {rows} rows: more rows, or fewer shards, let bfloat16 help" if order != "widened" else ""
    assert few + more in capsys.readouterr().out.splitlines()
    trained(epochs=1, progress=True, precision="float32")
    assert "bfloat16" not in capsys.readouterr().out


def test_a_loss_that_is_not_finite_is_found():
    model = sn.nn.MLP(20, 24, 2)
    with sn.no_grad():
        for parameter in model.parameters():
            parameter *= 1e30
    trainer = sn.Trainer(
        model, sn.optim.SGD(model.parameters(), 0.1), sn.nn.CrossEntropyLoss(), progress=False, precision="bfloat16"
    )
    with pytest.raises(sn.NonFiniteError, match=r"step 0, shard 0, from ") as error:
        trainer.fit(sn.data.DataLoader(DATA, 16))
    error_line(error)


def test_the_precision_around_a_run_is_refused_and_does_not_reach_predictions():
    model = sn.nn.MLP(20, 24, 2)
    rule, loss = sn.optim.SGD(model.parameters(), 0.1), sn.nn.CrossEntropyLoss()
    trainer, loader = sn.Trainer(model, rule, loss, progress=False), sn.data.DataLoader(DATA, 16)
    found = trainer.evaluate(loader), trainer.predict(X)
    with sn.precision("bfloat16"):
        with pytest.raises(sn.ConfigError, match="expected no sn\\.precision"):
            trainer.fit(loader)
        assert trainer.evaluate(loader) == found[0]
        np.testing.assert_array_equal(trainer.predict(X), found[1])


# --- float16, whose gradients need a scale: here by the reference's products, as if this device had it ---------------


@pytest.fixture
def float16(monkeypatch):
    """Options of a run in float16, with the first scale and the steps after which it grows as they are set."""

    def options(first=precisions.FIRST_SCALE, grows_after=precisions.GROWS_AFTER):
        monkeypatch.setattr(precisions, "DEVICES", {})
        monkeypatch.setattr(precisions, "GROWS_AFTER", grows_after)
        monkeypatch.setattr(steps, "FIRST_SCALE", float(first))
        return {"precision": "float16"}

    return options


def records(loss=None, epochs=2, lr=0.1, **options):
    """(the parameters, the records of the epochs) of a run."""
    sn.manual_seed(0)
    model = sn.nn.MLP(20, 24, 2)
    options = {"progress": False, "shards": 4} | options
    resume = options.pop("resume", None)
    trainer = sn.Trainer(model, sn.optim.SGD(model.parameters(), lr), loss or sn.nn.CrossEntropyLoss(), **options)
    history = trainer.fit(sn.data.DataLoader(DATA, 16, shuffle=True), epochs=epochs, resume=resume)
    return np.concatenate([p.detach().numpy().ravel() for p in model.parameters()]), history.records


def test_a_scale_of_a_power_of_two_changes_float32_gradients_by_no_bit_and_float16_ones_little(float16):
    exact, _ = records()
    found, history = records(**float16())
    np.testing.assert_allclose(found, exact, atol=2e-3)
    assert found.tobytes() != exact.tobytes()
    assert [(r["loss_scale"], r["skipped"]) for r in history] == [(2**16, 0), (2**16, 0)]
    assert records(**float16(2**10))[0].tobytes() == found.tobytes() == records(**float16(), jit=False)[0].tobytes()


def test_a_scale_backs_off_grows_and_goes_on_with_a_checkpoint(float16, tmp_path):
    options = float16(2**24, grows_after=4)
    whole, history = records(epochs=6, **options)
    assert history[0]["skipped"] == 3 and history[0]["loss_scale"] == 2**21  # three steps an epoch
    assert history[-1]["skipped"] > 3 and {r["loss_scale"] for r in history[2:]} > {2**20}
    records(epochs=2, folder=tmp_path, **options)
    found, resumed = records(epochs=6, folder=tmp_path, resume="auto", **options)
    assert found.tobytes() == whole.tobytes() and resumed == history


def test_gradients_that_underflow_are_counted_and_a_scale_saves_them(float16):
    def small(output, target):
        return sn.nn.functional.cross_entropy(output, target) * 1e-7

    def idle(**options):
        """How many parameters did not move; those of dead units never do."""
        start, _ = records(small, epochs=0, lr=1e5)
        return int((records(small, epochs=1, lr=1e5, **options)[0] == start).sum())

    in_float32 = idle()
    assert idle(**float16()) == in_float32
    assert idle(**float16(first=1)) > in_float32 + 400  # of 554


def test_a_gradient_that_is_not_finite_at_any_scale_ends_the_run(float16):
    def broken(output, target):
        return (output * 0.0).sqrt().mean()  # finite, but its gradient is not

    with pytest.raises(sn.NonFiniteError, match=r"expected a finite gradient of 'linear1\.weight'") as error:
        records(broken, **float16(4))
    error_line(error)


def test_float16_is_refused_where_there_is_none(float16):
    with pytest.raises(sn.ConfigError, match=r"on 'cuda' in precision 'float16', got 'cpu'; .*'bfloat16'") as error:
        records(precision="float16")
    error_line(error)
    with pytest.raises(
        sn.ConfigError, match=r"expected strategy='all_reduce' .*got ParameterServer.*bfloat16"
    ) as error:
        records(strategy="parameter_server", **float16())
    error_line(error)
