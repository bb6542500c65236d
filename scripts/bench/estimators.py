"""Seconds of `fit` beside scikit-learn's, for its perceptron on digits and on Fashion-MNIST, taking turns.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python scripts/bench/estimators.py --data digits --dtype float32

--threads 1 is one thread for both, as OPENBLAS_NUM_THREADS counts when NumPy is loaded: set it to the same.
"""

import os
import time
import warnings
from dataclasses import dataclass

import numpy as np
import sklearn.neural_network
from sklearn.datasets import load_digits

import scratchnet as sn
import scratchnet.sklearn
from scratchnet.flags import flag, run_script

REST = 0.2  # seconds before each fit: threads of OpenBLAS spin for some 30 ms after their last product
MODULES = {"scikit-learn": sklearn.neural_network, "scratchnet": scratchnet.sklearn}


@dataclass
class Config:
    """Time `fit` of the perceptrons of scikit-learn and of this engine, taking turns."""

    data: str = flag("digits", "rows and labels", choices=("digits", "fashion-mnist", "fashion-mnist-mini"))
    dtype: str = flag("float32", "of the rows, and so of the arithmetic", choices=("float32", "float64"))
    epochs: int = flag(200, "max_iter")
    rounds: int = flag(3, "fits of each, of which the best one counts")
    threads: int | None = flag(None, "n_jobs; None: all")


def rows(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows in [0, 1] and labels to train on, and to test on."""
    if name == "digits":
        x, y = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(x))
        x, y = x[order] / 16, y[order]
        return x[:1500], y[:1500], x[1500:], y[1500:]
    parts = sn.data.load(name)
    return tuple(array for part in parts for array in (np.asarray(part[:][0]), np.asarray(part[:][1])))  # type: ignore


def main(config: Config) -> None:
    warnings.simplefilter("ignore")  # of epochs that are too few
    x, y, x_test, y_test = rows(config.data)
    x, x_test = x.astype(config.dtype), x_test.astype(config.dtype)
    best = dict.fromkeys(MODULES, (np.inf, np.inf, ""))
    for _ in range(config.rounds):
        for name, module in MODULES.items():
            ours = {"n_jobs": config.threads} if module is scratchnet.sklearn else {}
            model = module.MLPClassifier(random_state=0, max_iter=config.epochs, **ours)
            time.sleep(REST)
            wall, cpu = time.perf_counter(), time.process_time()
            model.fit(x, y)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            work = f"{model.n_iter_} epochs, loss {model.loss_:.6f}, accuracy {model.score(x_test, y_test):.4f}"
            best[name] = min(best[name][0], wall), min(best[name][1], cpu), work
    blas = os.environ.get("OPENBLAS_NUM_THREADS", "all")
    print(f"{config.data}, {config.dtype}, threads: {config.threads or 'all'}, of BLAS: {blas}")
    for name, (wall, cpu, work) in best.items():
        print(f"{name:14}{wall:9.3f} s{cpu:9.3f} s of CPU   {work}")
    (wall, cpu, _), (our_wall, our_cpu, _) = best.values()
    print(f"{'ratio':14}{wall / our_wall:9.2f}  {cpu / our_cpu:9.2f}")


if __name__ == "__main__":
    run_script(main, Config)
