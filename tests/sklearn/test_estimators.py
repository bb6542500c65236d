"""scikit-learn's perceptrons on this engine: its curves, its checks, its tools, and modules in place of layers."""

import copy
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from sizes import THOROUGH

import scratchnet as sn
from scratchnet import nn

theirs = pytest.importorskip("sklearn.neural_network", reason="scikit-learn is not installed")

import joblib  # noqa: E402
import scipy.sparse  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.datasets import load_digits, make_multilabel_classification, make_regression  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

import scratchnet.sklearn as ours  # noqa: E402
from scratchnet.jit.step import Step  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

DIGITS, LABELS = load_digits(n_class=4, return_X_y=True)
DIGITS, LABELS = DIGITS[:150] / 16, LABELS[:150]
TWO = LABELS < 2
SEVERAL, INDICATORS = make_multilabel_classification(90, 10, random_state=0)
INPUTS, TARGETS = make_regression(90, 6, n_targets=3, random_state=0)
TARGETS /= 100
WEIGHTS = np.random.default_rng(0).random(150)


def fitted(package, name, data, seed=1, weights=None, **parameters):
    x, y = data
    weights = None if weights is None else weights[: len(x)]
    estimator = getattr(package, name)(random_state=seed, **parameters)
    return estimator.fit(x, y, sample_weight=weights)


# --- the same curves --------------------------------------------------------------------------------------------------

DATA = {
    "classes": ("MLPClassifier", (DIGITS, LABELS), {"hidden_layer_sizes": (8, 5), "batch_size": 40}),
    "two classes": ("MLPClassifier", (DIGITS[TWO], LABELS[TWO]), {"hidden_layer_sizes": 6, "activation": "tanh"}),
    "several labels": ("MLPClassifier", (SEVERAL, INDICATORS), {"hidden_layer_sizes": 6, "activation": "logistic"}),
    "numbers": ("MLPRegressor", (INPUTS, TARGETS), {"hidden_layer_sizes": 6, "batch_size": 25}),
    "counts": ("MLPRegressor", (INPUTS, np.abs(TARGETS).round()), {"loss": "poisson", "activation": "identity"}),
}
SOLVERS = {
    "adam": {"solver": "adam", "learning_rate_init": 0.01, "beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-3},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.05},
    "invscaling": {"solver": "sgd", "learning_rate_init": 0.1, "learning_rate": "invscaling", "power_t": 0.3},
    "vanishing": {"solver": "sgd", "learning_rate_init": 0.1, "learning_rate": "invscaling", "power_t": 80.0},
    "adaptive": {"solver": "sgd", "learning_rate_init": 0.1, "learning_rate": "adaptive", "tol": 0.1, "shuffle": False},
    "no momentum": {"solver": "sgd", "learning_rate_init": 0.05, "momentum": 0.0},
    "not nesterov": {"solver": "sgd", "learning_rate_init": 0.05, "nesterovs_momentum": False, "early_stopping": True},
    "lbfgs": {"solver": "lbfgs"},
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", DATA)
def test_curves_and_weights_are_those_of_scikit_learn(kind, solver):
    """In float64 nothing but the order of sums differs: an arithmetic of another kind would differ in 1e-3."""
    name, data, parameters = DATA[kind]
    parameters = parameters | SOLVERS[solver] | {"max_iter": 12, "alpha": 0.1, "n_iter_no_change": 2}
    weights = WEIGHTS if solver in ("adam", "adaptive", "lbfgs") else None
    expected = fitted(theirs, name, data, weights=weights, **parameters)
    found = fitted(ours, name, data, weights=weights, **parameters)
    assert found.n_iter_ == expected.n_iter_
    np.testing.assert_allclose(found.loss_, expected.loss_, rtol=1e-8)
    for attribute in ("loss_curve_", "validation_scores_"):
        if getattr(expected, attribute, None) is not None:
            np.testing.assert_allclose(getattr(found, attribute), getattr(expected, attribute), rtol=1e-8)
    for a, b in zip(found.coefs_ + found.intercepts_, expected.coefs_ + expected.intercepts_, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)
    output = "predict_proba" if name == "MLPClassifier" else "predict"
    np.testing.assert_allclose(
        getattr(found, output)(data[0]), getattr(expected, output)(data[0]), rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_float32_stays_float32(solver):
    data = DIGITS.astype(np.float32), LABELS
    found = fitted(ours, "MLPClassifier", data, solver=solver, max_iter=5, hidden_layer_sizes=8)
    assert {a.dtype for a in found.coefs_ + found.intercepts_} == {np.dtype(np.float32)}
    assert found.predict_proba(data[0]).dtype == np.float32
    expected = fitted(theirs, "MLPClassifier", data, solver=solver, max_iter=5, hidden_layer_sizes=8)
    np.testing.assert_allclose(found.loss_, expected.loss_, rtol=1e-4)


def test_losses_are_reported_with_clipped_probabilities_as_by_scikit_learn():
    """Wide inputs: float32 probabilities of 0, whose logarithm is -inf without the clipping, -88 of logits."""
    data = (DIGITS * 500).astype(np.float32), LABELS
    expected = fitted(theirs, "MLPClassifier", data, max_iter=2, hidden_layer_sizes=8, alpha=0)
    found = fitted(ours, "MLPClassifier", data, max_iter=2, hidden_layer_sizes=8, alpha=0)
    np.testing.assert_allclose(found.loss_curve_, expected.loss_curve_, rtol=1e-4)


def test_warm_start_and_partial_fit_go_on_like_scikit_learn():
    runs = []
    for module in (theirs, ours):
        a = module.MLPClassifier(5, solver="sgd", random_state=0, warm_start=True, max_iter=3).fit(DIGITS, LABELS)
        a.fit(DIGITS, LABELS)
        b = module.MLPClassifier(5, random_state=0, alpha=0.1)
        for start in (0, 50, 100):
            b.partial_fit(DIGITS[start : start + 50], LABELS[start : start + 50], classes=range(4))
        runs.append(a.coefs_ + b.coefs_ + [a.loss_curve_, b.loss_curve_])
    for x, y in zip(*runs, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-10)


CHANGED = [{"activation": "tanh"}, {"solver": "sgd"}, {"alpha": 9.0, "learning_rate_init": 1.0}]


@pytest.mark.parametrize("changed", CHANGED, ids=str)
def test_a_parameter_that_changes_between_parts_counts_as_in_scikit_learn(changed):
    runs = []
    for module in (theirs, ours):
        a = module.MLPClassifier(5, random_state=0).partial_fit(DIGITS, LABELS, classes=range(4))
        before = a.set_params(**changed).predict_proba(DIGITS)
        a.partial_fit(DIGITS, LABELS)
        runs.append([before, a.predict_proba(DIGITS), *a.coefs_])
    for x, y in zip(*runs, strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-7, atol=1e-9)


def test_a_loss_is_a_number_of_numpy_as_in_scikit_learn():
    assert type(fitted(ours, "MLPClassifier", (DIGITS, LABELS), max_iter=1).loss_) is np.float64


# --- scikit-learn's checks and tests ----------------------------------------------------------------------------------

SMALL = (
    ours.MLPClassifier(8, max_iter=40, learning_rate_init=0.03),
    ours.MLPRegressor(hidden_layer_sizes=8, max_iter=40, learning_rate_init=0.03, solver="sgd"),
)
OTHERS = (ours.MLPClassifier(), ours.MLPRegressor(), ours.MLPClassifier(8, max_iter=40, solver="lbfgs"))


@pytest.mark.parametrize("estimator", SMALL + OTHERS * THOROUGH, ids=repr)
@pytest.mark.filterwarnings("ignore")
def test_check_estimator_passes_without_an_expected_failure(estimator):
    for check in check_estimator(estimator, on_skip=None):
        assert check["status"] in ("passed", "skipped"), check["check_name"]


# Of scikit-learn's own tests of its perceptrons, those that pass with ours only if something is changed: none.
DIFFERENCES: dict[str, str] = {}
QUICK = (
    "test_fit or test_gradient or shuffle or tolerance or verbose or dtypes or sparse or minimum or nonfinite or error"
)


def test_scikit_learns_own_tests_pass():
    """`make thorough` runs all of them."""
    program = Path(__file__).parents[1] / "programs" / "sklearn_own_tests.py"
    chosen = ["-q"] if THOROUGH else ["-q", "-k", QUICK]
    done = subprocess.run([sys.executable, program, *chosen, "-n0"], capture_output=True, text=True, cwd="/")
    failed = {line.split("::")[1].split(" ")[0] for line in done.stdout.splitlines() if line.startswith("FAILED")}
    assert failed == DIFFERENCES.keys(), done.stdout + done.stderr
    assert " passed" in done.stdout


# --- scikit-learn's tools ---------------------------------------------------------------------------------------------


def test_a_search_over_a_pipeline_in_two_processes_finds_what_one_finds():
    pipeline = make_pipeline(
        StandardScaler(), ours.MLPClassifier(8, max_iter=15, learning_rate_init=0.02, random_state=0)
    )
    grid = {"mlpclassifier__alpha": [1e-4, 10.0], "mlpclassifier__activation": ["relu", "tanh"]}
    scores = [GridSearchCV(pipeline, grid, n_jobs=n, cv=2).fit(DIGITS, LABELS) for n in (None, 2)]
    a, b = (search.cv_results_["mean_test_score"] for search in scores)
    assert (a == b).all() and a.max() > 0.8
    assert cross_val_score(pipeline, DIGITS, LABELS, cv=3).min() > 0.8


def test_labels_may_be_words_and_rows_a_table():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = pandas.DataFrame(DIGITS, columns=[f"pixel {i}" for i in range(64)])
    words = pandas.Series(np.array(["zero", "one", "two", "three"])[LABELS])
    found = ours.MLPClassifier(8, max_iter=30, learning_rate_init=0.01, random_state=0).fit(table, words)
    assert list(found.classes_) == ["one", "three", "two", "zero"]
    assert found.score(table, words) > 0.9 and found.predict(table[:1])[0] == words[0]
    with pytest.raises(ValueError, match="feature names"):
        found.predict(table.rename(columns=str.upper))


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_sparse_rows_give_the_bits_of_dense_ones(solver):
    for form in (scipy.sparse.csr_matrix, scipy.sparse.csc_array):
        dense = fitted(ours, "MLPClassifier", (DIGITS, LABELS), solver=solver, max_iter=3)
        sparse = fitted(ours, "MLPClassifier", (form(DIGITS), LABELS), solver=solver, max_iter=3)
        assert sparse.predict_proba(form(DIGITS)).tobytes() == dense.predict_proba(DIGITS).tobytes()


def test_the_number_of_threads_changes_no_bit():
    before = sn.get_num_threads()
    found = [
        fitted(ours, "MLPClassifier", (DIGITS, LABELS), max_iter=3, n_jobs=n).predict_proba(DIGITS).tobytes()
        for n in (None, 1, 2, -1, 1000)
    ]
    assert len(set(found)) == 1 and sn.get_num_threads() == before


COPIES = {
    "pickle": lambda estimator, folder: pickle.loads(pickle.dumps(estimator)),
    "deepcopy": lambda estimator, folder: copy.deepcopy(estimator),
    "joblib": lambda estimator, folder: joblib.load(joblib.dump(estimator, folder / "model")[0]),
    "joblib, read-only": lambda estimator, folder: joblib.load(joblib.dump(estimator, folder / "model")[0], "r"),
}


@pytest.mark.parametrize("made", COPIES)
@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_a_copy_predicts_and_goes_on_with_the_same_bits(made, solver, tmp_path):
    first = ours.MLPClassifier(8, solver=solver, random_state=0, learning_rate="invscaling")
    first.partial_fit(DIGITS, LABELS, classes=range(4))
    second = COPIES[made](first, tmp_path)
    assert second.predict_proba(DIGITS).tobytes() == first.predict_proba(DIGITS).tobytes()
    for estimator in (first, second):
        estimator.partial_fit(DIGITS, LABELS).partial_fit(DIGITS[:9], LABELS[:9])
    assert second.predict_proba(DIGITS).tobytes() == first.predict_proba(DIGITS).tobytes()


def test_the_mode_and_the_device_around_a_fit_do_not_matter():
    with sn.default_device("numpy"):
        found = fitted(ours, "MLPClassifier", (DIGITS, LABELS), hidden_layer_sizes=8, max_iter=2)
    expected = fitted(theirs, "MLPClassifier", (DIGITS, LABELS), hidden_layer_sizes=8, max_iter=2)
    np.testing.assert_allclose(found.predict_proba(DIGITS), expected.predict_proba(DIGITS), rtol=1e-9)
    for solver in ("adam", "lbfgs"):
        with sn.no_grad():
            found = fitted(ours, "MLPClassifier", (DIGITS, LABELS), solver=solver, max_iter=2)
        again = fitted(ours, "MLPClassifier", (DIGITS, LABELS), solver=solver, max_iter=2)
        assert found.predict_proba(DIGITS).tobytes() == again.predict_proba(DIGITS).tobytes()


def test_a_flag_of_the_module_that_changes_between_parts_takes_effect():
    class Scaled(nn.Module):
        def __init__(self):
            self.linear, self.scale = nn.Linear(64, 4), 1.0

        def forward(self, x):
            return self.linear(x) * self.scale

    found = ours.MLPClassifier(module=Scaled, random_state=0)
    for _ in range(4):
        found.partial_fit(DIGITS, LABELS, classes=range(4))
    found.module_.scale = 0.0
    assert found.partial_fit(DIGITS, LABELS).loss_ == pytest.approx(np.log(4), abs=1e-3)


def test_parts_that_come_one_by_one_are_recorded_once():
    found = ours.MLPClassifier(8, random_state=0)
    for _ in range(8):
        found.partial_fit(DIGITS[:50], LABELS[:50], classes=range(4))
    assert len(found._learner.step.programs) == 1


def test_a_penalty_or_a_rate_that_changes_records_nothing_anew(monkeypatch):
    recordings, record = [], Step._record
    monkeypatch.setattr(Step, "_record", lambda self, *args: [recordings.append(self), record(self, *args)][1])
    fitted(
        ours, "MLPClassifier", (DIGITS, LABELS), weights=WEIGHTS, solver="sgd", learning_rate="invscaling", max_iter=9,
        batch_size=50,
    )  # fmt: skip
    assert len(recordings) == 2  # the first two calls


def test_weights_that_are_set_by_hand_count():
    found = fitted(ours, "MLPClassifier", (DIGITS, LABELS), max_iter=2)
    found.coefs_[-1] = np.zeros_like(found.coefs_[-1])
    found.intercepts_[-1][:] = [0, 1, 0, 0]
    assert (found.predict(DIGITS) == 1).all()


def test_an_interrupt_ends_training_with_what_was_learnt(monkeypatch):
    found = ours.MLPClassifier(8, random_state=0)

    def interrupted(*args):
        if found.n_iter_ == 2:
            raise KeyboardInterrupt
        return epoch(*args)

    epoch = found._epoch
    monkeypatch.setattr(found, "_epoch", interrupted)
    with pytest.warns(UserWarning, match="interrupted by user"):
        found.fit(DIGITS, LABELS)
    again = fitted(ours, "MLPClassifier", (DIGITS, LABELS), seed=0, hidden_layer_sizes=8, max_iter=2)
    assert found.coefs_[0].tobytes() == again.coefs_[0].tobytes()


def test_too_few_epochs_are_told():
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(2\) reached"):
        ours.MLPClassifier(4, max_iter=2).fit(DIGITS, LABELS)


def test_other_random_numbers_stay_as_they_are():
    sn.manual_seed(3)
    expected = sn.randn(4).numpy()
    sn.manual_seed(3)
    for module in (None, network):
        fitted(ours, "MLPClassifier", (DIGITS, LABELS), max_iter=2, module=module)
    assert (sn.randn(4).numpy() == expected).all()


# --- a module ---------------------------------------------------------------------------------------------------------


def network():
    return nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 4))


def test_a_module_like_the_perceptron_learns_like_it():
    expected = fitted(ours, "MLPClassifier", (DIGITS, LABELS), hidden_layer_sizes=8, max_iter=4, shuffle=False)
    start = fitted(
        theirs, "MLPClassifier", (DIGITS, LABELS), hidden_layer_sizes=8, max_iter=1, learning_rate_init=1e-300
    )
    module = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    (a, b), (c, d) = start.coefs_, start.intercepts_
    module.load_state_dict(dict(zip(module.state_dict(), (a, c, b, d), strict=True)))
    before = {name: array.copy() for name, array in module.state_dict().items()}
    found = fitted(ours, "MLPClassifier", (DIGITS, LABELS), module=module, max_iter=4, shuffle=False)
    assert found.loss_curve_ == expected.loss_curve_
    assert all((before[name] == array).all() for name, array in module.state_dict().items())  # a copy was trained


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_a_module_with_state_and_random_numbers_is_fitted_again_copied_and_stopped_early(solver):
    parameters = {"module": network, "solver": solver, "learning_rate_init": 0.01, "max_iter": 25, "random_state": 0}
    found = ours.MLPClassifier(**parameters, early_stopping=True, n_iter_no_change=3).fit(DIGITS, LABELS)
    assert [a.shape for a in found.coefs_ + found.intercepts_] == [(64, 8), (8, 4), (8,), (8,), (8,), (4,)]
    expected = found.predict_proba(DIGITS)
    for other in (clone(found).fit(DIGITS, LABELS), pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
        assert other.predict_proba(DIGITS).tobytes() == expected.tobytes()
    logits = found.module_.eval()(DIGITS)
    np.testing.assert_allclose(nn.functional.softmax(logits, axis=1).detach().numpy(), expected, rtol=1e-12)


def test_early_stopping_restores_the_running_means_of_the_best_epoch():
    """The scores of later epochs are worse, as their rate is too large: state of the last epoch would score so, too."""
    found = ours.MLPClassifier(
        module=network, solver="sgd", learning_rate_init=2.0, max_iter=12, random_state=4, early_stopping=True, tol=0,
        validation_fraction=0.5,
    )  # fmt: skip
    kept = []
    update = ours.MLPClassifier._update_no_improvement_count
    found._update_no_improvement_count = lambda *args: (update(found, *args), kept.append(found._learner.buffers()))
    found.fit(DIGITS, LABELS)
    best = int(np.argmax(found.validation_scores_))
    assert best < len(kept) - 1
    for name, buffer in found.module_.named_buffers():
        assert (buffer.numpy() == kept[best][name]).all() and (buffer.numpy() != kept[-1][name]).any()


def test_a_frozen_layer_stays_and_is_no_part_of_the_penalty():
    module = network().double()
    module[0].requires_grad_(False)
    found = fitted(ours, "MLPClassifier", (DIGITS, LABELS), module=module, max_iter=2)
    assert [a.shape for a in found.coefs_] == [(8, 4)]
    assert (found.module_[0].weight.detach().numpy() == module[0].weight.detach().numpy()).all()


# --- refused ----------------------------------------------------------------------------------------------------------

REFUSED = {
    "outputs": ({"module": lambda: nn.Linear(64, 3)}, r"module: expected outputs of shape \(150, 4\), got \(150, 3\)"),
    "no module": (
        {"module": lambda: 3},
        "module: expected a scratchnet.nn.Module, or a function that makes one, got 3",
    ),
    "nothing to train": ({"module": nn.ReLU()}, "module: expected at least one parameter that trains, got none"),
    "both": (
        {"module": network, "activation": "tanh"},
        "module: expected hidden_layer_sizes and activation to be",
    ),
    "a number": ({"module": 3}, "The 'module' parameter of MLPClassifier must be .* Got 3 instead"),
    "half a thread": ({"n_jobs": 0.5}, "The 'n_jobs' parameter of MLPClassifier must be .* Got 0.5 instead"),
    "no thread": ({"n_jobs": 0}, "n_jobs"),
    "alpha": ({"alpha": -1.0}, "The 'alpha' parameter of MLPClassifier must be"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_a_wrong_parameter_is_refused_in_one_line(case, solver):
    parameters, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        ours.MLPClassifier(solver=solver, **parameters).fit(DIGITS, LABELS)
    assert "\n" not in str(caught.value)


POSITIVE = np.abs(TARGETS)
OTHER_NETWORKS = {
    "hidden_layer_sizes": {"hidden_layer_sizes": (4, 3)},
    "module": {"module": nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))},
    "loss": {"loss": "poisson"},
}
OTHER_TARGETS = {
    "columns": (POSITIVE[:, :2], "y: expected 3 columns, as training began with, got 2"),
    "words": (POSITIVE.astype(str), "y: expected numbers, got <U"),
    "dates": (np.arange(270).reshape(90, 3).astype("M8[D]"), "y: expected numbers, got datetime64"),
    "negative": (POSITIVE - 9.0, "y: expected no negative numbers with loss='poisson', got -"),
}


@pytest.mark.parametrize("name", OTHER_NETWORKS)
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_training_goes_on_with_no_other_network(name, solver):
    found = fitted(ours, "MLPRegressor", (INPUTS, POSITIVE), warm_start=True, max_iter=2, solver=solver)
    found.set_params(**OTHER_NETWORKS[name])
    with pytest.raises(sn.ConfigError, match=f"{name}: expected the one that training began with") as caught:
        found.fit(INPUTS, POSITIVE)
    assert "\n" not in str(caught.value)
    expected = clone(found).fit(INPUTS, POSITIVE)
    found.set_params(warm_start=False).fit(INPUTS, POSITIVE)
    assert (found.predict(INPUTS) == expected.predict(INPUTS)).all()


@pytest.mark.parametrize("case", OTHER_TARGETS)
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_targets_that_would_be_taken_for_something_else_are_refused(case, solver):
    y, message = OTHER_TARGETS[case]
    found = fitted(ours, "MLPRegressor", (INPUTS, POSITIVE), warm_start=True, loss="poisson", max_iter=2, solver=solver)
    with pytest.raises(sn.errors.ScratchnetError, match=message):
        found.fit(INPUTS, y)


def test_a_batch_without_weight_is_refused():
    with pytest.raises(sn.ConfigError, match="sample_weight: expected a positive sum in each batch, got 0"):
        ours.MLPClassifier(batch_size=50).fit(DIGITS, LABELS, sample_weight=np.r_[1.0, np.zeros(149)])


def test_an_unknown_parameter_is_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'alfa'"):
        ours.MLPClassifier(alfa=1)


def test_a_loss_that_diverges_ends_in_scikit_learns_error():
    with pytest.raises(ValueError, match="non-finite parameter weights"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours.MLPRegressor(solver="sgd", learning_rate_init=1e9, max_iter=20).fit(INPUTS, TARGETS)


def test_without_scikit_learn_one_line_says_what_to_install():
    code = "import sys; sys.modules['sklearn'] = None; import scratchnet.sklearn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    line = done.stderr.splitlines()[-1]
    assert (
        line.startswith("scratchnet.errors.ConfigError")
        and "expected scikit-learn 1.7 or newer" in line
        and "pip install 'scikit-learn>=1.7'" in line
    )
