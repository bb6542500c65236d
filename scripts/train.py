"""Trains a classifier of 28x28 images: prepare, split, compute, merge, report."""

import math
from dataclasses import dataclass
from pathlib import Path

import scratchnet as sn
from scratchnet.flags import flag, run_script, stored
from scratchnet.formats.checkpoint_folder import new_folder
from scratchnet.parallel.compression import COMPRESSIONS
from scratchnet.parallel.strategies import STRATEGIES, strategy_of
from scratchnet.report import plot_curves
from scratchnet.trainer.run import phase_start


@dataclass
class Config:
    """Train a multi-layer perceptron on images of 28x28 pixels."""

    data: str = flag("fashion-mnist-mini", "data set: fashion-mnist-mini, fashion-mnist, or a folder in MNIST format")
    hidden: tuple[int, ...] = flag((128,), "widths of the hidden layers")
    activation: str = flag("relu", "activation of the hidden layers", list(sn.nn.ACTIVATIONS))
    dropout: float = flag(0.0, "probability of dropping a hidden unit")
    epochs: int = flag(20, "passes over the training data")
    batch_size: int = flag(64, "samples an optimizer step")
    lr: float = flag(0.05, "highest learning rate of the one-cycle schedule")
    momentum: float = flag(0.95, "highest momentum of the one-cycle schedule, which dips by 0.1")
    weight_decay: float = flag(0.0, "L2 penalty")
    validation: float = flag(0.1, "fraction of the training data kept for validation")
    seed: int = flag(0, "seed of initial weights, order of samples and dropout")
    workers: int | str = flag(1, "processes that compute, or auto to measure and pick; see shards", stored=False)
    shards: int | None = flag(None, "parts of a batch, which alone change bits; 1 for one worker, else 8, unless given")
    strategy: str = flag("all_reduce", "how gradients become new parameters", list(STRATEGIES))
    staleness: int | None = flag(None, "updates that gradients are behind: parameter_server; 0 unless given")
    every: int | None = flag(None, "batches between averages: local_sgd; 8 unless given")
    compression: str = flag("none", "what is left out of gradients: all_reduce", list(COMPRESSIONS))
    accumulate: int = flag(1, "batches an optimizer step")
    clip_norm: float | None = flag(None, "largest norm of the merged gradient")
    threads: int | None = flag(None, "CPU threads of all workers; all cores unless given", stored=False)
    device: str = flag("cpu", "table of kernels; with workers and cuda, a GPU for each", ["cpu", "numpy", "cuda"])
    devices: tuple[str, ...] = flag((), "where each worker computes instead, such as cuda:0 cuda:1 or cuda:0 cpu")
    folder: str | None = flag(None, "where checkpoints, log and curves.png go; else runs/DATE-TIME", stored=False)
    resume: str | None = flag(None, "'auto' to go on from the folder's newest checkpoint, or a file", stored=False)
    new_phase: bool = flag(
        False, "go on with other settings, such as epochs, lr or batch size; see resume", stored=False
    )
    save_every: int | None = flag(None, "steps between checkpoints; one an epoch unless given")
    timeline: str | None = flag(None, "file for what each worker did when, for https://ui.perfetto.dev", stored=False)

    def datasets(self) -> tuple[sn.data.Dataset, sn.data.Dataset]:
        """Samples to train on, and to test on."""
        return sn.data.load(self.data)

    def model(self, shape: tuple[int, ...], classes: int) -> sn.nn.Module:
        """A network for features of this shape."""
        return sn.nn.MLP(math.prod(shape), *self.hidden, classes, activation=self.activation, dropout=self.dropout)


def main(config: Config) -> float | None:
    sn.manual_seed(config.seed)
    sn.default_device(config.device)
    if config.threads is not None:
        sn.set_num_threads(config.threads)

    # 1. Prepare: read, clean, scale; hold data back to validate on.
    full, test = config.datasets()
    train, val = sn.data.random_split(full, [1 - config.validation, config.validation], seed=config.seed)
    scale = sn.data.Standardize.fit(train, per_feature=False, comm=sn.parallel.world())

    # 2. Split: samples into batches here, each batch into shards in the trainer.
    train_loader = sn.data.DataLoader(train.map(scale), config.batch_size, shuffle=True, seed=config.seed)
    val_loader, test_loader = (sn.data.DataLoader(part.map(scale), 1024) for part in (val, test))

    # 3. Compute gradients of the shards, 4. merge them into one step: the trainer does both, many times.
    model = config.model(train[0][0].shape, len(full.classes))
    optimizer = sn.optim.SGD(model.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)
    folder = Path(config.folder) if config.folder else new_folder("runs", sn.parallel.is_first_rank())
    epochs = max(config.epochs - phase_start(folder, config.resume, config.new_phase), 1)  # of the schedule
    steps = epochs * -(-len(train_loader) // max(config.accumulate, 1))  # the trainer refuses less than 1
    momentum = {"base_momentum": max(config.momentum - 0.1, 0.0), "max_momentum": config.momentum}
    schedule = sn.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, steps, **momentum)
    options = {"staleness": config.staleness, "every": config.every, "compression": COMPRESSIONS[config.compression]}
    trainer = sn.Trainer(
        model, optimizer, sn.nn.CrossEntropyLoss(), schedule, config.workers, config.shards,
        strategy_of(config.strategy, **options), devices=config.devices or None, seed=config.seed,
        accumulate=config.accumulate, clip_norm=config.clip_norm, folder=folder, save_every=config.save_every,
        timeline=config.timeline, config=stored(config),
    )  # fmt: skip
    validation = val_loader if len(val) else None
    history = trainer.fit(train_loader, validation, config.epochs, config.resume, config.new_phase)

    if not sn.parallel.is_first_rank():  # under mpirun one rank reports
        return None

    # 5. Report: measure on data that nothing above has seen; write the curves.
    result = trainer.evaluate(test_loader)
    plot_curves(history, folder / "curves.png")
    print(f"test loss {result['loss']:.4f}  test accuracy {result['accuracy']:.2%}  results in {folder}")
    return result["accuracy"]


if __name__ == "__main__":
    run_script(main, Config)
