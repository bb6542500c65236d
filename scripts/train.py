"""Trains a classifier of 28x28 images: prepare, split, compute, merge, report."""

import math
from dataclasses import dataclass

import scratchnet as sn
from scratchnet.flags import flag, run_script
from scratchnet.jobs import JobFlags
from scratchnet.report import plot_curves


@dataclass
class Config(JobFlags):
    """Train a multi-layer perceptron on images of 28x28 pixels."""

    data: str = flag("fashion-mnist-mini", "data set: fashion-mnist-mini, fashion-mnist, or a folder in MNIST format")
    hidden: tuple[int, ...] = flag((128,), "widths of the hidden layers")
    activation: str = flag("relu", "activation of the hidden layers", list(sn.nn.ACTIVATIONS))
    dropout: float = flag(0.0, "probability of dropping a hidden unit")
    batch_size: int = flag(64, "samples an optimizer step")
    lr: float = flag(0.05, "highest learning rate of the one-cycle schedule")
    momentum: float = flag(0.95, "highest momentum of the one-cycle schedule, which dips by 0.1")
    weight_decay: float = flag(0.0, "L2 penalty")
    validation: float = flag(0.1, "fraction of the training data kept for validation")

    def datasets(self) -> tuple[sn.data.Dataset, sn.data.Dataset]:
        """Samples to train on, and to test on."""
        return sn.data.load(self.data)

    def model(self, shape: tuple[int, ...], classes: int) -> sn.nn.Module:
        """A network for features of this shape."""
        return sn.nn.MLP(math.prod(shape), *self.hidden, classes, activation=self.activation, dropout=self.dropout)


def main(config: Config) -> float | None:
    config.begin()

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
    folder = config.run_folder()
    steps = config.steps(folder, len(train_loader))
    momentum = {"base_momentum": max(config.momentum - 0.1, 0.0), "max_momentum": config.momentum}
    schedule = sn.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, steps, **momentum)
    trainer = sn.Trainer(model, optimizer, sn.nn.CrossEntropyLoss(), schedule, folder=folder, **config.options())
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
