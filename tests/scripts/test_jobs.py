"""The jobs on tables, ratings, speech and text: on the data that the package brings, resumed, and with workers."""

import hashlib
import math
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import predict
import pytest
import train_recommend
import train_speech
import train_table
import train_text

import scratchnet as sn
from scratchnet.errors import ConfigError, DataError, DataNotFoundError, ShapeError

SCRIPTS = Path(train_table.__file__).parent

JOBS = {  # the script, settings that make it small, the least (or, of errors, the most) that it must reach
    "table": (train_table, {"hidden": (32,), "bins": 8, "batch_size": 64, "lr": 0.02}, lambda found: found > 0.75),
    "recommend": (train_recommend, {"factors": 8, "batch_size": 128, "lr": 0.05}, lambda found: found < 0.75),
    "speech": (train_speech, {"channels": (8, 8), "batch_size": 16, "lr": 0.02}, lambda found: found > 0.75),
    "text": (train_text, {"width": 16, "lr": 0.05}, lambda found: found > 0.65),
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    def go(job, folder="run", **values):
        """What a job measured, and a digest of the weights that it ended with."""
        script, small, _ = JOBS[job]
        if (tmp_path / "run" / "curves.png").exists():  # one picture is enough: each takes 0.4 s
            monkeypatch.setattr(script, "plot_curves", lambda *_: None)
        found = script.main(script.Config(folder=str(tmp_path / folder), shards=2, **small | values))
        state = sn.load(sorted((tmp_path / folder).glob("checkpoint-*"))[-1])["model"]
        return found, hashlib.sha256(b"".join(state[name].tobytes() for name in sorted(state))).hexdigest()

    return go


@pytest.mark.parametrize("job", JOBS)
def test_a_job_learns_and_workers_and_a_resume_give_the_same_bits(run, job, tmp_path):
    expected = run(job, epochs=4)
    assert JOBS[job][2](expected[0]), expected
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert run(job, "two", epochs=4, workers=2) == expected
    for checkpoint in sorted((tmp_path / "run").glob("checkpoint-*"))[1:]:
        checkpoint.unlink()
    assert run(job, epochs=4, resume="auto") == expected


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("name, value", [("test", 0.0), ("test", 1.0), ("validation", 1.0)])
def test_parts_with_no_rows_are_refused_before_the_training(run, job, name, value, tmp_path):
    alone = {"data": sn.data.data_files("vowels")[0]} if job == "speech" else {}  # the name has a file to test on
    with pytest.raises(ConfigError, match=f"^--{name}: expected .*, got {value}"):
        run(job, **alone, **{name: value})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("job", JOBS)
def test_a_job_fits_on_a_slide(job):
    assert len(Path(JOBS[job][0].__file__).read_text().splitlines()) <= 100


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def houses(tmp_path):
    """A file of houses: the price is 100,000 an area, more in the city; some areas are missing."""
    rng = np.random.default_rng(0)
    rows = []
    for area, place in zip(rng.uniform(1, 9, 300), rng.choice(["city", "village"], 300), strict=True):
        price = 1e5 * area + (3e5 if place == "city" else 0)
        rows.append(f"{'' if rng.random() < 0.02 else round(area, 3)},{place},{price:.2f}")
    (tmp_path / "houses.csv").write_text("area,place,price\n" + "\n".join(rows) + "\n")
    return str(tmp_path / "houses.csv")


def test_values_are_learned_in_their_unit_and_predicted_from_files(run, houses, tmp_path):
    explained, _ = run("table", data=houses, target="price", epochs=20, dropout=0.0)
    assert explained > 0.8  # nobody knows the areas that are missing
    model = sn.load_model(tmp_path / "run")
    cheap, dear = model.predict({"area": ["1.5", "8"], "place": ["village", "city"]}).ravel()
    assert math.isclose(cheap, 1.5e5, rel_tol=0.4) and math.isclose(dear, 11e5, rel_tol=0.2)
    command = [sys.executable, SCRIPTS / "predict.py", tmp_path / "run", "--input", ",village"]
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.returncode == 0 and shown.stdout.startswith(",village: "), shown.stderr
    with pytest.raises(ConfigError, match="expected files, --input or --data to predict, got none"):
        predict.main(predict.Config(run=str(tmp_path / "run")))


def test_classes_are_predicted_by_name_and_a_file_may_say_what_to_test_on(run, tmp_path):
    (flowers,) = sn.data.data_files("flowers")
    accuracy, _ = run("table", test_data=flowers, epochs=4)
    predicted = sn.load_model(tmp_path / "run").predict(sn.load_model(tmp_path / "run").read(flowers)[0], prepared=True)
    expected = [line.rpartition(",")[2] for line in Path(flowers).read_text().splitlines()[1:]]
    assert np.mean(predicted == expected) == accuracy


def test_a_table_that_says_too_little_is_refused_in_one_line(run, houses):
    with pytest.raises(ConfigError, match="--target: expected the name of the column to learn, got none"):
        run("table", data=houses)
    with pytest.raises(DataError, match="column 'area': expected a value, found ''"):
        run("table", data=houses, target="price", missing="refuse")
    with pytest.raises(DataNotFoundError, match="expected a file, or one of flowers"):
        run("table", data="no-such-file")


def test_values_that_never_differ_are_refused_before_the_training(run, tmp_path):
    (tmp_path / "same.csv").write_text("area,price\n" + "".join(f"{i},3.5\n" for i in range(40)))
    with pytest.raises(DataError, match=r"^--target: expected different values to test on, got 3\.5 in all rows$"):
        run("table", data=str(tmp_path / "same.csv"), target="price")
    assert not (tmp_path / "run").exists()


# --- ratings ----------------------------------------------------------------------------------------------------------


def test_ratings_of_every_format_are_read_and_the_model_predicts_one_by_names(run, tmp_path, capsys):
    (path,) = sn.data.data_files("ratings")
    rows = [line.split(",") for line in Path(path).read_text().splitlines()[1:]]
    (tmp_path / "u.data").write_text("".join(f"{user}\t{item}\t{rating}\t0\n" for user, item, rating in rows))
    expected = run("recommend", epochs=2, first_rows=600)
    assert "recall@10 0." in capsys.readouterr().out
    assert run("recommend", "other", epochs=2, first_rows=600, data=str(tmp_path / "u.data")) == expected
    model = sn.load_model(tmp_path / "run")
    pairs = [[user, item] for user, item, _ in rows[:600]]
    errors = model.predict(pairs).ravel() - [float(rating) for *_, rating in rows[:600]]
    assert math.isclose(math.sqrt(np.mean(errors**2)), expected[0], rel_tol=1e-5)


@pytest.mark.parametrize(
    "values, line",
    [
        ({"first_rows": 0}, "--first-rows: expected an integer from 1 to"),
        ({"first_rows": -1}, "--first-rows: expected an integer from 1 to"),
        ({"first_rows": 10**6}, "--first-rows: expected an integer from 1 to"),
        ({"k": 0}, "k: expected an integer from 1 to"),
        ({"k": 10**6}, "k: expected an integer from 1 to"),
        ({"likes": 99.0}, "expected a row with a relevant item, got none"),
    ],
)
def test_a_ranking_that_cannot_be_is_refused_before_the_training(run, values, line, tmp_path):
    with pytest.raises((ConfigError, ShapeError), match=line):
        run("recommend", **values)
    assert not list(tmp_path.glob("run/checkpoint-*"))


def test_two_towers_learn(run):
    rmse, _ = run("recommend", hidden=(16,), epochs=15, lr=0.02)
    assert rmse < 0.85


# --- speech -----------------------------------------------------------------------------------------------------------


def test_folders_of_sounds_are_told_apart_and_a_file_is_predicted(run, tmp_path):
    rng = np.random.default_rng(0)
    for name, pitch in (("low", 200), ("high", 2000)):
        for part, n in (("train", 12), ("test", 4)):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(n):
                tone = np.sin(2 * np.pi * pitch * rng.uniform(0.8, 1.2) * np.arange(rng.integers(800, 1600)) / 8000)
                with wave.open(str(tmp_path / part / name / f"{i}.wav"), "wb") as file:
                    file.setparams((1, 2, 8000, 0, "NONE", ""))
                    file.writeframes((8000 * tone).astype("<i2").tobytes())
    folders = {"data": str(tmp_path / "train"), "test_data": str(tmp_path / "test")}
    accuracy, _ = run("speech", **folders, mels=8, epochs=10, batch_size=8)
    assert accuracy == 1.0
    assert (tmp_path / "run" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    model = sn.load_model(tmp_path / "run")
    features, names = model.read(tmp_path / "test" / "low" / "0.wav")
    assert model.predict(features, prepared=True).tolist() == ["low"] and names[0].endswith("0.wav")


def test_speech_needs_a_convolution(run):
    with pytest.raises(ConfigError, match="--channels: expected at least one convolution, got none"):
        run("speech", channels=())


# --- texts ------------------------------------------------------------------------------------------------------------


def test_a_transformer_reads_the_order_of_words_and_predicts_a_sentence(run, tmp_path):
    small = {"network": "transformer", "width": 16, "layers": 1, "heads": 2, "dropout": 0.0, "lr": 0.01}
    accuracy, _ = run("text", epochs=8, **small)
    assert accuracy > 0.9
    command = [sys.executable, SCRIPTS / "predict.py", tmp_path / "run", "--input", "the film was not bad"]
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.stdout.startswith("the film was not bad: yes"), shown.stderr


def test_a_file_of_texts_may_say_what_to_test_on(run, tmp_path):
    (path,) = sn.data.data_files("sentences")
    text = Path(path).read_text().replace("text,label", "opinion,kind")
    (tmp_path / "mine.csv").write_text(text + ",no\n")
    options = {"text": "opinion", "label": "kind", "epochs": 2, "validation": 0.0}
    assert run("text", data=str(tmp_path / "mine.csv"), test_data=str(tmp_path / "mine.csv"), **options)[0] > 0.5
