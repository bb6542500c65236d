"""`scripts/train_images.py`: the embedded images and folders of classes; resumed, or with workers, the same bits."""

import hashlib

import numpy as np
import pytest
import train_images
from train_images import Config

import scratchnet as sn
from scratchnet.errors import ConfigError


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of dark and one of bright images of 12x10 pixels."""
    image = pytest.importorskip("PIL.Image")
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, low in (("dark", 0), ("bright", 156)):
        (folder / name).mkdir()
        for i in range(20):
            image.fromarray(rng.integers(low, low + 100, (12, 10), np.uint8)).save(folder / name / f"{i}.png")
    return str(folder)


@pytest.fixture
def run(tmp_path, capsys):
    def go(folder="run", **values):
        small = {"channels": (4,), "hidden": (), "batch_size": 8, "epochs": 2, "shards": 2}
        accuracy = train_images.train.main(Config(folder=str(tmp_path / folder), **small | values))
        state = sn.load(sorted((tmp_path / folder).glob("checkpoint-*"))[-1])["model"]
        return accuracy, hashlib.sha256(b"".join(state[name].tobytes() for name in sorted(state))).hexdigest()

    return go


def test_folders_of_classes_are_told_apart_and_predicted(run, pictures, tmp_path):
    accuracy, _ = run(data=pictures, epochs=8)
    assert accuracy == 1.0
    predictor = sn.load_model(tmp_path / "run")
    assert list(predictor.classes) == ["bright", "dark"]
    bright, _ = predictor.read(f"{pictures}/bright/3.png")
    assert predictor.predict(bright, prepared=True).tolist() == ["bright"]


def test_workers_and_a_resume_give_the_same_bits(run, pictures):
    expected = run(data=pictures)
    assert run("two", data=pictures, workers=2) == expected
    run("again", data=pictures, epochs=1, lr=0.05)
    with pytest.raises(sn.CheckpointError, match="total_steps"):
        run("again", data=pictures, epochs=2, lr=0.05, resume="auto")


def test_what_cannot_be_is_refused_in_one_line(run, pictures):
    with pytest.raises(ConfigError, match="--convolutions: expected at least 1, got 0"):
        run(data=pictures, convolutions=0)
