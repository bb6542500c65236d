"""The jobs beside scikit-learn on the same split, in the same run: what each reaches, and its seconds.

python scripts/bench/jobs.py          # all data sets; their wheels must be there, see docs/jobs.md
python scripts/bench/jobs.py --data adult 20newsgroups --epochs 8
"""

import functools
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import train_recommend
import train_speech
import train_table
import train_text

import scratchnet as sn
from scratchnet.errors import ConfigError
from scratchnet.flags import flag, run_script

JOBS: dict[str, tuple[Any, dict[str, Any]]] = {  # of each data set the job, and its settings
    "adult": (train_table, {}),
    "california-housing": (train_table, {"epochs": 20, "lr": 0.004, "dropout": 0.1, "weight_decay": 0.01}),
    "movielens-100k": (train_recommend, {"first_rows": 20_000}),
    "japanese-vowels": (train_speech, {}),
    "clothing-reviews": (train_text, {"epochs": 8, "length": 120}),
    "20newsgroups": (train_text, {}),
}


@dataclass
class Config:
    """Measure the jobs beside scikit-learn."""

    data: tuple[str, ...] = flag(tuple(JOBS), "data sets", list(JOBS))
    network: str = flag("bag", "of the job on texts", ["bag", "transformer"])
    epochs: int | None = flag(None, "passes over the training data; those of the job unless given")
    workers: int = flag(1, "processes that compute the job")


def joined(*parts: sn.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of all samples."""
    features, labels = zip(*(part[:] for part in parts), strict=True)
    return np.concatenate(features), np.concatenate(labels).ravel()


def of_tables(train, val, test) -> Iterator[tuple[str, Callable[[], float]]]:
    from sklearn import ensemble, neural_network
    from sklearn.preprocessing import StandardScaler

    (x, y), (tx, ty) = joined(train, val), joined(test)
    kind = "Classifier" if train.classes else "Regressor"
    trees = getattr(ensemble, f"HistGradientBoosting{kind}")(random_state=0)
    network = getattr(neural_network, f"MLP{kind}")(early_stopping=True, random_state=0)
    scale = StandardScaler().fit(x)
    yield type(trees).__name__, lambda: trees.fit(x, y).score(tx, ty)
    yield type(network).__name__, lambda: network.fit(scale.transform(x), y).score(scale.transform(tx), ty)


def of_ratings(train, val, test) -> Iterator[tuple[str, Callable[[], float]]]:
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import OneHotEncoder

    (x, y), (tx, ty) = joined(train, val), joined(test)
    one_hot = OneHotEncoder(handle_unknown="ignore").fit(x)

    def biases() -> float:
        found = Ridge(alpha=5.0).fit(one_hot.transform(x), y).predict(one_hot.transform(tx))
        return math.sqrt(np.mean((found - ty) ** 2))

    yield "Ridge on users and items (biases)", biases


def of_series(train, val, test) -> Iterator[tuple[str, Callable[[], float]]]:
    from sklearn.ensemble import RandomForestClassifier

    (x, y), (tx, ty) = joined(train, val), joined(test)
    forest = RandomForestClassifier(300, random_state=0)
    yield "RandomForestClassifier", lambda: forest.fit(x.reshape(len(x), -1), y).score(tx.reshape(len(tx), -1), ty)


def of_texts(train, val, test) -> Iterator[tuple[str, Callable[[], float]]]:
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    (x, y), (tx, ty) = joined(train, val), joined(test)

    def counts(rows: np.ndarray) -> Any:
        from scipy.sparse import csr_matrix

        row, _ = np.nonzero(rows)  # 0 is no word
        columns = rows[rows != 0]
        return csr_matrix((np.ones(len(row)), (row, columns)), shape=(len(rows), train.inputs.numbers))

    model = make_pipeline(TfidfTransformer(), LogisticRegression(max_iter=1000))
    yield "TF-IDF + LogisticRegression", lambda: model.fit(counts(x), y).score(counts(tx), ty)


PEERS = {train_table: of_tables, train_recommend: of_ratings, train_speech: of_series, train_text: of_texts}


def main(config: Config) -> None:
    try:
        import sklearn
    except ImportError:
        raise ConfigError("jobs.py: expected scikit-learn, found none; pip install scikit-learn") from None
    lines = [f"scikit-learn {sklearn.__version__}; accuracy, R2 of values, RMSE of ratings; wall-clock seconds"]
    for data in config.data:
        script, settings = JOBS[data]
        more = {"network": config.network} if script is train_text else {}
        more |= {} if config.epochs is None else {"epochs": config.epochs}
        job = script.Config(data=data, workers=config.workers, **settings | more)
        parts = job.datasets()
        for name, measure in [
            (Path(script.__file__).name, functools.partial(script.main, job)),
            *PEERS[script](*parts),
        ]:
            start = time.perf_counter()
            found = measure()
            lines.append(f"{data:<20} {name:<36} {found:.4f}  {time.perf_counter() - start:6.1f} s")
            print(lines[-1], flush=True)
    print(*lines, sep="\n")


if __name__ == "__main__":
    run_script(main, Config)
