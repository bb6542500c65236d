"""Predicts with a model that train.py, or any Trainer with a folder, left behind: load, prepare, compute, report.

    python scripts/predict.py RUN shoe.png shirt.png       # images, CSV files with a line of names, or text files
    python scripts/predict.py RUN --input "a good film"    # a sentence, or the cells of a row with commas between them
    python scripts/predict.py RUN --data FOLDER            # the test images of a folder in MNIST format
    python scripts/predict.py                              # the newest run in runs, on the test images of its data set

A checkpoint holds the network, how its inputs were scaled, and the names of the classes; no training data are needed.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import scratchnet as sn
from scratchnet.errors import ConfigError
from scratchnet.flags import flag, run_script
from scratchnet.predictor import newest_checkpoint


@dataclass
class Config:
    """Predict classes, with their probabilities, or values."""

    run: str = flag("runs", "folder of a run, or of several, of which the newest counts; or a file", is_word=True)
    files: tuple[str, ...] = flag((), "images, CSV files, or text files with a sentence a line", is_word=True)
    input: str | None = flag(None, "a sentence, or a row of cells, instead of files")
    data: str | None = flag(None, "data set, or folder in MNIST format, labels optional; the run's own unless given")
    out: str | None = flag(None, "file for the predictions, one a line")
    top: int = flag(3, "classes shown for each input")
    device: str = flag("cpu", "table of kernels", ["cpu", "numpy", "cuda"])


def images_of(data: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The pixels of the test images of a data set, and their labels if there are any."""
    images = sorted(Path(data).glob("t10k-images*"))
    if images and not any(Path(data).glob("t10k-labels*")):
        return sn.data.read_idx(images[0]), None
    test = sn.data.load(data)[1]
    pixels, labels = test.arrays
    return pixels.reshape(len(pixels), test.inputs.channels, *test.inputs.size), labels


def lines_of(model: sn.Predictor, features: np.ndarray, names: list[str], top: int) -> list[str]:
    """A line for each input: its most probable classes, or its values."""
    if model.outputs_are == "values":
        values = model.outputs(features, prepared=True)
        return [f"{name}: {', '.join(map(str, np.ravel(row)))}" for name, row in zip(names, values, strict=True)]
    shares = model.predict_proba(features, prepared=True)
    classes = model.classes or range(shares.shape[1])
    best = np.argsort(-shares, axis=1, kind="stable")[:, :top]
    shown = [", ".join(f"{classes[k]} {row[k]:.1%}" for k in few) for few, row in zip(best, shares, strict=True)]
    return [f"{name}: {line}" for name, line in zip(names, shown, strict=True)]


def main(config: Config) -> np.ndarray:
    if config.top < 1:
        raise ConfigError(f"--top: expected at least 1, got {config.top}")

    # 1. Load: the network, and all that it needs to know of its inputs.
    model = sn.load_model(config.run, device=config.device)

    # 2. Prepare features, 3. compute, 4. report.
    if config.files or config.input is not None:
        parts = [model.read(file) for file in config.files]
        if config.input is not None:
            is_table = isinstance(model.inputs, sn.data.TableInputs)
            given = next(csv.reader([config.input])) if is_table else [config.input]
            parts.append((model.features(given), [config.input]))
        for features, names in parts:
            print(*lines_of(model, features, names, config.top), sep="\n")
        predicted = np.concatenate([model.predict(features, prepared=True) for features, _ in parts])
    else:
        own = sn.load(newest_checkpoint(config.run)).get("config", {}).get("data")
        if not (config.data or (own and isinstance(model.inputs, sn.data.ImageInputs))):
            raise ConfigError("expected files, --input or --data to predict, got none")
        pixels, labels = images_of(config.data or own)
        predicted = model.predict(pixels)
        print(f"{model.name}: classes of {len(predicted)} images: {', '.join(map(str, predicted[:10]))}, ...")
        if labels is not None:
            print(f"accuracy {np.mean(predicted == np.array(model.classes)[labels]):.2%}")
    if config.out:
        np.savetxt(config.out, predicted, "%s")
    return predicted


if __name__ == "__main__":
    run_script(main, Config)
