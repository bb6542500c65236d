"""Predicts the classes of images with a network that train.py trained: load, prepare, compute, report.

    python scripts/predict.py                              # the newest run in runs, on the test images of its data set
    python scripts/predict.py --run RUN --data FOLDER      # the test images of a folder in MNIST format

A checkpoint holds the parameters of the network and the flags of train.py, but not how the images were scaled. That is
measured again, as train.py does it: on the training part of the run's own data set, which must still be there.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from train import Config as TrainConfig

import scratchnet as sn
from scratchnet.errors import CheckpointNotFoundError
from scratchnet.flags import flag, run_script


@dataclass
class Config:
    """Predict the classes of images of 28x28 pixels."""

    run: str = flag("runs", "folder of a run, or of several, of which the newest counts; or a checkpoint file")
    data: str | None = flag(None, "data set, or folder in MNIST format, labels optional; the run's own unless given")
    out: str | None = flag(None, "file for the classes, one a line")
    device: str = flag("cpu", "table of kernels", ["cpu", "numpy", "cuda"])


def newest_checkpoint(run: str) -> Path:
    found = [Path(run)] if Path(run).is_file() else list(Path(run).rglob("checkpoint-*.safetensors"))
    if not found:
        raise CheckpointNotFoundError(f"{run}: expected a checkpoint, found none; scripts/train.py makes one")
    return max(found, key=lambda path: (path.stat().st_mtime, path.name))


def images_of(data: str) -> sn.data.Dataset:
    """The test images of a data set, with their labels if there are any."""
    images = sorted(Path(data).glob("t10k-images*"))
    if not images or any(Path(data).glob("t10k-labels*")):
        return sn.data.load(data)[1]
    pixels = sn.data.read_idx(images[0])
    return sn.data.TensorDataset(pixels.reshape(len(pixels), -1), scale=1 / 255)


def main(config: Config) -> np.ndarray:
    sn.default_device(config.device)

    # 1. Load: the parameters, and what train.py was asked to do.
    path = newest_checkpoint(config.run)
    state = sn.load(path)
    run = TrainConfig(**state["config"])
    weights = [array for array in state["model"].values() if array.ndim == 2]
    widths = [len(weight) for weight in weights] + [weights[-1].shape[1]]
    model = sn.nn.MLP(*widths, activation=run.activation, dropout=run.dropout).eval()
    model.load_state_dict(state["model"])

    # 2. Prepare: scale the images as those of the training were.
    full, _ = sn.data.load(run.data)
    train, _ = sn.data.random_split(full, [1 - run.validation, run.validation], seed=run.seed)
    scale = sn.data.Standardize.fit(train, per_feature=False)
    images = images_of(config.data or run.data).map(scale)

    # 3. Compute the logits, (batch, classes); the largest one names the class.
    with sn.no_grad():
        classes = np.concatenate([model(x).argmax(axis=1).numpy() for x, *_ in sn.data.DataLoader(images, 1024)])

    # 4. Report.
    print(f"{path}: classes of {len(classes)} images: {' '.join(map(str, classes[:10]))} ...")
    _, *labels = images[:]
    if labels:
        print(f"accuracy {np.mean(classes == labels[0]):.2%}")
    if config.out:
        np.savetxt(config.out, classes, "%d")
    return classes


if __name__ == "__main__":
    run_script(main, Config)
