"""Saved models: a file alone gives the outputs and classes of the trained model, and unpickles nothing."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from messages import refused
from PIL import Image

import scratchnet as sn
from scratchnet import nn
from scratchnet.data import DataLoader, Standardize, TensorDataset, from_csv, image_folder, random_split, text_csv
from scratchnet.errors import CheckpointError, CheckpointNotFoundError, ConfigError, DataError, ShapeError
from scratchnet.predictor import outputs_of

ROOT = Path(__file__).parents[1]


def softmax(logits):
    shares = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


@pytest.fixture
def flowers(tmp_path):
    rng = np.random.default_rng(0)
    rows = [f"{x:.3f},{'red' if x > 0 else 'blue'},{'rose' if x > 0 else 'lily'}" for x in rng.normal(size=40)]
    (tmp_path / "flowers.csv").write_text("length,color,species\n" + "\n".join(rows) + "\n")
    return from_csv(tmp_path / "flowers.csv", target="species")


def trained(dataset, model, folder=None, loss=None, **options):
    optimizer = sn.optim.SGD(model.parameters(), 0.1)
    loss = loss or nn.CrossEntropyLoss()
    trainer = sn.Trainer(model, optimizer, loss, folder=folder, progress=False, **options)
    trainer.fit(DataLoader(dataset, 8), epochs=2)
    return trainer


# --- the same numbers -------------------------------------------------------------------------------------------------


def test_a_checkpoint_predicts_the_cells_of_a_table(flowers, tmp_path):
    train, test = random_split(flowers, [30, 10])
    scale = Standardize.fit(train)
    trainer = trained(train.map(scale), nn.MLP(3, 5, 2, dropout=0.5), tmp_path / "run")
    for path in (tmp_path / "run", tmp_path, sorted((tmp_path / "run").glob("checkpoint-*"))[-1]):
        model = sn.load_model(path)
        features, _ = test.map(scale)[:]
        expected = trainer.predict(features)
        cells = [flowers.arrays[0][i] for i in test.positions]
        raw = {"length": [row[0] for row in cells], "color": ["blue" if row[1] else "red" for row in cells]}
        assert model.outputs(raw).tobytes() == expected.tobytes()
        np.testing.assert_allclose(model.predict_proba(raw), softmax(expected), rtol=1e-12)
        names = np.array(flowers.classes)
        assert model.classes == ("lily", "rose")
        assert model.predict(raw).tolist() == names[expected.argmax(axis=1)].tolist()
        features, names = model.read(tmp_path / "flowers.csv")
        np.testing.assert_array_equal(features, flowers.map(scale)[:][0])
        assert names[0].endswith("flowers.csv line 2")


def test_a_layer_that_stands_in_several_places_is_there_in_each(tmp_path):
    sn.manual_seed(0)
    act, twice = nn.Tanh(), nn.Sequential(nn.Linear(3, 3), nn.Sigmoid())
    for layers in ([nn.Linear(3, 4), act, nn.Linear(4, 4), act, nn.Linear(4, 2)], [twice, act, twice, twice[0]]):
        model = nn.Sequential(*layers)
        sn.save_model(tmp_path / "model.safetensors", model)
        x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
        expected = x
        for layer in layers:  # one after the other, in a loop of one's own
            expected = layer(sn.Tensor(expected)).detach().numpy()
        loaded = sn.load_model(tmp_path / "model.safetensors")
        assert loaded.outputs(x, prepared=True).tobytes() == expected.tobytes()
        assert len(loaded.model) == len(layers) and loaded.model[1] is loaded.model[3 if len(layers) == 5 else 1]


def test_a_model_that_computes_in_a_way_of_its_own_is_not_saved_as_if_it_did_not(tmp_path):
    class Tenfold(nn.Sequential):
        def __call__(self, x):
            return 10 * super().__call__(x)

    changed = nn.Linear(3, 2)
    changed.forward = lambda x: x @ changed.weight
    for model in (Tenfold(nn.Linear(3, 2)), nn.Sequential(changed)):
        with pytest.raises(ConfigError, match=r"save_model: .* in a way of its own cannot be saved"):
            sn.save_model(tmp_path / "model.safetensors", model)


def test_a_folder_of_images_and_a_convolution_like_stack(tmp_path):
    for k, name in enumerate(("dark", "light")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(6):
            pixels = np.random.default_rng(i).integers(100 * k, 100 * k + 99, (4, 4), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    dataset = image_folder(tmp_path / "images", size=(3, 3), channels=1)
    augmented = sn.data.Augmented(dataset, [sn.data.RandomHorizontalFlip()])
    trainer = trained(augmented, nn.Sequential(nn.Flatten(), nn.Linear(9, 2)), tmp_path / "run")
    model = sn.load_model(tmp_path / "run")
    path = tmp_path / "images" / "light" / "0.png"
    expected = trainer.predict(dataset[6][0][None])
    assert (
        model.outputs(path).tobytes()
        == expected.tobytes()
        == model.outputs(model.read(path)[0], prepared=True).tobytes()
    )
    assert model.predict([path]) == [("dark", "light")[expected.argmax()]]


def test_sentences(tmp_path):
    (tmp_path / "reviews.csv").write_text("text,label\ngood film,yes\nbad film,no\nvery good,yes\nso bad,no\n")
    dataset = text_csv(tmp_path / "reviews.csv")
    layers = nn.Embedding(dataset.inputs.numbers, 3, padding_idx=0), nn.Flatten(), nn.Linear(6, 2)
    trainer = trained(dataset, nn.Sequential(*layers), tmp_path / "run")
    model = sn.load_model(tmp_path / "run")
    expected = trainer.predict(dataset.inputs("a good film"))
    assert model.outputs("a good film").tobytes() == expected.tobytes()
    assert model.classes == ("no", "yes")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_save_model_keeps_arrays_and_types(tmp_path, dtype):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 4), np.uint8)
    dataset = TensorDataset(pixels, np.arange(9) % 3, scale=1 / 255)
    model = nn.MLP(4, 3).to("numpy", dtype)
    sn.save_model(tmp_path / "m.safetensors", model, DataLoader(dataset.map(Standardize.fit(dataset))))
    again = sn.load_model(tmp_path / "m.safetensors", device="numpy")
    features = dataset.map(Standardize.fit(dataset))[:][0]
    with sn.no_grad():
        expected = model(features.astype(dtype)).numpy()
    assert again.outputs(pixels).tobytes() == expected.tobytes() and again.outputs(pixels).dtype == dtype
    assert again.predict(pixels).tolist() == expected.argmax(axis=1).tolist()
    assert again.outputs(pixels, batch_size=2).shape == (9, 3)
    sn.save_model(tmp_path / "n.safetensors", model)
    assert sn.load_model(tmp_path / "n.safetensors", device="numpy").outputs(features).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("outputs", "raw", "expected"),
    [
        ("log-probabilities", np.log([[0.25, 0.75]]), [[0.25, 0.75]]),
        ("binary logits", np.array([[np.log(3)], [-np.log(3)]]), [[0.25, 0.75], [0.75, 0.25]]),
        ("binary probabilities", np.array([0.75]), [[0.25, 0.75]]),
        ("logits", np.array([[1000.0, 1000.0]]), [[0.5, 0.5]]),
    ],
)
def test_probabilities_are_those_that_the_loss_means(tmp_path, outputs, raw, expected):
    sn.save_model(tmp_path / "m", nn.Sequential(nn.Identity()), outputs=outputs)
    model = sn.load_model(tmp_path / "m")
    np.testing.assert_allclose(model.predict_proba(raw.astype(np.float32)), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("outputs", "shape", "message"),
    [
        ("binary logits", (3, 2), "one output a row for two classes, got (3, 2)"),
        ("logits", (3, 2, 2), "(n, classes)"),
        ("logits", (3, 1), "two classes or more, got one a row; save_model(outputs='binary logits')"),
        ("log-probabilities", (3, 1), "two classes or more, got one a row"),
    ],
)
def test_outputs_that_are_of_no_classes_have_no_probabilities(tmp_path, outputs, shape, message):
    sn.save_model(tmp_path / "m", nn.Sequential(nn.Identity()), outputs=outputs)
    model = sn.load_model(tmp_path / "m")
    assert message in refused(ShapeError, lambda: model.predict_proba(np.ones(shape, np.float32)))


def test_what_a_model_gives_is_told_by_its_loss():
    F = nn.functional
    pairs = {nn.CrossEntropyLoss(): "logits", F.cross_entropy: "logits", nn.NLLLoss(): "log-probabilities"}
    pairs |= {nn.BCEWithLogitsLoss(): "binary logits", nn.BCELoss(): "binary probabilities", nn.MSELoss(): "values"}
    assert {loss: outputs_of(loss) for loss in pairs} == pairs
    assert outputs_of(lambda x, y: F.cross_entropy(x, y)) == "values"  # it may do anything


def test_values_have_no_probabilities(flowers, tmp_path):
    (tmp_path / "v.csv").write_text("a,y\n1,0.5\n2,1.5\n3,2.5\n")
    dataset = from_csv(tmp_path / "v.csv", target="y")
    trainer = trained(dataset, nn.Linear(1, 1), tmp_path / "run", nn.MSELoss())
    model = sn.load_model(tmp_path / "run")
    assert model.predict([[4]]).tobytes() == trainer.predict(np.array([[4]], np.float32)).tobytes()
    assert "found one of values" in refused(ConfigError, lambda: model.predict_proba([[4]]))


# --- what a file cannot say -------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x)


def double(x):
    return 2 * x


def test_a_class_of_the_users_is_given_by_the_user(flowers, tmp_path):
    trainer = trained(flowers, Net(), tmp_path / "run")
    line = refused(CheckpointError, lambda: sn.load_model(tmp_path / "run"))
    assert "expected load_model(path, model=...)" in line and "Net is no module of scratchnet.nn" in line
    model = sn.load_model(tmp_path / "run", Net())
    assert model.outputs([[1, "red"]]).tobytes() == trainer.predict(np.array([[1, 0, 1]], np.float32)).tobytes()
    with pytest.raises(CheckpointError, match="does not fit"):
        sn.load_model(tmp_path / "run", nn.MLP(3, 2))
    assert "Net is no module" in refused(ConfigError, lambda: sn.save_model(tmp_path / "m", Net()))
    assert not (tmp_path / "m").exists()


def test_functions_that_map_the_data_are_given_by_the_user(flowers, tmp_path):
    trainer = trained(flowers.map(double).transform(np.negative), nn.MLP(3, 2), tmp_path / "run")
    model = sn.load_model(tmp_path / "run")
    assert "load_model(path, functions=[...]) with double" in refused(
        CheckpointError, lambda: model.predict([[1, "red"]])
    )
    model = sn.load_model(tmp_path / "run", functions=[double, np.negative])
    expected = trainer.predict(np.array([[-2, -0.0, -2]], np.float32))
    assert model.outputs([[1, "red"]]).tobytes() == expected.tobytes()
    with pytest.raises(ConfigError, match="functions: expected 2, got 3"):
        sn.load_model(tmp_path / "run", functions=[double, np.negative, double])


@pytest.mark.parametrize("is_alike", [True, False])
def test_data_sets_in_one_are_prepared_alike_or_raw_inputs_are_refused(flowers, tmp_path, is_alike):
    parts = [flowers.map(double), flowers.map(double) if is_alike else flowers]
    trainer = trained(sn.data.ConcatDataset(parts), nn.MLP(3, 2), tmp_path / "run")
    if is_alike:
        found = sn.load_model(tmp_path / "run", functions=[double]).outputs([[1, "red"]])
        assert found.tobytes() == trainer.predict(np.array([[2, 0, 2]], np.float32)).tobytes()
    else:
        model = sn.load_model(tmp_path / "run")
        assert "prepared in several ways" in refused(CheckpointError, lambda: model.outputs([[1, "red"]]))


def changed_option():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    list(model)[1].eps = 0.5
    return model


def shared():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    first, second = model
    second.weight = first.weight
    return model


def hooked():
    model = nn.Linear(3, 2)
    model.register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


def unprinted_option():
    model = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8))
    model[0].norm_first = True
    return model


@pytest.mark.parametrize("make", [changed_option, unprinted_option, shared, hooked], ids=lambda f: f.__name__)
def test_a_model_that_was_changed_is_not_saved_as_another_one(tmp_path, make):
    line = refused(ConfigError, lambda: sn.save_model(tmp_path / "m", make()))
    assert "but" in line and "load_model(path, model=...)" in line


def test_a_new_head_is_saved_as_it_is(tmp_path):
    model = nn.MLP(3, 4, 2)
    model.linear2 = nn.Linear(4, 5)
    sn.save_model(tmp_path / "m", model)
    assert sn.load_model(tmp_path / "m").outputs(np.ones((1, 3), np.float32)).shape == (1, 5)


def test_describing_a_model_draws_no_random_numbers(tmp_path):
    def next_number():
        return sn.random.current().state_dict()

    model, before = nn.MLP(3, 2), next_number()
    sn.save_model(tmp_path / "m", model)
    sn.load_model(tmp_path / "m")
    assert next_number() == before


# --- files that are none ----------------------------------------------------------------------------------------------


def older(path):
    state = sn.load(path)
    del state["prediction"]
    sn.save(path, **state)


def test_an_old_checkpoint_is_loaded_or_says_what_it_needs(flowers, tmp_path):
    trainer = trained(flowers, nn.MLP(3, 2), tmp_path / "run")
    path = sorted((tmp_path / "run").glob("checkpoint-*"))[-1]
    older(path)
    assert "an older version wrote the file" in refused(CheckpointError, lambda: sn.load_model(path))
    model = sn.load_model(path, nn.MLP(3, 2))
    assert "load_model(path, data=...)" in refused(CheckpointError, lambda: model.predict([[1, "red"]]))
    model = sn.load_model(path, nn.MLP(3, 2), flowers)
    expected = trainer.predict(np.array([[1, 0, 1]], np.float32))
    np.testing.assert_allclose(model.predict_proba([[1, "red"]]), softmax(expected), rtol=1e-12)
    assert model.classes == flowers.classes


class Trap:
    def __reduce__(self):
        return pytest.fail, ("something was unpickled",)


def test_nothing_is_unpickled_or_executed(tmp_path):
    (tmp_path / "m").write_bytes(pickle.dumps(Trap()))
    assert "a pickle" in refused(CheckpointError, lambda: sn.load_model(tmp_path / "m"))
    for name in ("functional", "Module.forward", "os.system", "CrossEntropyLoss2", "__doc__", "init"):
        layers = {"name": name, "args": [], "options": {}}
        prediction = {"architecture": {"layers": layers, "dtype": "float32"}, "steps": [], "classes": None}
        sn.save(tmp_path / "m", model={}, prediction=prediction | {"outputs": "logits"})
        assert "expected modules of scratchnet.nn" in refused(CheckpointError, lambda: sn.load_model(tmp_path / "m"))


LINEAR = {"name": "Linear", "args": ["x", 2], "options": {}}
HUGE = {"name": "Linear", "args": [2**31 - 1, 2**31 - 1], "options": {}}
NOTHING = {"layers": {"sequential": {}}, "dtype": "float32"}
TABLE = {"kind": "table", "state": {"columns": ["a"], "path": "x"}}
REST = {"classes": None, "outputs": "logits"}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weights": {}}, "the weights of a model under 'model', found weights"),
        ({"model": {}, "prediction": {"architecture": {"layers": LINEAR, "dtype": "float32"}}}, "in_features"),
        ({"model": {}, "prediction": {"architecture": {"layers": {}, "dtype": "float32"}}}, "of this version"),
        ({"model": {}, "prediction": {"architecture": {"layers": HUGE, "dtype": "float32"}}}, "of this version"),
        ({"model": {}, "prediction": {"architecture": NOTHING, "steps": [{}], "classes": None}}, "of inputs (KeyError"),
        ({"model": {}, "prediction": {"architecture": NOTHING, "steps": [TABLE], **REST}}, "of inputs (TypeError"),
        ({"model": {}, "prediction": {"architecture": NOTHING, "steps": [{"kind": "os"}], **REST}}, "found 'os'"),
    ],
)
def test_a_file_of_something_else_is_refused_in_one_line(tmp_path, state, message):
    sn.save(tmp_path / "m", **state)
    line = refused(CheckpointError, lambda: sn.load_model(tmp_path / "m"))
    assert message in line and str(tmp_path / "m") in line


def test_no_file_and_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointNotFoundError):
        sn.load_model(tmp_path / "none")
    with pytest.raises(CheckpointNotFoundError, match="expected a checkpoint, found none"):
        sn.load_model(tmp_path)


def test_inputs_that_the_model_does_not_know_are_refused(flowers, tmp_path):
    sn.save_model(tmp_path / "m", nn.MLP(3, 2), flowers)
    model = sn.load_model(tmp_path / "m")
    assert "categories of the training (blue, red), found 'green'" in refused(
        DataError, lambda: model.predict([[1, "green"]])
    )
    assert "rows of 2 cells" in refused(ShapeError, lambda: model.predict([[1, "red", 3]]))
    rows = np.float32([[1, 2, 3], [1, np.nan, 3]])
    assert "the outputs of row 1: expected finite numbers" in refused(
        DataError, lambda: model.predict(rows, prepared=True)
    )
    assert np.isnan(model.predict_proba(rows, prepared=True)).any(axis=1).tolist() == [False, True]
    plain = sn.Predictor(nn.MLP(3, 2), {"steps": [], "classes": None, "outputs": "logits"}, [], "m")
    assert "one of plain arrays" in refused(CheckpointError, lambda: plain.read("x.png"))
    three = sn.Predictor(nn.MLP(3, 3), {"steps": [], "classes": "ab", "outputs": "logits"}, [], "m")
    assert "expected 2 outputs, one a class, got 3" in refused(
        ShapeError, lambda: three.predict(np.ones((1, 3), np.float32))
    )


def test_a_process_that_never_saw_the_data_predicts(flowers, tmp_path):
    trained(flowers, nn.MLP(3, 2), tmp_path / "run")
    expected = sn.load_model(tmp_path / "run").predict([[1.5, "red"], [-1, "blue"]]).tolist()
    (tmp_path / "flowers.csv").unlink()
    (tmp_path / "new.csv").write_text("color,length\nred,1.5\nblue,-1\n")
    command = [
        sys.executable,
        ROOT / "scripts/predict.py",
        tmp_path / "run",
        tmp_path / "new.csv",
        "--input",
        "1.5,red",
    ]
    done = subprocess.run([*map(str, command), "--out", tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first.startswith(f"{tmp_path}/new.csv line 2: {expected[0]} ") and second.split(": ")[1].startswith(
        expected[1]
    )
    assert third.partition(": ")[2] == first.partition(": ")[2] and first.count("%") == 2
    assert (tmp_path / "out").read_text().split() == [*expected, expected[0]]
